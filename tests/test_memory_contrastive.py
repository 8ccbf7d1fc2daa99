"""The method `memory_contrastive` in training: options, encoders, resuming; and its pieces at their edges.

tests/test_parity_memory_contrastive.py compares it to the authors' code, tests/test_distributed.py two processes to
one, and tests/test_step.py shows that the host never waits.
"""

import json
from functools import partial

import numpy as np
import pytest
import torch
from conftest import tiny_model
from run_training import build_trainer, make_trainer, result_of
from safetensors.torch import load_file
from segmenter_tester import NO_BOTTLENECK
from test_backbone import tiny_backbone_model
from test_distributed import differing
from test_method import mixed_dataset
from test_step import images, make_batch, make_method

from allspark_hf.data.mixed import Draw
from allspark_hf.methods import METHODS
from allspark_hf.methods.contrast.augment import augment, draw_strong, draw_weak
from allspark_hf.methods.contrast.class_mix import class_mix, mix_with_neighbors
from allspark_hf.methods.contrast.heads import ClassMLP, pixel_rows
from allspark_hf.methods.contrast.memory import PixelMemory
from allspark_hf.methods.contrast.terms import confident_loss


METHOD = {"method": "memory_contrastive", "num_unlabeled": 12, "seed": 1, "memory_confidence": 0.3}


def assert_contrast(trainer):
    """The last step had both contrastive losses, from a memory with something in it."""
    last = [entry for entry in trainer.state.log_history if "loss_x" in entry][-1]
    assert all(0 < last[name] < 2 for name in ("loss_contrast_x", "loss_contrast_u"))
    assert trainer.method.contrast.memory.fill.max() > 1


# ---- Training ----


