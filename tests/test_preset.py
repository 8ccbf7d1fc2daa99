"""What `--preset auto` chooses, and how long a training it fits into a time."""

import io
import itertools
import re
from pathlib import Path

import pytest
from conftest import make_dataset
from datasets import Dataset, Features
from datasets import Image as ImageColumn
from PIL import Image
from transformers import Dinov2Config

from allspark_hf import AllSparkBackboneConfig, AllSparkConfig, AllSparkTrainingArguments
from allspark_hf.cli import apply_preset
from allspark_hf.cli.apply_preset import Preset, geometry_of, median_side
from allspark_hf.cli.arguments import ModelArguments
from allspark_hf.cli.help_content import CHOSEN
from allspark_hf.cli.preset import (
    BASE_ENCODER,
    SMALL_ENCODER,
    Choice,
    Situation,
    Times,
    best_encoder,
    choose,
    choose_length,
    plan_of_given_length,
    seconds_left,
    spread,
)
from allspark_hf.cli.trial_step import trial_arguments
from allspark_hf.data import DataArguments, SegmentationData
from allspark_hf.data.pixels import ORIENTATION
from allspark_hf.methods import METHODS
from allspark_hf.models.encoders import encoder_config
from allspark_hf.publishing.licenses import FROM_SCRATCH
from allspark_hf.training.faults import NoMemoryError


ROOT = Path(__file__).parents[1]
FACTS = {"num_labeled": 24, "num_unlabeled": 400, "side": (360, 480), "device": "cpu"}
GPU = {"device": "cuda", "device_memory": 79.0}


def chosen(**changes) -> dict:
    return {choice.name: choice.value for choice in choose(Situation(**{**FACTS, **changes}))}


def test_a_cpu_and_a_gpu():
    on_cpu = chosen()
    assert on_cpu["encoder"] == SMALL_ENCODER and on_cpu["crop_size"] == [224, 224]
    assert on_cpu["freeze_encoder_layers"] == 6 and on_cpu["per_device_train_batch_size"] == 2
    on_gpu = chosen(device="cuda", device_memory=79.0, weights=best_encoder("cuda", 79.0), side=(600, 1200))
    assert on_gpu["encoder"] == BASE_ENCODER and on_gpu["crop_size"] == [518, 518]
    assert on_gpu["per_device_train_batch_size"] == 8 and "learning_rate" not in on_gpu
    assert best_encoder("cuda", 11.6) == SMALL_ENCODER
    assert chosen(device="cuda", device_memory=11.6)["per_device_train_batch_size"] == 4
    assert chosen(device="cuda", has_bf16=True)["bf16"] is True and "bf16" not in on_gpu


@pytest.mark.parametrize(
    ("side", "crop"),
    [
        ((100, 500), [98, 224]),
        ((9, 14), [14, 14]),
        ((224, 223), [224, 210]),
        ((30, 2000), [28, 224]),
        ((0, 0), [224, 224]),
    ],
)
def test_crops_are_whole_patches_of_what_images_fill(side, crop):
    assert chosen(side=side)["crop_size"] == crop


def test_without_an_encoder():
    choices = chosen(weights=None, patch=32, num_layers=0)
    assert choices["backbone"] == "b0" and choices["method"] == "supervised" and choices["crop_size"] == [128, 128]
    assert "encoder" not in choices and "freeze_encoder_layers" not in choices
    asked = chosen(weights=None, is_given=True, patch=32)
    assert "backbone" not in asked and "hidden_sizes" not in asked and asked["learning_rate"] == 2e-3


def test_an_encoder_of_the_users_stays():
    plain = chosen(weights="folder", is_given=True, num_layers=24, patch=16)
    assert "encoder" not in plain and plain["freeze_encoder_layers"] == 12 and plain["crop_size"] == [224, 224]
    pyramid = chosen(weights="folder", is_given=True, num_layers=0, patch=32)
    assert "freeze_encoder_layers" not in pyramid and "learning_rate" not in pyramid


