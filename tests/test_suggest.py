"""`allspark suggest`: scores by numbers, the choice against a plain loop, and the files it leaves."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import small_model
from layout_folders import write_image
from PIL import Image

from allspark_hf.cli.main import main
from allspark_hf.cli.suggest import Suggestion, copy_of, labeled_as_in_run
from allspark_hf.data import DataArguments, find_data
from allspark_hf.data.labeling.formats import read_export
from allspark_hf.data.labeling.writing import write_folder
from allspark_hf.demo.data import write_demo_data
from allspark_hf.inference.contact_sheet import Entry, contact_sheet
from allspark_hf.inference.loading import load_trained, make_image_processor
from allspark_hf.inference.prediction import predict_mask
from allspark_hf.inference.suggestion import (
    CANDIDATES,
    Doubt,
    choose,
    class_weights,
    k_center,
    read_doubt,
    read_features,
    scores,
)


def doubt(entropy=0.0, disagreement=0.0, features=(1.0, 0.0), **given):
    named = {"label": 0, "is_at_edges": False, "weighted_entropy": entropy, "weighted_disagreement": disagreement}
    return Doubt(entropy, disagreement, features=np.array(features, dtype=np.float32), **(named | given))


# ---- Scores ----


def test_weights_are_what_the_iou_lacks():
    np.testing.assert_allclose(class_weights([0.9, 0.5, 0.7]), [1 / 3, 5 / 3, 1])
    np.testing.assert_allclose(class_weights([0.9, None, 0.5, math.nan]), [1 / 3, 1, 5 / 3, 1])
    assert class_weights([None, None]).tolist() == class_weights([1.0, 1.0]).tolist() == [1, 1]


def test_doubt_written_out(image_processor):
    model = small_model().eval()
    picture = Image.fromarray(np.random.default_rng(0).integers(256, size=(64, 96, 3), dtype=np.uint8))
    weights = np.array([0.5, 2.0, 0.5])
    found, heat = read_doubt(model, image_processor, picture, weights)
    pixels = image_processor(images=picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits, mirrored = (model(pixel_values=one).logits[0].double().numpy() for one in (pixels, pixels.flip(3)))
        features = model.encode(pixels)[-1].mean(dim=(2, 3))[0].numpy()
    entropy, weighted, differs, parts = np.zeros((16, 24)), np.zeros((16, 24)), np.zeros((16, 24)), np.zeros(3)
    for row in range(16):
        for column in range(24):
            one, other = logits[:, row, column], mirrored[:, row, 23 - column]
            p = np.exp(one) / np.exp(one).sum()
            entropy[row, column] = -(p * np.log(p)).sum() / math.log(3)
            weighted[row, column] = (p * weights).sum()
            differs[row, column] = one.argmax() != other.argmax()
            parts += weights * p * (entropy[row, column] + differs[row, column])
    assert found.entropy == pytest.approx(entropy.mean(), rel=1e-4)
    assert found.disagreement == pytest.approx(differs.mean()) and 0 < found.disagreement < 1
    assert found.weighted_entropy == pytest.approx((weighted * entropy).mean(), rel=1e-4)
    assert found.weighted_disagreement == pytest.approx((weighted * differs).mean(), rel=1e-4)
    assert found.label == parts.argmax()
    np.testing.assert_allclose(heat, entropy + differs, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.features, features / np.linalg.norm(features), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.features, read_features(model, image_processor, picture))
    assert not model._forward_pre_hooks


def test_a_model_of_one_class(image_processor):
    model = small_model(num_labels=1).eval()
    picture = Image.fromarray(np.random.default_rng(0).integers(256, size=(64, 96, 3), dtype=np.uint8))
    found, _ = read_doubt(model, image_processor, picture, class_weights([0.5]))
    with torch.no_grad():
        logits = model(**image_processor(images=picture, return_tensors="pt")).logits
    p = logits.double().sigmoid()
    entropy = -(p * p.log2() + (1 - p) * (1 - p).log2()).mean()
    assert found.entropy == pytest.approx(entropy.item(), rel=1e-4) and found.weighted_entropy == found.entropy
    assert found.reason({0: "cell"}).startswith("unsure about cell")


def test_reason():
    one = doubt(0.412, 0.0612, label=1, is_at_edges=True)
    assert one.reason({0: "sky", 1: "nucleus"}) == "unsure about nucleus edges: entropy 0.41, flips differ on 6 %"
    assert doubt(0.4, 0.004).reason({0: "sky"}) == "unsure about sky: entropy 0.40, flips differ on 0.4 %"


def test_scores():
    found = scores([doubt(0.1, 0.02), doubt(0.3, 0.02), doubt(0.2, 0.08)])
    np.testing.assert_allclose(found, [0.1 / 0.2 + 0.02 / 0.04, 0.3 / 0.2 + 0.02 / 0.04, 1 + 0.08 / 0.04])
    np.testing.assert_allclose(scores([doubt(0.1), doubt(0.3)]), [0.5, 1.5])


# ---- The choice ----


def plain_k_center(features, centers, count):
    taken = []
    while len(taken) < count:
        best, farthest = None, -1.0
        for row in range(len(features)):
            others = [*centers, *(features[one] for one in taken)]
            distance = min((np.linalg.norm(features[row] - other) for other in others), default=np.inf)
            if row not in taken and distance > farthest:
                best, farthest = row, distance
        taken.append(best)
    return taken


@pytest.mark.parametrize("num_centers", [0, 1, 5])
def test_k_center_is_that_of_a_plain_loop(num_centers):
    rng = np.random.default_rng(num_centers)
    features = rng.normal(size=(30, 4)).astype(np.float32)
    features[20:] = features[:10]  # equal images
    centers = rng.normal(size=(num_centers, 4)).astype(np.float32)
    assert k_center(features, centers, 30) == plain_k_center(features, centers, 30)
    assert k_center(features, centers, 7) == k_center(features, centers, 30)[:7]
    assert sorted(k_center(features, centers, 99)) == list(range(30))


def test_the_highest_scores_are_spread():
    """Of nine images one is labeled already, and one, like no other, has too little doubt to be chosen."""
    assert CANDIDATES == 4
    doubts = [doubt(0.9 - 0.01 * row, features=(1.0, 0.0)) for row in range(6)]
    doubts += [doubt(0.5, features=(0.0, 1.0)), doubt(0.4, features=(0.6, 0.8)), doubt(0.1, features=(-1.0, 0.0))]
    assert choose(doubts, np.array([(1.0, 0.0)], dtype=np.float32), 2) == [6, 7]
    assert choose(doubts, np.zeros((0, 2), dtype=np.float32), 2) == [0, 6]
    assert choose(doubts, np.zeros((0, 2), dtype=np.float32), 20)[:2] == [0, 8]


# ---- The command ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data of nine training images, four of which have a mask, and a model that was trained on the first two."""
    folder = tmp_path_factory.mktemp("suggest")
    data = write_demo_data(folder / "data", num_train=9, num_labeled=4, num_validation=2, size=(64, 96))
    names = json.loads((data / "classes.json").read_text())["names"]
    model = small_model(num_labels=len(names), id2label=dict(enumerate(names)))
    model.save_pretrained(folder / "out")
    make_image_processor().save_pretrained(folder / "out")
    ids = sorted(path.stem for path in (data / "masks/train").iterdir())
    (folder / "out/labeled_ids.txt").write_text("".join(f"{name}\n" for name in ids[:2]))
    iou = {name: 0.2 if name == "log slice" else 0.8 for name in names}
    results = {f"eval_iou_{name.replace(' ', '_')}": value for name, value in iou.items()}
    (folder / "out/eval_results.json").write_text(json.dumps(results))
    return folder


