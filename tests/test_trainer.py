"""AllSparkTrainer: construction, one step, optimizer, logs, evaluation, saving."""

import json
import logging
import warnings

import datasets
import numpy as np
import pytest
import torch
from conftest import make_dataset, small_model
from safetensors import safe_open
from test_method import assert_accumulation_changes_nothing
from transformers import TrainerCallback, TrainingArguments
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from allspark_hf import (
    AllSparkConfig,
    AllSparkTrainer,
    AllSparkTrainingArguments,
    SegformerForSemiSupervisedSegmentation,
)
from allspark_hf.inference.loading import SegformerImageProcessorPil, make_image_processor
from allspark_hf.models.encoders import IMAGENET
from allspark_hf.training.loaders import evaluation_loader


PLAIN = AllSparkConfig.plain_segformer_switches()


def make_trainer(output_dir, image_processor=None, model=None, data=None, others=None, **kwargs):
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
    return AllSparkTrainer(model, args, image_processor or make_image_processor(), **data, **(others or {}))


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


def test_loaders_obey_the_arguments_of_workers(tmp_path):
    trainer = make_trainer(tmp_path, dataloader_num_workers=1)
    trainer.args.dataloader_in_order, trainer.args.dataloader_multiprocessing_context = False, "spawn"
    for loader in (trainer.get_train_dataloader(), trainer.get_eval_dataloader()):
        assert not loader.in_order and loader.multiprocessing_context.get_start_method() == "spawn"


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
    ({"model": small_model().bfloat16()}, {}, "The model's weights are torch.bfloat16, in which small updates are"),
    ({"model": small_model(id2label={0: "a", 1: "b", 2: "a"})}, {}, "classes 0 and 2 are both named 'a'"),
    ({"model": torch.nn.Linear(2, 2)}, {}, "model is of type Linear: give a model of this package"),
    ({"image_processor": "dinov2"}, {}, "processing_class is of type str: give make_image_processor"),
    (
        {"image_processor": SegformerImageProcessorPil(do_resize=False, do_normalize=False)},
        {},
        "The image processor changes images in another way than training does",
    ),
    (
        {"image_processor": BitImageProcessorPil(do_resize=False, **IMAGENET)},
        {},
        "The image processor changes images in another way than training does",
    ),
    (
        {"image_processor": SegformerImageProcessorPil(do_resize=False, do_reduce_labels=True)},
        {},
        "do_reduce_labels=True of the image processor would not be obeyed",
    ),
    ({"others": {"compute_metrics": print}}, {}, "compute_metrics would not be called: leave it out; compute other"),
    ({"others": {"compute_loss_func": print}}, {}, "compute_loss_func would not be called"),
    ({"others": {"data_collator": print}}, {}, "data_collator would not be called"),
    ({"others": {"model_init": small_model}}, {}, "model_init would not be called"),
]


@pytest.mark.parametrize(("parts", "kwargs", "sentence"), REFUSED)
def test_parts_that_do_not_fit_are_refused(tmp_path, parts, kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_trainer(tmp_path, **parts, **kwargs)


def test_arguments_of_transformers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="args is of type TrainingArguments: give AllSparkTrainingArguments"):
        AllSparkTrainer(small_model(), TrainingArguments(str(tmp_path), use_cpu=True), make_image_processor())


def test_predict_names_what_to_take_instead(tmp_path):
    with pytest.raises(NotImplementedError, match=r"take evaluate\(dataset, metric_key_prefix="):
        make_trainer(tmp_path).predict(make_dataset(2))


def test_datasets_that_do_not_fit_are_refused(tmp_path):
    labeled, unlabeled, validation = make_dataset(3), make_dataset(4, seed=1, masks=False), make_dataset(2, seed=2)
    cases = [
        ((labeled.select([]), unlabeled, validation), "labeled dataset .* is empty"),
        ((labeled, None, validation), "needs unlabeled images, but unlabeled_dataset is missing or empty"),
        ((labeled, unlabeled.select([]), validation), "needs unlabeled images"),
        ((labeled.rename_column("label", "mask"), unlabeled, validation), r"train_dataset has .* lacks \['label'\]"),
        ((labeled, unlabeled, labeled.select([1])), "1 images are in both train_dataset and eval_dataset"),
        ((labeled, unlabeled, make_dataset(4, seed=1)), "4 images are in both unlabeled_dataset and eval_dataset"),
        ((datasets.DatasetDict(train=labeled), unlabeled, validation), "train_dataset is of type dict: give a dat"),
        ((labeled, list(unlabeled), validation), "unlabeled_dataset is of type list: give .*, or a stream, an Itera"),
        ((without_mask(labeled, 1), unlabeled, validation), r"1 of 3 labeled images have no mask \(first row 1\)"),
        ((labeled, unlabeled, without_mask(validation, 0)), r"1 of 2 validation images have no mask \(first row 0"),
        (
            (make_dataset(3, num_labels=4), unlabeled, validation),
            "The mask of row 0 has the value 3, but the model has",
        ),
        (
            (as_tensors(labeled), unlabeled, validation),
            "The transform of train_dataset .* no PIL image as 'image'",
        ),
        ((labeled, as_tutorials_do(unlabeled), validation), "The transform of unlabeled_dataset .* as 'image'"),
        ((labeled, unlabeled, {"a": validation}), "metric_for_best_model='mean_iou' is of none .* 'a_mean_iou'"),
    ]
    for (train, extra, evaluated), sentence in cases:
        data = {"train_dataset": train, "unlabeled_dataset": extra, "eval_dataset": evaluated}
        with pytest.raises(ValueError, match=sentence):
            make_trainer(tmp_path, data=data)


