import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from served_model import balanced_model

from allspark_hf import AllSparkConfig, SegformerForSemiSupervisedSegmentation
from allspark_hf.cli.predict import find_images, name_results
from allspark_hf.demo.data import generate_demo_image
from allspark_hf.inference.loading import SegformerImageProcessorPil
from allspark_hf.inference.prediction import palette_of, predict_mask
from allspark_hf.inference.visualization import default_palette


SCRIPT = Path(__file__).parent.parent / "scripts" / "predict.py"
NAMES = ["ground", "été", "sky", "道路"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    model = balanced_model(4, **labels)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    SegformerImageProcessorPil(size={"height": 64, "width": 96}).save_pretrained(folder)
    return folder


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for index, name in enumerate(["a.png", "b.png", "sub/a.png"]):
        generate_demo_image(index, size=(50 + index, 70))[0].save(folder / name)
    return folder


def run(monkeypatch, capsys, *arguments):
    """Run the script as `python scripts/predict.py ...`; gives its exit code, and what it wrote to stderr."""
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return stopped.value.code, capsys.readouterr().err


def written(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def load(model_dir):
    model = SegformerForSemiSupervisedSegmentation.from_pretrained(model_dir)
    return model, SegformerImageProcessorPil.from_pretrained(model_dir)


def test_predict_mask_is_the_argmax_of_the_resized_logits(model_dir):
    model, _ = load(model_dir)
    # Pillow's resizing, even where torchvision is installed.
    image_processor = SegformerImageProcessorPil.from_pretrained(model_dir)
    image = generate_demo_image(0, size=(50, 70))[0]
    mask = predict_mask(model, image_processor, image)
    assert mask.dtype == np.uint8 and mask.shape == (50, 70)
    # Written out: resize to 64x96, ImageNet mean and deviation, logits back to 50x70, argmax.
    pixels = np.asarray(image.resize((96, 64), Image.Resampling.BILINEAR)) / 255
    pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        logits = model(pixel_values=torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None]).logits
    assert logits.shape == (1, 4, 16, 24)
    resized = torch.nn.functional.interpolate(logits, size=(50, 70), mode="bilinear", align_corners=False)
    # Rounding may decide a tie differently.
    assert (mask == resized[0].argmax(0).numpy()).mean() > 0.999
    assert len(np.unique(mask)) >= 3


def test_palette_of_the_configuration_comes_first(model_dir):
    model, _ = load(model_dir)
    np.testing.assert_array_equal(palette_of(model.config), default_palette(4))
    model.config.palette = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]]
    assert palette_of(model.config).tolist() == model.config.palette
    model.config.palette = [[1, 2, 3]]
    with pytest.raises(ValueError, match=r"1 colors.* 4 classes"):
        palette_of(model.config)


def test_folder(model_dir, images, tmp_path, monkeypatch, capsys):
    output_dir = tmp_path / "out"
    code, _ = run(monkeypatch, capsys, "--model", model_dir, "--input", images, "--output_dir", output_dir)
    assert code == 0
    assert written(output_dir) == [
        "a_mask.png",
        "a_overlay.png",
        "areas.csv",
        "b_mask.png",
        "b_overlay.png",
        "legend.png",
        "predict.json",
        "sub/a_mask.png",
        "sub/a_overlay.png",
    ]
    model, image_processor = load(model_dir)
    for name in ("a", "b", "sub/a"):
        with Image.open(images / f"{name}.png") as image, Image.open(output_dir / f"{name}_mask.png") as mask:
            expected = predict_mask(model, image_processor, image)
            assert mask.mode == "P"
            np.testing.assert_array_equal(np.asarray(mask), expected)
            assert mask.getpalette()[:12] == default_palette(4).ravel().tolist()
            blended = np.asarray(image, dtype=float) / 2 + default_palette(4)[expected] / 2.0
        with Image.open(output_dir / f"{name}_overlay.png") as overlay:
            assert np.abs(np.asarray(overlay) - blended).max() <= 0.5


