"""Data sets of datasets.load_dataset and second unlabeled sources, on local stand-ins."""

import json
import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import make_dataset, tiny_model
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RemoteEntryNotFoundError
from in_process import run_script
from layout_folders import load_hub_data

from allspark_hf import AllSparkTrainer, AllSparkTrainingArguments
from allspark_hf.data import DataArguments, find_classes, find_data, load_data, write_id_lists
from allspark_hf.data.sources import hub
from allspark_hf.data.sources.unlabeled import open_unlabeled_stream, read_image_folder
from allspark_hf.inference.loading import make_image_processor


COLUMNS = {"image_column": "photo", "label_column": "mask"}
WITHOUT_MASK = (2, 5)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def rows(num_rows: int, seed: int, without_mask=()) -> Dataset:
    """Columns `photo`, `mask` and another; rows without a mask have None."""
    source = make_dataset(num_rows, seed=seed)
    masks = [None if row in without_mask else source[row]["label"] for row in range(num_rows)]
    columns = {"photo": [example["image"] for example in source], "mask": masks, "note": ["x"] * num_rows}
    return Dataset.from_dict(columns, features=Features({"photo": Image(), "mask": Image(), "note": Value("string")}))


def write_parquet(folder: Path, **splits: Dataset) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        split.to_parquet(folder / f"{name}.parquet")
    return str(folder)


@pytest.fixture
def parquet(tmp_path):
    return write_parquet(tmp_path / "data", train=rows(8, 1, WITHOUT_MASK), validation=rows(3, 2))


def assert_rows(dataset: Dataset, source: Dataset, expected: list[int]):
    assert len(dataset) == len(expected)
    for example, row in zip(dataset, expected, strict=True):
        assert np.array_equal(np.asarray(example["image"]), np.asarray(source[row]["photo"]))
        if "label" in example:
            assert np.array_equal(np.asarray(example["label"]), np.asarray(source[row]["mask"]))


def test_parquet_folder(parquet):
    data = load_hub_data(parquet, **COLUMNS)
    assert_rows(data.labeled, rows(8, 1), [0, 1, 3, 4, 6, 7])
    assert_rows(data.unlabeled, rows(8, 1), [2, 5])
    assert_rows(data.validation, rows(3, 2), [0, 1, 2])
    assert set(data.labeled.column_names) == set(data.validation.column_names) == {"id", "image", "label"}
    assert set(data.unlabeled.column_names) == {"id", "image"}
    assert data.labeled["id"][2] == "train-3" and data.validation["id"][0] == "validation-0"
    assert data.classes is None and data.hidden_ids == []


def test_hidden_masks_stay_beside_the_unlabeled(parquet, tmp_path):
    data = load_hub_data(parquet, labeled_count=2, **COLUMNS)
    assert len(data.labeled) == 2 and len(data.unlabeled) == 6 and len(data.hidden_ids) == 4
    shown = {example["id"] for example in data.unlabeled if example["label"] is not None}
    assert shown == set(data.hidden_ids)
    assert not shown & set(data.labeled["id"])
    again = load_hub_data(parquet, labeled_count=3, **COLUMNS)
    assert set(data.labeled["id"]) < set(again.labeled["id"])
    assert load_hub_data(parquet, labeled_fraction=1 / 3, **COLUMNS).labeled["id"] == data.labeled["id"]
    others = [
        load_hub_data(parquet, labeled_count=2, split_seed=seed, **COLUMNS).labeled["id"][:] for seed in range(6)
    ]
    assert len({tuple(ids) for ids in others}) > 2

    arguments = DataArguments(dataset_name=parquet, labeled_count=2)
    write_id_lists(find_data(arguments, "photo", "mask"), tmp_path / "lists")
    listed = load_hub_data(parquet, labeled_list=tmp_path / "lists" / "labeled_ids.txt", **COLUMNS)
    assert listed.labeled["id"][:] == data.labeled["id"][:]
    assert (tmp_path / "lists" / "validation_ids.txt").read_text().split()[-1] == "validation-2"


