"""The sentence and the picture of each evaluation."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from run_training import build_trainer, result_of
from test_distributed import differing

from allspark_hf.cli.progress import CELL, COLUMNS, MARGIN, TITLE, Progress
from allspark_hf.cli.train import last_evaluation


SETTINGS = {"seed": 1, "num_unlabeled": 8, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 2}


def trained(folder, with_progress: bool, **settings):
    trainer = build_trainer({**SETTINGS, "output_dir": str(folder), **settings})
    progress = Progress(trainer) if with_progress else None
    if progress is not None:
        trainer.add_callback(progress)
    trainer.train()
    return trainer, progress


def test_shows_and_does_not_disturb(tmp_path, capsys):
    plain, _ = trained(tmp_path / "plain", with_progress=False)
    (tmp_path / "seen/progress").mkdir(parents=True)
    (tmp_path / "seen/progress/step_0000003.jpg").write_text("of an earlier training")
    seen, progress = trained(tmp_path / "seen", with_progress=True)
    assert {path.stem for path in (tmp_path / "seen/progress").iterdir()} == {
        *("image", "truth", "step_0000000", "step_0000002", "step_0000004")
    }
    assert differing(result_of(plain)["state"], result_of(seen)["state"]) == []
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    scores = [100 * entry["eval_mean_iou"] for entry in seen.state.log_history if "eval_mean_iou" in entry]
    assert len(lines) == len(scores) == 2
    assert lines[0].startswith(f"step 2 of 4: mIoU {scores[0]:.1f} %, best ") and lines[0].endswith(" left")
    moved = f"({float(f'{scores[1]:.10f}') - float(f'{scores[0]:.10f}'):+.1f} since step 2)"
    assert lines[1].startswith(f"step 4 of 4: mIoU {scores[1]:.1f} % {moved}, best ") and "left" not in lines[1]
    assert re.search(r"best \S+ \d+ %, worst \S+ \d+ %", lines[1])
    evaluated = seen.method.evaluated_model(seen.model).eval()
    sample = progress.shown.samples[3]
    with torch.no_grad():
        labels = evaluated(pixel_values=sample["pixel_values"][None]).logits
    expected = torch.nn.functional.interpolate(labels, sample["labels"].shape, mode="bilinear").argmax(1)[0]
    assert (torch.from_numpy(progress.before[3]) == expected).float().mean() > 0.99


def test_best_weights_are_not_shown_as_those_of_the_last_update(tmp_path):
    kept = {"load_best_model_at_end": True, "greater_is_better": False, "save_strategy": "steps", "save_steps": 2}
    trainer, _ = trained(tmp_path, with_progress=True, **kept)
    last = (tmp_path / "progress/step_0000004.jpg").read_bytes()
    scores = [entry["eval_mean_iou"] for entry in trainer.state.log_history if "eval_mean_iou" in entry]
    assert scores[0] < scores[1]
    assert last_evaluation(trainer)["eval_mean_iou"] == pytest.approx(scores[0], abs=1e-9)
    assert [entry["eval_mean_iou"] for entry in trainer.state.log_history if "eval_mean_iou" in entry] == scores
    assert (tmp_path / "progress/step_0000004.jpg").read_bytes() == last


def test_picture(tmp_path):
    """Each column shows what its title says: colors of the truth, and of the predictions before and now."""
    trainer = build_trainer({**SETTINGS, "output_dir": str(tmp_path)})
    progress = Progress(trainer)
    labels = [progress.shown.samples[index]["labels"] for index in range(4)]
    progress.before = [np.zeros(label.shape, dtype=np.int64) for label in labels]
    now = [np.ones(label.shape, dtype=np.int64) for label in labels]
    picture = np.asarray(progress.draw(now)).astype(int)
    width = (picture.shape[1] - MARGIN) // len(COLUMNS)
    cells = [picture[TITLE:, MARGIN + place * width :][: CELL // 4, : CELL // 4] for place in range(len(COLUMNS))]
    image, truth, before, after = cells
    for cell, index in ((before, 0), (after, 1)):
        color = np.asarray(progress.shown.palette[index])
        assert np.abs(cell - (0.4 * image + 0.6 * color)).max() <= 2
    assert np.abs(truth - before).max() > 20
    assert [index * 5 // 4 for index in range(4)] == [0, 1, 2, 3]


def test_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained(tmp_path, with_progress=True, report_to="tensorboard", max_steps=2)
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file.parent))
    events.Reload()
    assert [event.step for event in events.Images("progress")] == [2]
    with Image.open(tmp_path / "progress.png") as picture:
        assert picture.size == (events.Images("progress")[0].width, events.Images("progress")[0].height)
