"""Pushing to a repository that holds an earlier model, or what a person wrote there."""

import json

import pytest
from conftest import tiny_model
from huggingface_hub import ModelCard
from PIL import Image
from test_push import EVALUATION, hub, output_folder  # noqa: F401

from allspark_hf import SegformerForSemiSupervisedSegmentation
from allspark_hf.publishing.card import write_model_card
from allspark_hf.publishing.publish import publish_folder
from allspark_hf.publishing.repository import stage
from allspark_hf.publishing.upload import PushError


BY_HAND = "---\nlicense: mit\n---\n# By hand\n"


def retrain(folder):
    tiny_model(seed=1).save_pretrained(folder)


def test_records_of_other_weights_leave_the_repository(hub, output_folder):  # noqa: F811
    (output_folder / "onnx").mkdir()
    (output_folder / "onnx" / "model.onnx").write_bytes(b"1")
    (output_folder / "night.json").write_text(json.dumps(EVALUATION))
    publish_folder(output_folder, "tester/roads")
    hub.add("tester/roads", {"notes.json": b"{}", "last-checkpoint/optimizer.pt": b"1"})
    before = hub.files("tester/roads")
    assert {"onnx/model.onnx", "night.json", "trainer_state.json"} <= set(before)
    for name in ("night.json", "trainer_state.json", "onnx/model.onnx"):
        (output_folder / name).unlink()
    publish_folder(output_folder, "tester/roads")  # the same weights: they still are what they were
    assert set(hub.files("tester/roads")) == set(before)
    retrain(output_folder)
    publish_folder(output_folder, "tester/roads")
    gone = {"onnx/model.onnx", "night.json", "trainer_state.json"}
    assert set(before) - set(hub.files("tester/roads")) >= gone
    assert {"notes.json", "last-checkpoint/optimizer.pt", "handler.py"} <= set(hub.files("tester/roads"))


def test_a_card_of_other_weights_is_replaced(hub, output_folder):  # noqa: F811
    publish_folder(output_folder, "tester/roads")
    other = tiny_model(seed=1)
    other.config.base_weights = "nvidia/mit-b5"
    other.push_to_hub("tester/roads", tags=["roads"])
    card = ModelCard(hub.files("tester/roads")["README.md"].decode())
    assert card.data.license == "other" and "nvidia" in card.data.license_name and "roads" in card.data.tags
    other.config.base_weights = "none"
    other.push_to_hub("tester/roads")  # a card with added tags is still one of ours
    assert ModelCard(hub.files("tester/roads")["README.md"].decode()).data.license == "apache-2.0"


@pytest.mark.parametrize("with_folder", [True, False])
def test_what_a_person_wrote_on_the_hub_is_kept(hub, output_folder, caplog, with_folder):  # noqa: F811
    publish_folder(output_folder, "tester/roads")
    hub.add("tester/roads", {"README.md": BY_HAND.encode()})
    retrain(output_folder)
    if with_folder:
        publish_folder(output_folder, "tester/roads")
    else:
        SegformerForSemiSupervisedSegmentation.from_pretrained(output_folder).push_to_hub("tester/roads")
    assert hub.files("tester/roads")["README.md"] == BY_HAND.encode()
    assert "The card of tester/roads was written or changed there, and is kept" in caplog.text
    hub.add("tester/roads", {"README.md": b"---\nlicense: mit\n---\n"})  # as a repository made on the website has it
    publish_folder(output_folder, "tester/roads")
    assert len(hub.files("tester/roads")["README.md"]) > 1000


def test_a_card_changed_by_hand_is_published(hub, output_folder, tmp_path, caplog):  # noqa: F811
    publish_folder(output_folder, "tester/roads")
    card = output_folder / "README.md"
    card.write_text(card.read_text().replace("## License", "A word of mine.\n\n## License"))
    publish_folder(output_folder, "tester/roads")
    assert hub.files("tester/roads")["README.md"] == card.read_bytes() and b"A word of mine." in card.read_bytes()
    assert "was changed by hand, and is published as it is" in caplog.text
    assert not list(output_folder.glob("README.old*"))
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match="was changed by hand, and example images would render it anew"):
        publish_folder(output_folder, "tester/roads", example_images=[tmp_path / "photo.png"])


