"""Defaults of the paper, help for every field, and one sentence for each mistake."""

import json
from dataclasses import fields

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from conftest import tiny_model
from run_training import make_trainer
from transformers import HfArgumentParser, TrainingArguments

from allspark_hf import AllSparkConfig, AllSparkTrainingArguments
from allspark_hf.cli.figures import FigureArguments
from allspark_hf.evaluation.arguments import EvaluationArguments
from allspark_hf.methods import METHODS
from allspark_hf.training.loaders import make_sampler
from allspark_hf.utils.arguments import facts_of, names, recorded, shown


def arguments(**kwargs):
    return AllSparkTrainingArguments(**{"output_dir": "unused", "use_cpu": True, **kwargs})


def test_defaults_follow_the_paper():
    args = arguments()
    assert (args.optim, args.learning_rate, args.sgd_momentum, args.weight_decay) == ("sgd", 1e-3, 0.9, 1e-4)
    assert (args.lr_scheduler_type, args.lr_scheduler_kwargs) == ("polynomial", {"power": 0.9, "lr_end": 0.0})
    assert (args.max_grad_norm, args.head_learning_rate_multiplier, args.memory_warmup_epochs) == (0.0, 10.0, 0.0625)
    assert (args.num_train_epochs, args.per_device_train_batch_size, args.per_device_unlabeled_batch_size) == (
        80,
        2,
        2,
    )
    assert args.report_to == ["tensorboard"] and args.greater_is_better and not args.train_on_padding


def test_schedule_settings_can_be_replaced():
    assert arguments(lr_scheduler_kwargs={"power": 2.0}).lr_scheduler_kwargs == {"power": 2.0, "lr_end": 0.0}
    assert arguments(lr_scheduler_kwargs='{"lr_end": 1e-5}').lr_scheduler_kwargs == {"power": 0.9, "lr_end": 1e-5}
    assert arguments(lr_scheduler_type="linear").lr_scheduler_kwargs is None


def test_every_field_has_help_text_and_known_facts():
    inherited = {field.name for field in fields(TrainingArguments)}
    own = [field for field in fields(AllSparkTrainingArguments) if field.name not in inherited]
    assert len(own) == 50
    assert all(len(field.metadata.get("help", "")) > 15 for field in own)
    rules = {facts_of(field).resume for field in fields(AllSparkTrainingArguments)}
    assert rules == {"refused", "kept", "changed", "cut", "free"}
    refused = {"method", "optim", "lr_scheduler_type", "freeze_encoder", "freeze_encoder_layers"}
    refused |= {"memory_inflow", "memory_weights", "teacher_mode", "balance_classes"}
    refused |= {"keep_quantile", "holdout_fraction"}
    assert set(names(AllSparkTrainingArguments, resume="refused")) == refused
    kept = {"learning_rate", "head_learning_rate_multiplier", "weight_decay", "sgd_momentum", "decay_norm_and_bias"}
    kept |= {"adam_beta1", "adam_beta2", "adam_epsilon"}
    assert set(names(AllSparkTrainingArguments, resume="kept")) == kept


def test_recorded_is_what_was_given_and_shown_what_matters():
    args = arguments(total_train_batch_size=8, optim="adamw_torch", report_to="none", eval_scales=[1.0, 2.0])
    assert recorded(args) == {
        "use_cpu": True,
        "total_train_batch_size": 8,
        "optim": "adamw_torch",
        "eval_scales": [1.0, 2.0],
    }
    assert shown(args)["gradient_accumulation_steps"] == 4 and shown(args)["optim"] == "adamw_torch"
    assert "output_dir" not in shown(args) and json.loads(json.dumps(shown(args))) == shown(args)


def test_docstrings_list_the_arguments_with_their_defaults():
    text = AllSparkTrainingArguments.__doc__
    assert '    method (`str`, *optional*, defaults to `"allspark"`): How to train' in text
    assert "    per_device_unlabeled_batch_size (`int`, *optional*): Unlabeled" in text
    assert (
        "    train_on_padding (`bool`, *optional*, defaults to `False`): "
        in METHODS["allspark"].arguments_class.__base__.__doc__
    )


