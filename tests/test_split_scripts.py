"""The split tool, SBD's preparation and a training from published lists, as a user starts them."""

import json
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from in_process import run_script as run
from layout_folders import (
    SBD_ONLY,
    VOC_TRAIN,
    VOC_VAL,
    files_below,
    make_cityscapes,
    make_flat,
    make_voc,
    write_ids,
    write_image,
    write_mask,
)
from PIL import Image

from allspark_hf.data import DataArguments, draw, find_data, load_data, mask_to_array
from allspark_hf.data.sources.published_classes import voc_colormap


def last_line(done: CompletedProcess) -> str:
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


def names_in(path: Path) -> list[str]:
    return [Path(line.split()[0]).stem for line in path.read_text(encoding="utf-8").splitlines()]


def make_sbd(root: Path) -> Path:
    """The archive's folders, with a mask as a struct in a struct array, as MATLAB wrote it."""
    savemat = pytest.importorskip("scipy.io").savemat
    dataset = root / "benchmark_RELEASE" / "dataset"
    (dataset / "cls").mkdir(parents=True)
    (dataset / "inst").mkdir()
    names = [VOC_TRAIN[0], VOC_VAL[1], *SBD_ONLY]
    for index, name in enumerate(names):
        segmentation = np.resize(np.array([0, index, 20], dtype=np.uint8), (7, 11))
        boundaries = np.empty((20, 1), dtype=object)
        boundaries[:] = [[np.zeros((7, 11))]] * 20
        content = {"Boundaries": boundaries, "Segmentation": segmentation, "CategoriesPresent": [[index]]}
        savemat(dataset / "cls" / f"{name}.mat", {"GTcls": content})
        write_image(dataset / "img" / f"{name}.jpg")
    write_ids(dataset / "train.txt", names[:3])
    write_ids(dataset / "val.txt", names[3:])
    return root / "benchmark_RELEASE"


