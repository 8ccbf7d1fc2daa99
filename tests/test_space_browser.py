"""scripts/space/app.py as a visitor meets it: the real server without this package installed, in headless Chromium."""

import importlib.util
import io
import os
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from browser import Watch, chromium
from conftest import NO_DROPOUT, tiny_model
from PIL import Image
from published_model import publish
from without_package import bare_python

from allspark_hf.inference.loading import load_trained, make_image_processor
from allspark_hf.inference.prediction import predict_mask
from allspark_hf.inference.visualization import overlay


if not importlib.util.find_spec("gradio"):  # which takes seconds to import, in each process that collects tests
    pytest.skip("gradio is not installed", allow_module_level=True)
APP = Path(__file__).resolve().parents[1] / "scripts" / "space" / "app.py"
NAMES = ("sky", "tree & bush", "road", "car")
PALETTE = [[70, 130, 180], [0, 120, 0], [128, 64, 128], [220, 20, 60]]
WAIT = 60_000  # milliseconds: CI has two slow cores


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two random models with names and colors, one folder without weights, and images."""
    folder = tmp_path_factory.mktemp("space")
    for name, seed in (("model-a", 0), ("model-b", 3)):
        model = tiny_model(seed, num_labels=4, id2label=dict(enumerate(NAMES)), **NO_DROPOUT)
        model.config.palette = PALETTE
        publish(folder / name, model, make_image_processor())
    publish(folder / "model-c", model, make_image_processor())
    (folder / "model-c" / "model.safetensors").unlink()
    values = np.random.default_rng(2).integers(256, size=(6, 8, 3))
    # Uneven patches of one color: several classes, and little for JPEG to change.
    photo = Image.fromarray(values.repeat(37, 0).repeat(41, 1).astype(np.uint8))
    photo.save(folder / "photo.png")
    (folder / "broken.png").write_bytes((folder / "photo.png").read_bytes()[:300])
    return folder


@pytest.fixture(scope="module")
def app(folder):
    """The served page: (address, log file). The process can import torch and gradio, but not allspark_hf."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GRADIO", "HF_"))}
    own = {
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "GRADIO_TEMP_DIR": str(folder / "files"),
        "ALLSPARK_MODELS": ", ".join(str(folder / name) for name in ("model-a", "model-b", "model-c")),
    }
    (folder / "empty").mkdir()
    asked = subprocess.run(
        [bare_python(), "-c", "import allspark_hf"], cwd=folder / "empty", env=kept, capture_output=True
    )
    assert b"ModuleNotFoundError" in asked.stderr, "the package can be imported: install it editable, pip install -e ."
    log = folder / "app.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [bare_python(), "-u", APP], cwd=folder / "empty", env=kept | own, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield address_in(log, process), log
    finally:
        process.terminate()
        process.wait(timeout=30)


def address_in(log: Path, process: subprocess.Popen) -> str:
    end = time.monotonic() + 180
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return found.group()
        time.sleep(0.1)
    raise AssertionError(f"app.py serves nothing:\n{log.read_text()}")


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser, app):
    """Opens the page in a fresh context; at the end of the test nothing may have gone wrong on it."""
    opened = []

    def open_page(**options):
        context = browser.new_context(**options)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        # Gradio answers 404 here where a busy machine has not seen the upload begin within 3 s.
        opened.append((context, Watch(page, allowed=("/upload_progress",))))
        page.goto(app[0])
        page.locator("#image input[type=file]").wait_for(state="attached")
        return page

    yield open_page
    for context, watch in opened:
        context.close()
        assert watch.problems == []


@pytest.fixture(scope="module")
def expected(folder):
    """Of each model: the mask that the package predicts for the photo."""
    photo = Image.open(folder / "photo.png")
    masks = {name: predict_mask(*load_trained(str(folder / name), "cpu"), photo) for name in ("model-a", "model-b")}
    assert len(np.unique(masks["model-a"])) > 1 and (masks["model-a"] != masks["model-b"]).any()
    return masks


