"""Sliding windows against the authors' numbers, scales and mirroring against plain loops, sizes that do not fit."""

from itertools import pairwise

import pytest
import torch
from conftest import tiny_model
from parity import PRECISIONS, Reference, assert_near
from torch.nn import functional as F

from allspark_hf.evaluation.arguments import EvaluationArguments, eval_crop
from allspark_hf.evaluation.metrics import ConfusionMatrix
from allspark_hf.evaluation.prediction import (
    center_crop,
    predict_logits,
    sliding_window_sum,
    window_spans,
)
from allspark_hf.models.upsampling import upsample


@pytest.fixture(scope="module")
def reference(parity_dir):
    return Reference(parity_dir)


def image(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def percent(confusion, stored, name):
    """Per class and mean, in percent, as the authors compute them."""
    iou = 100 * confusion.iou().nan_to_num(0)
    assert torch.allclose(iou, stored[f"{name}iou_class"], rtol=0, atol=1e-9), name
    assert iou.mean().item() == pytest.approx(stored[f"{name}miou"].item(), abs=1e-9), name


# ---- The authors' numbers ----


@pytest.mark.parametrize("windows_per_batch", [1, 4])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_sliding_window_equals_the_authors(reference, precision, windows_per_batch):
    stored, settings = reference.load("sliding_window"), reference.description["sliding_window"]
    model = reference.model(precision).eval()
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.extend(
            [tuple(kwargs["pixel_values"].shape[2:])] * len(kwargs["pixel_values"])
        ),
        with_kwargs=True,
    )
    crop = settings["crop"]
    pixel_values = stored["inputs.image"].to(PRECISIONS[precision])
    total, coverage = sliding_window_sum(model, pixel_values, (crop, crop), windows_per_batch=windows_per_batch)
    tolerance = reference.tolerance(precision, "sliding sum_softmax")
    assert_near(total, stored[f"{precision}.sum_softmax"], tolerance, "sum of softmax maps")
    assert torch.equal(total.argmax(1), stored["pred"].long())
    assert sorted(seen) == sorted(map(tuple, settings["window_sizes_in_order"]))
    # Probabilities add up to 1, so their sum is the number of windows over a pixel.
    assert_near(coverage.expand(1, -1, -1), stored["f64.sum_softmax"].sum(1), 1e-5, "coverage")

    args = EvaluationArguments(eval_mode="sliding_window", eval_windows_per_batch=windows_per_batch)
    assert model.config.crop_height_width == (crop, crop)
    logits = predict_logits(model, pixel_values, pixel_values.shape[2:], args)
    assert logits.dtype == PRECISIONS[precision]
    probabilities = stored[f"{precision}.sum_softmax"] / coverage
    assert_near(logits.exp(), probabilities, tolerance, "mean of softmax maps")
    confusion = ConfusionMatrix(5)
    confusion.update(logits.argmax(1), stored["inputs.gt"])
    percent(confusion, stored, f"{precision}.")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_whole_image_and_center_crop_equal_the_authors(reference, precision):
    stored = reference.load("sliding_window")
    model = reference.model(precision).eval()
    pixel_values, labels = stored["inputs.image"].to(PRECISIONS[precision]), stored["inputs.gt"].long()
    whole = ConfusionMatrix(5)
    whole.update(predict_logits(model, pixel_values, labels.shape[1:], EvaluationArguments()).argmax(1), labels)
    percent(whole, stored, f"{precision}.original_mode_")

    pixel_values, labels = (center_crop(images, (65, 65)) for images in (pixel_values, labels))
    args = EvaluationArguments(eval_mode="center_crop")
    middle = ConfusionMatrix(5)
    middle.update(predict_logits(model, pixel_values, labels.shape[1:], args).argmax(1), labels)
    mean = 100 * middle.iou().nan_to_num(0).mean().item()
    assert mean == pytest.approx(stored[f"{precision}.center_crop_mode_miou"].item(), abs=1e-9)


# ---- Where windows lie ----


def covers(spans, length):
    assert spans[0][0] == 0 and spans[-1][1] == length
    assert all(start <= end for (_, end), (start, _) in pairwise(spans))
    return spans