def test_an_encoder_without_weights_starts_from_scratch(tmp_path):
    """A model type of transformers has a geometry and no weights: nothing is frozen, no rates of pre-trained ones."""
    rows = make_dataset(2)
    found, args = SegmentationData(rows, rows, rows), AllSparkTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    args.given = set()
    data, model = DataArguments(data_dir="data"), ModelArguments(encoder="dinov2")
    choices = choose(Preset((), [], lambda line: None, 0)._situation(found, data, model, args))
    values = {choice.name: choice.value for choice in choices}
    assert "freeze_encoder_layers" not in values and "backbone" not in values
    assert values["learning_rate"] == 2e-3 and values["crop_size"] == [70, 84]


def test_a_trained_model_goes_on(tmp_path):
    """As its encoder, or as from scratch if it began there; from a plain SegFormer as from a pyramid's weights."""
    rows = make_dataset(2)
    found, args = SegmentationData(rows, rows, rows), AllSparkTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    args.given, four = set(), {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]}
    backbone = {"backbone_config": Dinov2Config(hidden_size=24, num_attention_heads=2, **four)}
    for config, has_weights, rate in (
        (AllSparkBackboneConfig(**backbone), True, 5e-5),
        (AllSparkBackboneConfig(**backbone, base_weights=FROM_SCRATCH), False, 2e-3),
        (AllSparkConfig.mit("b0", base_weights="nvidia/mit-b0"), True, None),
    ):
        config.save_pretrained(tmp_path)
        model = ModelArguments(model_name_or_path=str(tmp_path))
        situation = Preset((), [], lambda line: None, 0)._situation(found, DataArguments(data_dir="data"), model, args)
        values = {choice.name: choice.value for choice in choose(situation)}
        assert situation.weights == (str(tmp_path) if has_weights else None)
        assert values.get("learning_rate") == rate and not values.keys() & {"encoder", "backbone", "hidden_sizes"}
        is_frozen = has_weights and isinstance(config, AllSparkBackboneConfig)
        assert values.get("freeze_encoder_layers") == (2 if is_frozen else None)
        assert values["crop_size"] == ([64, 96] if rate is None else [70, 84])


def test_only_dinov2_has_public_tables():
    for model_type, is_known in (("dinov2", True), ("swin", False)):
        situation = Situation(**{**FACTS, **GPU}, model_type=model_type)
        (method,) = (choice for choice in choose(situation) if choice.name == "method")
        assert method.value == "unimatch_v2" and ("with this encoder" in method.reason) == is_known


def test_method_follows_device_and_unlabeled_images():
    assert chosen()["method"] == "supervised" and "keep_quantile" not in chosen()
    assert chosen(**GPU)["method"] == "unimatch_v2" and chosen(**GPU)["keep_quantile"] == 0.8
    assert chosen(**GPU, num_unlabeled=None)["method"] == "unimatch_v2"  # a stream
    given = chosen(method="fixmatch")
    assert "method" not in given and given["keep_quantile"] == 0.8
    assert "keep_quantile" not in chosen(method="allspark", **GPU)
    few = chosen(**GPU, num_unlabeled=23)
    assert few["method"] == "supervised" and "keep_quantile" not in few
    assert chosen(num_labeled=1)["per_device_train_batch_size"] == 1


@pytest.mark.parametrize(
    ("encoder", "geometry"),
    [
        ("dinov2", (14, 12)),
        ("dinov3_vit", (16, 12)),
        ("swin", (32, 0)),
        ("convnext", (32, 0)),
        ("resnet", (32, 0)),
        ("segformer", (32, 0)),
    ],
)
def test_only_a_plain_vit_has_layers_to_freeze(encoder, geometry):
    assert geometry_of(encoder_config(encoder))[1:] == geometry