def test_the_command_line_reads_every_kind_of_field():
    argv = ["--output_dir", "out", "--use_cpu", "--method", "supervised", "--decay_norm_and_bias", "false"]
    argv += ["--logging_steps", "0.1", "--lr_scheduler_kwargs", '{"power": 1.5}', "--report_to", "none"]
    (args,) = HfArgumentParser(AllSparkTrainingArguments).parse_args_into_dataclasses(argv)
    assert args.method == "supervised" and args.decay_norm_and_bias is False
    assert args.lr_scheduler_kwargs == {"power": 1.5, "lr_end": 0.0} and args.report_to == []


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"method": "mixmatch"}, "method='mixmatch' is unknown: choose one of supervised, pseudo_label, fixmatch"),
        ({"labeled_loss": "dice"}, "labeled_loss='dice' is unknown"),
        (
            {"labeled_view": "weak", "method": "memory_contrastive"},
            "labeled_view='weak', but method='memory_contrastive' augments labeled images in a way of its own",
        ),
        ({"class_weights": ["1", "balanced"]}, "class_weights=1 balanced: set it to balanced, or to a number"),
        ({"class_weights": (1, -2)}, "class_weights=1 -2: set it to balanced, or to a number"),
        ({"eval_scales": (0.5, 11)}, r"eval_scales=\[0.5, 11\] is out of range"),
        (
            {"unlabeled_loss_weight": -1.0},
            "unlabeled_loss_weight=-1.0 is out of range: set a finite number of at least 0",
        ),
        ({"unlabeled_warmup_epochs": 1.5}, "unlabeled_warmup_epochs=1.5: set whole epochs, or below 1 a share of"),
        ({"ohem_threshold": 1.5}, "ohem_threshold=1.5 is out of range: set a number of at least 0 and at most 1"),
        (
            {"head_learning_rate_multiplier": 0.0},
            "head_learning_rate_multiplier=0.0 is out of range: set a finite number above 0",
        ),
        ({"per_device_unlabeled_batch_size": 0}, "per_device_unlabeled_batch_size=0 is out of range"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches=True cuts a mixed batch"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches=True joins and cuts"),
        ({"epoch_length": "both"}, "epoch_length='both' is unknown: choose one of unlabeled, labeled"),
        ({"epoch_length": "labeled"}, "epoch_length='labeled' would leave most unlabeled images out"),
        ({"total_train_batch_size": 1}, "=1 is less than one batch, 2 labeled images per device x 1 process = 2: l"),
        ({"total_train_batch_size": 7}, "=7 is no multiple of 2 labeled images per device x 1 process = 2: change"),
        (
            {"total_train_batch_size": 8, "gradient_accumulation_steps": 2},
            "gradient_accumulation_steps=2 contradicts total_train_batch_size=8, which needs 4",
        ),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 would change nothing: leave it out"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size=True would change nothing"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy='sequential' would change nothing"),
        ({"bf16_full_eval": True}, "bf16_full_eval=True would change nothing"),
        ({"average_tokens_across_devices": False}, "average_tokens_across_devices=False would change nothing"),
        ({"optim": "schedule_free_adamw"}, "optim='schedule_free_adamw' keeps the weights to evaluate apart"),
        ({"remove_unused_columns": True}, "remove_unused_columns=True removes the image and mask columns"),
    ],
)
def test_mistakes_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        arguments(**wrong)


def test_a_single_value_or_a_tuple_becomes_a_list():
    args = arguments(class_weights="balanced", eval_mode="center_crop", eval_crop_size=512, eval_scales=(0.5, 1.0))
    assert (args.class_weights, args.eval_crop_size, args.eval_scales) == (["balanced"], [512], [0.5, 1.0])
    assert arguments(class_weights=(1, 2.5)).class_weights == [1, 2.5] and args.label_names == ["labels"]
    assert EvaluationArguments(eval_scales=1.5).eval_scales == [1.5]
    figures = FigureArguments("model", "out", background="dark")
    assert figures.background == ["dark"] and figures.figures is None


def test_a_schedule_that_waits_for_a_metric_knows_which_way_is_better():
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau"}
    assert arguments(**plateau).lr_scheduler_kwargs == {"mode": "max"}
    falling = arguments(**plateau, metric_for_best_model="loss", lr_scheduler_kwargs='{"patience": 2}')
    assert falling.lr_scheduler_kwargs == {"mode": "min", "patience": 2}


def on_processes(monkeypatch, count: int, **kwargs) -> AllSparkTrainingArguments:
    """Arguments as one of `count` processes would have them."""
    monkeypatch.setattr(AllSparkTrainingArguments, "world_size", count)
    return arguments(per_device_train_batch_size=2, total_train_batch_size=8, **kwargs)


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 4), (2, 2), (4, 1)])
def test_total_batch_size_sets_the_accumulation(monkeypatch, processes, accumulation):
    assert on_processes(monkeypatch, processes).gradient_accumulation_steps == accumulation
    again = on_processes(monkeypatch, processes, gradient_accumulation_steps=accumulation)
    assert again.gradient_accumulation_steps == accumulation