def test_windows_along_a_side():
    assert covers(window_spans(160, 65, smallest=29), 160) == [(0, 65), (43, 108), (86, 151), (129, 160)]
    # The 21 pixels of a fourth window are all in the third.
    assert covers(window_spans(150, 65, smallest=29), 150) == [(0, 65), (43, 108), (86, 150)]
    # 26 are too few, and 4 of them in no other window: it moves back.
    assert covers(window_spans(155, 65, smallest=29), 155) == [(0, 65), (43, 108), (86, 151), (90, 155)]
    assert covers(window_spans(135, 65, stride=1.0, smallest=29), 135) == [(0, 65), (65, 130), (70, 135)]
    assert window_spans(65, 65, smallest=29) == [(0, 65)]
    assert window_spans(50, 65, smallest=29) == [(0, 50)]  # the authors add (43, 50), which their encoder refuses
    # Of several windows that reach the border, those too short go.
    assert covers(window_spans(100, 65, stride=0.2, smallest=29), 100)[-2:] == [(52, 100), (65, 100)]


@pytest.mark.parametrize(("crop", "step"), [(65, 43), (321, 214), (513, 342), (801, 534)])
def test_step_is_the_authors_at_every_published_crop(crop, step):
    assert [start for start, _ in window_spans(4 * crop, crop)][:3] == [0, step, 2 * step]


@pytest.mark.parametrize("length", range(30, 330, 7))
def test_every_pixel_is_covered_by_windows_large_enough(length):
    for crop in (29, 40, 65, 128):
        for stride in (0.1, 0.5, 2 / 3, 1.0):
            spans = covers(window_spans(length, crop, stride, smallest=29), length)
            assert all(29 <= end - start <= crop for start, end in spans)


# ---- Against plain loops ----


@pytest.mark.parametrize(
    ("num_labels", "stride", "rows", "columns"),
    [
        (3, 2 / 3, [(0, 40), (26, 66), (52, 90)], [(0, 48), (32, 68)]),  # both leave a short last window out
        (81, 1.0, [(0, 40), (40, 80), (50, 90)], [(0, 48), (20, 68)]),  # both move one back
    ],
)
def test_sliding_window_over_an_odd_batch_and_an_uneven_image(num_labels, stride, rows, columns):
    model = tiny_model(num_labels=num_labels).eval()
    pixel_values = image(3, 3, 90, 68)
    expected = torch.zeros(3, num_labels, 90, 68)
    for top, bottom in rows:
        for left, right in columns:
            with torch.no_grad():
                window = model(pixel_values[:, :, top:bottom, left:right]).logits
            window = upsample(window, (bottom - top, right - left)).softmax(1)
            expected[:, :, top:bottom, left:right] += window
    for windows_per_batch in (1, 2, 5):
        total, coverage = sliding_window_sum(model, pixel_values, (40, 48), stride, windows_per_batch)
        assert_near(total, expected, 1e-5, "sum")
        assert_near(coverage, expected[0].sum(0), 1e-4, "coverage")


def reference_average(model, pixel_values, size, scales, flip, windows=None):
    maps = []
    for scale in scales:
        scaled = pixel_values
        if scale != 1:
            sides = [round(scale * side) for side in pixel_values.shape[2:]]
            scaled = F.interpolate(pixel_values, sides, mode="bilinear", antialias=True)
        for mirrored in (False, True)[: 1 + flip]:
            images = torch.flip(scaled, [3]) if mirrored else scaled
            if windows:
                total, coverage = sliding_window_sum(model, images, windows)
                probabilities = F.interpolate(total / coverage, size, mode="bilinear")
            else:
                probabilities = upsample(model(images).logits, size).softmax(1)
            maps.append(torch.flip(probabilities, [3]) if mirrored else probabilities)
    return torch.stack(maps).mean(0)