def test_median_side():
    """Of the upright images; (height, width), each median by itself."""
    lying = Image.Exif()
    lying[ORIENTATION] = 6
    for exif, side in ((None, (20, 60)), (lying, (60, 20))):
        stored = []
        for size in ((30, 20), (90, 10), (60, 40)):
            Image.new("RGB", size).save(buffer := io.BytesIO(), "JPEG", exif=exif or b"")
            stored.append({"bytes": buffer.getvalue(), "path": None})
        rows = Dataset.from_list([{"image": one} for one in stored], features=Features({"image": ImageColumn()}))
        assert median_side(rows) == side and median_side(rows, long_side=30) == tuple(one // 2 for one in side)


@pytest.mark.parametrize(
    ("method", "warmups"),
    [
        ("supervised", (None, None)),
        ("pseudo_label", (0.25, None)),
        ("fixmatch", (0.0, None)),
        ("unimatch_v2", (0.0, None)),
        ("memory_contrastive", (0.0, None)),
        ("allspark", (0.25, 0.25)),
        ("allspark_unimatch", (0.25, 0.25)),
    ],
)
def test_warm_ups_are_shares_of_the_training(method, warmups):
    """Of the unlabeled loss and of the memory, where the method has them; longer from scratch."""
    names = "unlabeled_warmup_epochs", "memory_warmup_epochs"
    for changes in ({}, GPU):
        assert tuple(chosen(method=method, **changes).get(name) for name in names) == warmups
    longer = tuple(chosen(method=method, weights=None, patch=32, num_layers=0).get(name) for name in names)
    assert longer == tuple(None if share is None else 0.5 for share in warmups)


# ---- Reasons ----


def tables(page: str) -> dict[str, list[str]]:
    """The table lines of a page under each of its headings."""
    found, heading = {}, ""
    for line in page.splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif line.startswith("|"):
            found.setdefault(heading, []).append(line)
    return found


def missing_rows(text: str) -> list[str]:
    """The rows that a text names, as [`Choice`] says, and that no table of the studies has."""
    page = tables((ROOT / "scripts" / "studies" / "README.md").read_text(encoding="utf-8"))
    missing = []
    for study, named in re.findall(r"study, (CamVid from scratch|CamVid|Nuclei): ([^)]*)", text):
        rows = [row for heading, rows in page.items() if heading.startswith(study) for row in rows]
        for words in named.split(", "):
            wanted = [rf"(?<![\w.]){re.escape(word)}(?![\w.])" for word in re.split("[ =]", words)]
            if not any(all(re.search(word, row) for word in wanted) for row in rows):
                missing.append(f"{study}: {words}")
    return missing


def choices_of(method: str | None, weights: str | None, device: dict) -> list[Choice]:
    return choose(Situation(**{**FACTS, **device}, method=method, weights=weights))


def test_every_choice_has_a_reason_and_its_row_exists():
    for method, weights, device in itertools.product((None, *METHODS), (SMALL_ENCODER, None), ({}, GPU)):
        for choice in choices_of(method, weights, device):
            assert 5 < len(choice.reason) < 130 and missing_rows(choice.reason) == [], choice


def test_rows_of_the_page_of_rules_exist():
    page = (ROOT / "allspark_hf" / "training" / "README.md").read_text(encoding="utf-8")
    rules = page.split("## What `--preset auto` chooses")[1].split("\n## ")[0]
    assert rules.count("(study, ") >= 8 and missing_rows(rules) == []
    assert missing_rows("(study, Nuclei: pseudo_label 74.6, allspark 9.9, all 4.6)") == [
        "Nuclei: allspark 9.9",
        "Nuclei: all 4.6",
    ]


# ---- Length ----


def test_length():
    choices = {choice.name: choice.value for choice in choose_length(20, Times(update=2.0, evaluation=30.0))}
    assert choices["max_steps"] == 5 * choices["eval_steps"] == 525  # 1200 s - 5 x 30 s, at 2 s
    assert choices["save_steps"] == choices["eval_steps"] and choices["logging_steps"] == 10
    slow = {choice.name: choice.value for choice in choose_length(20, Times(update=2.0, evaluation=200.0))}
    assert slow["max_steps"] == slow["eval_steps"] == 500  # one evaluation, a sixth of the time
    with pytest.raises(ValueError, match=r"minutes=1 leaves 5 updates of 10.0 s, and at least 20 .*--minutes 4"):
        choose_length(1, Times(update=10.0, evaluation=5.0))


def test_length_counts_what_else_is_waited_for():
    """The start, and what comes before and after the updates; a long start leaves half of the time."""
    whole = {choice.name: choice for choice in choose_length(20, Times(2.0, 30.0, around=50.0, spent=100.0))}
    assert whole["max_steps"].value == 450  # 1200 s - 100 - 50 - 5 x 30, at 2 s
    assert whole["max_steps"].reason.startswith("18 of 20 minutes, which start and report leave, at 2 s")
    assert seconds_left(20, 100) == 1100 and seconds_left(20, 1000) == 600
    with pytest.raises(ValueError, match=r"minutes=1 leaves 1 updates .*--minutes 3"):
        choose_length(1, Times(2.0, 2.0, around=25.0, spent=1000.0))


def test_a_given_length_has_evaluations_by_its_share():
    """Not one after every epoch; what was given stays."""
    plan = {choice.name: choice.value for choice in plan_of_given_length({"max_steps"})}
    assert plan["eval_strategy"] == plan["save_strategy"] == "steps"
    assert plan["eval_steps"] == plan["save_steps"] == 0.2 and plan["logging_steps"] == 0.02
    assert plan_of_given_length({"max_steps", "eval_strategy"}) == []


def test_help_marks_what_is_chosen():
    situations = itertools.product((None, *METHODS), (SMALL_ENCODER, None), ({}, {**GPU, "has_bf16": True}))
    names = {one.name for method, weights, device in situations for one in choices_of(method, weights, device)}
    length = [*choose_length(20, Times(2.0, 30.0)), *plan_of_given_length(set())]
    names |= {one.name for one in length} | {apply_preset.BATCH[2]}
    assert names == set(CHOSEN)


def test_an_update_of_several_batches_takes_longer(tmp_path, monkeypatch):
    """Two of its four batches are timed, since the second needs the most memory."""
    trials = []
    monkeypatch.setattr(apply_preset, "measure", lambda trainer: Times(0.5, 3.0, around=1.0))
    args = AllSparkTrainingArguments(output_dir=str(tmp_path), use_cpu=True, gradient_accumulation_steps=4)
    arguments = (None, None, args)
    times = apply_preset._time_updates(lambda data, model, trial, report: trials.append(trial), None, arguments)
    assert [trial.gradient_accumulation_steps for trial in trials] == [2] and args.gradient_accumulation_steps == 4
    assert (times.update, times.evaluation) == (1.0, 3.0) and times.around == pytest.approx(1, abs=0.5)


def test_a_batch_that_does_not_fit_is_cut_and_accumulated(tmp_path, monkeypatch):
    """Down to two images, whose CutMix is the same; what was given is not changed."""
    tried, said = [], []

    def time_if_it_fits(build, report, arguments):
        tried.append((arguments[2].per_device_train_batch_size, arguments[2].gradient_accumulation_steps))
        if tried[-1][0] > fits:
            raise NoMemoryError("Memory ran out.")
        return Times(0.5, 3.0)

    monkeypatch.setattr(apply_preset, "_time_updates", time_if_it_fits)
    types = (DataArguments, ModelArguments, AllSparkTrainingArguments)
    typed = ["--data_dir", "data", "--output_dir", str(tmp_path), "--use_cpu", "--encoder", "dinov2"]
    fits, preset = 2, Preset(types, typed, said.append, since=0.0)
    preset._add([Choice("per_device_train_batch_size", 8, "")])
    args = preset.choose_length(None, None, preset.parse(), 5, trains_twice=False)[2]
    assert tried == [(8, 1), (4, 2), (2, 4)]
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 4) and args.max_steps > 0
    assert "  per_device_train_batch_size 4: memory ran out with 8" in said
    for given, times in (([], 2), *(([f"--{name}", "1"], 1) for name in apply_preset.BATCH[1:])):
        fits, preset = 1, Preset(types, [*typed, *given], said.append, since=0.0)
        preset._add([Choice("per_device_train_batch_size", 4, "")])
        tried.clear()
        with pytest.raises(NoMemoryError, match="Memory ran out"):
            preset.choose_length(None, None, preset.parse(), 5, trains_twice=False)
        assert len(tried) == times


def test_a_timed_training_reads_the_stream_that_was_given(tmp_path):
    args = AllSparkTrainingArguments(output_dir=str(tmp_path), use_cpu=True, unlabeled_images_per_epoch=7)
    assert trial_arguments(args, str(tmp_path), updates=3).unlabeled_images_per_epoch == 7


def test_timed_images_are_small_and_large_ones():
    assert spread([100, 900, 300, 200, 700, 600, 400, 800, 500, 1000]) == [3, 6, 5, 7, 9]
    assert spread([5, 3]) == [1, 0]
