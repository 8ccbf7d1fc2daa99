"""`allspark evaluate --split test`: the images that it scores, in every form, and what it refuses."""

import json
import shutil

import pytest
from conftest import tiny_config, tiny_model
from datasets import Dataset, DatasetDict, Features, Image, Value
from in_process import run_script
from layout_folders import ids, make_cityscapes, make_coco, make_files, make_voc, write_ids, write_mask

from allspark_hf.data import DataArguments, find_data
from allspark_hf.demo.data import CLASS_NAMES, write_demo_data
from allspark_hf.evaluation.selection import select_split
from allspark_hf.inference.loading import make_image_processor


INSIDE = ("images/train/a.jpg images/train/b.jpg", "masks/train/a.png masks/train/b.png")
OUTSIDE = ("train/images/a.jpg train/images/b.jpg", "train/masks/a.png train/masks/b.png")


def of_test(root, **options):
    data = find_data(DataArguments(str(root), **options), test=True)
    assert not {"t", "u"} & {*ids(data.labeled), *ids(data.unlabeled)}
    return ids(data.validation)


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (f"{INSIDE[0]} images/val/v.jpg images/test/t.jpg", f"{INSIDE[1]} masks/val/v.png masks/test/t.png"),
        (f"{INSIDE[0]} images/Test/t.jpg", f"{INSIDE[1]} masks/testing/t.png"),
        (f"{INSIDE[0]} test/images/t.jpg", f"{INSIDE[1]} test/masks/t.png"),
        ("images/a.jpg images/b.jpg images/test/t.jpg", "masks/a.png masks/b.png masks/test/t.png"),
        ("images/a.jpg images/b.jpg test/images/t.jpg", "masks/a.png masks/b.png test/masks/t.png"),
        (f"{OUTSIDE[0]} val/images/v.jpg test/images/t.jpg", f"{OUTSIDE[1]} val/masks/v.png test/masks/t.png"),
    ],
)
def test_forms_of_folders(tmp_path, caplog, images, masks):
    root = make_files(tmp_path, images, masks)
    assert of_test(root) == ["t"] and caplog.messages == []
    data = find_data(DataArguments(str(root)))
    assert "t" not in [name for rows in data.sets.values() for name in ids(rows)] and "Left alone" in caplog.text


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        ("", "", r"has no test split with masks \(images/test and masks/test in a folder\): add one, or instead of"),
        ("images/test/t.jpg", "", "has no test split with masks"),
        ("images/test/t.jpg images/test/u.jpg", "masks/test/t.png", r"1 of 2 test images have no mask, .*test/u\.jpg"),
        (
            "images/test/t.jpg images/test2/u.jpg",
            "masks/test/t.png",
            "images has test and test2, which both mean test",
        ),
        (
            "images/test/t.jpg test/images/u.jpg",
            "masks/test/t.png test/masks/u.png",
            "both hold test images; keep one",
        ),
    ],
)
def test_folders_that_are_refused(tmp_path, images, masks, message):
    root = make_files(tmp_path, f"{INSIDE[0]} {images}", f"{INSIDE[1]} {masks}")
    with pytest.raises(ValueError, match=message):
        of_test(root)
    assert len(find_data(DataArguments(str(root))).labeled) == 1  # training goes on


@pytest.mark.parametrize("make_data", [make_voc, make_cityscapes, make_coco])
def test_published_data_sets_have_none(tmp_path, make_data):
    with pytest.raises(ValueError, match="has no test split with masks"):
        of_test(make_data(tmp_path))


