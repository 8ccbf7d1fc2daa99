"""Which files are images and what they are called: links, formats, Unicode, the lines of lists."""

import unicodedata

import pytest
from layout_folders import ids, load_folder, make_files, write_ids, write_image, write_mask

from allspark_hf.data import read_image_folder
from allspark_hf.utils.files import find_image_files


TRAIN = "images/train/a.jpg images/train/b.jpg images/train/c.jpg"
MASKS = "masks/train/a.png masks/train/b.png"


# ---- Folders to predict, or of unlabeled images ----


def test_every_image_that_pillow_reads_is_found_once(tmp_path, caplog):
    suffixes = "jpg JPG jfif jp2 tga webp tiff bmp gif pgm png"
    folder, disk = make_files(tmp_path / "photos", " ".join(f"{s}.{s}" for s in suffixes.split())), tmp_path / "disk"
    make_files(disk, "deep/x.png")
    (disk / "back").symlink_to(disk)
    for name, target in (("linked", disk), ("again", disk / "deep"), ("here", folder), ("up", tmp_path)):
        (folder / name).symlink_to(target)
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "y.png").symlink_to(disk / "deep" / "x.png")
    make_files(folder, ".hidden/h.png ._a.png")
    for name in ("Thumbs.db", "a.heic", "b.txt", ".DS_Store"):
        (folder / name).write_text("x")
    images, others = find_image_files(folder)
    names = sorted([*(f"{s}.{s}" for s in suffixes.split()), "again/x.png", "y.png"])
    assert [path.relative_to(folder).as_posix() for path in images] == names
    assert [path.name for path in others] == ["a.heic", "b.txt", "circle"]
    assert ids(read_image_folder(folder)) == names
    assert caplog.messages == [f"Left out of {folder}: 3 files that Pillow does not read, first {folder}/a.heic."]


def test_predictions_among_images_are_no_images(tmp_path, caplog):
    root = make_files(tmp_path, "images/train/a.jpg images/train/b.jpg images/val/v.jpg", "masks/train/a.png")
    make_files(root, "images/train/out/sub/b_overlay.png", "masks/val/v.png images/train/out/sub/b_mask.png")
    (root / "images/train/out/predict.json").write_text("{}")
    sentence = f"2 images in {root / 'images/train/out'}, which are predictions since it holds predict.json."
    assert ids(load_folder(root).unlabeled) == ["b"]
    assert caplog.messages == [f"Left out of {root / 'images/train'}: {sentence}"]
    assert ids(read_image_folder(root / "images/train")) == ["a.jpg", "b.jpg"]
    assert caplog.messages[-1].endswith(sentence)


# ---- Names and lists ----


def test_names_in_either_form_of_unicode(tmp_path):
    composed, split = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    root = make_files(tmp_path / "own", f"images/train/{split}.jpg images/train/b.jpg", f"masks/train/{composed}.png")
    make_files(root, f"images/val/{composed}.jpg", f"masks/val/{split}.png")
    data = load_folder(root)
    assert (ids(data.labeled), ids(data.unlabeled), ids(data.validation)) == ([composed], ["b"], [composed])
    image = f"images/train/{composed}.jpg"
    for line in (split, composed, image, f"{image} masks/train/{split}.png"):
        data = load_folder(root, labeled_list=write_ids(tmp_path / "l.txt", [line]))
        assert ids(data.labeled) == [composed] and data.labeled[0]["label"] is not None
    make_files(root, f"images/train/{composed}.jpg")
    with pytest.raises(ValueError, match="have the same name but for the extension"):
        load_folder(root)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "line",
    [
        "images\\train\\a.jpg masks\\train\\a.png",
        "{root}/images/train/a.jpg {root}/masks/train/a.png",
        "{root}/images/train/a.jpg",
        "images/train/a.jpg,masks/train/a.png",
        "images/train/a.jpg ; masks/train/a.png",
        "images/train/a.jpg\tmasks/train/a.png",
        "./images/train/a.jpg",
        "images/train/a.JPG masks/train/a.PNG",
        "a.jpg",
        "a",
    ],
)
def test_lines_of_lists(tmp_path, line, end):
    images = f"{TRAIN} images/val/v.jpg"
    root = make_files(tmp_path / "own", images, f"{MASKS} masks/val/v.png")
    path = tmp_path / "l.txt"
    path.write_bytes(("\ufeff" + line.format(root=root) + end).encode())
    assert ids(load_folder(root, labeled_list=path).labeled) == ["a"]
    path.write_text(f"{tmp_path}/elsewhere/a.jpg\n")
    with pytest.raises(ValueError, match=r"which is outside .*own; paths must be relative to that folder"):
        load_folder(root, labeled_list=path)


def test_names_with_commas_and_blanks(tmp_path):
    names = ("a,b", "c d.png,e", "f.jpg g", "v")
    for name in names:
        write_image(tmp_path / "images" / f"{name}.jpg")
        write_mask(tmp_path / "masks" / f"{name}.png")
    validation = write_ids(tmp_path / "val.txt", "v")
    for name in names[:3]:
        for line in (name, f"images/{name}.jpg"):
            path = write_ids(tmp_path / "l.txt", [line])
            assert ids(load_folder(tmp_path, labeled_list=path, validation_list=validation).labeled) == [name]