@pytest.mark.parametrize("name", ["val", "dev", None])
def test_saved_to_disk_and_validation_splits(tmp_path, name):
    """Of 8 rows, 6 have a mask; without a validation split a third of these is held out."""
    saved = {"train": rows(8, 1, WITHOUT_MASK)} | ({name: rows(3, 2)} if name else {})
    (DatasetDict(saved) if name else saved["train"]).save_to_disk(tmp_path / "saved")
    validation_split = "dev" if name == "dev" else None
    options = {"validation_split_name": validation_split, "validation_fraction": 1 / 3}
    data = load_hub_data(str(tmp_path / "saved"), **options, **COLUMNS)
    assert [len(data.labeled), len(data.unlabeled), len(data.validation)] == ([6, 2, 3] if name else [4, 2, 2])
    if name is None:
        ids = [*data.labeled["id"], *data.unlabeled["id"], *data.validation["id"]]
        assert sorted(ids) == [f"train-{row}" for row in range(8)]
        assert all(example["label"] is not None for example in data.validation)


def test_imagefolder_with_metadata(tmp_path):
    source = rows(4, 1, [3])
    for split, chosen in (("train", [0, 1, 3]), ("validation", [2])):
        folder = tmp_path / split
        (folder / "masks").mkdir(parents=True)
        lines = ["file_name,mask_file_name"]
        for row in chosen:
            source[row]["photo"].save(folder / f"{row}.png")
            if source[row]["mask"] is not None:
                source[row]["mask"].save(folder / "masks" / f"{row}.png")
            lines.append(f"{row}.png," + (f"masks/{row}.png" if source[row]["mask"] is not None else ""))
        (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    data = load_hub_data(str(tmp_path), label_column="mask")
    assert_rows(data.labeled, source, [0, 1])
    assert_rows(data.unlabeled, source, [3])
    assert_rows(data.validation, source, [2])


def test_ids_paths_and_bytes(tmp_path, caplog):
    source, paths = rows(3, 1), []
    for row, example in enumerate(source):
        paths.append(str(tmp_path / f"{row}.png"))
        example["photo"].save(paths[-1])
        example["mask"].save(tmp_path / f"{row}_mask.png")
    masks = [(tmp_path / f"{row}_mask.png").read_bytes() for row in range(3)]
    train = Dataset.from_dict({"id": [7, 8, 9], "image": paths, "label": [masks[0], None, masks[2]]})
    name = write_parquet(tmp_path / "data", train=train, validation=train.select([0]))
    data = load_hub_data(name)
    assert data.labeled["id"][:] == ["7", "9"] and data.unlabeled["id"][:] == ["8"]
    assert_rows(data.labeled, source, [0, 2])
    twice = train.map(lambda row: {"id": 7})
    name = write_parquet(tmp_path / "twice", train=twice, validation=train.select([0]))
    assert load_hub_data(name).labeled["id"][:] == ["train-0", "train-2"]
    assert "names several rows with one id" in caplog.text


# ---- Names of classes ----


def with_classes(feature, values) -> Dataset:
    return rows(2, 1).add_column("kinds", values).cast_column("kinds", feature)


def test_classes_of_the_data_set(tmp_path):
    lists = with_classes(List(ClassLabel(names=["sky", "road"])), [[0], [0, 1]])
    scenes = with_classes(ClassLabel(names=["city", "forest", "sea"]), [0, 1])
    folder = str(tmp_path)
    assert find_classes(folder, lists).names == ["sky", "road"]
    assert find_classes(folder, scenes) is None  # what a whole image shows is no class of pixels
    assert find_classes(folder, scenes, "kinds").names == ["city", "forest", "sea"]
    (tmp_path / "id2label.json").write_text(json.dumps({"1": "b", "0": "a", "2": "c"}))
    assert find_classes(folder, lists).names == ["a", "b", "c"]
    assert find_classes(folder, lists, "kinds").names == ["sky", "road"]
    with pytest.raises(ValueError, match=r"no column 'note' with names of classes .*have such names: kinds"):
        find_classes(folder, lists, "note")
    (tmp_path / "id2label.json").write_text(json.dumps({"0": "a", "7": "b"}))
    with pytest.raises(ValueError, match=r"without gaps, .* Or name the classes with --classes"):
        find_classes(folder, lists)
    (tmp_path / "classes.txt").write_text("one\ntwo\nthree\n")
    write_parquet(tmp_path / "data", train=rows(4, 1), validation=rows(2, 2))
    (tmp_path / "data" / "id2label.json").write_text("{}")
    arguments = DataArguments(dataset_name=str(tmp_path / "data"), classes=str(tmp_path / "classes.txt"))
    assert find_data(arguments, "photo", "mask").classes.names == ["one", "two", "three"]


def test_hub_data_set(tmp_path, monkeypatch, caplog):
    """What is asked of the Hub, and that being offline is not taken for a file that is not there."""
    asked = []
    outcome = tmp_path / "id2label.json"
    outcome.write_text(json.dumps({"0": "a", "1": "b", "2": "c"}))

    def load_dataset(name, config, streaming):
        assert (name, config, streaming) == ("some/data", "small", False)
        return DatasetDict(train=rows(3, 1), validation=rows(2, 2))

    def download(name, file, repo_type):
        asked.append((name, file, repo_type))
        if isinstance(outcome, Exception):
            raise outcome
        return str(outcome)

    monkeypatch.setattr(hub.datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    data = load_hub_data("some/data", dataset_config_name="small", **COLUMNS)
    assert data.classes.names == ["a", "b", "c"] and len(data.labeled) == 3
    assert asked == [("some/data", "id2label.json", "dataset")]
    outcome = RemoteEntryNotFoundError.__new__(RemoteEntryNotFoundError)  # its constructor wants a response
    assert load_hub_data("some/data", dataset_config_name="small", **COLUMNS).classes is None and not caplog.records
    for outcome in (LocalEntryNotFoundError("no connection"), OfflineModeIsEnabled("offline")):
        caplog.clear()
        assert load_hub_data("some/data", dataset_config_name="small", **COLUMNS).classes is None
        assert "cannot be looked up" in caplog.text and str(outcome) in caplog.text


# ---- Mistakes ----


def test_mistakes_of_the_main_data_set(parquet, tmp_path):
    only_none = write_parquet(tmp_path / "none", train=rows(2, 1, [0, 1]), validation=rows(2, 2))
    lists = rows(2, 1).remove_columns("mask").add_column("mask", [[0, 1], [1, 0]])
    lists = write_parquet(tmp_path / "lists", train=lists)
    one = write_parquet(tmp_path / "one", train=rows(1, 1))
    rows(2, 1).save_to_disk(tmp_path / "saved")
    ids = tmp_path / "ids.txt"
    ids.write_text("train-2\n")
    cases = [
        (
            parquet,
            {"image_column": "image", "label_column": "label"},
            "no column 'image' and no column 'label' .*--image_column_name .*--label_column_name",
        ),
        (parquet, {"train_split_name": "all"}, "no split 'all' but train, validation: .*--train_split_name"),
        (parquet, {"validation_split_name": "test"}, "no split 'test'.*--validation_split_name"),
        (parquet, {"labeled_count": 7}, "labeled_count is 7, but .* has only 6 masks"),
        (parquet, {"labeled_list": ids}, "ids.txt names train-2, which has no mask"),
        (parquet, {"validation_list": ids}, "ids.txt names train-2, but there is no such validation row"),
        (only_none, {}, "of .*none has no mask of a training image, so the labeled set is empty"),
        (lists, {}, "the column 'mask' holds List.*, not images: store images"),
        (one, {}, "has 1 mask and 1 would be held out"),
        (str(tmp_path / "nowhere"), {}, "nowhere cannot be loaded: "),
        (str(tmp_path / "saved"), {"dataset_config_name": "a"}, "save_to_disk has no configuration 'a'"),
    ]
    for name, options, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            load_hub_data(name, **{**COLUMNS, **options})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "Give either --data_dir"),
        ({"data_dir": "a", "dataset_name": "b"}, "Give either --data_dir"),
        ({"dataset_name": "b", "data_format": "voc"}, "--data_format belongs to --data_dir"),
        ({"data_dir": "a", "validation_split_name": "test"}, "--validation_split_name belongs to --dataset_name"),
        ({"data_dir": "a", "unlabeled_split_name": "b"}, "--unlabeled_split_name belongs to --unlabeled_dataset_name"),
        ({"data_dir": "a", "unlabeled_streaming": True}, "--unlabeled_streaming needs --unlabeled_dataset_name"),
        (
            {"data_dir": "a", "unlabeled_streaming": True, "unlabeled_dataset_name": "b", "unlabeled_dir": "c"},
            "trains on the stream alone",
        ),
    ],
)
def test_arguments_that_contradict_each_other(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        DataArguments(**options)


# ---- A second source of unlabeled images ----


@pytest.fixture
def photos(tmp_path):
    """Images as a user's folder has them: nested, mixed suffixes, one that is also labeled (row 0)."""
    folder = tmp_path / "photos"
    (folder / "deep" / ".cache").mkdir(parents=True)
    source = rows(8, 1)
    make_dataset(1, seed=9)[0]["image"].save(folder / "a.png")
    make_dataset(1, seed=10)[0]["image"].save(folder / "deep" / "a.JPG", format="JPEG")
    make_dataset(1, seed=10)[0]["image"].save(folder / "deep" / ".cache" / "b.png")
    (folder / "deep" / "twin.png").write_bytes(source.cast_column("photo", Image(decode=False))[0]["photo"]["bytes"])
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_folder_of_images_is_added(parquet, photos, tmp_path, caplog):
    (tmp_path / "ids.txt").write_text("train-0\ntrain-1\n")
    arguments = DataArguments(dataset_name=parquet, labeled_list=str(tmp_path / "ids.txt"), unlabeled_dir=str(photos))
    with caplog.at_level(logging.INFO):
        data = load_data(arguments, "photo", "mask").data
    added = [f"unlabeled_dir:{name}" for name in ("a.png", "deep/a.JPG", "deep/twin.png")]
    assert data.unlabeled["id"][-3:] == added and len(data.unlabeled) == 9
    assert [example["label"] is None for example in data.unlabeled][-3:] == [True] * 3
    assert np.array_equal(np.asarray(data.unlabeled[6]["image"]), np.asarray(make_dataset(1, seed=9)[0]["image"]))
    assert "1 unlabeled images are also labeled, first unlabeled_dir:deep/twin.png = train-0." in caplog.text


def test_a_second_data_set_is_added_and_checked(parquet, tmp_path):
    second = rows(3, 20).select_columns(["photo"])
    name = write_parquet(tmp_path / "second", train=second)
    arguments = DataArguments(dataset_name=parquet, unlabeled_dataset_name=name, unlabeled_image_column_name="photo")
    data = load_data(arguments, "photo", "mask").data
    assert data.unlabeled["id"][:] == ["train-2", "train-5", *(f"unlabeled_dataset:train-{row}" for row in range(3))]
    assert_rows(data.unlabeled.select([2, 3, 4]), rows(3, 20), [0, 1, 2])
    for change, sentence in (
        (
            {"unlabeled_image_column_name": "image"},
            "no column 'image' .it has photo.*--unlabeled_image_column_name",
        ),
        ({"unlabeled_split_name": "rest"}, "no split 'rest' but train: name one of these with --unlabeled_split_name"),
    ):
        with pytest.raises(ValueError, match=sentence):
            find_data(DataArguments(**{**vars(arguments), **change}), "photo", "mask")


def test_bad_and_leaked_images_of_the_second_source(parquet, photos, tmp_path):
    (photos / "bad.png").write_bytes(b"no picture")
    arguments = DataArguments(dataset_name=parquet, unlabeled_dir=str(photos))
    with pytest.raises(ValueError, match=r"1 bad file was found.*\n- .*/photos/bad.png: The file cannot be read"):
        load_data(arguments, "photo", "mask")
    arguments.skip_bad_files = True
    report = load_data(arguments, "photo", "mask")
    assert len(report.left_out) == 1 and len(report.data.unlabeled) == 5

    stored = rows(3, 2).cast_column("photo", Image(decode=False))[1]["photo"]["bytes"]
    (photos / "leak.png").write_bytes(stored)
    data = load_data(arguments, "photo", "mask").data
    args = AllSparkTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    sets = {"train_dataset": data.labeled, "unlabeled_dataset": data.unlabeled, "eval_dataset": data.validation}
    with pytest.raises(ValueError, match=r"1 images are in both .*\(unlabeled_dir:leak.png = validation-1\)"):
        AllSparkTrainer(tiny_model(), args, make_image_processor(), **sets)


def test_folders_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere; unlabeled_dir names a folder"):
        read_image_folder(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"holds no image; put some there .accepted: jpg, jpeg"):
        read_image_folder(tmp_path)


def test_stream_of_a_data_set(parquet, tmp_path, caplog):
    name = write_parquet(tmp_path / "second", train=rows(3, 20).select_columns(["photo"]))
    arguments = DataArguments(
        dataset_name=parquet,
        unlabeled_dataset_name=name,
        unlabeled_image_column_name="photo",
        unlabeled_streaming=True,
    )
    data = load_data(arguments, "photo", "mask").data
    assert "The 2 unlabeled images of" in caplog.text and len(data.unlabeled) == 2
    decoder, expected = Image(), rows(3, 20)
    for example, row in zip(data.unlabeled_stream, expected, strict=True):
        assert np.array_equal(np.asarray(decoder.decode_example(example["image"])), np.asarray(row["photo"]))
    DatasetDict(train=expected).save_to_disk(tmp_path / "saved")
    assert len(list(open_unlabeled_stream(str(tmp_path / "saved"), image_column="photo"))) == 3
    (photo, *_) = open_unlabeled_stream(name)  # there is no other column of images
    assert photo["image"]["bytes"] == next(iter(data.unlabeled_stream))["image"]["bytes"]
    with pytest.raises(ValueError, match=r"no column 'picture' .it has photo.*--unlabeled_image_column_name"):
        open_unlabeled_stream(name, image_column="picture")


# ---- As a user runs it ----


def test_train_from_parquet_with_a_stream_then_evaluate(parquet, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    name = write_parquet(tmp_path / "second", train=rows(5, 20).select_columns(["photo"]))
    data = ["--dataset_name", parquet, "--image_column_name", "photo", "--label_column_name", "mask", "--use_cpu"]
    broken = Path(name) / "broken.parquet"
    broken.write_bytes(b"PAR1")
    stream = ["--unlabeled_dataset_name", f"{name}/*.parquet", "--unlabeled_streaming", "--skip_bad_files"]
    model = ["--backbone", "b0", "--hidden_sizes", "8", "16", "40", "64", "--crop_size", "64"]
    rest = ["--unlabeled_images_per_epoch", "3", "--max_steps", "2", "--report_to", "none", "--disable_tqdm", "true"]
    rest += ["--preset", "none"]

    done = run_script("train.py", *data, *stream, *model, *rest, "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "6 labeled, streamed unlabeled, 3 validation images, 3 classes, 0 files left out" in done.stdout
    assert "An epoch is 4 images of the unlabeled stream: 3, rounded up to whole steps of 2." in done.stderr
    assert "The unlabeled images are a stream: its files are not checked" in done.stderr
    assert f"{broken} of the unlabeled stream cannot be read from row 0 on" in done.stderr
    assert "in every pass: 0 unreadable images, the rest of 1 unreadable shards; each is named" in done.stderr
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 2 and state["epoch"] == 1
    expected = json.loads((tmp_path / "out" / "eval_results.json").read_text())

    scores = tmp_path / "scores.json"
    done = run_script("evaluate.py", "--model", tmp_path / "out", *data, "--output_file", scores)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(scores.read_text())["metrics"]
    assert metrics["mean_iou"] == pytest.approx(expected["eval_mean_iou"], abs=1e-6)

    wrong = run_script("train.py", *data[:2], *model, "--use_cpu", "--output_dir", tmp_path / "other")
    assert wrong.returncode == 1 and "Traceback" not in wrong.stderr
    assert "no column 'image' and no column 'label' (it has photo" in wrong.stderr.strip().splitlines()[-1]