def without_mask(dataset, row):
    rows = [one | ({"label": None} if number == row else {}) for number, one in enumerate(dataset)]
    return datasets.Dataset.from_list(rows, features=dataset.features)


def as_tensors(dataset):
    return dataset.with_transform(lambda rows: {name: [*map(np.array, rows[name])] for name in rows})


def as_tutorials_do(dataset):
    return dataset.with_transform(lambda rows: {"pixel_values": rows["image"]})


def test_the_format_of_a_dataset_changes_nothing(tmp_path):
    plain = {"train_dataset": make_dataset(3, seed=1), "eval_dataset": make_dataset(2, seed=3)}
    formatted = {name: dataset.with_format("torch") for name, dataset in plain.items()}
    first, second = (
        next(iter(make_trainer(tmp_path, method="supervised", data=data).get_train_dataloader()))
        for data in (plain, formatted)
    )
    assert torch.equal(first["pixel_values"], second["pixel_values"]) and torch.equal(
        first["labels"], second["labels"]
    )
    scores = [make_trainer(tmp_path, method="supervised", data=data).evaluate() for data in (plain, formatted)]
    assert scores[0]["eval_mean_iou"] == scores[1]["eval_mean_iou"]


def test_labels_of_unlabeled_images_that_are_no_masks_are_not_read(tmp_path):
    unlabeled = make_dataset(4, seed=2, masks=False).add_column("label", [7, 8, 9, 7])  # as for classification
    data = {"train_dataset": make_dataset(3, seed=1), "unlabeled_dataset": unlabeled}
    trainer = make_trainer(tmp_path, data=data, eval_strategy="no")
    assert "unlabeled_truth" not in next(iter(trainer.get_train_dataloader()))


def test_only_a_dataset_of_images_and_masks_is_evaluated(tmp_path):
    trainer = make_trainer(tmp_path, data={}, method="supervised", eval_strategy="no")
    with pytest.raises(ValueError, match="eval_dataset is of type IterableDataset: give a dat"):
        trainer.evaluate(make_dataset(2).to_iterable_dataset())
    with pytest.raises(ValueError, match=r"eval_dataset has the columns .* lacks \['label'\]"):
        trainer.evaluate(make_dataset(2, masks=False))
    with pytest.raises(ValueError, match="There is no mask of row 1: take the image out"):
        trainer.evaluate(without_mask(make_dataset(2), 1))
    numbers = make_dataset(2, masks=False).add_column("label", [0, 1])
    with pytest.raises(ValueError, match="The column 'label' holds Value"):
        trainer.evaluate(numbers)


def test_an_optimizer_of_the_user(tmp_path):
    """What the method trains beside the model would stay random, and no rate of a head is logged."""
    settings = {"method": "memory_contrastive", "max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    model = small_model(**PLAIN)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    others = {"optimizers": (optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1))}
    with pytest.raises(ValueError, match="'memory_contrastive' also trains projection, prediction, selectors, which"):
        make_trainer(tmp_path, model=model, others=others, **settings).train()
    trainer = make_trainer(tmp_path, model=model, others=others, **settings | {"method": "supervised"})
    trainer.train()
    assert trainer.state.log_history[0]["learning_rate"] == 0.01
    assert "learning_rate_head" not in trainer.state.log_history[0]


def test_a_callback_at_the_end_sees_the_best_model(tmp_path):
    seen = []

    class AtTheEnd(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            seen.append({name: value.clone() for name, value in trainer.method.teacher.state_dict().items()})

    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    settings |= {"metric_for_best_model": "loss", "greater_is_better": True, "load_best_model_at_end": True}
    others = {"callbacks": [AtTheEnd()]}
    trainer = make_trainer(tmp_path, method="fixmatch", others=others, ema_decay=0.0, learning_rate=0.1, **settings)
    trainer.train()
    assert trainer.state.best_global_step == 1  # else nothing is shown
    assert all(torch.equal(value, seen[0][name]) for name, value in trainer.method.teacher.state_dict().items())


def test_the_checkpoint_that_the_arguments_name_is_resumed(tmp_path):
    settings = {"method": "supervised", "eval_strategy": "no", "save_strategy": "steps", "save_steps": 1}
    settings |= {"metric_for_best_model": None}  # so that no evaluation is the best one
    assert "best_epoch" not in make_trainer(tmp_path, max_steps=1, **settings).train().metrics
    trainer = make_trainer(tmp_path, max_steps=2, resume_from_checkpoint="true", **settings)
    trainer.train()
    assert trainer.checkpoints.resumed_from == tmp_path / "checkpoint-1"