def run(monkeypatch, capsys, folder, output_dir, *more):
    """Exit code, output and error output of the command."""
    given = ["--model", folder / "out", "--data_dir", folder / "data", "--output_dir", output_dir, "--count", 3, *more]
    monkeypatch.setattr("sys.argv", ["allspark", "suggest", *map(str, given)])
    try:
        code = main()
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_list_can_be_read_back(folder, tmp_path, monkeypatch, capsys):
    before = contents(folder / "data")
    for name in ("first", "again"):
        code, output, _ = run(monkeypatch, capsys, folder, tmp_path / name)
        assert code == 0
    assert "2 labeled images, 7 unlabeled ones, 2 of which have a mask that counts as hidden" in output
    assert "what their IoU lacks: log slice 2.67, " in output  # 0.8 / ((0.8 + 5 * 0.2) / 6)
    assert contents(tmp_path / "first") == contents(tmp_path / "again") and contents(folder / "data") == before
    chosen = (tmp_path / "first/suggestions.txt").read_text().splitlines()
    labeled = (folder / "out/labeled_ids.txt").read_text().splitlines()
    assert len({*chosen, *labeled}) == 5
    with open(tmp_path / "first/suggestions.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["id"] for row in table] == chosen and all(row["file"].endswith(f"{row['id']}.jpg") for row in table)
    assert all(row["why"].startswith("unsure about ") for row in table)
    with Image.open(tmp_path / "first/contact_sheet.png") as sheet:
        assert sheet.width > 3 * 322 and len(sheet.getcolors(2**24)) > 1000
    # As the person who labels them would go on, were all of them among the images with a mask.
    both = tmp_path / "both.txt"
    both.write_text("".join(f"{name}\n" for name in [*labeled, *chosen]))
    data = shutil.copytree(folder / "data", tmp_path / "data")
    for name in chosen:
        shutil.copy(next((data / "masks/train").iterdir()), data / f"masks/train/{name}.png")
    found = find_data(DataArguments(str(data), labeled_list=str(both)))
    assert sorted(found.labeled["id"]) == sorted([*labeled, *chosen]) and len(found.unlabeled) == 4


def test_masks_drawn_since_the_training_are_labels(folder, tmp_path):
    arguments = DataArguments(str(folder / "data"))
    out = shutil.copytree(folder / "out", tmp_path / "out")
    for hidden, labeled in ((2, 2), (0, 4)):
        (out / "run_record.json").write_text(json.dumps({"data": {"hidden_masks": hidden}}))
        assert len(find_data(labeled_as_in_run(arguments, str(out))).labeled) == labeled
    given = DataArguments(str(folder / "data"), labeled_count=3)
    assert labeled_as_in_run(given, str(out)) == given


def test_outlines_for_a_tool(folder, tmp_path, monkeypatch, capsys):
    given = ["--format", "coco", "--tolerance", 0]
    code, output, _ = run(monkeypatch, capsys, folder, tmp_path / "suggested", *given)
    assert code == 0 and "Outlines for coco, within 0 pixels: 0 of 18,432 pixels (0.00 %)" in output
    chosen = (tmp_path / "suggested/suggestions.txt").read_text().splitlines()
    name, export, files = read_export(tmp_path / "suggested")
    write_folder(export, files, tmp_path / "labeled", empty_images="background")
    model, image_processor = load_trained(str(folder / "out"), "cpu")
    for one in chosen:
        image = folder / f"data/images/train/{one}.jpg"
        assert (tmp_path / f"labeled/images/train/{one}.jpg").read_bytes() == image.read_bytes()
        with Image.open(image) as opened, Image.open(tmp_path / f"labeled/masks/train/{one}.png") as mask:
            np.testing.assert_array_equal(np.asarray(mask), predict_mask(model, image_processor, opened))
    assert name == "coco" and len(export.pictures) == 3
    code, _, _ = run(monkeypatch, capsys, folder, tmp_path / "suggested", *given, "--overwrite")
    assert "suggested/images exists: remove it" in code


def test_each_image_has_a_copy_within_the_folder(folder, tmp_path, monkeypatch, capsys):
    others = tmp_path / "others"
    twins = [write_image(others / "deep" / name, (64, 96)) for name in ("twin.jpg", "twin.png")]
    given = ["--unlabeled_dir", others, "--count", 99, "--format", "labelme"]
    assert run(monkeypatch, capsys, folder, tmp_path / "suggested", *given)[0] == 0
    labelme, copies = (tmp_path / "suggested" / kind / "unlabeled_dir/deep" for kind in ("labelme", "images"))
    for name, twin in zip(("twin_jpg", "twin_png"), twins, strict=True):
        copy = labelme / json.loads((labelme / f"{name}.json").read_text())["imagePath"]
        assert copy.resolve() == copies / f"{name}{twin.suffix}" and copy.read_bytes() == twin.read_bytes()
    ids = ("/data/../a.b", "unlabeled:x", "..")
    copies = [copy_of(Suggestion(0, name, None, 0.0, doubt()), ()).as_posix() for name in ids]
    assert copies == ["data/a.b.png", "unlabeled/x.png", "image.png"]


def test_a_bad_image_is_left_out_and_named(folder, tmp_path, monkeypatch, capsys):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    bad = max((other / "data/images/train").iterdir())
    bad.write_bytes(bad.read_bytes()[:400])
    (other / "out/eval_results.json").unlink()
    code, output, errors = run(monkeypatch, capsys, other, tmp_path / "suggested", "--count", 9)
    assert code == 1 and f"{bad.stem}: left out, " in errors and "All classes weigh the same" in output
    assert "6 images to label next (there are no more): " in output
    assert bad.stem not in (tmp_path / "suggested/suggestions.txt").read_text()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--count", 0], "count=0 is out of range"),
        (["--format", "yolo"], "choose from"),
        (["--labeled_count", 9], "has only 4 masks"),
        (["--image_long_side", 64], "image_long_side=64 was given, but the model has None"),
        (["--skip_bad_files"], "leave --skip_bad_files out"),
        (["--unlabeled_dataset_name", "x", "--unlabeled_streaming"], "leave --unlabeled_streaming out"),
    ],
)
def test_refused(folder, tmp_path, monkeypatch, capsys, more, sentence):
    code, _, _ = run(monkeypatch, capsys, folder, tmp_path / "out", *more)
    assert sentence in code and not (tmp_path / "out").exists()


def test_earlier_suggestions_are_kept(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "suggestions.txt").write_text("mine\n")
    code, _, _ = run(monkeypatch, capsys, folder, tmp_path)
    assert "suggestions.txt exists: pass --overwrite" in code
    assert (tmp_path / "suggestions.txt").read_text() == "mine\n"


def test_long_names_and_odd_sizes_fit_the_sheet():
    entries = [
        Entry(Image.new("RGB", size, "blue"), np.full(shape, heat), "a/long/name/" * 9 + str(size), "why " * 60)
        for size, shape, heat in (((1, 300), (3, 1), 0.0), ((300, 2), (1, 9), 5.0), ((90, 90), (90, 90), 1.0))
    ]
    sheet = np.asarray(contact_sheet(iter(entries)))
    assert sheet.shape[1:] == (3 * 330 + 8, 3) and sheet.shape[0] == contact_sheet(entries[:1] * 4).height
    assert (sheet[-8:] == 255).all() and (sheet[:, -8:] == 255).all()
