"""`allspark predict --format`: outlines of many images, one after another or by several processes, and back."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from served_model import balanced_model

from allspark_hf.cli.main import main
from allspark_hf.data.labeling.formats import read_export
from allspark_hf.data.labeling.writing import write_folder
from allspark_hf.demo.data import generate_demo_image
from allspark_hf.inference.loading import make_image_processor


NAMES = ["background", "log slice", "sky"]
FILES = ("a.png", "b.png", "sub/a.png", "sub/c.jpg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    balanced_model(3, **labels).save_pretrained(folder / "model")
    make_image_processor().save_pretrained(folder / "model")
    (folder / "photos/sub").mkdir(parents=True)
    for index, name in enumerate(FILES):
        generate_demo_image(index, size=(50 + index, 70))[0].save(folder / "photos" / name)
    return folder


def predict(monkeypatch, capsys, folder, output_dir, *more):
    given = ["--model", folder / "model", "--input", folder / "photos", "--output_dir", output_dir]
    given += ["--num_workers", 0, "--device", "cpu", *more]
    monkeypatch.setattr("sys.argv", ["allspark", "predict", *map(str, given)])
    code = main()
    return code, "".join(capsys.readouterr())


def import_masks(source, folder, data_dir) -> dict[str, np.ndarray]:
    _, export, files = read_export(source, images_dir=folder / "photos")
    imported = write_folder(export, files, data_dir, empty_images="background")
    assert imported.classes.names == NAMES
    return {image: np.asarray(Image.open(data_dir / mask)) for image, mask in imported.masks.items()}


@pytest.mark.parametrize("kind", ["coco", "cvat"])
def test_masks_come_back(folder, tmp_path, monkeypatch, capsys, kind):
    out = tmp_path / "out"
    code, words = predict(monkeypatch, capsys, folder, out, "--format", kind, "--tolerance", 0)
    assert code == 0 and f"Outlines for {kind}, within 0 pixels: 0 of 14,420 pixels (0.00 %)" in words
    file = {"coco": "coco.json", "cvat": "cvat.xml"}[kind]
    masks = import_masks(out / file, folder, tmp_path / "data")
    for file in FILES:
        with Image.open(out / f"{file[:-4]}_mask.png") as mask:
            np.testing.assert_array_equal(masks[f"images/train/{file}"], np.asarray(mask))
    assert len(masks) == len(FILES)


def test_a_run_goes_on_without_touching_what_was_corrected(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert predict(monkeypatch, capsys, folder, out)[0] == 0
    with monkeypatch.context() as patch:  # masks that are there need no model
        patch.delattr("allspark_hf.inference.many.predict_batch")
        code, words = predict(patch, capsys, folder, out, "--format", "labelme", "--resume")
    assert code == 0 and "Outlines for labelme, within 1 pixels: " in words and " of 14,420 pixels (" in words
    predict(monkeypatch, capsys, folder, tmp_path / "direct", "--format", "labelme")
    for path in (tmp_path / "direct").rglob("*.json"):
        assert path.read_bytes() == (out / path.relative_to(tmp_path / "direct")).read_bytes()
    corrected, missing = out / "labelme/b.json", out / "labelme/sub/c.json"
    before = {path: path.read_bytes() for path in out.rglob("*.json")}
    content = json.loads(corrected.read_text())
    assert (corrected.parent / content["imagePath"]).resolve() == folder / "photos/b.png"
    content["shapes"] = content["shapes"][:1]
    corrected.write_text(json.dumps(content))
    missing.unlink()
    code, words = predict(monkeypatch, capsys, folder, out, "--format", "labelme", "--resume")
    assert code == 0 and "4 of 4 images predicted, 3 of them earlier" in words
    assert json.loads(corrected.read_text())["shapes"] == content["shapes"]
    after = {path: path.read_bytes() for path in out.rglob("*.json")}
    assert {path for path in before if before[path] != after[path]} == {corrected}
    masks = import_masks(out / "labelme", folder, tmp_path / "data")
    assert len(masks) == len(FILES)
    for file in FILES:  # as after a copy of the photos
        (folder / "photos" / file).touch()
    for words_of_b in ("b.json has been changed in the tool and is kept", "4 of them earlier"):
        code, words = predict(monkeypatch, capsys, folder, out, "--format", "labelme", "--resume")
        assert code == 0 and words_of_b in words
        assert after == {path: path.read_bytes() for path in out.rglob("*.json")}
    code, words = predict(monkeypatch, capsys, folder, out, "--format", "labelme", "--resume", "--tolerance", 2)
    assert code == 2 and "were made with tolerance 1.0, not 2.0" in words
    code, words = predict(monkeypatch, capsys, folder, out, "--overwrite")
    assert code == 2 and f"{out / 'labelme'} exists: remove it, or choose another --output_dir." in words
    assert after == {path: path.read_bytes() for path in out.rglob("*.json")}
    shutil.rmtree(out / "labelme")
    assert predict(monkeypatch, capsys, folder, out, "--overwrite")[0] == 0
    assert not [path for path in out.rglob("*.json") if path.name != "predict.json"]


def test_classes_and_missing_packages(folder, tmp_path, monkeypatch, capsys):
    code, _ = predict(monkeypatch, capsys, folder, tmp_path / "out", "--format", "label_studio", "--classes", "sky")
    tasks = json.loads((tmp_path / "out/label_studio.json").read_text())
    labels = {one["value"]["polygonlabels"][0] for task in tasks for one in task["predictions"][0]["result"]}
    assert code == 0 and labels == {"sky"} and len(tasks) == len(FILES)
    monkeypatch.setattr("allspark_hf.data.labeling.polygons.find_spec", lambda name: None)
    code, words = predict(monkeypatch, capsys, folder, tmp_path / "other", "--format", "cvat")
    assert code == 2 and "pip install 'allspark-hf[import]'" in words and not (tmp_path / "other").exists()
