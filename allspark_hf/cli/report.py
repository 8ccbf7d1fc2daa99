"""Writes `report.html` into the output folder of a training."""

from pathlib import Path

import numpy as np
from PIL import Image

from ..data.reading import row_name, undecoded
from ..evaluation.intervals import iou_of
from ..publishing.records import read_records
from ..publishing.report import REPORT_FILE, Picture, render_report
from .progress import FOLDER, ShownImages, joined


SHOWN_EVALUATIONS = 6
SHOWN_EACH = 3  # worst images, and as many best ones


def write_report(trainer, comparison: dict | None = None):
    """
    Writes the report of a trainer after its last evaluation, whose results are saved, with what
    [`~baseline.compare_with_baseline`] found; called by every process.
    """
    counts = np.stack(trainer.evaluation.by_image)
    scores = image_scores(counts)
    rows = worst_and_best(scores)
    shown = ShownImages(trainer, rows)
    predicted = shown.predict()
    if not trainer.args.should_save:
        return
    folder = Path(trainer.args.output_dir)
    columns = zip(shown.images(), shown.overlays(shown.truth()), shown.overlays(predicted), strict=True)
    pictures = [
        Picture(joined([[cell] for cell in cells]), f"{name_of(trainer, row)}: mIoU {100 * scores[row]:.1f} %")
        for row, cells in zip(rows, columns, strict=True)
    ]
    text = render_report(read_records(folder), counts, pictures_through_time(folder), pictures, comparison)
    (folder / REPORT_FILE).write_text(text, encoding="utf-8")


def name_of(trainer, row: int) -> str:
    """Name of a validation image."""
    dataset, column = trainer.eval_dataset, trainer.args.image_column_name
    return row_name(dataset, row, undecoded(dataset, column)[row][column])


def image_scores(counts: np.ndarray) -> np.ndarray:
    """
    float64 (images,): mIoU of each image alone, from int64 `counts` (images, 3, num_labels); NaN of an image whose
    pixels are all ignored.
    """
    iou = iou_of(counts)
    with np.errstate(invalid="ignore"):  # an image without a class is 0 / 0
        return np.nansum(iou, axis=1) / (~np.isnan(iou)).sum(axis=1)


def worst_and_best(scores: np.ndarray) -> list[int]:
    """Rows of the images to show, the worst first, without those whose score is NaN."""
    rows = np.argsort(scores, kind="stable")[: np.count_nonzero(~np.isnan(scores))].tolist()  # NaN comes last
    return list(dict.fromkeys([*rows[:SHOWN_EACH], *rows[-SHOWN_EACH:]]))


def pictures_through_time(folder: Path) -> list[Picture]:
    """Pictures of images, masks, and predictions at the first, the last and some other evaluations."""
    steps = sorted((folder / FOLDER).glob("step_*.jpg"))
    if len(steps) > SHOWN_EVALUATIONS:
        steps = [steps[round(place)] for place in np.linspace(0, len(steps) - 1, SHOWN_EVALUATIONS)]
    captions = {folder / FOLDER / f"{name}.jpg": name for name in ("image", "truth")}
    captions |= {path: f"update {int(path.stem.removeprefix('step_'))}" for path in steps}
    return [Picture(_read(path), caption) for path, caption in captions.items() if path.is_file()]


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.copy()