def screenshot(page, name: str):
    """For who wants to look at it."""
    if folder := os.environ.get("ALLSPARK_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def upload(page, path: Path):
    page.locator("#image input[type=file]").set_input_files(path)


def shown(page, which: str) -> np.ndarray:
    """The overlay on the page: int (height, width, 3)."""
    answer = page.request.get(page.locator(f"#overlay_{which} img").get_attribute("src"))
    return np.asarray(Image.open(io.BytesIO(answer.body())).convert("RGB")).astype(int)


def wait_for_overlay(page, which: str, wanted) -> None:
    """Until the overlay is `wanted`, but for what JPEG changes."""
    wanted = np.asarray(wanted).astype(int)
    page.locator(f"#overlay_{which} img").wait_for()
    end = time.monotonic() + WAIT / 1000
    while (difference := np.abs(shown(page, which) - wanted).mean()) > 1.5:
        assert time.monotonic() < end, f"the overlay differs from the wanted one by {difference:.1f} in the mean"
        page.wait_for_timeout(150)  # which leaves the server its time


def runs(app) -> list[str]:
    """Names of the models that have run since the start, from the server's log."""
    return re.findall(r"predicted \d+ x \d+ pixels with (\S+)", app[1].read_text())


def choose(page, which: str, name: str):
    page.locator(f"#{which} input").click()
    page.get_by_role("option", name=name).click()


def download(page, which: str) -> tuple[str, Image.Image]:
    with page.expect_download() as downloaded:
        page.locator(f"#download_{which}").click()
    return downloaded.value.suggested_filename, Image.open(downloaded.value.path())


def test_one_model(folder, app, expected, open_page):
    page = open_page(viewport={"width": 1280, "height": 900})
    before = len(runs(app))
    assert "Your result appears here" in page.locator("#notice").inner_text()
    screenshot(page, "empty")
    upload(page, folder / "photo.png")
    photo, mask = Image.open(folder / "photo.png"), expected["model-a"]
    wait_for_overlay(page, "a", overlay(photo, mask, PALETTE, 0.5, None))
    assert not page.locator("#notice").is_visible()
    areas = np.bincount(mask.ravel(), minlength=4) / mask.size
    rows = page.locator(".legend-row").all_inner_texts()
    found = sorted(np.flatnonzero(areas), key=lambda label: -areas[label])
    assert [row.split("\n")[0] for row in rows] == [NAMES[label] for label in found]
    largest = found[0]
    assert f"{100 * areas[largest]:.1f} %" in rows[0]
    alt_text = page.locator("#overlay_a img").get_attribute("alt")
    assert alt_text.startswith(f"Segmentation by model-a: {NAMES[largest]} {100 * areas[largest]:.1f} %")
    screenshot(page, "one_model")

    page.locator("#opacity input[type=number]").fill("80")
    wait_for_overlay(page, "a", overlay(photo, mask, PALETTE, 0.8, None))
    page.locator("#opacity input[type=range]").press("ArrowRight")
    wait_for_overlay(page, "a", overlay(photo, mask, PALETTE, 0.85, None))

    row = page.locator(".legend-row").first
    row.press("Space")  # by keyboard
    gray = 0.35 * (np.asarray(photo) @ np.array([0.299, 0.587, 0.114]))[..., None]
    colored = np.asarray(overlay(photo, mask, PALETTE, 0.85, None))
    wait_for_overlay(page, "a", np.where((mask == largest)[..., None], colored, gray))
    assert row.get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.activeElement.dataset.label") == NAMES[largest]  # the focus stays
    screenshot(page, "highlight")
    page.get_by_role("button", name="Show all").click()
    wait_for_overlay(page, "a", colored)
    assert row.get_attribute("aria-pressed") == "false"
    assert runs(app)[before:] == ["model-a"]  # opacity and highlight are drawn without the model

    name, image = download(page, "a")
    assert name == "photo_model-a_mask.png" and image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), mask)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.array(PALETTE, np.uint8)[mask])


