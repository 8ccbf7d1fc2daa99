"""One convention of mask values, wherever masks come in: from Python, the scripts, the figures; told on the card."""

import json

import datasets
import numpy as np
import pytest
from card_folders import CLASSES, config_of, run_of, write
from conftest import small_model
from in_process import run_script
from PIL import Image

from allspark_hf import AllSparkConfig, AllSparkTrainer, AllSparkTrainingArguments
from allspark_hf.data import BadDataError, DataArguments, SegmentationData, check_data, find_data, split_of_run
from allspark_hf.data.masks import CLASS_INDICES, MaskConvention
from allspark_hf.data.mixed import Draw
from allspark_hf.data.summary import describe_binary_masks, mask_values
from allspark_hf.evaluation.selection import select_split
from allspark_hf.figures import compare_predictions, error_by_set
from allspark_hf.figures.crops import crop_row
from allspark_hf.inference.loading import make_image_processor
from allspark_hf.publishing.card import render_card
from allspark_hf.publishing.records import read_records


PLAIN = AllSparkConfig.plain_segformer_switches()
OPTION = r"--mask_values 0 255 \(in Python mask_values=\[0, 255\] in the model's configuration\)"


def picture(values, size=(64, 80)) -> tuple[Image.Image, Image.Image]:
    """A noise image and a mask of stripes of these values."""
    mask = np.repeat(np.resize(np.array(values), 8), size[0] // 8)[:, None].repeat(size[1], 1).astype(np.uint8)
    noise = np.random.default_rng(len(values) * 1000 + sum(values)).integers(90, size=(*size, 3))
    return Image.fromarray((noise + (mask[..., None] > 0) * 100).astype(np.uint8)), Image.fromarray(mask)


def rows(*masks, **more) -> datasets.Dataset:
    """A row for each list of values."""
    pictures = [picture(values) for values in masks]
    columns = {"image": [image for image, _ in pictures], "label": [mask for _, mask in pictures], **more}
    features = {name: datasets.Image() if name in ("image", "label") else datasets.Value("string") for name in columns}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def trainer_of(tmp_path, labeled, validation, unlabeled=None, num_labels=2, mask_values=None, **fields):
    settings = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_steps": 1, "save_strategy": "no"}
    settings |= {"method": "supervised", "eval_strategy": "no"}
    model = small_model(num_labels=num_labels, mask_values=mask_values, **PLAIN, **fields)
    args = AllSparkTrainingArguments(output_dir=str(tmp_path), **settings)
    sets = {"train_dataset": labeled, "unlabeled_dataset": unlabeled, "eval_dataset": validation}
    return AllSparkTrainer(model, args, make_image_processor(), **sets)


# ---- What is judged ----


@pytest.mark.parametrize(
    ("num_labels", "sets", "sentence"),
    [
        (2, {"labeled": [(0, 255), (0, 255), (0,)]}, "2 of 3 labeled masks (first row 0) hold only 0 and 255, so"),
        (2, {"labeled": [(0, 255)] * 3}, "3 of 3 labeled masks (first row 0) hold only 0 and 255, so that 255 may"),
        (2, {"labeled": [(0, 1), (255, 0)]}, "1 of 2 labeled masks (first row 1) hold only 0 and 255, while others"),
        (2, {"labeled": [(0, 1, 255), (0, 255)]}, "1 of 2 labeled masks (first row 1) hold only"),
        (2, {"labeled": [(0, 1)] * 2, "validation": [(0, 255)]}, "1 of 1 validation masks (first row 0) hold only 0"),
        (2, {"labeled": [(0, 1)], "unlabeled": [(1, 0), (0, 255)]}, "1 of 2 unlabeled masks (first row 1) hold only"),
        (2, {"labeled": [(0,), (255,)]}, "1 of 2 labeled masks (first row 1) hold only"),
        (21, {"labeled": [(0, 255)] * 2}, "2 of 2 labeled masks"),
        (21, {"labeled": [(0, 7)], "validation": [(0, 255)]}, "1 of 1 validation masks (first row 0) hold only"),
        (2, {"labeled": [(0, 1, 255), (0, 1)], "validation": [(1, 255)]}, None),
        (2, {"labeled": [(0, 1), (0,), (1,)]}, None),
        (21, {"labeled": [(0, 7, 255), (0, 255)], "validation": [(0, 255), (0, 20)]}, None),  # background and borders
        (21, {"labeled": [(0, 7), (255,)]}, None),
    ],
)
def test_by_file_and_by_set(num_labels, sets, sentence):
    sets = {name: rows(*masks) for name, masks in sets.items()}
    found = describe_binary_masks(sets, num_labels, CLASS_INDICES)
    assert found is None if sentence is None else sentence in found and found.endswith(".")
    for masks in (
        MaskConvention((0, 255)),
        MaskConvention(ignored_mask_values=(255,)),
        MaskConvention(ignore_index=9),
    ):
        assert describe_binary_masks(sets, num_labels, masks) is None  # somebody said what 255 is


def test_check_data_counts_classes_before_it_judges():
    """Nobody says how many classes there are: two of them make {0, 255} suspicious, six do not."""
    sound = rows((0, 5), (0, 255))
    assert check_data(SegmentationData(sound, sound.select([]), rows((0, 1)))).num_labels == 6
    mixed = rows((0, 1), (0, 255))
    with pytest.raises(
        BadDataError, match=r"1 of 2 labeled masks .* while others hold 1: .*--ignored_mask_values 255"
    ):
        check_data(SegmentationData(mixed, mixed.select([]), rows((0, 1))), skip_bad_files=True)
    report = check_data(SegmentationData(mixed, mixed.select([]), rows((0, 1))), ignored_mask_values=[255])
    assert (report.num_labels, report.values) == (2, [0, 1])
    for values in ([0, 1], [1, 0]):  # as wrong as none
        with pytest.raises(BadDataError, match=OPTION):
            check_data(SegmentationData(rows((0, 255)), mixed.select([]), rows((0, 255))), mask_values=values)


# ---- From Python ----


def test_the_trainer_refuses_what_nobody_explained(tmp_path):
    binary, indices = rows((0, 255), (255, 0)), rows((0, 1), (1, 0))
    with pytest.raises(ValueError, match=rf"2 of 2 labeled masks .*{OPTION}"):
        trainer_of(tmp_path, binary, None)
    with pytest.raises(ValueError, match=r"2 of 2 validation masks .* while others hold 1"):
        trainer_of(tmp_path, indices, binary)
    with pytest.raises(ValueError, match=r"2 of 2 two masks .* while others hold 1"):
        trainer_of(tmp_path, indices, {"one": rows((1, 0, 1)), "two": binary})
    with pytest.raises(ValueError, match=r"1 of 2 unlabeled masks"):
        trainer_of(tmp_path, indices, rows((1, 1, 0)), unlabeled=rows((0, 0, 255), (0, 0, 1)))
    trainer = trainer_of(tmp_path, indices, rows((1, 0, 1)))
    with pytest.raises(ValueError, match=rf"2 of 2 validation masks .*{OPTION}"):
        trainer.evaluate(binary)
    with pytest.raises(ValueError, match="mask_values lists 3 classes, but the model has 2: list each"):
        trainer_of(tmp_path, binary, None, mask_values=[0, 128, 255])
    with pytest.raises(ValueError, match="row 1: The mask holds the value 1, which the model's mask values 0 255 do"):
        trainer_of(tmp_path, rows((0, 255), (0, 1)), None, mask_values=[0, 255])


def test_the_configuration_says_what_the_values_are(tmp_path):
    binary, validation = rows((0, 255), (255, 0)), rows((0, 0, 255))
    trainer = trainer_of(tmp_path, binary, validation, mask_values=[0, 255])
    sample = next(iter(trainer.get_train_dataloader()))
    assert set(sample["labels"].unique().tolist()) <= {0, 1, 255} and (sample["labels"] == 1).any()
    metrics = trainer.evaluate()
    truth = trainer.evaluation.confusion.counts.sum(1).tolist()
    assert truth == [6 * 8 * 80, 2 * 8 * 80] and metrics["eval_mean_iou"] < 1
    again = trainer_of(tmp_path, rows((0, 1), (1, 0)), rows((0, 0, 1)))
    again.model.load_state_dict(trainer.model.state_dict())
    again.evaluate()
    assert again.evaluation.confusion.counts.sum(1).tolist() == truth


def test_masks_are_mapped_once_and_the_training_is_remembered(tmp_path):
    """Through check_data the rows give class indices already; the configuration gets what the training used."""
    raw = SegmentationData(rows((0, 255), (255, 0)), rows((0,)).select([]), rows((0, 0, 255)))
    data = check_data(raw, mask_values=[255, 0]).data
    trainer = trainer_of(tmp_path, data.labeled, data.validation)
    assert (trainer.model.config.mask_values, trainer.model.config.ignored_mask_values) == ([255, 0], None)
    trainer.evaluate()
    inverse = [2 * 8 * 80, 6 * 8 * 80]
    assert trainer.evaluation.confusion.counts.sum(1).tolist() == inverse
    trainer.evaluate(raw.validation)
    assert trainer.evaluation.confusion.counts.sum(1).tolist() == inverse
    picked = trainer_of(tmp_path, data.labeled.select([1]), data.validation, mask_values=[0, 255])
    assert picked.model.config.mask_values == [255, 0]
    _, label = trainer.get_train_dataloader().dataset._read(Draw(True, 0, 0, 0))
    assert label[0, 0] == 1 and label[-1, 0] == 0


# ---- Figures ----


def test_figures_read_masks_as_the_model_does():
    model = small_model(num_labels=2, mask_values=[0, 255], **PLAIN).eval()
    plain = small_model(num_labels=2, **PLAIN).eval()
    binary, indices, processor = rows((0, 255, 255)), rows((0, 1, 1)), make_image_processor()
    indices = datasets.Dataset.from_dict({"image": binary["image"], "label": indices["label"]})
    same = [
        error_by_set({"m": (one, processor)}, {"validation": data})
        for one, data in ((model, binary), (plain, indices))
    ]
    np.testing.assert_array_equal(same[0]["counts"], same[1]["counts"])
    assert same[0]["counts"][0, 0, 1].sum() == 5 * 8 * 80
    truth = compare_predictions({"m": (model, processor)}, [binary[0]])["truth_0"]
    assert np.unique(truth).tolist() == [0, 1]
    assert np.unique(crop_row(binary, 0, processor, model.config).label).tolist() == [0, 1]
    for draw in (
        lambda: error_by_set({"m": (plain, processor)}, {"validation": binary}),
        lambda: compare_predictions({"m": (plain, processor)}, [binary[0]]),
        lambda: crop_row(binary, 0, processor, plain.config),
    ):
        with pytest.raises(ValueError, match=OPTION):
            draw()


# ---- Scripts ----


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same pictures with masks 0/1 and 0/255, in one folder without splits each, and a model for either."""
    root = tmp_path_factory.mktemp("binary")
    for name, high in (("indices", 1), ("binary", 255)):
        for index in range(6):
            image, mask = picture((0,) * (index + 1) + (1,))
            mask = mask.point(lambda value, high=high: value * high)
            for kind, file in (("images", image), ("masks", mask)):
                (root / name / kind).mkdir(parents=True, exist_ok=True)
                file.save(root / name / kind / f"i{index}.png")
        model = small_model(num_labels=2, mask_values=[0, 255] if high == 255 else None, **PLAIN)
        model.save_pretrained(root / f"{name}_model")
        make_image_processor().save_pretrained(root / f"{name}_model")
    return root


def evaluate(folders, model: str, data: str, *more):
    options = ["--model", folders / f"{model}_model", "--data_dir", folders / data, "--split", "all", "--use_cpu"]
    output = folders / "scores.json"
    done = run_script("evaluate.py", *options, *more, "--output_file", output, "--overwrite")
    return done, json.loads(output.read_text())["confusion_matrix"] if done.returncode == 0 else None


def test_evaluation_reads_the_data_of_the_training_and_refuses_others(folders):
    expected = evaluate(folders, "indices", "indices")[1]
    assert np.sum(expected) == 6 * 64 * 80 and np.sum(expected[1]) > 0
    assert evaluate(folders, "binary", "binary")[1] == expected
    assert evaluate(folders, "indices", "binary", "--mask_values", 0, 255)[1] == expected
    assert evaluate(folders, "binary", "indices", "--mask_values", 0, 1)[1] == expected
    refused, _ = evaluate(folders, "indices", "binary")
    assert refused.returncode == 1 and "--mask_values 0 255" in refused.stderr and "masks/i0.png" in refused.stderr
    refused, _ = evaluate(folders, "binary", "indices")
    assert refused.returncode == 1 and "i0.png: The mask holds the value 1, which the model's mask" in refused.stderr


def test_the_validation_images_of_a_run_are_found_again(folders):
    """A folder without splits: another share and seed than the defaults."""
    run = folders / "run"
    run.mkdir()
    data = find_data(DataArguments(data_dir=str(folders / "binary"), validation_fraction=0.5, split_seed=7))
    for name, dataset in data.sets.items():
        (run / f"{name}_ids.txt").write_text("".join(f"{one}\n" for one in dataset["id"]))
    found = find_data(split_of_run(DataArguments(data_dir=str(folders / "binary")), str(run)))
    assert list(found.validation["id"]) == list(data.validation["id"]) and len(data.validation) == 3
    assert list(found.labeled["id"]) == list(data.labeled["id"])
    for more, count in (({}, 3), ({"validation_fraction": 0.3}, 2), ({"labeled_count": 1}, 3)):
        arguments = DataArguments(data_dir=str(folders / "binary"), **more)
        config = small_model(num_labels=2, mask_values=[0, 255], **PLAIN).config
        assert len(select_split("validation", arguments, config, str(run))) == count
    other = find_data(split_of_run(DataArguments(data_dir=str(folders / "binary"), labeled_count=1), str(run)))
    assert len(other.labeled) == 1 and list(other.validation["id"]) == list(data.validation["id"])


# ---- Options ----


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ignore_index": 0}, "--mask_values 1 2 --ignored_mask_values 0"),  # 3 were counted
        ({"ignore_index": 0, "num_labels": 2}, "--mask_values 1 2 --ignored_mask_values 0"),  # 2 were said
        ({"ignore_index": 0, "num_labels": 21}, "--mask_values 1 2 3 ... --ignored_mask_values 0"),
        ({"ignore_index": 0, "mask_values": [1, 2]}, "leave --ignore_index out, .*--ignored_mask_values 0"),
    ],
)
def test_0_as_the_ignored_value(options, sentence):
    data = SegmentationData(rows((0, 1, 2)), rows((0,)).select([]), rows((0, 1, 2)))
    with pytest.raises(ValueError, match=sentence):
        check_data(data, **options)
    report = check_data(data, mask_values=[1, 2], ignored_mask_values=[0])
    assert (report.num_labels, report.values) == (2, [0, 1])


def test_lists_with_commas_name_the_fix():
    done = run_script("evaluate.py", "--model", "m", "--data_dir", "d", "--mask_values", "0,255")
    assert done.returncode == 1 and "give several numbers with blanks between them, such as 0 255" in done.stderr


# ---- Card ----


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "In masks, 255 stood for pixels that do not count."),
        ({"mask_values": [0, 255, 7]}, "In masks, 0, 255, 7 stood for these classes, in this order."),
        (
            {"mask_values": [1, 2, 3], "ignored_mask_values": [0]},
            "In masks, 1 to 3 stood for these classes, in this order; 0, 255 stood for pixels that do not count.",
        ),
        ({"ignored_mask_values": [4]}, "In masks, 4, 255 stood for pixels that do not count."),
    ],
)
def test_the_card_tells_the_convention(tmp_path, fields, sentence):
    write(tmp_path, "config.json", config_of(CLASSES, **fields))
    write(tmp_path, "run_record.json", run_of())
    (line,) = (line for line in render_card(read_records(tmp_path)).splitlines() if line.startswith("In masks"))
    assert line == sentence


def test_values_are_those_of_the_column_that_is_asked_for():
    columns = {name: [Image.fromarray(np.full((4, 4), value, dtype=np.uint8))] for name, value in (("a", 1), ("b", 2))}
    features = datasets.Features({name: datasets.Image() for name in columns})
    rows = datasets.Dataset.from_dict(columns, features=features)
    assert mask_values(rows, "a") == (frozenset({1}),) and mask_values(rows, "b") == (frozenset({2}),)
