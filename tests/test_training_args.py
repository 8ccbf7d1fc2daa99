"""Defaults of the paper, help for every field, and one sentence for each mistake."""

from dataclasses import fields

import pytest
from transformers import HfArgumentParser, TrainingArguments

from allspark_hf import AllSparkTrainingArguments


def arguments(**kwargs):
    return AllSparkTrainingArguments(**{"output_dir": "unused", "use_cpu": True, **kwargs})


def test_defaults_follow_the_paper():
    args = arguments()
    assert (args.optim, args.learning_rate, args.sgd_momentum, args.weight_decay) == ("sgd", 1e-3, 0.9, 1e-4)
    assert (args.lr_scheduler_type, args.lr_scheduler_kwargs) == ("polynomial", {"power": 0.9, "lr_end": 0.0})
    assert (args.max_grad_norm, args.head_learning_rate_multiplier, args.memory_warmup_epochs) == (0.0, 10.0, 5)
    assert (args.num_train_epochs, args.per_device_train_batch_size, args.per_device_unlabeled_batch_size) == (
        80,
        2,
        2,
    )
    assert args.report_to == ["tensorboard"] and args.greater_is_better and not args.train_on_padding


def test_schedule_settings_can_be_replaced():
    assert arguments(lr_scheduler_kwargs={"power": 2.0}).lr_scheduler_kwargs == {"power": 2.0}
    assert arguments(lr_scheduler_type="linear").lr_scheduler_kwargs is None


def test_every_field_has_help_text():
    inherited = {field.name for field in fields(TrainingArguments)}
    own = [field for field in fields(AllSparkTrainingArguments) if field.name not in inherited]
    assert len(own) == 23
    assert all(len(field.metadata.get("help", "")) > 15 for field in own)


def test_the_command_line_reads_every_kind_of_field():
    argv = ["--output_dir", "out", "--use_cpu", "--method", "supervised", "--decay_norm_and_bias", "false"]
    argv += ["--logging_steps", "0.1", "--lr_scheduler_kwargs", '{"power": 1.5}', "--report_to", "none"]
    (args,) = HfArgumentParser(AllSparkTrainingArguments).parse_args_into_dataclasses(argv)
    assert args.method == "supervised" and args.decay_norm_and_bias is False
    assert args.lr_scheduler_kwargs == {"power": 1.5} and args.report_to == []


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"method": "fixmatch"}, "method='fixmatch' is unknown: choose one of supervised, pseudo_label, allspark"),
        ({"labeled_loss": "dice"}, "labeled_loss='dice' is unknown"),
        ({"unlabeled_loss_weight": -1.0}, "unlabeled_loss_weight=-1.0 is negative"),
        ({"ohem_threshold": 1.5}, "ohem_threshold=1.5 is no probability"),
        ({"head_learning_rate_multiplier": 0.0}, "head_learning_rate_multiplier=0.0: set more than 0"),
        ({"per_device_unlabeled_batch_size": 0}, "per_device_unlabeled_batch_size=0: set at least 1"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches=True cuts a mixed batch"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches=True joins and cuts"),
        ({"remove_unused_columns": True}, "remove_unused_columns=True removes the image and mask columns"),
    ],
)
def test_mistakes_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        arguments(**wrong)
