"""[`Progress`]: prints a sentence and draws a picture at each evaluation of a training."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback

from ..data.pixels import to_rgb
from ..evaluation.evaluator import EvaluationDataset, failing_together
from ..evaluation.metrics import metric_name
from ..evaluation.prediction import predict_logits
from ..inference.visualization import default_palette, overlay
from ..utils.files import read_json


NUM_IMAGES = 4
SHOWN_CLASSES = 5
COLUMNS = ("image", "truth", "before", "now")
CELL = 240  # pixels of an image's long side in the picture
MARGIN, TITLE = 6, 18
FOLDER = "progress"  # in the output folder


class ShownImages:
    """
    Some validation images, and what the model of an [`AllSparkTrainer`] predicts for them.

    Args:
        trainer ([`AllSparkTrainer`]): a trainer whose `eval_dataset` has an image and a mask column.
        rows (`Sequence[int]`): rows of that data set.
    """

    def __init__(self, trainer, rows: Sequence[int]):
        self.trainer = trainer
        args, config = trainer.args, trainer.model.config
        shown = trainer.eval_dataset.select(list(rows))
        self.image_column = args.image_column_name
        columns = args.image_column_name, args.label_column_name
        self.samples = EvaluationDataset.of(shown, trainer.processing_class, config, *columns)
        self.palette = np.array(config.palette or default_palette(config.num_labels))

    def predict(self) -> list[np.ndarray]:
        """For each image int64 (mask height, mask width); every process predicts all of them."""
        trainer, found = self.trainer, []
        model = trainer.method.evaluated_model(trainer.processes.model)
        with torch.no_grad(), trainer.processes.predicting_apart(model), failing_together(trainer.accelerator):
            for index in range(len(self.samples)):
                sample = self.samples[index]
                pixel_values = sample["pixel_values"][None].to(trainer.args.device)
                with trainer.compute_loss_context_manager():
                    logits = predict_logits(model, pixel_values, sample["labels"].shape, trainer.args)
                found.append(logits[0].argmax(dim=0).cpu().numpy())
        return found

    def truth(self) -> list[np.ndarray]:
        """The masks, int64 (mask height, mask width) each."""
        return [self.samples[index]["labels"].numpy() for index in range(len(self.samples))]

    def images(self) -> list[Image.Image]:
        """The images in RGB, with a long side of `CELL` pixels."""
        return [_fitted(self._image(index)) for index in range(len(self.samples))]

    def overlays(self, masks: Sequence[np.ndarray]) -> list[Image.Image]:
        """The images under the colors of these masks, of the same size."""
        ignore_index = self.samples.masks.ignore_index
        return [
            _fitted(overlay(self._image(index), mask, self.palette, 0.6, ignore_index))
            for index, mask in enumerate(masks)
        ]

    def _image(self, index: int) -> Image.Image:
        return to_rgb(self.samples.dataset[index][self.image_column], self.samples.reading)


class Progress(TrainerCallback):
    """
    Prints a line at each evaluation, and writes `progress.png` into the output folder: four validation images, evenly
    spread, their masks, the predictions at the previous evaluation (at first those of the untrained model) and at this
    one. TensorBoard gets the same picture if the run reports to it. `progress/` keeps every column for `report.html`.

    Args:
        trainer ([`AllSparkTrainer`]): a trainer whose `eval_dataset` has an image and a mask column.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        count = len(trainer.eval_dataset)
        rows = [index * count // NUM_IMAGES for index in range(NUM_IMAGES)] if count > NUM_IMAGES else range(count)
        self.shown = ShownImages(trainer, rows)
        self.before: list[np.ndarray] = []
        self.score: tuple[int, float] | None = None
        self.start = (0, 0.0)

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = state.global_step, time.monotonic()
        self.before = self.shown.predict()
        if state.is_world_process_zero:
            for path in (Path(args.output_dir) / FOLDER).glob("step_*.jpg"):  # of an earlier training, if later
                if path.stem > step_name(state.global_step):
                    path.unlink()
            self.keep("image", self.shown.images())
            self.keep("truth", self.shown.overlays(self.shown.truth()))
            self.keep(step_name(state.global_step), self.shown.overlays(self.before))
            self.draw(self.before).save(Path(args.output_dir) / "progress.png")  # until the first evaluation

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if not self.before or "eval_mean_iou" not in (metrics or {}):  # outside a training, or of another set
            return
        now = self.shown.predict()
        if state.is_world_process_zero:
            picture = self.draw(now)
            picture.save(Path(args.output_dir) / "progress.png")
            self.keep(step_name(state.global_step), self.shown.overlays(now))
            self.show_in_tensorboard(picture, state.global_step)
            tqdm.write(self.sentence(state, metrics))
        self.before, self.score = now, (state.global_step, metrics["eval_mean_iou"])

    def on_train_end(self, args, state, control, **kwargs):
        if args.load_best_model_at_end:  # what is evaluated from now on is not of the last update
            self.before = []

    def draw(self, now: list[np.ndarray]) -> Image.Image:
        """A picture with a row for each image and the columns of `COLUMNS`."""
        shown = self.shown
        columns = [shown.images(), *map(shown.overlays, (shown.truth(), self.before, now))]
        return joined(columns, COLUMNS)

    def keep(self, name: str, cells: list[Image.Image]):
        """Writes one column as `progress/NAME.jpg`."""
        folder = Path(self.trainer.args.output_dir) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        joined([cells]).save(folder / f"{name}.jpg", quality=85)

    def show_in_tensorboard(self, picture: Image.Image, step: int):
        for callback in self.trainer.callback_handler.callbacks:
            writer = getattr(callback, "tb_writer", None)
            if isinstance(callback, TensorBoardCallback) and writer is not None:
                writer.add_image("progress", np.asarray(picture), step, dataformats="HWC")

    def sentence(self, state, metrics: dict[str, float]) -> str:
        """mIoU, its change, the best and the worst class, and the time left."""
        score = 100 * metrics["eval_mean_iou"]
        moved = ""
        if self.score is not None:
            moved = f" ({score - 100 * self.score[1]:+.1f} since step {self.score[0]})"
        iou = class_scores(self.trainer, metrics)
        classes = ""
        if len(iou) > 1:
            best, worst = max(iou, key=iou.get), min(iou, key=iou.get)
            classes = f", best {best} {iou[best]:.0f} %, worst {worst} {iou[worst]:.0f} %"
        done = state.global_step - self.start[0]
        seconds = (time.monotonic() - self.start[1]) / max(done, 1) * (state.max_steps - state.global_step)
        left = f", about {_duration(seconds)} left" if state.global_step < state.max_steps else ""
        return f"step {state.global_step} of {state.max_steps}: mIoU {score:.1f} %{moved}{classes}{left}"


class _Bar(ProgressCallback):
    """A bar that does not print what is logged, which is in `trainer_state.json` and TensorBoard."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        pass


def show_progress(trainer):
    """Adds [`Progress`] to a trainer, and removes the lines that transformers prints of all that is logged."""
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(_Bar)
    trainer.add_callback(Progress(trainer))


def class_scores(trainer, metrics: dict[str, float]) -> dict[str, float]:
    """IoU in percent of each class that occurs, by its name."""
    names = trainer.model.config.id2label.values()
    iou = {name: 100 * metrics.get(f"eval_iou_{metric_name(name)}", math.nan) for name in names}
    return {name: value for name, value in iou.items() if not math.isnan(value)}


def result_lines(trainer, metrics: dict[str, float]) -> list[str]:
    """What a training reached, in words, with the classes of the lowest IoU."""
    iou, folder = class_scores(trainer, metrics), Path(trainer.args.output_dir)
    shown = sorted(iou, key=iou.get)[:SHOWN_CLASSES]
    lowest = "lowest" if len(trainer.model.config.id2label) > len(shown) else "by class"
    seconds = read_json(folder / "train_results.json")["train_runtime"]
    since = "" if trainer.checkpoints.resumed_from is None else " since it was resumed"
    score = f"{100 * metrics['eval_mean_iou']:.1f} %" if "eval_mean_iou" in metrics else "not measured"
    return [
        f"{trainer.args.method}: mIoU {score} on {len(trainer.eval_dataset)} validation images, after "
        f"{trainer.state.global_step} updates in {seconds:.0f} s{since}. It is the mean over classes of IoU: the "
        "pixels that model and mask both give a class, as a share of those that either does.",
        f"  {lowest}: {', '.join(f'{name} {iou[name]:.1f}' for name in shown)}; all numbers: "
        f"{folder / 'eval_results.json'}",
    ]


def step_name(step: int) -> str:
    return f"step_{step:07d}"


def joined(columns: Sequence[Sequence[Image.Image]], titles: Sequence[str] = ()) -> Image.Image:
    """A white picture with a row for each image, and with titles above the columns if there are any."""
    rows = list(zip(*columns, strict=True))
    heights = [row[0].height for row in rows]
    width, title = max(row[0].width for row in rows) + MARGIN, TITLE if titles else MARGIN
    size = len(columns) * width + MARGIN, title + sum(heights) + MARGIN * len(rows)
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    for place, name in enumerate(titles):
        pen.text((MARGIN + place * width, 3), name, fill="black")
    top = title
    for row, height in zip(rows, heights, strict=True):
        for place, cell in enumerate(row):
            picture.paste(cell, (MARGIN + place * width, top))
        top += height + MARGIN
    return picture


def _fitted(image: Image.Image) -> Image.Image:
    scale = CELL / max(image.size)
    return image.resize([max(1, round(side * scale)) for side in image.size])


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
