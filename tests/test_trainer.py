"""AllSparkTrainer: construction, one step, optimizer, logs, evaluation, saving."""

import json
import logging
import warnings

import pytest
import torch
from conftest import make_dataset, small_model
from safetensors import safe_open
from test_method import assert_accumulation_changes_nothing

from allspark_hf import (
    AllSparkConfig,
    AllSparkTrainer,
    AllSparkTrainingArguments,
    SegformerForSemiSupervisedSegmentation,
)
from allspark_hf.inference.loading import SegformerImageProcessorPil, make_image_processor
from allspark_hf.training.loaders import evaluation_loader


PLAIN = AllSparkConfig.plain_segformer_switches()


def make_trainer(output_dir, image_processor=None, model=None, data=None, **kwargs):
    data = data or {
        "train_dataset": make_dataset(3, seed=1),
        "unlabeled_dataset": make_dataset(5, seed=2, masks=False),
        "eval_dataset": make_dataset(3, seed=3, size=(48, 72)),
    }
    args = AllSparkTrainingArguments(
        **{
            "output_dir": str(output_dir),
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 2,
            "logging_steps": 1,
            "memory_warmup_epochs": 1,
            "learning_rate": 0.01,
            **kwargs,
        }
    )
    if model is None:
        model = small_model(**({} if args.method == "allspark" else PLAIN))
    return AllSparkTrainer(model, args, image_processor or make_image_processor(), **data)


@pytest.mark.parametrize("method", ["supervised", "pseudo_label", "allspark"])
def test_training_moves_every_parameter_and_logs_every_term(tmp_path, method):
    trainer = make_trainer(tmp_path, method=method)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    result = trainer.train()
    assert result.global_step == 6  # 5 unlabeled images in batches of 2, twice
    # BatchNorm removes the constants that these biases add, so their gradient is zero.
    silent = [name for name in before if "linear_projections" in name and name.endswith("bias")]
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, before[name]) <= (name in silent), name
    entries = [entry for entry in trainer.state.log_history if "loss_x" in entry]
    assert len(entries) == 6
    for entry in entries:
        assert entry["learning_rate_head"] == pytest.approx(10 * entry["learning_rate"])
        assert 0 < entry["used_x"] <= 1
        if method == "supervised":
            assert entry["loss"] == pytest.approx(entry["loss_x"], abs=1e-6) and "loss_u" not in entry
        else:
            assert entry["loss"] == pytest.approx((entry["loss_x"] + entry["loss_u"]) / 2, abs=1e-6)
            assert 0 < entry["used_u"] <= 1
        fill = [entry[name] for name in entry if name.startswith("memory_fill_")]
        assert len(fill) == (3 if method == "allspark" else 0)
    if method == "allspark":
        assert sum(fill) > 0
        assert trainer.model.bottleneck.memory.num_enqueued.sum() == 6 * 2 * 16


def test_last_and_best_evaluation_are_reported(tmp_path):
    trainer = make_trainer(tmp_path, num_train_epochs=3, load_best_model_at_end=True, save_total_limit=3)
    metrics = trainer.train().metrics
    scores = [entry["eval_mean_iou"] for entry in trainer.state.log_history if "eval_mean_iou" in entry]
    assert len(scores) == 3
    assert metrics["last_mean_iou"] == scores[-1] and metrics["best_mean_iou"] == max(scores)
    assert metrics["best_epoch"] == scores.index(max(scores)) + 1
    assert trainer.evaluate()["eval_mean_iou"] == pytest.approx(max(scores), abs=1e-9)  # the best model is loaded


def test_poly_schedule_and_two_learning_rates(tmp_path):
    trainer = make_trainer(tmp_path, method="supervised", head_learning_rate_multiplier=5.0, learning_rate=0.02)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([0.02 * (1 - step / 6) ** 0.9 for step in range(6)])
    encoder, head = trainer.optimizer.param_groups
    assert head["initial_lr"] == pytest.approx(5 * encoder["initial_lr"])
    assert encoder["momentum"] == head["momentum"] == 0.9 and encoder["weight_decay"] == head["weight_decay"] == 1e-4
    encoder_parameters = {id(parameter) for parameter in trainer.model.segformer.parameters()}
    assert {id(parameter) for parameter in encoder["params"]} == encoder_parameters
    assert len(encoder["params"]) + len(head["params"]) == len(list(trainer.model.parameters()))


@pytest.mark.parametrize(
    ("warmup", "updates", "rates"), [(0.1, 1, [0.01]), (2, 2, [0, 0.01]), (0.9, 3, [0, 0.005, 0.01])]
)
def test_a_warm_up_as_long_as_the_training_leaves_one_update(tmp_path, warmup, updates, rates):
    settings = {"method": "supervised", "warmup_steps": warmup, "max_steps": updates, "eval_strategy": "no"}
    trainer = make_trainer(tmp_path, **settings)
    trainer.train()
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert logged == pytest.approx(rates)


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "rmsprop"])
def test_other_optimizers_of_transformers(tmp_path, optim):
    trainer = make_trainer(tmp_path, optim=optim, decay_norm_and_bias=False, max_steps=2, eval_strategy="no")
    trainer.train()
    groups = trainer.optimizer.param_groups
    assert [(round(group["initial_lr"], 6), group["weight_decay"]) for group in groups] == [
        (0.01, 1e-4),
        (0.01, 0.0),
        (0.1, 1e-4),
        (0.1, 0.0),
    ]


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    """The crops' padding makes pixel counts differ between small batches."""
    settings = {"method": "pseudo_label", "exact": True, "num_unlabeled": 12, "max_steps": 3}
    assert_accumulation_changes_nothing({**settings, "output_dir": str(tmp_path)}, cuts=((4, 1), (1, 4)))


