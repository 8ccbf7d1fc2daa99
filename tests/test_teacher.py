"""FixMatch and UniMatch V2 in a training: CutMix partners, dropped channels, the teacher's checkpoints and metrics."""

import json

import pytest
import torch
from run_training import build_trainer, make_trainer, result_of
from test_distributed import differing
from test_method import assert_accumulation_changes_nothing, mixed_dataset

from allspark_hf import AllSparkConfig
from allspark_hf.data.mixed import Draw, MixedBatch, MixedBatchCollator
from allspark_hf.methods import PixelCounts
from allspark_hf.methods.strong_views import complementary_dropout, cutmix, unpack_channel_bits
from allspark_hf.methods.teacher import update_teacher
from allspark_hf.methods.unimatch_v2 import UniMatchV2
from allspark_hf.training.storage import write_run_file


TRAINING = {"num_unlabeled": 12, "seed": 1, "confidence_threshold": 0.4}
EXACT = {**TRAINING, "max_steps": 2, "exact": True, "max_grad_norm": 0.01, "keep_quantile": 0.5}
SAVING = {**TRAINING, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "logging_steps": 1}


def collated(*positions):
    dataset = mixed_dataset(unlabeled_views=UniMatchV2.unlabeled_views)
    draws = [Draw(True, 0, 0, 0)] + [Draw(False, position % 3, 0, position) for position in positions]
    return MixedBatch(MixedBatchCollator()([dataset[draw] for draw in draws]))


def test_an_image_has_the_same_partner_however_the_order_is_cut():
    mixed, drawn = {}, {}
    for cut in ([range(4)], [range(2), range(2, 4)]):
        for positions in cut:
            batch = collated(*positions)
            images, box = batch["unlabeled_pixel_values_strong_2"], batch["unlabeled_cutmix_box_strong_2"]
            (result,) = cutmix(batch, "strong_2", images)
            bits, kept = unpack_channel_bits(batch["unlabeled_channel_bits_strong_2"])
            assert bits.shape == (len(positions), 4096) and kept.sum() == len(positions) // 2
            order = [*positions][::2] + [*positions][1::2][::-1]
            mixed.setdefault(len(cut), {}).update(zip(order, result, strict=True))
            drawn.setdefault(len(cut), {}).update(zip(order, torch.cat([bits, kept[:, None]], 1), strict=True))
            outside = [not top and not bottom for top, _, bottom, _ in box.tolist()]
            assert [torch.equal(*pair) for pair in zip(result, images, strict=True)] == outside
    for found in (mixed, drawn):
        assert found[1].keys() == found[2].keys() == {0, 1, 2, 3}
        assert all(torch.equal(found[1][position], found[2][position]) for position in range(4))
    assert 0.4 < torch.stack(list(drawn[1].values())).float().mean() < 0.6


def test_an_odd_batch_mixes_its_middle_image_with_itself():
    batch = collated(0, 1, 2)
    images = batch["unlabeled_pixel_values_strong_1"]
    assert torch.equal(cutmix(batch, "strong_1", images)[0][1], images[1])
    assert not unpack_channel_bits(batch["unlabeled_channel_bits_strong_2"])[1][1]


def test_channels_of_a_pyramid_are_complementary():
    bits = torch.tensor([[True, False, True], [False, False, True]])
    maps = (torch.ones(4, 2, 3, 5), torch.ones(4, 3, 1, 2))
    first, last = complementary_dropout(maps, bits, torch.tensor([False, True]))
    assert first[:, :, 0, 0].tolist() == [[2, 0], [1, 1], [0, 2], [1, 1]]
    assert last[:, :, 0, 0].tolist() == [[2, 0, 2], [1, 1, 1], [0, 2, 0], [1, 1, 1]]


def test_bits_of_a_byte_are_channels():
    bits, _ = unpack_channel_bits(torch.tensor([[1, 130]], dtype=torch.uint8))
    assert bits.nonzero()[:, 1].tolist() == [0, 9, 15]


@pytest.mark.parametrize("name", ["fixmatch", "unimatch_v2"])
def test_the_teacher_labels_and_begins_as_the_student(tmp_path, name):
    settings = {**TRAINING, "ema_decay": 0.75, "switches": AllSparkConfig.plain_segformer_switches()}
    trainer = build_trainer({**settings, "method": name, "output_dir": str(tmp_path)})
    method, model, batch = trainer.method, trainer.model, collated(0, 1)
    bias = method.teacher.decode_head.classifier.bias
    bias[2], model.decode_head.classifier.bias.data[1] = 99, 99
    step = method.step(model, batch, PixelCounts(torch.ones(()), method.count_unlabeled(batch)), epoch=0)
    assert step.pseudo_labels[batch["unlabeled_pixel_mask"]].unique().tolist() == [2]
    method.before_training(model)
    assert torch.equal(bias, model.decode_head.classifier.bias) and method.decay == 0.75
    method.build(model.bfloat16())
    assert method.teacher.dtype == torch.float32