def test_private_is_no_wish(hub, output_folder):  # noqa: F811
    publish_folder(output_folder, "tester/roads")
    with pytest.raises(PushError, match="tester/roads exists and is public, but private was asked for"):
        publish_folder(output_folder, "tester/roads", private=True)
    publish_folder(output_folder, "tester/mine", private=True)
    publish_folder(output_folder, "tester/mine", private=True)
    assert hub.repositories["tester/mine"].private


def test_the_way_to_push_later_repeats_what_was_asked(hub, output_folder):  # noqa: F811
    with pytest.raises(PushError, match=r"--repo_id tester/no --create_pr$"):
        publish_folder(output_folder, "tester/no", create_pr=True)


def test_examples_lose_what_the_camera_wrote(output_folder, tmp_path):  # noqa: F811
    picture = Image.effect_noise((40, 30), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x0112], exif[0x013B], exif[0x8825] = 6, "Erika Mustermann", {1: "N", 2: (52.0, 30.0, 0.0)}
    (output_folder / "examples").mkdir()
    picture.save(output_folder / "examples" / "gps.jpg", exif=exif, quality=95)
    picture.save(output_folder / "examples" / "plain.png")
    (tmp_path / "secret.png").write_bytes((output_folder / "examples" / "plain.png").read_bytes())
    (output_folder / "examples" / "link.png").symlink_to(tmp_path / "secret.png")
    (output_folder / "README.md").write_text("examples/gps.jpg examples/plain.png examples/link.png")
    staging = tmp_path / "staging"
    staging.mkdir()
    stage(output_folder, staging)
    assert {path.name for path in (staging / "examples").iterdir()} == {"gps.jpg", "plain.png"}
    with Image.open(staging / "examples" / "gps.jpg") as sent:
        assert sent.size == (30, 40) and not sent.getexif()  # upright
    assert b"Mustermann" not in (staging / "examples" / "gps.jpg").read_bytes()
    assert b"Mustermann" in (output_folder / "examples" / "gps.jpg").read_bytes()


def test_class_names_stay_in_published_records(output_folder, tmp_path):  # noqa: F811
    rows = [{"name": "sky /cloud", "iou": 0.5}, {"name": "/unlabeled", "iou": 0.25}]
    (output_folder / "night.json").write_text(json.dumps(EVALUATION | {"per_class": rows}))
    staging = tmp_path / "staging"
    staging.mkdir()
    stage(output_folder, staging)
    assert json.loads((staging / "night.json").read_text())["per_class"] == rows


def test_an_export_is_on_the_card(output_folder):  # noqa: F811
    assert "## ONNX" not in write_model_card(output_folder).read_text()
    (output_folder / "onnx").mkdir()
    export = {
        "files": {"model.onnx": 3_840_000, "model_quantized.onnx": 1_930_000},
        "differences": [{"max_difference": 2e-8}, {"max_difference": 3.1e-6}],
        "cost": {"num_images": 7, "PyTorch": {"mean_iou": 0.5}, "int8": {"mean_iou": 0.4321}},
    }
    (output_folder / "onnx" / "export.json").write_text(json.dumps(export))
    card = write_model_card(output_folder).read_text()
    assert "`onnx/model.onnx` (3.8 MB), `onnx/model_quantized.onnx` (1.9 MB)" in card
    assert "differ from PyTorch's by 3.1e-06 at most" in card and "PyTorch 50.00 %, int8 43.21 %" in card
    assert "batch, height and width are free." in card
    (output_folder / "onnx" / "export.json").write_text(json.dumps(export | {"cost": None, "fixed_size": [512, 768]}))
    card = write_model_card(output_folder).read_text()
    assert "What the 8-bit file costs was not measured." in card
    assert "the batch is free, images have 512 x 768 pixels (height x width)." in card and "width are free" not in card


def test_shards_take_the_place_of_whole_weights(hub, output_folder):  # noqa: F811
    publish_folder(output_folder, "tester/roads")
    model = tiny_model(seed=1)
    model.push_to_hub("tester/roads", max_shard_size="60KB")
    files = hub.files("tester/roads")
    assert "model.safetensors.index.json" in files and "model.safetensors" not in files
    model.push_to_hub("tester/roads")
    files = hub.files("tester/roads")
    assert "model.safetensors" in files and not any("-of-" in path or "index" in path for path in files)