@pytest.mark.parametrize("mode", ["whole", "sliding_window"])
@pytest.mark.parametrize(
    ("scales", "flip"), [(None, True), ([0.75], False), ([1.0], True), ([0.5, 1.0, 1.3], False), ([1.5, 0.75], True)]
)
def test_scales_and_mirrored_images_are_averaged(mode, scales, flip):
    model = tiny_model(num_labels=5).eval()
    pixel_values, size = image(2, 3, 72, 100), (61, 140)  # masks of another size than the processed image
    crop = [48, 60] if mode == "sliding_window" else None
    args = EvaluationArguments(eval_mode=mode, eval_crop_size=crop, eval_scales=scales, eval_flip=flip)
    logits = predict_logits(model, pixel_values, size, args)
    with torch.no_grad():
        expected = reference_average(model, pixel_values, size, scales or [1.0], flip, crop)
        plain = upsample(model(pixel_values).logits, size).softmax(1)
    assert_near(logits.softmax(1), expected, 1e-5, "average")
    assert_near(logits.exp(), expected, 1e-5, "logarithm of probabilities")
    assert (expected - plain).abs().max() > 0.01


def test_mirroring_makes_the_prediction_symmetric():
    model = tiny_model().eval()
    pixel_values = image(1, 3, 64, 64)
    args = EvaluationArguments(eval_flip=True)
    one = predict_logits(model, pixel_values, (64, 64), args)
    other = predict_logits(model, pixel_values.flip(3), (64, 64), args)
    assert_near(one.flip(3), other, 1e-4, "mirrored")


def test_whole_images_keep_the_models_own_logits():
    model = tiny_model().eval()
    pixel_values = image(2, 3, 50, 70)
    for args in (EvaluationArguments(), EvaluationArguments(eval_scales=[1.0])):
        logits = predict_logits(model, pixel_values, (99, 80), args)
        with torch.no_grad():
            assert torch.equal(logits, upsample(model(pixel_values).logits, (99, 80)))


def test_half_precision_models_are_summed_in_float32():
    model = tiny_model().eval().bfloat16()
    args = EvaluationArguments(eval_mode="sliding_window", eval_crop_size=[48], eval_stride=0.25, eval_flip=True)
    logits = predict_logits(model, image(1, 3, 72, 96), (72, 96), args)
    assert logits.dtype == torch.float32
    assert_near(logits.exp().sum(1), torch.ones(1, 72, 96), 1e-5, "probabilities")  # bfloat16 would be off by 1e-2
    assert predict_logits(model, image(1, 3, 72, 96), (72, 96), EvaluationArguments()).dtype == torch.float32


def test_a_probability_of_zero_has_a_finite_loss():
    model = tiny_model().eval()
    with torch.no_grad():
        model.decode_head.classifier.bias[1] = -500.0
    logits = predict_logits(model, image(1, 3, 64, 64), (64, 64), EvaluationArguments(eval_flip=True))
    assert logits.isfinite().all() and logits[:, 1].max() < -80


def test_center_crop_rounds_to_the_top_left():
    images = torch.arange(7 * 10).view(1, 7, 10)
    assert torch.equal(center_crop(images, (4, 5)), images[:, 1:5, 2:7])
    assert torch.equal(center_crop(images, (99, 5)), images[:, :, 2:7])


@pytest.mark.parametrize("settings", [{}, {"eval_mode": "sliding_window"}, {"eval_scales": [1.0, 0.25]}])
def test_images_too_small_for_the_encoder_are_refused(settings):
    side = 28 if "eval_scales" not in settings else 100
    pixel_values = image(1, 3, side, 200)
    sentence = r"An image is \d+x2[58] pixels where the model gets it, but the encoder needs 29 a side"
    with pytest.raises(ValueError, match=sentence):
        predict_logits(tiny_model().eval(), pixel_values, (side, 200), EvaluationArguments(**settings))


@pytest.mark.parametrize("mode", ["sliding_window", "center_crop"])
def test_a_crop_too_small_for_the_encoder_is_named(mode):
    args = EvaluationArguments(eval_mode=mode, eval_crop_size=[64, 20], eval_scales=[0.5, 1])
    with pytest.raises(ValueError, match=r"crop to 64x20 pixels .* needs 29 a side: set a larger eval_crop_size\.$"):
        eval_crop(args, tiny_model().config)
    if mode == "sliding_window":
        with pytest.raises(ValueError, match=r"set a larger eval_crop_size\.$"):
            predict_logits(tiny_model().eval(), image(1, 3, 70, 90), (70, 90), args)