def test_bad_file_among_good_ones(model_dir, images, tmp_path, monkeypatch, capsys):
    (images / "aa_broken.png").write_bytes((images / "a.png").read_bytes()[:500])
    (images / "ab_text.jpg").write_text("no image")
    output_dir = tmp_path / "out"
    code, errors = run(monkeypatch, capsys, "--model", model_dir, "--input", images, "--output_dir", output_dir)
    assert code == 1
    assert len([name for name in written(output_dir) if name.endswith("_mask.png")]) == 3
    assert not [name for name in written(output_dir) if name.startswith(("aa", "ab"))]
    assert errors.count("not predicted") == 2
    assert "aa_broken.png: not predicted, it cannot be read as an image" in errors
    assert "Traceback" not in errors


def test_one_file_and_its_alpha_and_device(model_dir, images, tmp_path, monkeypatch, capsys):
    output_dir = tmp_path / "out"
    options = ["--input", images / "b.png", "--output_dir", output_dir, "--alpha", "0", "--device", "cpu"]
    assert run(monkeypatch, capsys, "--model", model_dir, *options)[0] == 0
    assert written(output_dir) == ["areas.csv", "b_mask.png", "b_overlay.png", "legend.png", "predict.json"]
    with Image.open(images / "b.png") as image, Image.open(output_dir / "b_overlay.png") as overlay:
        np.testing.assert_array_equal(np.asarray(overlay), np.asarray(image))


def test_existing_results_need_overwrite(model_dir, images, tmp_path, monkeypatch, capsys):
    output_dir = tmp_path / "out"
    options = ["--model", model_dir, "--input", images / "b.png", "--output_dir", output_dir]
    output_dir.mkdir()
    (output_dir / "b_mask.png").write_text("earlier")
    code, errors = run(monkeypatch, capsys, *options)
    assert code == 2 and "1 of 4 results already exist" in errors
    assert written(output_dir) == ["b_mask.png"] and (output_dir / "b_mask.png").read_text() == "earlier"
    assert run(monkeypatch, capsys, *options, "--overwrite")[0] == 0
    with Image.open(output_dir / "b_mask.png") as mask:
        assert mask.size == (70, 51)