@pytest.mark.parametrize(
    ("warmup", "accumulation", "batches"),
    [(1, 1, 3), (0, 1, 0), (0.3, 1, 2), (0.5, 1, 3), (0.75, 2, 5)],  # of 6, in 6 updates or with accumulation 4
)
def test_memory_is_read_after_its_warmup(tmp_path, monkeypatch, warmup, accumulation, batches):
    """Of whole epochs, or of a share of the updates."""
    seen = []
    forward = SegformerForSemiSupervisedSegmentation.forward

    def recording(self, *args, **kwargs):
        if kwargs.get("unlabeled_pixel_values") is not None:
            seen.append(kwargs["read_memory"])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(SegformerForSemiSupervisedSegmentation, "forward", recording)
    settings = {"memory_warmup_epochs": warmup, "gradient_accumulation_steps": accumulation}
    make_trainer(tmp_path, **settings, eval_strategy="no", save_strategy="no").train()
    assert seen == [False] * batches + [True] * (6 - batches)


def test_unlabeled_loss_weight_and_warmup(tmp_path):
    trainer = make_trainer(tmp_path, unlabeled_loss_weight=0.5, unlabeled_warmup_epochs=1, eval_strategy="no")
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss_x" in entry]
    for step, entry in enumerate(entries):
        weight = 0 if step < 3 else 0.5
        expected = (entry["loss_x"] + weight * entry["loss_u"]) / (1 + weight)
        assert entry["loss"] == pytest.approx(expected, abs=1e-6), step


def test_padding_of_unlabeled_crops_is_ignored_unless_asked(tmp_path):
    used = {}
    for train_on_padding in (False, True):
        trainer = make_trainer(
            tmp_path,
            model=small_model(crop_size=160),
            train_on_padding=train_on_padding,
            max_steps=1,
            eval_strategy="no",
        )
        trainer.train()
        used[train_on_padding] = trainer.state.log_history[0]["used_u"]
    assert used[True] == 1 and used[False] < 0.9


def test_checkpoint_carries_the_memory_and_a_saved_model_does_not(tmp_path, caplog):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=3, max_steps=3)
    trainer.train()
    trainer.save_model(tmp_path / "model")
    caplog.clear()  # after so few steps the pseudo-labels may collapse, which is said
    memory_keys = {"bottleneck.memory.channels", "bottleneck.memory.num_enqueued"}
    with safe_open(tmp_path / "checkpoint-3" / "model.safetensors", "pt") as file:
        assert memory_keys <= set(file.keys())
        assert torch.equal(file.get_tensor("bottleneck.memory.channels"), trainer.model.bottleneck.memory.channels)
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert not memory_keys & set(file.keys())
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        reloaded = SegformerForSemiSupervisedSegmentation.from_pretrained(tmp_path / "model").eval()
    assert not caplog.records
    image = torch.randn(1, 3, 50, 70)
    assert torch.equal(reloaded(image).logits, trainer.model.eval()(image).logits)
    assert json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())["do_resize"] is False


def test_images_are_scaled_as_the_image_processor_says(tmp_path):
    processor = make_image_processor(long_side=48)
    trainer = make_trainer(tmp_path, image_processor=processor)
    assert trainer.long_side == 48
    (sample,) = next(iter(trainer.get_eval_dataloader()))
    assert sample["pixel_values"].shape == (3, 32, 48) and sample["labels"].shape == (48, 72)


def test_memory_is_pinned_only_for_a_device_that_reads_it(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    trainer.args.dataloader_pin_memory = True  # as without use_cpu
    pinned = {}
    for device in ("cpu", "mps", "cuda"):
        monkeypatch.setattr(AllSparkTrainingArguments, "device", torch.device(device))
        pinned[device] = evaluation_loader(trainer, trainer.eval_dataset).pin_memory
    assert pinned == {"cpu": False, "mps": False, "cuda": True}


REFUSED = [
    (
        {"image_processor": SegformerImageProcessorPil()},
        {},
        r"resizes to \{'height': 512, 'width': 512\}, which training",
    ),
    (
        {"model": small_model(**PLAIN)},
        {"method": "allspark"},
        "needs the bottleneck, but the model's configuration has use_",
    ),
    (
        {"model": small_model()},
        {"method": "fixmatch"},
        "method='fixmatch' gives the bottleneck no logits by which it could group channels",
    ),
    ({"model": small_model(num_labels=1)}, {}, "The model has 1 class, whose prediction is always the same"),
]


@pytest.mark.parametrize(("parts", "kwargs", "sentence"), REFUSED)
def test_parts_that_do_not_fit_are_refused(tmp_path, parts, kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_trainer(tmp_path, **parts, **kwargs)


def test_datasets_that_do_not_fit_are_refused(tmp_path):
    labeled, unlabeled, validation = make_dataset(3), make_dataset(4, seed=1, masks=False), make_dataset(2, seed=2)
    cases = [
        ((labeled.select([]), unlabeled, validation), "labeled dataset .* is empty"),
        ((labeled, None, validation), "needs unlabeled images, but unlabeled_dataset is missing or empty"),
        ((labeled, unlabeled.select([]), validation), "needs unlabeled images"),
        ((labeled.rename_column("label", "mask"), unlabeled, validation), r"train_dataset has .* lacks \['label'\]"),
        ((labeled, unlabeled, labeled.select([1])), "1 images are in both train_dataset and eval_dataset"),
        ((labeled, unlabeled, make_dataset(4, seed=1)), "4 images are in both unlabeled_dataset and eval_dataset"),
    ]
    for (train, extra, evaluated), sentence in cases:
        data = {"train_dataset": train, "unlabeled_dataset": extra, "eval_dataset": evaluated}
        with pytest.raises(ValueError, match=sentence):
            make_trainer(tmp_path, data=data)
