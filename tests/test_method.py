"""What a method may have, shown with tests/sample_method.py: views, a teacher, a head, a buffer; the batch it gets."""

from pathlib import Path

import pytest
import torch
from conftest import TWO_STAGES, make_dataset
from run_training import build_trainer, make_trainer, result_of
from safetensors.torch import load_file
from test_distributed import differing
from transformers import Trainer

from allspark_hf import SegformerForSemiSupervisedSegmentation
from allspark_hf.data.mixed import Draw, MixedBatch, MixedBatchCollator, MixedDataset
from allspark_hf.data.views import STRONG, STRONG_1, STRONG_2, WEAK, draw_cutmix_box, inside_boxes
from allspark_hf.methods import Supervised
from allspark_hf.training.processes import UNLABELED_PREFIX
from allspark_hf.training.storage import STUDENT_FILE


SAMPLE = {"method": "sample", "num_unlabeled": 12, "seed": 1}
SAVING = {**SAMPLE, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
EXACT = {**SAMPLE, "max_steps": 2, "exact": True, "max_grad_norm": 0.01}


def mixed_dataset(**kwargs) -> MixedDataset:
    settings = {"crop": (40, 56), "seed": 7, "num_labels": 3, "long_side": None}
    statistics = {"image_mean": (0.5, 0.4, 0.3), "image_std": (0.2, 0.3, 0.4)}
    return MixedDataset(make_dataset(2), make_dataset(3, seed=1, masks=False), **settings, **statistics, **kwargs)


# ---- Views ----


def test_views_show_one_crop_and_do_not_move_each_other():
    draw = Draw(False, 1, 4, 9)
    plain = mixed_dataset()[draw]
    sample = mixed_dataset(unlabeled_views=(WEAK, STRONG_1, STRONG_2))[draw]
    boxes = {name for name in sample if name.startswith("cutmix_box")}
    assert sample.keys() - plain.keys() == boxes | {"pixel_values_strong_1", "pixel_values_strong_2"}
    assert boxes == {"cutmix_box_strong_1", "cutmix_box_strong_2"}
    assert torch.equal(sample["pixel_values"], plain["pixel_values"])
    assert torch.equal(sample["pixel_mask"], plain["pixel_mask"])
    assert not torch.equal(sample["pixel_values_strong_1"], sample["pixel_values_strong_2"])
    alone = mixed_dataset(unlabeled_views=(WEAK, STRONG_1))[draw]
    assert torch.equal(alone["pixel_values_strong_1"], sample["pixel_values_strong_1"])


def test_the_first_labeled_view_has_the_pixels_of_ever():
    """A strong first view draws on from the crop's generator, whatever views follow."""
    first, more = mixed_dataset(), mixed_dataset(labeled_views=(STRONG, WEAK))
    for draw in (Draw(True, 0, 0, 0), Draw(True, 1, 3, 5)):
        assert torch.equal(first[draw]["pixel_values"], more[draw]["pixel_values"])


def test_the_labeled_view_may_be_given(tmp_path):
    """The labeled pixels of two methods whose views differ as published, and are then the same."""

    def pixels(method, **given):
        trainer = build_trainer({**SAMPLE, "method": method, **given, "output_dir": str(tmp_path)})
        return next(iter(trainer.get_train_dataloader()))["pixel_values"]

    strong, weak = pixels("supervised"), pixels("unimatch_v2")
    assert not torch.equal(strong, weak)
    assert torch.equal(pixels("supervised", labeled_view="weak"), weak)
    assert torch.equal(pixels("unimatch_v2", labeled_view="strong"), strong)


def test_views_are_the_same_finished_on_the_device():
    from allspark_hf.data.device_photometry import finish_on_device

    views = {"labeled_views": (WEAK, STRONG), "unlabeled_views": (WEAK, STRONG_1, STRONG_2)}
    draws = [Draw(True, 0, 0, 0), Draw(True, 1, 0, 1), Draw(False, 2, 0, 0)]
    batches = []
    for on_device in (False, True):
        dataset = mixed_dataset(**views, augment_on_device=on_device)
        batches.append(MixedBatchCollator()([dataset[draw] for draw in draws]))
    finished = finish_on_device(batches[1], (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert finished.keys() == batches[0].keys()
    assert all(torch.equal(tensor, finished[name]) for name, tensor in batches[0].items())


def test_cutmix_boxes():
    import numpy as np

    boxes = [draw_cutmix_box((40, 56), np.random.default_rng(seed)) for seed in range(400)]
    shares = torch.tensor([(bottom - top) * (right - left) / (40 * 56) for top, left, bottom, right in boxes])
    assert 150 < (shares == 0).sum() < 250
    assert shares.max() <= 0.4 and shares[shares > 0].min() > 0.01
    assert all(0 <= top <= bottom <= 40 and 0 <= left <= right <= 56 for top, left, bottom, right in boxes)
    inside = inside_boxes(torch.tensor([[1, 2, 3, 5], [0, 0, 0, 0]]), (4, 6))
    assert inside.shape == (2, 4, 6) and inside.sum(dim=(1, 2)).tolist() == [6, 0]
    assert inside[0, 1:3, 2:5].all()


def test_a_tensor_that_nobody_declared():
    batch = MixedBatch(pixel_values=torch.zeros(1), labels=torch.zeros(1))
    with pytest.raises(
        ValueError, match=r"no unlabeled_pixel_values_strong_1, only pixel_values, labels: .*unlabeled_v"
    ):
        batch["unlabeled_pixel_values_strong_1"]


# ---- The unlabeled branch ----


def test_unlabeled_views_train_the_branch_whatever_the_method_is_based_on(tmp_path):
    class Both(Supervised):
        unlabeled_views = (WEAK,)

    trainer = build_trainer({**SAMPLE, "method": "supervised", "output_dir": str(tmp_path)})
    unread = trainer.processes.unread_parameters(trainer.model)
    assert unread and all(name.startswith(UNLABELED_PREFIX) for name in unread)
    trainer.method.__class__ = Both
    assert trainer.processes.unread_parameters(trainer.model) == {}


# ---- A method with state ----


def test_head_teacher_and_buffer_are_trained_saved_and_resumed(tmp_path):
    whole = build_trainer({**SAVING, "output_dir": str(tmp_path / "whole")})
    rates = sorted(group["lr"] for group in whole.create_optimizer().param_groups)
    assert rates == pytest.approx([0.01, 0.03, 0.1])  # encoder, the sample's head, decode head
    start = {name: value.clone() for name, value in whole.method.built["color"].state_dict().items()}
    whole.train()
    assert differing(start, whole.method.built["color"].state_dict()) == ["weight", "bias"]
    assert whole.method.seen == 4 and not any(value.requires_grad for value in whole.method.teacher.parameters())
    resumed = build_trainer({**SAVING, "output_dir": str(tmp_path / "whole"), "switches": {"seed": 9}})
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert result_of(resumed)["losses"] == result_of(whole)["losses"]
    for one, other in ((resumed.model, whole.model), (resumed.method, whole.method)):
        assert differing(one.state_dict(), other.state_dict()) == []


def test_the_teacher_is_evaluated_saved_and_published(tmp_path):
    trainer = build_trainer({**SAVING, "output_dir": str(tmp_path), "eval_strategy": "steps", "eval_steps": 2})
    trainer.train()
    trainer.save_model()
    pixel_values = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = trainer.method.teacher(pixel_values).logits
        student = trainer.model.eval()(pixel_values).logits
        for folder in (tmp_path, tmp_path / "checkpoint-4"):
            model = SegformerForSemiSupervisedSegmentation.from_pretrained(folder).eval()
            assert torch.equal(model(pixel_values).logits, expected)
    assert not torch.equal(student, expected)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "method" in name or "memory" in name]
    logged = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    student = make_trainer(trainer.model, output_dir=str(tmp_path / "student"), method="supervised")
    assert logged == trainer.evaluate()["eval_loss"] != student.evaluate()["eval_loss"]


@pytest.mark.parametrize("loads_student", [False, True])
def test_the_best_teacher_is_loaded_at_the_end(tmp_path, monkeypatch, loads_student):
    """Also with FSDP and DeepSpeed, with which transformers loads the student from a file of theirs."""
    if loads_student:
        monkeypatch.setattr(Trainer, "_load_best_model", load_best_student)
    settings = {**SAVING, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    settings |= {"metric_for_best_model": "loss", "greater_is_better": True, "learning_rate": 0.05}
    trainer = build_trainer({**settings, "output_dir": str(tmp_path)})
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.state.best_global_step == 2 and losses[0] > losses[1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[0], rel=1e-6)
    student = load_file(tmp_path / "checkpoint-2" / STUDENT_FILE)
    assert all(torch.equal(value, student[name]) for name, value in trainer.model.state_dict().items())


@pytest.mark.parametrize(
    "second",
    [{"method": "unimatch_v2", "evaluate_student": True}, {"method": "memory_contrastive", "evaluate_teacher": True}],
)
def test_the_second_score_is_of_the_best_update_too(tmp_path, second):
    settings = {**SAVING, **second, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    settings |= {"metric_for_best_model": "loss", "greater_is_better": True, "learning_rate": 0.05}
    trainer = build_trainer({**settings, "output_dir": str(tmp_path)})
    trainer.train()
    other = f"eval_{'student' if 'evaluate_student' in second else 'teacher'}_loss"
    first, last = (entry for entry in trainer.state.log_history if other in entry)
    assert trainer.state.best_global_step == first["step"] and first[other] != pytest.approx(last[other], rel=1e-4)
    again = trainer.evaluate()
    assert again["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-6)
    assert again[other] == pytest.approx(first[other], rel=1e-6)


def load_best_student(trainer):
    trainer.model.load_state_dict(load_file(Path(trainer.state.best_model_checkpoint) / STUDENT_FILE))


def assert_accumulation_changes_nothing(settings: dict, cuts=((4, 1), (2, 2)), rel=1e-5):
    """Trains with updates of the same images in batches of one size and of another; returns both trainers."""
    trainers, results = [], []
    for batch_size, accumulation in cuts:
        cut = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        trainers.append(build_trainer({**settings, **cut, "switches": TWO_STAGES}))
        trainers[-1].train()
        results.append(result_of(trainers[-1]))
    one, other = results
    for losses, others in zip(one["losses"], other["losses"], strict=True):
        assert losses == pytest.approx(others, rel=rel)
    for part in ("state", "method"):
        for name, value in one[part].items():
            assert torch.allclose(other[part][name], value, rtol=0, atol=1e-7), name
    return trainers


def test_accumulation_changes_nothing(tmp_path):
    """tests/test_distributed.py shows the same of two processes."""
    for trainer in assert_accumulation_changes_nothing({**EXACT, "output_dir": str(tmp_path)}):
        assert trainer.method.seen == 2  # once an update