def test_prepare_sbd(tmp_path):
    voc, sbd = make_voc(tmp_path / "VOC2012"), make_sbd(tmp_path)
    arguments = ("--sbd_dir", sbd, "--voc_dir", voc)
    broken = sbd / "dataset" / "cls" / f"{SBD_ONLY[2]}.mat"
    content = broken.read_bytes()
    broken.write_bytes(content[:200])
    assert f"{broken} cannot be read as an SBD mask" in last_line(run("prepare_sbd.py", *arguments))
    # What was done is kept, nothing is half written, and there is no list yet.
    done_before = files_below(voc / "SegmentationClassAug")
    assert sorted(done_before) == [f"{name}.png" for name in VOC_TRAIN + SBD_ONLY[:2]]
    path = voc / "ImageSets" / "Segmentation" / "train_aug.txt"
    assert not path.exists()

    broken.write_bytes(content)
    done = run("prepare_sbd.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "2 masks written, 8 kept\n" in done.stdout and "10 images; 10582 with the complete data" in done.stdout
    assert path.read_text().split() == VOC_TRAIN + SBD_ONLY
    masks = files_below(voc / "SegmentationClassAug")
    assert len(masks) == 10 and masks.items() >= done_before.items()
    own = voc / "SegmentationClass" / f"{VOC_TRAIN[0]}.png"
    assert masks[own.name] == own.read_bytes()  # VOC's mask wins over SBD's
    with Image.open(voc / "SegmentationClassAug" / f"{SBD_ONLY[3]}.png") as mask:
        assert mask.mode == "P" and np.asarray(mask)[0, :4].tolist() == [0, 5, 20, 0]
        assert mask.convert("RGB").getpixel((2, 0)) == voc_colormap()[20]

    report = load_data(DataArguments(data_dir=str(voc), voc_masks="augmented"))
    assert list(report.data.labeled["id"]) == VOC_TRAIN + SBD_ONLY
    assert mask_to_array(report.data.labeled[6]["label"])[0, :3].tolist() == [0, 2, 20]

    write_ids(path, VOC_TRAIN)
    assert "train_aug.txt exists and names other images than these 10" in last_line(run("prepare_sbd.py", *arguments))


def test_prepare_sbd_from_incomplete_archives(tmp_path):
    voc, sbd = make_voc(tmp_path / "VOC2012"), make_sbd(tmp_path)
    (voc / "JPEGImages" / f"{SBD_ONLY[1]}.jpg").unlink()
    sentence = last_line(run("prepare_sbd.py", "--sbd_dir", sbd, "--voc_dir", voc))
    assert f"{SBD_ONLY[1]}.jpg is missing (1 files in all)" in sentence
    write_image(voc / "JPEGImages" / f"{SBD_ONLY[1]}.jpg", (7, 11))
    sentence = last_line(run("prepare_sbd.py", "--sbd_dir", sbd / "dataset", "--voc_dir", voc))
    assert f"{SBD_ONLY[1]}.mat is 11 x 7 pixels, its image 7 x 11" in sentence
    assert "no folder cls" in last_line(run("prepare_sbd.py", "--sbd_dir", voc, "--voc_dir", voc))


def test_made_splits(tmp_path):
    voc, out = make_voc(tmp_path / "voc"), tmp_path / "splits"
    arguments = ("--data_dir", voc, "--seed", 3, "--output_dir", out)
    done = run("make_splits.py", *arguments, "--labeled_fractions", "1/6", "0.34", "1/2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:4] == [
        "1_6: 1 labeled, 5 unlabeled images",
        "0.34: 3 labeled, 3 unlabeled images",
        "1_2: 3 labeled, 3 unlabeled images",
        f"3 validation images; paths are relative to {voc}",
    ]
    written = files_below(out)
    parts = [f"{part}/{name}.txt" for part in ("0.34", "1_2", "1_6") for name in ("labeled", "unlabeled")]
    assert sorted(written) == [*parts, "val.txt"]
    assert names_in(out / "1_2" / "labeled.txt") == draw(VOC_TRAIN, 3, seed=3)
    assert set(names_in(out / "1_6" / "labeled.txt")) < set(names_in(out / "1_2" / "labeled.txt"))
    lines = (out / "val.txt").read_text().splitlines()
    assert lines == [f"JPEGImages/{name}.jpg SegmentationClass/{name}.png" for name in VOC_VAL]
    for part in ("1_6", "1_2"):
        both = [*names_in(out / part / "labeled.txt"), *names_in(out / part / "unlabeled.txt")]
        assert sorted(both) == VOC_TRAIN

    # The same again is no change; another draw is refused before anything is written; counts go beside.
    assert run("make_splits.py", *arguments, "--labeled_counts", 3).returncode == 0
    assert (out / "3" / "labeled.txt").read_bytes() == written["1_2/labeled.txt"]
    assert run("make_splits.py", *arguments, "--labeled_fractions", "1/2").returncode == 0
    before = files_below(out)
    refused = run("make_splits.py", *arguments[:2], "--output_dir", out, "--seed", 4, "--labeled_counts", 2, 3)
    assert "exists and names other images; choose another --output_dir" in last_line(refused)
    assert files_below(out) == before

    lists = {"labeled_list": out / "1_2/labeled.txt", "unlabeled_list": out / "1_2/unlabeled.txt"}
    lists["validation_list"] = out / "val.txt"
    shutil.rmtree(voc / "ImageSets")
    data = find_data(DataArguments(data_dir=str(voc), **{name: str(path) for name, path in lists.items()}))
    assert list(data.labeled["id"]) == draw(VOC_TRAIN, 3, seed=3) and len(data.hidden_ids) == 3


def test_made_splits_of_cityscapes_and_of_ones_own_folder(tmp_path):
    def split(data_dir, count, output_dir, *rest):
        done = run(
            "make_splits.py", "--data_dir", data_dir, "--labeled_counts", count, "--output_dir", output_dir, *rest
        )
        assert done.returncode == 0, done.stderr

    split(make_cityscapes(tmp_path / "city"), 2, tmp_path / "c")
    name = "val/lindau/lindau_000000_000019"
    first = (tmp_path / "c" / "val.txt").read_text().splitlines()[0]
    assert first == f"leftImg8bit/{name}_leftImg8bit.png gtFine/{name}_gtFine_labelIds.png"

    flat = make_flat(tmp_path / "flat", labeled=10, unlabeled=2)
    split(flat, 4, tmp_path / "f", "--seed", 1)
    lines = (tmp_path / "f" / "4" / "unlabeled.txt").read_text().splitlines()
    assert len(lines) == 7 and lines[-2:] == ["images/i010.jpg", "images/i011.jpg"]
    data = find_data(DataArguments(data_dir=str(flat), labeled_count=4, split_seed=1))
    assert names_in(tmp_path / "f" / "4" / "labeled.txt") == list(data.labeled["id"])
    assert names_in(tmp_path / "f" / "val.txt") == list(data.validation["id"])


def test_splits_with_a_validation_image_in_training_are_refused(tmp_path):
    voc = make_voc(tmp_path / "voc")
    arguments = ("--data_dir", voc, "--labeled_counts", 2, "--output_dir", tmp_path / "out")
    shutil.copy(voc / "JPEGImages" / f"{VOC_VAL[2]}.jpg", voc / "JPEGImages" / f"{VOC_TRAIN[5]}.jpg")
    sentence = last_line(run("make_splits.py", *arguments))
    assert f"too, byte for byte: {VOC_TRAIN[5]} = {VOC_VAL[2]} (1 in all); remove" in sentence
    write_ids(voc / "ImageSets" / "Segmentation" / "train.txt", VOC_TRAIN[:3] + VOC_VAL[:1])
    sentence = last_line(run("make_splits.py", *arguments))
    assert "1 image is both in the" in sentence and f"set and in the validation set ({VOC_VAL[0]})" in sentence
    assert not (tmp_path / "out").exists()
    for options, message in (
        (("--labeled_fractions", "1/0"), "1/0 is not a fraction; write 1/16"),
        (("--labeled_fractions", "2"), "labeled_fraction=2.0 is out of range: set a number above 0"),
        (("--labeled_counts", "9"), "labeled_count is 9, but"),
    ):
        write_ids(voc / "ImageSets" / "Segmentation" / "train.txt", VOC_TRAIN[:3])
        assert message in last_line(run("make_splits.py", "--data_dir", voc, "--output_dir", tmp_path, *options))


def test_check_of_lists(tmp_path):
    voc = make_voc(tmp_path / "voc")
    labeled, val = write_ids(tmp_path / "l.txt", VOC_TRAIN[:3]), write_ids(tmp_path / "val.txt", VOC_VAL)
    lines = [f"JPEGImages/{name}.jpg SegmentationClass/{name}.png" for name in VOC_TRAIN[2:]]
    unlabeled = write_ids(tmp_path / "u.txt", lines)
    done = run("make_splits.py", "--check", labeled, unlabeled, val)
    assert done.returncode == 1
    assert done.stdout == f"{labeled} and {unlabeled} share 1 image: {VOC_TRAIN[2]}\n"
    write_ids(unlabeled, lines[1:])
    done = run("make_splits.py", "--check", labeled, unlabeled, val)
    assert (done.returncode, done.stdout) == (0, "No image is in two of the 3 lists.\n")
    shutil.copy(voc / "JPEGImages" / f"{VOC_VAL[2]}.jpg", voc / "JPEGImages" / f"{VOC_TRAIN[5]}.jpg")
    done = run("make_splits.py", "--check", labeled, unlabeled, val, "--data_dir", voc)
    assert done.returncode == 1
    assert done.stdout == f"{unlabeled} and {val} share 1 image: {VOC_TRAIN[5]} = {VOC_VAL[2]}\n"
    assert "There is no list" in last_line(run("make_splits.py", "--check", labeled, tmp_path / "none.txt"))
    assert "--check was given one list" in last_line(run("make_splits.py", "--check", labeled))


def test_training_from_lists(tmp_path):
    voc = make_voc(tmp_path / "voc", image_sets=False)
    for name in VOC_TRAIN + VOC_VAL:
        write_image(voc / "JPEGImages" / f"{name}.jpg", (80, 64))
        write_mask(voc / "SegmentationClass" / f"{name}.png", np.repeat([0, 7, 15, 255], 20), (80, 64))
    lists = {"labeled": VOC_TRAIN[:2], "unlabeled": VOC_TRAIN[2:], "validation": VOC_VAL}
    arguments = ["--data_dir", voc, "--data_format", "voc", "--output_dir", tmp_path / "out"]
    for name, ids in lists.items():
        lines = [f"JPEGImages/{item}.jpg SegmentationClass/{item}.png" for item in ids]
        arguments += [f"--{name}_list", write_ids(tmp_path / f"{name}.txt", lines)]
    model = ["--backbone", "b0", "--hidden_sizes", 8, 16, 40, 64, "--depths", 1, 1, 1, 1, "--decoder_hidden_size", 16]
    training = ["--crop_size", 64, "--max_steps", 2, "--use_cpu", "--report_to", "none", "--disable_tqdm", "true"]
    done = run("train.py", *arguments, *model, *training)
    assert done.returncode == 0, done.stderr
    assert "2 labeled, 4 unlabeled, 3 validation images, 21 classes, 0 files left out" in done.stdout
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"]["15"] == "person" and config["palette"][15] == [192, 128, 128]
    assert (tmp_path / "out" / "unlabeled_ids.txt").read_text().split() == VOC_TRAIN[2:]
    assert 0 <= json.loads((tmp_path / "out" / "eval_results.json").read_text())["eval_mean_iou"] <= 1