def test_two_models(folder, app, expected, open_page):
    page = open_page(viewport={"width": 1280, "height": 900})
    before = len(runs(app))
    upload(page, folder / "photo.png")
    photo = Image.open(folder / "photo.png")
    wait_for_overlay(page, "a", overlay(photo, expected["model-a"], PALETTE, 0.5, None))
    choose(page, "second", "model-b")
    wait_for_overlay(page, "b", overlay(photo, expected["model-b"], PALETTE, 0.5, None))
    wait_for_overlay(page, "a", overlay(photo, expected["model-a"], PALETTE, 0.5, None))
    assert runs(app)[before:] == ["model-a", "model-b"]
    agreement = (expected["model-a"] == expected["model-b"]).mean()
    assert f"Agreement\n{100 * agreement:.1f} %" in page.locator(".figures").inner_text()
    left, right = (page.locator(f"#overlay_{which}").bounding_box() for which in "ab")
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]  # side by side
    name, image = download(page, "b")
    assert name == "photo_model-b_mask.png"
    np.testing.assert_array_equal(np.asarray(image), expected["model-b"])
    screenshot(page, "two_models")

    choose(page, "second", "model-c")
    page.locator("#notice").get_by_text("The model model-c cannot be loaded.").wait_for()
    page.locator("#overlay_b").wait_for(state="hidden")
    assert page.locator("#overlay_a").is_visible()
    assert "Traceback" in app[1].read_text() and "Traceback" not in page.content()
    screenshot(page, "failed_model")


def test_bad_file_then_example(folder, app, open_page):
    page = open_page(viewport={"width": 1280, "height": 900})
    upload(page, folder / "photo.png")
    page.locator("#overlay_a img").wait_for()
    page.get_by_role("button", name="Remove Image").click()
    page.locator("#notice").get_by_text("Your result appears here").wait_for()
    upload(page, folder / "broken.png")
    page.locator("#notice").get_by_text("This file cannot be read as an image").wait_for()
    page.locator("#results").wait_for(state="hidden")
    screenshot(page, "bad_file")
    page.locator("#examples img, .gallery-item img").first.click()
    page.locator("#overlay_a img").wait_for()
    assert shown(page, "a").shape == (288, 384, 3)
    assert "generated_1" in download(page, "a")[0]


def test_phone_in_the_dark_with_the_clipboard(folder, expected, open_page):
    page = open_page(
        viewport={"width": 390, "height": 844},
        is_mobile=True,
        has_touch=True,
        color_scheme="dark",
        permissions=["clipboard-read", "clipboard-write"],
    )
    assert page.evaluate("document.body.classList.contains('dark')")
    page.evaluate(
        """async (bytes) => {
            const blob = new Blob([new Uint8Array(bytes)], {type: "image/png"});
            await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
        }""",
        list((folder / "photo.png").read_bytes()),
    )
    page.get_by_role("button", name="Paste from clipboard").tap()
    choose(page, "second", "model-b")
    photo = Image.open(folder / "photo.png")
    for which, name in (("b", "model-b"), ("a", "model-a")):
        wait_for_overlay(page, which, overlay(photo, expected[name], PALETTE, 0.5, None))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    above, below = (page.locator(f"#overlay_{which}").bounding_box() for which in "ab")
    assert above["x"] == below["x"] and above["y"] + above["height"] <= below["y"]  # one column
    touched = [*page.locator(".legend-row").all(), page.locator("#download_a"), page.locator("#opacity input").last]
    assert min(element.bounding_box()["height"] for element in touched) >= 44
    page.locator(".legend-row").first.tap()
    page.get_by_role("button", name="Show all").wait_for()
    screenshot(page, "phone")