def test_whole_numbers_follow_the_student_rounded_down():
    """Whatever the decay, one that both have stays."""
    student, teacher = torch.nn.Module(), torch.nn.Module()
    for module, count in ((student, 9), (teacher, 2)):
        module.register_buffer("mean", torch.zeros(1))
        module.register_buffer("count", torch.tensor(count))
        module.register_buffer("index", torch.arange(2**12))
        module.register_buffer("flag", torch.tensor(True))
    for decay, count in ((0.999, 2), (0.9, 2), (0.75, 3), (0.3, 7), (0, 9)):
        update_teacher(teacher, student, decay)
        assert teacher.count == count
        assert torch.equal(teacher.index, student.index) and teacher.flag


def test_padding_is_counted_where_the_partner_has_it(tmp_path):
    method = build_trainer({**TRAINING, "method": "unimatch_v2", "output_dir": str(tmp_path)}).method
    mask = torch.ones(2, 8, 8, dtype=torch.bool)
    mask[0, 4:] = False
    boxes = {1: torch.tensor([[0, 0, 8, 8], [0, 0, 0, 0]]), 2: torch.tensor([[0, 0, 0, 0], [3, 0, 6, 8]])}
    views = {f"unlabeled_cutmix_box_strong_{view}": box for view, box in boxes.items()}
    batch = MixedBatch(unlabeled_pixel_mask=mask, **views)
    assert method.count_unlabeled(batch).tolist() == [64 + 64, 32 + 48]


@pytest.mark.parametrize("method", ["fixmatch", "unimatch_v2"])
def test_accumulation_changes_nothing(tmp_path, method):
    """tests/test_distributed.py shows the same of two processes."""
    trainer, _ = assert_accumulation_changes_nothing({**EXACT, "method": method, "output_dir": str(tmp_path)})
    assert all(entry["loss_u"] > 0 for entry in result_of(trainer)["losses"])


def test_resume_equals_the_uninterrupted_training_and_evaluates_both_models(tmp_path):
    evaluated = {"eval_strategy": "steps", "eval_steps": 2, "evaluate_student": True}
    settings = {**SAVING, **evaluated, "keep_quantile": 0.5, "ema_decay": 0.9, "output_dir": str(tmp_path)}
    settings |= {"method": "allspark_unimatch", "memory_warmup_epochs": 0}
    whole = build_trainer(settings)
    whole.train()
    assert whole.method.state_dict()["class_thresholds.histogram"].sum() > 0
    checkpoint = tmp_path / "checkpoint-2"
    state = torch.load(checkpoint / "method.pt", weights_only=True)
    assert state.keys() == {"class_thresholds.histogram"}
    resumed = build_trainer({**settings, "switches": {"seed": 9}})
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert result_of(resumed)["losses"] == result_of(whole)["losses"]
    for one, other in ((resumed.model, whole.model), (resumed.method, whole.method)):
        assert differing(one.state_dict(), other.state_dict()) == []
    logged = [entry for entry in whole.state.log_history if "eval_loss" in entry][-1]
    for prefix, model in (("", whole.method.teacher), ("student_", whole.model)):
        alone = make_trainer(model, output_dir=str(tmp_path / "alone"), method="supervised").evaluate()
        assert logged[f"eval_{prefix}loss"] == pytest.approx(alone["eval_loss"], rel=1e-6)
        assert logged[f"eval_{prefix}mean_iou"] == pytest.approx(alone["eval_mean_iou"], rel=1e-6)
    assert logged["eval_loss"] != logged["eval_student_loss"]


def test_a_checkpoint_that_holds_the_teacher_twice_is_resumed(tmp_path):
    """As those of before."""
    settings = {**SAVING, "method": "allspark_unimatch", "max_steps": 2, "output_dir": str(tmp_path)}
    whole, checkpoint = build_trainer(settings), tmp_path / "checkpoint-2"
    whole.train()
    torch.save(whole.method.state_dict(), checkpoint / "method.pt")
    write_run_file(checkpoint, json.loads((checkpoint / "allspark_run.json").read_text()))
    resumed = build_trainer({**settings, "switches": {"seed": 9}})
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert any(name.startswith("teacher.") for name in whole.method.state_dict())
    assert differing(resumed.method.state_dict(), whole.method.state_dict()) == []


def test_a_stream_gives_the_views(tmp_path):
    settings = {**TRAINING, "method": "unimatch_v2", "stream": True, "unlabeled_images_per_epoch": 4, "max_steps": 2}
    trainer = build_trainer({**settings, "output_dir": str(tmp_path)})
    trainer.train()
    assert all(entry["loss_u"] > 0 for entry in result_of(trainer)["losses"])
