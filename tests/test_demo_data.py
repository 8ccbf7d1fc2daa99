import json

import numpy as np
import pytest
from layout_folders import load_folder
from PIL import Image

from allspark_hf.demo.data import CLASS_NAMES, generate_demo_image, write_demo_data
from allspark_hf.inference.visualization import default_palette


def files_under(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_layout_and_counts_and_how_it_loads(tmp_path):
    output_dir = write_demo_data(tmp_path / "demo", num_train=5, num_labeled=2, num_validation=3, size=(48, 64))
    assert sorted(files_under(output_dir)) == [
        "classes.json",
        *[f"images/train/train_0000{index}.jpg" for index in range(5)],
        *[f"images/val/val_0000{index}.jpg" for index in range(3)],
        *[f"masks/train/train_0000{index}.png" for index in range(2)],
        *[f"masks/val/val_0000{index}.png" for index in range(3)],
    ]
    classes = json.loads((output_dir / "classes.json").read_text(encoding="utf-8"))
    assert classes == {"names": list(CLASS_NAMES), "colors": default_palette(6).tolist()}
    with Image.open(output_dir / "images/train/train_00003.jpg") as image:
        assert (image.mode, image.size) == ("RGB", (64, 48))
    data = load_folder(output_dir)
    assert (len(data.labeled), len(data.unlabeled), len(data.validation)) == (2, 3, 3)
    assert data.classes.names == list(CLASS_NAMES)


def test_written_mask_is_indexed_and_equal_to_the_generated_one(tmp_path):
    write_demo_data(tmp_path, num_train=1, num_labeled=1, num_validation=1, seed=5)
    with Image.open(tmp_path / "masks/val/val_00000.png") as written:
        assert written.mode == "P"
        assert written.getpalette()[:18] == default_palette(6).ravel().tolist()
        np.testing.assert_array_equal(np.asarray(written), generate_demo_image(0, "val", seed=5)[1])


def test_same_seed_same_bytes_whatever_the_counts(tmp_path):
    small = files_under(write_demo_data(tmp_path / "small", 3, 1, 2, size=(40, 56), seed=7))
    large = files_under(write_demo_data(tmp_path / "large", 6, 4, 3, size=(40, 56), seed=7))
    assert all(large[name] == content for name, content in small.items())
    other = files_under(write_demo_data(tmp_path / "other", 3, 1, 2, size=(40, 56), seed=8))
    assert all(other[name] != content for name, content in small.items() if name != "classes.json")


def test_splits_and_images_differ():
    pictures = [np.asarray(generate_demo_image(index, split)[0]) for split in ("train", "val") for index in range(3)]
    for first in range(6):
        for second in range(first):
            assert np.abs(pictures[first].astype(int) - pictures[second]).mean() > 10


def test_every_class_is_common_and_the_border_is_thin():
    masks = np.stack([generate_demo_image(index)[1] for index in range(75)])
    share = np.bincount(masks.ravel(), minlength=256) / masks.size
    assert set(np.unique(masks)) == {0, 1, 2, 3, 4, 5, 255}
    # From scratch, a model that sees mostly background learns just that.
    assert 0.3 < share[0] < 0.5
    assert (share[1:6] > 0.08).all() and (share[1:6] < 0.15).all()
    assert 0.01 < share[255] < 0.06
    # Objects touch only across ignored pixels: no two different classes side by side.
    left, right = masks[:, :, :-1], masks[:, :, 1:]
    both = (left != 255) & (right != 255)
    assert (left[both] != right[both]).mean() < 0.002


def test_color_helps_but_does_not_give_the_class():
    """Each pixel to the class of the nearest mean color: far above chance, far from solved."""
    pixels = {label: [] for label in range(6)}
    for index in range(30):
        image, mask = generate_demo_image(index)
        for label, found in pixels.items():
            found.append(np.asarray(image)[mask == label])
    joined = [np.concatenate(found).astype(np.float32) for found in pixels.values()]
    means = np.stack([values.mean(axis=0) for values in joined])
    guesses = [np.linalg.norm(values[:, None] - means, axis=-1).argmin(axis=1) for values in joined]
    counts = np.stack([np.bincount(guess, minlength=6) for guess in guesses])
    hits = counts.diagonal()
    iou = hits / (counts.sum(axis=0) + counts.sum(axis=1) - hits)
    assert 0.35 < iou.mean() < 0.55
    # Texture: neighboring pixels inside an object differ visibly.
    assert np.mean([values.std(axis=0).mean() for values in joined[1:]]) > 25


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_train": 2, "num_labeled": 3}, "num_labeled is 3 and num_train is 2"),
        ({"num_train": 2, "num_labeled": 0}, "num_labeled is 0"),
        ({"num_validation": -1}, "num_validation is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"size": (16, 128)}, r"size is \(16, 128\)"),
    ],
)
def test_bad_settings_are_refused_before_writing(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        write_demo_data(tmp_path / "demo", **settings)
    assert not (tmp_path / "demo").exists()


def test_a_folder_with_content_is_refused_and_kept(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="already holds something"):
        write_demo_data(tmp_path, 1, 1, 1)
    assert files_under(tmp_path) == {"mine.txt": b"kept"}


def test_unknown_split_and_negative_index():
    with pytest.raises(ValueError, match="split is 'test'"):
        generate_demo_image(0, "test")
    with pytest.raises(ValueError, match="index is -1"):
        generate_demo_image(-1)