def test_resumed_and_published(tmp_path):
    """With accumulation and dropout; from a checkpoint after the contrast has begun."""
    settings = {**METHOD, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
    settings |= {"contrast_start": 0, "balance_classes": True, "output_dir": str(tmp_path)}
    whole = build_trainer({**settings})
    whole.train()
    assert_contrast(whole)
    assert whole.method.updates == 4 and whole.method.balance.seen == 4
    resumed = build_trainer({**settings, "switches": {"seed": 9}})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert result_of(resumed)["losses"] == result_of(whole)["losses"]
    for one, other in ((resumed.model, whole.model), (resumed.method, whole.method)):
        assert differing(one.state_dict(), other.state_dict()) == []
    resumed.save_model()
    published = load_file(tmp_path / "model.safetensors")
    assert published and not [name for name in published if name.startswith(("method", "teacher", "contrast"))]
    record = json.loads((tmp_path / "run_record.json").read_text())
    weights = {name: value for name, value in resumed.model.named_parameters() if name in published}
    assert record["model"]["parameters"] == sum(value.numel() for value in weights.values())
    assert "contrast_weight" in record["settings"] and "confidence_threshold" not in record["settings"]


def test_what_the_paper_says_instead(tmp_path):
    """The highest scores enter the memory, its rows are scored, and the teacher predicts in eval mode."""
    settings = {"memory_keeps": "highest", "memory_weights": "scored", "teacher_mode": "eval", "contrast_start": 0}
    trainer = build_trainer({**METHOD, **settings, "max_steps": 2, "output_dir": str(tmp_path)})
    start = trainer.model.method_modules["memory_selectors"].output_weight.detach().clone()
    trainer.train()
    assert_contrast(trainer)
    teacher, student = trainer.method.teacher, trainer.model
    assert not any(module.training for module in [*teacher.model.modules(), *teacher.heads.modules()])
    assert torch.equal(teacher.model.decode_head.batch_norm.running_var, student.decode_head.batch_norm.running_var)
    assert not torch.equal(start, trainer.model.method_modules["memory_selectors"].output_weight)


def test_the_teacher_of_the_published_code_keeps_statistics_of_its_own(tmp_path):
    trainer = build_trainer({**METHOD, "max_steps": 1, "evaluate_teacher": True, "output_dir": str(tmp_path)})
    trainer.train()
    metrics = trainer.evaluate()
    teacher, student = trainer.method.teacher.model, trainer.model
    assert all(module.training for module in teacher.modules())
    assert torch.equal(teacher.decode_head.classifier.weight, student.decode_head.classifier.weight)  # first update
    assert teacher.decode_head.batch_norm.num_batches_tracked == 1  # labeled images are not asked about yet
    assert student.decode_head.batch_norm.num_batches_tracked == 2
    assert trainer.method.evaluated_model(student) is student
    for prefix, model in (("", student), ("teacher_", teacher)):
        alone = make_trainer(model, output_dir=str(tmp_path / "alone"), method="supervised").evaluate()
        assert metrics[f"eval_{prefix}loss"] == pytest.approx(alone["eval_loss"], rel=1e-6)
    assert metrics["eval_loss"] != metrics["eval_teacher_loss"]


@pytest.mark.parametrize(
    ("encoder", "fields"), [("dinov2", {}), ("dinov2", {"head": "all_mlp"}), ("resnet", {})], ids=str
)
def test_every_encoder_and_head(tmp_path, encoder, fields):
    model = tiny_backbone_model(encoder, use_cross_attention=False, use_memory=False, use_grouping=False, **fields)
    trainer = make_trainer(model, output_dir=str(tmp_path), **METHOD, max_steps=2, contrast_start=0)
    trainer.train()
    assert_contrast(trainer)


def test_when_the_contrast_begins(tmp_path):
    method = build_trainer({**METHOD, "output_dir": str(tmp_path)}).method
    starts = {}
    for method.num_updates in (300, 10_000, 150_000):
        starts[method.num_updates] = method.contrast_start
    assert starts == {300: 60, 10_000: 2000, 150_000: 2000}


# ---- Pieces ----


def test_the_highest_scores_come_first():
    torch.manual_seed(0)
    rows, labels, selectors = torch.randn(9, 4), torch.zeros(9, dtype=torch.int64), ClassMLP(2, 4, 4, 1)
    scores = selectors(rows[None], torch.ones(1, 9, dtype=torch.bool)).flatten()
    for keep, descending in (("lowest", False), ("highest", True)):
        memory = PixelMemory(num_classes=2, size=8, quota=3, width=4)
        memory.update(rows, labels, selectors, keep)
        assert memory.fill.tolist() == [3, 0]
        assert torch.equal(memory.rows[0, :3], rows[scores.argsort(descending=descending)[:3]])


@pytest.mark.parametrize("number", [0, 1])
def test_few_pixels(number):
    """None change nothing, one gives its bias, and neither is an error, as one is in the published code."""
    mlp, mask = ClassMLP(1, 3, 4, 2), torch.arange(5)[None] < number
    given = torch.randn(1, 5, 3, requires_grad=True)
    mlp(given, mask)[mask].sum().backward()
    assert given.grad.isfinite().all() and mlp.num_batches_tracked == 0 and mlp.running_mean.abs().max() == 0


def test_rows_of_feature_maps():
    labels = torch.arange(64 * 64).view(1, 64, 64)
    rows, of_rows = pixel_rows(torch.zeros(1, 2, 16, 16), labels, 9999)
    assert rows.shape == (256, 2) and torch.equal(of_rows, labels[:, ::4, ::4].flatten())
    # 40 positions for 70 pixels, of which 6 are padding: every second position.
    rows, of_rows = pixel_rows(torch.zeros(1, 2, 40, 40), labels, 9999, multiple=14)
    assert rows.shape == (400, 2)
    place = [int(1.75 * position) for position in range(0, 40, 2)]
    assert of_rows.view(20, 20)[0].tolist() == [one if one < 64 else 9999 for one in place]


def test_class_mix_of_neighbors():
    labels = torch.tensor([0, 1, 2, 0, 1])[:, None, None].repeat(1, 2, 2)
    labels[1, 0] = 2
    orders = torch.tensor([0, 1, 2]).repeat(5, 1)
    (mixed,) = mix_with_neighbors(orders, labels, labels)
    assert mixed.tolist() == [labels[1].tolist(), [[0, 0]] * 2, [[0, 0]] * 2, [[2, 2]] * 2, [[1, 1]] * 2]
    orders[:] = -1
    assert torch.equal(mix_with_neighbors(orders, labels, labels)[0], labels)
    chosen = torch.tensor([[False, True, False]]).repeat(5, 1)
    (mixed,) = class_mix(chosen, labels, torch.tensor([1, 0, 2, 3, 4]), labels)
    assert mixed[0].tolist() == [[0, 0], [1, 1]]


def test_draws_follow_from_the_seed():
    """And are those of the view; the first view's pixels do not move."""
    method = METHODS["memory_contrastive"]
    dataset = mixed_dataset(labeled_views=method.labeled_views, unlabeled_views=method.unlabeled_views)
    first, again = (dataset[Draw(False, 1, 4, 9)] for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    names = {"class_order", "jitter_order", "jitter_amounts"}
    assert dataset[Draw(True, 0, 0, 0)].keys() == {"pixel_values", "labels", *names}
    names |= {"scaled_size", "corner", "flip", "blur"}
    of_views = {f"{name}_strong_{view}" for name in names for view in (1, 2)}
    assert first.keys() == {"pixel_values", "pixel_mask", *of_views}
    assert torch.equal(first["pixel_values"], mixed_dataset()[Draw(False, 1, 4, 9)]["pixel_values"])


def test_how_often_each_operation_is_drawn():
    crop, labels = (40, 57), 3
    drawn = [draw_strong(crop, labels, np.random.default_rng(seed)) for seed in range(2000)]
    sizes, corners = (np.array([one[name] for one in drawn]) for name in ("scaled_size", "corner"))
    shares = {
        0.75: [one["class_order"][0] >= 0 for one in drawn],
        0.8: (sizes != crop).any(axis=1),
        0.5: [one["flip"] for one in drawn],
        0.2: [one["blur"] for one in drawn],
    }
    assert {share: np.mean(happened) for share, happened in shares.items()} == pytest.approx(
        {share: share for share in shares}, abs=0.03
    )
    assert (sizes.min(0) == (30, 42)).all() and (sizes.max(0) == (69, 99)).all()
    larger = sizes >= crop
    assert ((corners >= 0) & (corners <= sizes - crop))[larger].all()
    missing = crop - sizes
    assert (corners == -((missing + np.array([1, 0])) // 2))[~larger].all()
    jittered = np.array([one["jitter_amounts"] for one in drawn if one["jitter_order"][0] >= 0])
    assert len(jittered) / len(drawn) == pytest.approx(0.8, abs=0.03)
    assert np.abs(jittered - (0, 1, 1, 0)).max(0) == pytest.approx(np.array((0.25, 0.25, 0.125, 0.25 / 3)), rel=0.01)
    weak = [draw_weak(crop, labels, np.random.default_rng(seed)) for seed in range(2000)]
    for name in ("class_order", "jitter_order"):
        assert np.mean([one[name][0] >= 0 for one in weak]) == pytest.approx(0.2, abs=0.03)


def test_each_image_has_an_augmentation_of_its_own():
    """An image of a batch comes out as it does alone, with any numbers, on a crop that is not square."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.rand(5, 3, 24, 37, generator=rng, dtype=torch.float64)
    labels = torch.randint(4, (5, 24, 37), generator=rng)
    confidence = torch.rand(5, 24, 37, generator=rng, dtype=torch.float64)
    each = [draw_strong((24, 37), 4, np.random.default_rng(seed)) for seed in range(4, 9)]
    drawn = {name: torch.from_numpy(np.stack([one[name] for one in each])) for name in each[0]}
    together = augment(drawn, pixels, labels, confidence, 255)
    assert together[0].min() >= 0 and together[0].max() <= 1
    for index in range(5):
        own = {name: value[index : index + 1] for name, value in drawn.items()}
        one = slice(index, index + 1)
        alone = augment(own, pixels[one], labels[one], confidence[one], 255)
        for whole, part in zip(together, alone, strict=True):
            assert torch.allclose(whole[one].double(), part.double(), rtol=0, atol=1e-14)
        padding = together[1][index] == 255
        assert (together[2][index][padding] == 0).all()
    assert (together[1] == 255).any()


@pytest.mark.parametrize("encoder", ["segformer", "dinov2"])
def test_the_features_are_those_before_dropout(encoder):
    """As published; a channel that was dropped would be drawn towards the memory, and enter it, as 0."""
    torch.manual_seed(0)
    make = tiny_model if encoder == "segformer" else partial(tiny_backbone_model, encoder)
    model = make(**NO_BOTTLENECK, drop_path_rate=0.0, classifier_dropout_prob=0.9).train()
    first, again = (model(images(2, (64, 64)), output_decoder_features=True) for _ in range(2))
    assert torch.equal(first.decoder_features, again.decoder_features)
    assert (first.decoder_features == 0).all(dim=3).all(dim=2).float().mean() < 0.3
    assert not torch.equal(first.logits, again.logits)


def test_the_gradient_of_a_mean_survives_float16():
    """fp16 scales the loss by 65536 at first; what is rounded to 0 before that is lost."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 32, 32, generator=rng).half().float()
    labels, confidence = torch.randint(3, (2, 128, 128), generator=rng), torch.full((2, 128, 128), 0.4)
    gradients = []
    for dtype in (torch.float32, torch.float16):
        given = logits.detach().to(dtype).requires_grad_()
        (65536 * confident_loss(given, labels, confidence, 255, torch.tensor(1e6))[0]).backward()
        gradients.append(given.grad.float())
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() < 0.002


def test_labels_and_pixels_are_mixed_alike(tmp_path):
    """And the labels that the loss is divided by are those that the step trains on."""
    batch = make_batch()
    batch["pixel_values"] = 0.1 * batch["labels"][:, None].expand(-1, 3, -1, -1).float()
    batch["jitter_order"] = torch.full_like(batch["jitter_order"], -1)
    batch["class_order"] = torch.tensor([[0, 1, 2], [2, 0, 1]])
    method = make_method("memory_contrastive", tmp_path, tiny_model())
    pixel_values, labels = method.labeled_view(batch)
    assert torch.equal(labels, method.labels(batch)) and not torch.equal(labels, batch["labels"])
    assert (pixel_values - 0.1 * labels[:, None]).abs().max() < 1e-6
