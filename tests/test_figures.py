"""Arrays of the figures: crops, errors, channels, memory, differences and curves, all by numbers."""

import json
import math

import datasets
import numpy as np
import pytest
import torch
from conftest import make_dataset, tiny_model
from picture_files import deep_png
from PIL import Image

from allspark_hf import AllSparkConfig, AllSparkTrainer, AllSparkTrainingArguments
from allspark_hf.evaluation.intervals import image_counts, margin_interval
from allspark_hf.figures import (
    bottleneck_channels,
    bottleneck_pass,
    channels_per_class,
    compare_predictions,
    difference,
    error_by_set,
    memory_contents,
    read_curves,
    refill_memory,
)
from allspark_hf.figures.crops import crop_row, row_ids
from allspark_hf.figures.memory import _places_to_show
from allspark_hf.inference.loading import make_image_processor
from allspark_hf.inference.prediction import predict_mask


CROP = {"crop_size": [48, 80]}  # 2 x 3 tokens


@pytest.fixture(scope="module")
def model():
    return tiny_model(**CROP).eval()


def without_masks(dataset):
    return dataset.remove_columns("label")


# ---- Crops ----


def test_a_large_image_is_cut_around_its_middle(image_processor):
    rng = np.random.default_rng(0)
    pixels, mask = rng.integers(256, size=(71, 97, 3), dtype=np.uint8), rng.integers(3, size=(71, 97), dtype=np.uint8)
    config = tiny_model(**CROP).config
    rows = [{"image": Image.fromarray(pixels), "label": Image.fromarray(mask)}]
    crop = crop_row(rows, 0, image_processor, config)
    np.testing.assert_array_equal(crop.picture, pixels[11:59, 8:88])
    np.testing.assert_array_equal(crop.label, mask[11:59, 8:88])
    expected = image_processor(images=Image.fromarray(crop.picture), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(crop.pixel_values, expected)


def test_a_crop_is_normalized_as_the_image_processor_says():
    rows = [{"image": Image.new("RGB", (80, 48), (255, 51, 0))}]
    processor = make_image_processor(40)
    processor.do_normalize = False
    crop = crop_row(rows, 0, processor, tiny_model(**CROP).config)
    torch.testing.assert_close(crop.pixel_values[0, :, 0, 0], torch.tensor([1.0, 0.2, 0.0]))
    assert crop.pixel_values.shape == (1, 3, 48, 80) and not crop.pixel_values[..., 40:].any()


def test_16_bit_colors_of_any_data_set_are_read_whole(image_processor, tmp_path):
    """`datasets` itself keeps 8 of the bits, in which 12 of them are nearly black."""
    levels = np.random.default_rng(0).integers(256, size=(48, 80, 3)).astype(np.uint16)
    (tmp_path / "deep.png").write_bytes(deep_png(levels * 16))
    Image.new("L", (80, 48)).save(tmp_path / "mask.png")
    rows = datasets.Dataset.from_dict({"image": [str(tmp_path / "deep.png")], "label": [str(tmp_path / "mask.png")]})
    rows = rows.cast_column("image", datasets.Image()).cast_column("label", datasets.Image())
    model = tiny_model(image_range=[0, 4080], **CROP).eval()
    arrays = compare_predictions({"model": (model, image_processor)}, rows)
    expected = predict_mask(model, image_processor, Image.fromarray(levels.astype(np.uint8)))
    np.testing.assert_array_equal(arrays["picture_0"], levels)
    np.testing.assert_array_equal(arrays["predictions_0"][0], expected)
    np.testing.assert_array_equal(crop_row(rows, 0, image_processor, model.config).picture, levels)


def test_a_small_image_is_padded_at_the_bottom_and_right(image_processor):
    config = tiny_model(**CROP).config
    rows = [{"image": Image.new("RGB", (33, 91), (9, 8, 7)), "label": Image.new("L", (33, 91), 2)}]
    crop = crop_row(rows, 0, image_processor, config)
    assert crop.picture.shape == (48, 80, 3) and crop.label.shape == (48, 80)
    assert (crop.picture[:, :33] == [9, 8, 7]).all() and (crop.picture[:, 33:] == 0).all()
    assert (crop.label[:, :33] == 2).all() and (crop.label[:, 33:] == 255).all()
    assert crop_row([rows[0] | {"label": None}], 0, image_processor, config).label is None


def test_the_crop_is_taken_after_the_image_processors_scaling():
    pixels = np.zeros((200, 320, 3), dtype=np.uint8)
    pixels[:, 160:] = 200
    mask = np.zeros((200, 320), dtype=np.uint8)
    mask[:, 160:] = 1
    rows = [{"image": Image.fromarray(pixels), "label": Image.fromarray(mask)}]
    crop = crop_row(rows, 0, make_image_processor(160), tiny_model(**CROP).config)
    # Half the size is 100 x 160, of which the middle half is kept.
    assert (crop.label == np.repeat([0, 1], 40)).all()
    assert (crop.picture[:, :38] == 0).all() and (crop.picture[:, 42:] == 200).all()


def test_rows_are_named_by_id_or_number():
    dataset = make_dataset(3)
    assert row_ids(dataset) == ["0", "1", "2"]
    assert row_ids(dataset.add_column("id", ["c", "a", "b"])) == ["c", "a", "b"]
    assert row_ids([{"id": "x"}, {}]) == ["x", "1"]


# ---- Figure 1c ----


def constant_model(predicted: int):
    model = tiny_model(**AllSparkConfig.plain_segformer_switches()).eval()
    with torch.no_grad():
        model.decode_head.classifier.weight.zero_()
        model.decode_head.classifier.bias.copy_(torch.nn.functional.one_hot(torch.tensor(predicted), 3).float())
    return model


def test_errors_and_margins_by_hand(image_processor):
    sets = {name: make_dataset(count, seed=count) for name, count in (("labeled", 2), ("validation", 5))}
    arrays = error_by_set({"ones": (constant_model(1), image_processor)}, sets)
    expected = []
    for dataset in sets.values():
        labels = np.stack([np.array(example["label"]) for example in dataset])
        valid = labels[labels != 255]
        assert set(np.unique(valid)) == {0, 1, 2}
        expected.append((valid == 1).mean() / 3)  # IoU of class 1 is its share, of the others 0
    np.testing.assert_allclose(arrays["mean_iou"], [expected])
    np.testing.assert_allclose(arrays["error"], [[1 - value for value in expected]])
    np.testing.assert_allclose(arrays["margin"], [[0, expected[0] - expected[1]]])
    assert arrays["num_images"].tolist() == [2, 5]
    assert arrays["sets"].tolist() == ["labeled", "validation"] and arrays["models"].tolist() == ["ones"]
    assert arrays["counts"].shape == (1, 2, 3, 3)
    assert arrays["counts"][0, :, :, [0, 2]].sum() == 0 and arrays["counts"][0, 1].sum() == 5 * 70 * 96
    first, second = np.split(arrays["by_image"][0], [2])
    np.testing.assert_array_equal(first.sum(axis=0), image_counts(arrays["counts"][0, 0]))
    np.testing.assert_array_equal(second.sum(axis=0), image_counts(arrays["counts"][0, 1]))
    assert arrays["margin_ends"].tolist() == [[[0, 0], list(margin_interval(first, second)[1:])]]


def test_errors_are_those_of_the_trainers_evaluation(model, image_processor, tmp_path):
    dataset = make_dataset(3, size=(48, 72))
    arrays = error_by_set({"a": (model, image_processor), "b": (constant_model(0), image_processor)}, {"all": dataset})
    args = AllSparkTrainingArguments(output_dir=tmp_path, use_cpu=True, report_to="none", method="supervised")
    metrics = AllSparkTrainer(model, args, image_processor, eval_dataset=dataset).evaluate()
    assert arrays["mean_iou"][0, 0] == pytest.approx(metrics["eval_mean_iou"], abs=1e-12)
    assert arrays["mean_iou"][1, 0] != arrays["mean_iou"][0, 0]


def test_error_by_set_refuses_what_does_not_compare(model, image_processor):
    with pytest.raises(ValueError, match="at least one image"):
        error_by_set({"a": (model, image_processor)}, {"labeled": make_dataset(1).select([])})
    other = tiny_model(num_labels=4).eval()
    with pytest.raises(ValueError, match="different classes"):
        error_by_set({"a": (model, image_processor), "b": (other, image_processor)}, {"all": make_dataset(1)})


# ---- Figures 5 and 6 ----


def test_the_pass_sees_what_the_model_computes(model):
    pixel_values = torch.randn(2, 3, 48, 80)
    seen = bottleneck_pass(model, pixel_values)
    with torch.no_grad():
        features = model.segformer(pixel_values, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(seen.before, features)
        torch.testing.assert_close(seen.after, model.bottleneck(features))
        mapped = torch.nn.functional.gelu(model.bottleneck.project_in(features))
        expected = torch.nn.functional.layer_norm(
            mapped.flatten(2).transpose(1, 2),
            (32,),
            model.bottleneck.token_norm.weight,
            model.bottleneck.token_norm.bias,
            1e-6,
        )
        torch.testing.assert_close(seen.tokens, expected)
    assert seen.logits.shape == (2, 3, 48, 80)
    assert not model.bottleneck._forward_hooks and not model.bottleneck.token_norm._forward_hooks


def test_the_pass_needs_a_bottleneck_in_eval_mode():
    with pytest.raises(ValueError, match="plain SegFormer"):
        bottleneck_pass(constant_model(0), torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="is in training mode"):
        bottleneck_pass(tiny_model().train(), torch.zeros(1, 3, 64, 64))


def test_the_most_changed_channels_are_shown(model, image_processor):
    images = make_dataset(3).add_column("id", ["a", "b", "c"])
    arrays = bottleneck_channels(model, image_processor, images, num_shown=5)
    assert arrays["ids"].tolist() == ["a", "b", "c"]
    assert arrays["before"].shape == arrays["after"].shape == (3, 32, 2, 3)
    assert arrays["pictures"].shape == (3, 48, 80, 3)
    seen = bottleneck_pass(model, crop_row(images, 1, image_processor, model.config).pixel_values)
    np.testing.assert_array_equal(arrays["before"][1], seen.before[0])
    before, after = (maps[0].double().numpy() for maps in (seen.before, seen.after))
    change = [
        math.sqrt(np.mean((after[channel] / after.std() - before[channel] / before.std()) ** 2))
        for channel in range(32)
    ]
    np.testing.assert_allclose(arrays["change"][1], change, rtol=1e-4)
    assert arrays["shown"][1].tolist() == sorted(range(32), key=lambda channel: -change[channel])[:5]
    assert bottleneck_channels(model, image_processor, images, num_shown=99)["shown"].shape == (3, 32)


@pytest.mark.parametrize("num_labels", [3, 81])
def test_channels_go_to_the_class_of_the_highest_cosine(num_labels, image_processor):
    model = tiny_model(num_labels=num_labels, **CROP).eval()
    images = make_dataset(3)
    arrays = channels_per_class(model, image_processor, list(images.select([2])), images, "some")
    assert arrays["set_counts"].sum(axis=1).tolist() == [32, 32, 32]
    assert arrays["set_counts"].dtype == np.int64 and arrays["set_counts"].shape == (3, num_labels)
    np.testing.assert_array_equal(arrays["counts"][0], arrays["set_counts"][2])
    np.testing.assert_allclose(arrays["mean_counts"], arrays["set_counts"].mean(0))
    seen = bottleneck_pass(model, crop_row(images, 0, image_processor, model.config).pixel_values)
    maps = torch.nn.functional.interpolate(seen.logits, size=(2, 3), mode="bilinear").flatten(2)[0]
    cosine = torch.nn.functional.cosine_similarity(maps[:, None], seen.tokens[0].T[None], dim=2)
    expected = np.bincount(cosine.argmax(0), minlength=num_labels)
    assert (expected > 0).sum() > 1
    np.testing.assert_array_equal(arrays["set_counts"][0], expected)


def test_present_classes_are_those_of_the_cropped_mask(model, image_processor):
    mask = np.full((72, 96), 255, dtype=np.uint8)
    mask[:10], mask[30:40, 30:40] = 2, 1  # class 2 lies outside the crop
    rows = [
        {"image": Image.new("RGB", (96, 72)), "label": Image.fromarray(mask)},
        {"image": Image.new("RGB", (96, 72))},
    ]
    arrays = channels_per_class(model, image_processor, rows, rows, "two")
    assert arrays["present"].tolist() == [[False, True, False], [False] * 3]
    assert arrays["has_mask"].tolist() == [True, False]
    assert arrays["pictures"].shape == (2, 48, 80, 3) and "set_pictures" not in arrays


def test_grouping_that_the_model_lacks_is_refused(image_processor):
    model = tiny_model(use_grouping=False, **CROP).eval()
    with pytest.raises(ValueError, match="use_grouping=False"):
        channels_per_class(model, image_processor, make_dataset(1), make_dataset(1), "one")


# ---- Figure 7 ----


def first_in_first_out(model, pixel_values):
    """(slots, slot_size) lists of (image, channel), or None where nothing was written; channels ever written."""
    num_slots, slot_size, _ = model.bottleneck.memory.channels.shape
    ring, written = [[None] * slot_size for _ in range(num_slots)], [0] * num_slots
    for image, pixels in enumerate(pixel_values):
        seen = bottleneck_pass(model, pixels[None])
        maps = torch.nn.functional.interpolate(seen.logits, size=(2, 3), mode="bilinear").flatten(2)[0]
        cosine = torch.nn.functional.cosine_similarity(maps[:, None], seen.tokens[0].T[None], dim=2)
        slots = cosine.argmax(0).tolist() if num_slots > 1 else [0] * 32
        for channel, slot in enumerate(slots):
            ring[slot][written[slot] % slot_size] = (image, channel)
            written[slot] += 1
    return ring, written


@pytest.mark.parametrize(
    "switches", [{"memory_size": 0.5, "num_labels": 5}, {"memory_size": 2}, {"use_grouping": False}]
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_channel_is_that_of_its_image(switches, batch_size):
    model = tiny_model(seed=1, **CROP, **switches).eval()
    pixel_values = torch.randn(7, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    before = model.bottleneck.memory.channels.clone()
    arrays = refill_memory(model, pixel_values.split(batch_size))
    tokens = torch.cat([bottleneck_pass(model, batch).tokens for batch in pixel_values.split(batch_size)])
    ring, written = first_in_first_out(model, pixel_values)
    assert arrays["num_enqueued"].tolist() == written and sum(written) == 7 * 32
    for slot, places in enumerate(ring):
        for place, origin in enumerate(places):
            row, channel = arrays["source_row"][slot, place], arrays["source_channel"][slot, place]
            assert (row, channel) == (origin or (-1, -1))
            stored = arrays["channels"][slot, place]
            if origin is None:
                assert np.isnan(stored).all()
            else:
                np.testing.assert_array_equal(stored, tokens[row, :, channel].numpy())
    assert torch.equal(model.bottleneck.memory.channels, before)


def test_the_rings_of_the_test_above_wrap_and_have_room():
    pixel_values = torch.randn(7, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    small = refill_memory(tiny_model(seed=1, memory_size=0.5, num_labels=5, **CROP).eval(), [pixel_values])
    large = refill_memory(tiny_model(seed=1, memory_size=2, **CROP).eval(), [pixel_values])
    assert small["num_enqueued"].min() > 16 and small["num_enqueued"].max() > 4 * 16
    assert large["num_enqueued"].min() < 64 < large["num_enqueued"].max()


def test_a_memory_without_images_or_a_model_without_memory_is_refused(model):
    with pytest.raises(ValueError, match="none was given"):
        refill_memory(model, [])
    with pytest.raises(ValueError, match="use_memory=False"):
        refill_memory(tiny_model(use_memory=False, use_grouping=False, **CROP).eval(), [torch.zeros(1, 3, 48, 80)])


def test_images_with_most_channels_are_shown_first():
    # A slot of 6 places; 8 channels were written, the last one to place 1.
    rows = np.array([[4, 5, 2, 2, 3, 3], [7, -1, -1, -1, -1, -1]])
    arrays = {"source_row": rows, "num_enqueued": np.array([8, 1])}
    assert _places_to_show(arrays, 0, 3).tolist() == [5, 3, 1]
    assert _places_to_show(arrays, 1, 3).tolist() == [0, -1, -1]


def test_memory_contents_shows_the_images_of_the_channels(model, image_processor):
    images = without_masks(make_dataset(6)).add_column("id", list("abcdef"))
    arrays = memory_contents(model, image_processor, images, num_classes=2, num_shown=3)
    filled = arrays["num_enqueued"]
    assert filled.sum() == 6 * 32 and arrays["grid"].tolist() == [2, 3]
    assert arrays["shown_slots"].tolist() == sorted(np.argsort(-filled, kind="stable")[:2])
    assert arrays["shown_places"].shape == (2, 3) and arrays["pictures"].shape == (2, 3, 48, 80, 3)
    for slot, places, pictures in zip(arrays["shown_slots"], arrays["shown_places"], arrays["pictures"], strict=True):
        shown_rows = [arrays["source_row"][slot, place] for place in places if place >= 0]
        assert len(set(shown_rows)) == len(shown_rows) > 0
        for row, picture in zip(shown_rows, pictures, strict=False):
            expected = crop_row(images, int(row), image_processor, model.config).picture
            np.testing.assert_array_equal(picture, expected)
    single = memory_contents(tiny_model(use_grouping=False, **CROP).eval(), image_processor, images)
    assert single["slot_names"].tolist() == ["all classes"] and single["shown_slots"].tolist() == [0]


# ---- Figure b ----


def test_difference_by_hand():
    truth = np.array([[0, 0, 0, 0, 255]], dtype=np.uint8)
    model, baseline = np.array([[0, 0, 1, 1, 1]]), np.array([[0, 2, 0, 2, 2]])
    assert difference(truth, model, baseline).tolist() == [[0, 1, 2, 3, 255]]
    assert difference(truth, model).tolist() == [[0, 0, 2, 2, 255]]
    assert difference(np.array([[7, 1]]), np.array([[0, 0]]), ignore_index=7).tolist() == [[255, 2]]


def test_predictions_of_images_of_different_sizes(model, image_processor):
    rows = [*make_dataset(1, size=(48, 72)), *make_dataset(1, size=(72, 48))]
    models = {"zeros": (constant_model(0), image_processor), "ours": (model, image_processor)}
    arrays = compare_predictions(models, rows)
    for row, size in enumerate([(48, 72), (72, 48)]):
        truth = np.array(rows[row]["label"])
        predicted = predict_mask(model, image_processor, rows[row]["image"])
        np.testing.assert_array_equal(arrays[f"truth_{row}"], truth)
        np.testing.assert_array_equal(arrays[f"picture_{row}"], np.array(rows[row]["image"]))
        np.testing.assert_array_equal(arrays[f"predictions_{row}"], [np.zeros(size), predicted])
        np.testing.assert_array_equal(
            arrays[f"differences_{row}"], [difference(truth, predicted, np.zeros(size, dtype=int))]
        )
    alone = compare_predictions({"ours": (model, image_processor)}, rows[:1])
    assert set(np.unique(alone["differences_0"])) <= {0, 2, 255}
    other, names = constant_model(0), model.config.id2label
    other.config.id2label = {0: names[1], 1: names[0], **{index: names[index] for index in range(2, len(names))}}
    with pytest.raises(ValueError, match="models have different classes"):
        compare_predictions({"other": (other, image_processor), "ours": (model, image_processor)}, rows)
    with pytest.raises(ValueError, match="image night has no mask"):
        compare_predictions(models, [{"id": "night", "image": Image.new("RGB", (64, 64)), "label": None}])


# ---- Curves ----


def test_curves_hold_every_number_logged(tmp_path):
    logs = [
        {"epoch": 0.5, "step": 1, "loss_x": 2.0, "note": "text", "pseudo_mean_iou": 0.25},
        {"epoch": 1.0, "step": 2, "eval_mean_iou": 0.5},
    ]
    for name, history in (("first", logs), ("second", logs[:1])):
        (tmp_path / name).mkdir()
        state = json.dumps({"log_history": history})
        (tmp_path / name / "trainer_state.json").write_text(state, encoding="utf-8")
    arrays = read_curves({"a": tmp_path / "first", "b": tmp_path / "second"})
    assert list(
        zip(*(arrays[name].tolist() for name in ("run", "series", "step", "epoch", "value")), strict=True)
    ) == [
        ("a", "loss_x", 1, 0.5, 2.0),
        ("a", "pseudo_mean_iou", 1, 0.5, 0.25),
        ("a", "eval_mean_iou", 2, 1.0, 0.5),
        ("b", "loss_x", 1, 0.5, 2.0),
        ("b", "pseudo_mean_iou", 1, 0.5, 0.25),
    ]


def test_a_folder_without_a_readable_state_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"There is no .*trainer_state\.json"):
        read_curves({"a": tmp_path})
    for broken in ("{", "{}", '{"log_history": [{"loss_x": 1.0}]}'):
        (tmp_path / "trainer_state.json").write_text(broken, encoding="utf-8")
        with pytest.raises(ValueError, match="is no trainer state"):
            read_curves({"a": tmp_path})
