"""The plain step that `allspark benchmark` compares UniMatch V2 with is the same step."""

import pytest
import torch
from test_benchmark import CASE, CPU, TrainingStep, replace


def test_the_plain_step_has_our_loss_and_gradients():
    case, results = replace(CASE, size="tiny", crop=64, num_labels=3, precision="fp32", batch_size=3), []
    for variant in ("unimatch_v2", "unimatch_v2_plain"):
        step = TrainingStep(case, variant, CPU, seed=5, confidence_threshold=0.5)
        trainer, model = step.trainer, step.model.train()
        for one in (model, trainer.method.teacher):  # random weights are sure of nothing
            one.decode_head.classifier.weight.data *= 1000
        (batch,), pixels = trainer.get_batch_samples(iter([step.batch]), 1, CPU)
        assert batch["unlabeled_cutmix_box_strong_1"].any() and pixels.unlabeled[0] != pixels.unlabeled[1]
        torch.manual_seed(0)  # dropout
        losses = trainer.method.step(model, trainer._prepare_inputs(batch), pixels, epoch=0)
        losses.loss.backward()
        results.append((losses, {name: value.grad for name, value in model.named_parameters()}))
    (ours, gradients), (plain, others) = results
    assert 0.1 < ours.terms["used_u"] < 0.9
    for name in ("loss_x", "loss_u"):
        assert plain.terms[name].item() == pytest.approx(ours.terms[name].item(), rel=1e-5), name
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert torch.allclose(others[name], gradient, rtol=1e-3, atol=1e-6 * largest), name