def test_going_on_with_other_images_is_refused(model_dir, images, tmp_path, monkeypatch, capsys):
    """areas.csv would lose the images before."""
    output_dir = tmp_path / "out"
    options = ["--model", model_dir, "--output_dir", output_dir, "--resume", "--input"]
    assert run(monkeypatch, capsys, *options, images / "a.png")[0] == 0
    areas = (output_dir / "areas.csv").read_text()
    code, errors = run(monkeypatch, capsys, *options, images / "b.png")
    assert code == 2 and f"made with input '{images / 'a.png'}', not '{images / 'b.png'}': " in errors
    assert run(monkeypatch, capsys, *options, images / "a.png")[0] == 0
    assert (output_dir / "areas.csv").read_text() == areas and areas.count("a.png,") == len(NAMES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--input": "empty*.png"}, "No image found at"),
        ({"--output_dir": "images"}, "output_dir images is the folder of the images, which"),
        ({"--output_dir": "a_file"}, "output_dir a_file is a file"),
        ({"--alpha": "2"}, "alpha=2.0 is out of range"),
        ({"--device": "nonsense"}, "The device 'nonsense' cannot be used on this machine (Expected one of cpu, cuda"),
        ({"--device": "hpu"}, "The device 'hpu' cannot be used on this machine"),
        pytest.param(
            {"--device": "mps"},
            "The device 'mps' cannot be used on this machine: give another, such as 'cpu', or none for the GPU if",
            marks=pytest.mark.skipif(torch.backends.mps.is_built(), reason="another sentence, or none"),
        ),
        ({"--model": "no_model"}, "cannot be loaded"),
        ({"--input": "a.png", "b.png": "c.png"}, "put a glob pattern in quotes"),
    ],
)
def test_nothing_done_is_exit_code_2(model_dir, images, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no_model").mkdir()
    (tmp_path / "a_file").touch()
    options = {"--model": model_dir, "--input": "images", "--output_dir": "out", **options}
    code, errors = run(monkeypatch, capsys, *[part for pair in options.items() for part in pair])
    assert code == 2
    # After transformers' progress bar, where it got that far.
    assert message in errors.strip().splitlines()[-1] and "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_a_model_with_missing_weights_is_refused(model_dir, images, tmp_path, monkeypatch, capsys):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    sizes = AllSparkConfig.from_pretrained(model_dir).to_dict()
    names = ("hidden_sizes", "depths", "num_attention_heads", "decoder_hidden_size", "id2label", "label2id")
    plain = SegformerForSemanticSegmentation(SegformerConfig(**{name: sizes[name] for name in names}))
    plain.save_pretrained(tmp_path / "plain")
    SegformerImageProcessorPil.from_pretrained(model_dir).save_pretrained(tmp_path / "plain")
    options = ["--model", tmp_path / "plain", "--input", images, "--output_dir", tmp_path / "out"]
    code, errors = run(monkeypatch, capsys, *options)
    assert code == 2 and "has no weights for" in errors


def test_names_never_collide():
    root = Path("photos")
    files = ["a.jpg", "a.png", "a_jpg.png", "b.png", "B.PNG", "sub/a.png", "c.d.png", "e/f.g/h.tif"]
    names = [str(name) for name in name_results(root, [root / file for file in files])]
    assert names == ["a_jpg_2", "a_png", "a_jpg", "b_png", "B_PNG_2", "sub/a", "c.d", "e/f.g/h"]
    assert len({name.lower() for name in names}) == len(files)


def test_same_stem_results_are_both_written(model_dir, images, tmp_path, monkeypatch, capsys):
    generate_demo_image(9, size=(40, 44))[0].save(images / "a.jpg")
    output_dir = tmp_path / "out"
    options = ["--model", model_dir, "--input", images / "a.*", "--output_dir", output_dir]
    assert run(monkeypatch, capsys, *options)[0] == 0
    sizes = {}
    for name in ("a_jpg", "a_png"):
        with Image.open(output_dir / f"{name}_mask.png") as mask:
            sizes[name] = mask.size
    assert sizes == {"a_jpg": (44, 40), "a_png": (70, 50)}


def test_finding_images(images, tmp_path, capsys):
    (images / "notes.txt").write_text("no image")
    (images / ".hidden.png").write_text("no image")
    (images / "out").mkdir()
    (images / "out" / "a_mask.png").write_text("earlier result")
    expected = [images / "a.png", images / "b.png", images / "sub" / "a.png"]
    assert find_images(str(images), images / "out") == (images, expected)
    said = f"Left out of {images}: 1 file that Pillow does not read, first {images / 'notes.txt'}.\n"
    assert capsys.readouterr().err == said
    (images / "sub" / "circle").symlink_to(images)
    (images / "Photo.JFIF").write_bytes((images / "a.png").read_bytes())
    assert find_images(str(images), images / "out") == (images, [images / "Photo.JFIF", *expected])
    assert find_images(f"{images}/**/*.png", images / "out") == (images, expected)
    assert find_images(f"{images}/s*/a.png", tmp_path) == (images, expected[2:])
    sentence = (
        f"output_dir {images / 'sub'} holds images of the input, first {expected[2]}, which would not be predicted"
    )
    for pattern in (images, f"{images}/**/*.png"):
        with pytest.raises(ValueError, match=re.escape(f"{sentence}: choose another output_dir.")):
            find_images(str(pattern), images / "sub")
    assert find_images(str(images / "b.png"), images / "out") == (images, expected[1:2])
    for pattern in (images, images / "b.png"):
        with pytest.raises(ValueError, match="is the folder of the images, which would be mixed with results"):
            find_images(str(pattern), images)
    (images / "Photo.JFIF").unlink()
    (images / "notes.txt").unlink()
    (images / "out" / "predict.json").write_text("{}")
    capsys.readouterr()
    sentence = (
        f"Left out of {images}: 1 image in {images / 'out'}, which are predictions since it holds predict.json.\n"
    )
    assert find_images(str(images), images / "second") == (images, expected)
    assert find_images(f"{images}/**/*.png", images / "second") == (images, expected)
    assert capsys.readouterr().err == sentence * 2
    assert find_images(f"{images}/out/*.png", tmp_path)[1] == [images / "out" / "a_mask.png"]  # asked for by name
