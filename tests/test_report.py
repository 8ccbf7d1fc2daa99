"""`report.html`: its numbers, its charts, its advice, and how a browser shows it."""

import re

import numpy as np
import pytest
from browser import Watch, chromium
from PIL import Image

from allspark_hf.cli.report import image_scores, worst_and_best
from allspark_hf.evaluation.intervals import SAMPLES, score_intervals
from allspark_hf.publishing.records import Records
from allspark_hf.publishing.report import Picture, advice, charts, health_sentences, render_report


NAMES = ["background", "<b>road</b>", "never"]
COUNTS = np.array([[[50, 8, 0], [60, 10, 0], [52, 18, 0]], [[10, 0, 0], [20, 5, 0], [15, 10, 0]]])


def records(tmp_path, scores=(0.2, 0.5), **extra) -> Records:
    history = [{"step": 10 * k, "epoch": k, "eval_mean_iou": score} for k, score in enumerate(scores, 1)]
    run = {
        "command": "allspark train --data_dir d & more",
        "arguments": {"crop_size": [64, 96], "method": "fixmatch"},
        "settings": {"seed": 3},
        "method": {"name": "fixmatch", "title": "FixMatch"},
        "data": {"source": "d", "labeled": 4, "unlabeled": 8, "unlabeled_used": True} | extra.pop("data", {}),
        "training": {"steps": 20, "seconds": 75.0},
    }
    return Records(tmp_path, {}, NAMES, run, history + extra.pop("history", []))


def test_intervals_of_scores():
    mean, classes = score_intervals(COUNTS)
    hits, true, predicted = COUNTS.sum(axis=0)
    iou = [hits[k] / (true[k] + predicted[k] - hits[k]) for k in range(2)]
    assert [classes[k].value for k in range(2)] == pytest.approx(iou) and classes[2] is None
    assert mean.value == pytest.approx(np.mean(iou))
    assert score_intervals(COUNTS, count_absent=True)[0].value == pytest.approx(np.mean([*iou, 0]))
    draws, drawn = np.random.default_rng(0).multinomial(2, [0.5, 0.5], size=SAMPLES), []
    for draw in draws:
        hits, true, predicted = sum(count * counts for count, counts in zip(draw, COUNTS, strict=True))
        drawn.append(hits[1] / (true[1] + predicted[1] - hits[1]))
    assert (classes[1].low, classes[1].high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]))
    ignored = np.zeros_like(COUNTS[:1])
    scores = image_scores(np.concatenate([ignored, COUNTS]))
    assert scores == pytest.approx([np.nan, np.mean([50 / 62, 8 / 20]), np.mean([10 / 25, 0])], nan_ok=True)
    assert worst_and_best(scores) == [2, 1] and worst_and_best(np.arange(9)) == [0, 1, 2, 6, 7, 8]


def test_charts_place_their_points():
    (chart,) = charts([{"step": 5, "eval_mean_iou": 0.25}, {"step": 10, "eval_mean_iou": 0.5}, {"step": 10, "x": 1}])
    assert chart["lines"] == [{"name": "mIoU", "points": "298.0,102.0 552.0,8.0"}]  # half way up, and the corner
    assert (chart["low"], chart["high"], chart["last"]) == ("0", "50", "10")
    assert charts([{"step": 5, "eval_mean_iou": 0.25}]) == []


def test_advice_and_silence(tmp_path):
    _, classes = score_intervals(COUNTS)
    said = advice(records(tmp_path), classes, 20, None)
    assert [sentence[:26] for sentence in said] == [
        "Train longer: mIoU still r",
        "Label more images that sho",
        "Look at images of your own",
    ]
    assert "by 30.0 points" in said[0] and f"{NAMES[1]} (IoU 23 %)" in said[1]
    flat = advice(records(tmp_path, scores=(0.5, 0.505)), [classes[0], None, None], 20, None)
    assert len(flat) == 1
    fallen = advice(records(tmp_path, scores=(0.5, 0.45)), [classes[0], None, None], 5, None)
    assert fallen[0].startswith("Label more images to validate with: 5 tell little") and "5.0 points" in fallen[1]
    kept = records(tmp_path, scores=(0.5, 0.45))
    kept.run["training"]["load_best_model_at_end"] = True
    assert advice(kept, [classes[0], None, None], 5, None) == [fallen[0], fallen[2]]
    unread = records(tmp_path, scores=(), data={"unlabeled_used": False}, history=[{"step": 1, "used_u": 0.001}])
    said = advice(unread, [None] * 3, 20, None)
    starts = [
        "Train longer: one evaluation does not",
        "Lower --confidence_threshold",
        "The 8 unlabeled images were not",
    ]
    assert all(sentence.startswith(start) for sentence, start in zip(said, starts, strict=False))


def test_health_in_words(tmp_path):
    assert health_sentences(records(tmp_path)) == []
    shares = {"pseudo_share_background": 0.9, "label_share_background": 0.75}
    last = [{"step": 20, "epoch": 2, "used_u": 0.64}, {"step": 20, "epoch": 2, "holdout_accuracy": 0.8, **shares}]
    assert health_sentences(records(tmp_path, history=last)) == [
        "At the end 64 % of the unlabeled pixels were trained on.",
        "On labeled images held out, 80 % of such pixels are right.",
        "The largest class, background, has 90 % of them and 75 % of the labeled pixels.",
    ]


@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(tmp_path, width):
    """The page holds all its pictures, shows names as text, and does not scroll sideways."""
    pictures = [Picture(Image.new("RGB", (240, 300), "red"), f"update {k}") for k in range(8)]
    wide = [Picture(Image.new("RGB", (738, 160), "blue"), "a: mIoU 12.0 %")]
    text = render_report(records(tmp_path), COUNTS, pictures, wide, {"verdict": "It helped: +2.0."})
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": 900})
        watch = Watch(page)
        page.set_content(text)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("[...document.images].filter(image => image.naturalWidth > 0).length") == 9
        cells = page.locator("table").first.locator("tr").nth(1).inner_text().split("\t")
        assert cells[0] == "<b>road</b>" and cells[1] == "22.9" and cells[-1] == "15.8"
        assert page.locator(".verdict").inner_text() == "It helped: +2.0."
        assert watch.problems == []
