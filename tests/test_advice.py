"""What a training is warned of: the text of each sentence, and silence on a sound training."""

import logging
import re

import pytest
from conftest import Collect, make_dataset, small_model
from PIL import Image

from allspark_hf import AllSparkConfig, AllSparkTrainer, AllSparkTrainingArguments
from allspark_hf.inference.loading import make_image_processor
from allspark_hf.training.advice import RunPlan, advise


NAMES = ["sky", "road", "car"]
SOUND = {"num_labeled": 12, "num_unlabeled": 40, "num_validation": 10, "steps": 800, "epochs": 40}
SOUND |= {"labeled_classes": {0, 1, 2}, "validation_classes": {0, 1, 2}}
QUIET = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "num_train_epochs": 40}


def said(settings: dict | None = None, **plan) -> list[str]:
    args = AllSparkTrainingArguments(output_dir="unused", **QUIET | (settings or {}))
    return advise(args, RunPlan(**SOUND | plan), NAMES)


@pytest.mark.parametrize("method", ["supervised", "allspark", "unimatch_v2", "memory_contrastive"])
def test_nothing_is_said_of_a_sound_training(method):
    assert said({"method": method}) == []
    by_steps = {"method": method, "max_steps": 200, "warmup_steps": 5, "logging_steps": 200}
    assert said(by_steps, steps=200, epochs=200, num_unlabeled=2) == []  # whoever gives steps knows how many
    assert said({"method": method}, num_labeled=40, num_unlabeled=11) == []
    for plan in ({"num_unlabeled": None}, {"num_validation": None}, {"validation_classes": set()}):
        assert said({"method": method}, **plan) == []


@pytest.mark.parametrize(
    ("settings", "plan", "expected"),
    [
        ({}, {"labeled_classes": {0, 1}}, ["No labeled image shows the class car .2., but validation images do"]),
        (
            {},
            {"labeled_classes": {0}, "validation_classes": {0, 1}},
            ["the class road .1., but validation images do", "shows the class car .2., so that the model will not"],
        ),
        ({}, {"num_validation": 9}, ["The validation set has 9 images, .*--validation_fraction"]),
        ({}, {"num_validation": 1}, ["The validation set has 1 image, so"]),
        (
            {"num_train_epochs": 80},
            {"num_unlabeled": 2, "steps": 80, "epochs": 80},
            ["80 epochs are 80 steps because there are 2 unlabeled images, .*: set the length with --max_steps.$"],
        ),
        (
            {"num_train_epochs": 3, "method": "supervised", "logging_steps": 1},
            {"num_unlabeled": 1, "steps": 3, "epochs": 3, "num_labeled": 1},
            ["3 epochs are 3 steps because there is 1 unlabeled image, .*--max_steps or --epoch_length labeled.$"],
        ),
        (
            {},
            {"num_labeled": 60, "num_unlabeled": 14},
            ["40 epochs are 800 steps because there are 14 unlabeled images"],
        ),
        ({"unlabeled_warmup_epochs": 40}, {}, ["unlabeled_warmup_epochs=40 is .*no unlabeled image counts: lower it"]),
        (
            {"max_steps": 50, "memory_warmup_epochs": 5},
            {"steps": 50, "epochs": 1},
            ["memory_warmup_epochs=5 is as long .*.1 epoch, 50 steps., so that no labeled image reads the memory"],
        ),
        (
            {"method": "memory_contrastive", "contrast_start": 2000},
            {},
            ["contrast_start=2000 is not reached in 800"],
        ),
        (
            {"method": "allspark", "confidence_threshold": 0.5, "train_on_padding": True},
            {},
            ["confidence_threshold=0.5 changes nothing with method='allspark': leave it out, or choose"],
        ),
        ({"warmup_steps": 1500}, {}, ["warmup_steps=1500 is as long as the training or longer .800 steps."]),
        (
            {"logging_steps": 1000},
            {},
            ["logging_steps=1000 is more than the 800 steps .* no loss is logged: lower"],
        ),
    ],
)
def test_each_sentence_says_what_to_change(settings, plan, expected):
    sentences = said(settings, **plan)
    assert len(sentences) == len(expected)
    for sentence, pattern in zip(sentences, expected, strict=True):
        assert re.search(pattern, sentence) and sentence.endswith(".") and "\n" not in sentence, sentence


def test_a_recipe_may_hold_arguments_of_another_method():
    # The command line, whose arguments have `given`, may choose another method than its recipe.
    args = AllSparkTrainingArguments(output_dir="unused", **QUIET, method="supervised", confidence_threshold=0.5)
    args.given = {"method", "confidence_threshold"}
    assert advise(args, RunPlan(**SOUND), NAMES) == []


def test_many_missing_classes_are_counted():
    args = AllSparkTrainingArguments(output_dir="unused", **QUIET)
    (sentence,) = advise(args, RunPlan(**SOUND), [f"c{index}" for index in range(20)])
    assert "the classes c3 (3), c4 (4), c5 (5), c6 (6), c7 (7) and 12 more" in sentence


def messages_of(tmp_path, **settings) -> list[str]:
    """What a training of one step warns of."""
    logger, collect = logging.getLogger("allspark_hf.training.advice"), Collect()
    args = {"output_dir": str(tmp_path), **QUIET, "max_steps": 1, "logging_steps": 1, "eval_strategy": "no"}
    args |= {"method": "supervised", "save_strategy": "no", **settings}
    labeled = make_dataset(2, seed=1)
    blank = labeled.map(lambda row: {"label": Image.new("L", row["label"].size, 1)}, load_from_cache_file=False)
    model = small_model(num_labels=3, **AllSparkConfig.plain_segformer_switches())
    sets = {"train_dataset": blank, "eval_dataset": make_dataset(3, seed=3)}
    logger.addHandler(collect)
    try:
        AllSparkTrainer(model, AllSparkTrainingArguments(**args), make_image_processor(), **sets).train()
    finally:
        logger.removeHandler(collect)
    return collect.messages


def test_the_trainer_says_it_before_the_first_step(tmp_path):
    messages = messages_of(tmp_path, logging_steps=2)
    assert [message.split(",")[0] for message in messages] == [
        "No labeled image shows the classes LABEL_0 (0)",
        "The validation set has 3 images",
        "logging_steps=2 is more than the 1 step of the training",
    ]
    assert "LABEL_2 (2), but validation images do" in messages[0]