def test_rows_of_the_hub(tmp_path, caplog):
    root = make_files(tmp_path / "data", "a.jpg b.jpg v.jpg t.jpg", "m.png")
    features = Features({"image": Image(), "label": Image(), "id": Value("string")})

    def save(**splits):
        rows = {
            split: Dataset.from_list(
                [{"image": str(root / f"{name}.jpg"), "label": mask, "id": name} for name in names], features
            )
            for split, (names, mask) in splits.items()
        }
        DatasetDict(rows).save_to_disk(tmp_path / "saved")

    mask, arguments = str(root / "m.png"), DataArguments(dataset_name=str(tmp_path / "saved"))
    save(train=("ab", mask), validation=("v", mask), test=("t", mask))
    data = find_data(arguments, test=True)
    assert [ids(rows) for rows in data.sets.values()] == [["a", "b"], [], ["t"]] and caplog.messages == []
    save(train=("ab", mask), test=("t", None))
    with pytest.raises(ValueError, match="1 of 1 test images have no mask, first row 0 of test"):
        find_data(arguments, test=True)
    save(train=("ab", mask), test=("t", mask), test2=("v", mask))
    with pytest.raises(
        ValueError, match="test and test2, which both mean test; name one with --validation_split_name"
    ):
        find_data(arguments, test=True)
    save(train=("ab", mask), dev=("t", mask))
    with pytest.raises(ValueError, match=r"has no test split with masks .* with --validation_split_name"):
        find_data(arguments, test=True)


def test_lists_of_a_run_and_options_do_not_choose_test_images(tmp_path):
    """The run held images out; its lists are of no use here, and the user's would contradict."""
    root = make_files(tmp_path / "data", f"{INSIDE[0]} images/test/t.jpg", f"{INSIDE[1]} masks/test/t.png")
    run, config = tmp_path / "run", tiny_config(num_labels=2)
    write_ids(run / "labeled_ids.txt", "a")
    write_ids(run / "validation_ids.txt", "b")
    arguments = DataArguments(str(root))
    assert ids(select_split("test", arguments, config, str(run))) == ["t"]
    assert ids(select_split("validation", arguments, config, str(run))) == ["b"]
    arguments = DataArguments(str(root), validation_list=str(run / "validation_ids.txt"))
    with pytest.raises(ValueError, match="--validation_list and --split test both choose the images to score"):
        select_split("test", arguments, config, str(run))


def test_the_command(tmp_path):
    """Test images that are the validation images of other data have their numbers; masks and classes are checked."""
    data, model_dir = tmp_path / "data", tmp_path / "model"
    write_demo_data(data, num_train=3, num_labeled=3, num_validation=3, size=(64, 96))
    names = dict(enumerate(CLASS_NAMES))
    tiny_model(num_labels=len(names), id2label=names).save_pretrained(model_dir)
    make_image_processor().save_pretrained(model_dir)
    other = shutil.copytree(data, tmp_path / "other")
    for kind in ("images", "masks"):
        (other / kind / "val").rename(other / kind / "test")
        shutil.copytree(data / kind / "train", other / kind / "val")

    def evaluate(folder, split, *more):
        output = tmp_path / f"{split}.json"
        options = ["--model", model_dir, "--data_dir", folder, "--split", split, "--output_file", output, "--use_cpu"]
        return run_script("evaluate.py", *options, *more), output

    expected, test, validation = (
        json.loads(evaluate(*case)[1].read_text()) for case in ((data, "validation"), (other, "test"), (other, "all"))
    )
    assert test["confusion_matrix"] == expected["confusion_matrix"] and test["num_images"] == 3
    assert test["data"]["split"] == "test" and validation["num_images"] == 6  # "all" is without test images
    refused, output = evaluate(other, "test")
    assert refused.returncode == 1 and "test.json exists: pass --overwrite, or choose" in refused.stderr
    output.unlink()
    mask = next((other / "masks" / "test").iterdir())
    write_mask(mask, (0, 9), size=(96, 64))
    refused, _ = evaluate(other, "test")
    assert refused.returncode == 1 and "has the value 9, but the model has classes 0 to 5" in refused.stderr
    (other / "classes.txt").write_text("one\ntwo\n")
    refused, _ = evaluate(other, "test", "--classes", other / "classes.txt")
    assert refused.returncode == 1 and f"has {len(names)} classes, the data {other} names 2" in refused.stderr