def test_total_batch_size_is_refused_on_too_many_processes(monkeypatch):
    with pytest.raises(ValueError, match="=8 is less than one batch, 2 labeled images per device x 8 processes = 16"):
        on_processes(monkeypatch, 8)
    with pytest.raises(ValueError, match="=8 is no multiple of 2 labeled images per device x 3 processes = 6"):
        on_processes(monkeypatch, 3)


def updates_of_an_epoch(args, num_unlabeled: int) -> list[set]:
    """The draws of every update, over all processes, as accelerate deals the batches out."""
    shards = [
        list(BatchSamplerShard(make_sampler(args, 5, num_unlabeled), args.world_size, rank))
        for rank in range(args.world_size)
    ]
    steps = args.gradient_accumulation_steps
    return [
        {draw for shard in shards for batch in shard[start : start + steps] for draw in batch}
        for start in range(0, len(shards[0]), steps)
    ]


@pytest.mark.parametrize(("drop_last", "num_updates"), [(False, 3), (True, 2)])
def test_updates_have_the_same_images_on_one_two_and_four_processes(monkeypatch, drop_last, num_updates):
    """18 unlabeled images are 9 batches of 2, or 2 updates of 4 batches and one batch that is left over."""
    settings = {"dataloader_drop_last": drop_last}
    one, two, four = (updates_of_an_epoch(on_processes(monkeypatch, count, **settings), 18) for count in (1, 2, 4))
    assert len(one) == len(two) == len(four) == num_updates
    assert one[:2] == two[:2] == four[:2] and all(len(update) == 16 for update in one[:2])
    if not drop_last:
        # One process has the batch that is left over alone; more add the epoch's first batches, one for each other.
        assert len(one[2]) == 4 and one[2] < two[2] < four[2]
        assert four[2] - one[2] <= four[0] and len(four[2]) == 16


def test_an_update_that_no_epoch_can_fill_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="An epoch has 7 images and one update needs 8, so dataloader_drop_last=True"):
        make_sampler(on_processes(monkeypatch, 4, dataloader_drop_last=True), 5, 7)


@pytest.mark.parametrize(("drop_last", "batches"), [(False, [4, 1]), (True, [4])])
def test_trainer_takes_the_updates_and_learning_rates_of_more_processes(tmp_path, monkeypatch, drop_last, batches):
    model = tiny_model(**AllSparkConfig.plain_segformer_switches())
    settings = {"num_train_epochs": 3, "dataloader_drop_last": drop_last, "learning_rate": 0.02}
    batch = {"per_device_train_batch_size": 2, "total_train_batch_size": 8}
    trainer = make_trainer(model, 10, output_dir=str(tmp_path), method="supervised", **batch, **settings)
    seen, count = [], trainer._count_pixels
    monkeypatch.setattr(trainer, "_count_pixels", lambda batch: seen.append(len(batch)) or count(batch))
    assert trainer.train().global_step == 3 * len(batches) and seen == 3 * batches
    on_four = on_processes(monkeypatch, 4, **settings)
    total = 3 * len(BatchSamplerShard(make_sampler(on_four, 5, 10), 4, 0))
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([0.02 * (1 - step / total) ** 0.9 for step in range(total)])


def test_epoch_over_the_labeled_images(tmp_path):
    model = tiny_model(**AllSparkConfig.plain_segformer_switches())
    trainer = make_trainer(
        model, 10, output_dir=str(tmp_path), method="supervised", epoch_length="labeled", num_train_epochs=2
    )
    assert trainer.train().global_step == 2 * 3  # 5 labeled images in batches of 2


def test_a_gpu_gets_batches_while_it_computes_and_no_full_determinism(monkeypatch):
    assert not arguments().accelerator_config.non_blocking
    monkeypatch.setattr(AllSparkTrainingArguments, "device", torch.device("cuda"))
    assert AllSparkTrainingArguments(output_dir="unused").accelerator_config.non_blocking
    for settings in ({"dataloader_pin_memory": False}, {"accelerator_config": {"even_batches": True}}):
        assert not AllSparkTrainingArguments(output_dir="unused", **settings).accelerator_config.non_blocking
    with pytest.raises(ValueError, match="full_determinism=True lets PyTorch refuse the loss on a GPU"):
        AllSparkTrainingArguments(output_dir="unused", full_determinism=True)
