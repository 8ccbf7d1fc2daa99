"""Measurements of many images, from their files to files of masks: a plain loop, `allspark predict`, ONNX."""

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..demo.data import generate_demo_image
from ..evaluation.arguments import PredictionArguments
from ..export.onnx import OnnxSegmenter, export_graph, require_onnx
from ..inference.loading import make_image_processor
from ..inference.many import PreparedBatches, default_workers, plan_batches, predict_many
from ..inference.prediction import palette_of
from ..inference.writers import AreaWriter, Drawing, PictureWriter
from .cases import Case, autocast, make_model
from .peak import make_memory_exact, measure_peak
from .serving import JPEG_QUALITY, per_image
from .timing import summary, take_turns


PLAIN_LOOP, PREDICT, ONNX = "plain_loop", "predict", "predict_onnx"
PREDICT_VARIANTS = (PLAIN_LOOP, PREDICT, ONNX)
BATCH_SIZE = 8  # the default of `allspark predict`


def write_images(folder: Path, side: int, count: int, seed: int) -> list[Path]:
    """Writes generated square images as JPEG files."""
    files = [folder / f"{index:06d}.jpg" for index in range(count)]
    for index, file in enumerate(files):
        generate_demo_image(index, size=(side, side), seed=seed)[0].save(file, quality=JPEG_QUALITY)
    return files


@torch.inference_mode()
def plain_loop(model, image_processor, files: Sequence[Path], output_dir: Path):
    """The usual loop with transformers: an image at a time, and its mask as a PNG file."""
    for file in files:
        image = Image.open(file).convert("RGB")
        outputs = model(**image_processor(images=image, return_tensors="pt").to(model.device))
        (mask,) = image_processor.post_process_semantic_segmentation(outputs, [image.size[::-1]])
        Image.fromarray(mask.cpu().numpy().astype(np.uint8)).save(output_dir / f"{file.stem}_mask.png")


def predict(model, image_processor, files: Sequence[Path], output_dir: Path, num_workers: int):
    """As `allspark predict` does it once the model is loaded: masks, overlays, areas and legend."""
    args, config = PredictionArguments(), model.config
    labels = [config.id2label[index] for index in range(config.num_labels)]
    names = [Path(file.stem) for file in files]
    drawing = Drawing(tuple(range(len(labels))))
    pictures = PictureWriter(output_dir, labels, palette_of(model.config), None, drawing, probabilities=False)
    writers = [pictures, AreaWriter(pictures, {name: file.name for name, file in zip(names, files, strict=True)})]
    planned = plan_batches(files, image_processor, BATCH_SIZE, args)
    batches = PreparedBatches(files, planned, image_processor, config, args)
    for row, reason in predict_many(model, batches, names, writers, min(num_workers, len(planned) - 1)):
        if reason is not None:
            raise RuntimeError(f"{files[row]}: {reason}")
    for writer in writers:
        writer.finish()


@contextmanager
def predictors(case: Case, device: torch.device, options, variants: Sequence[str], num_workers: int):
    """
    The generated files, and by variant what predicts a list of them; without ONNX where it is not installed, and on a
    GPU, which it does not use.
    """
    with tempfile.TemporaryDirectory() as folder:
        images, masks, graph = (Path(folder) / name for name in ("images", "masks", "model.onnx"))
        images.mkdir()
        masks.mkdir()
        files = write_images(images, case.crop, options.num_images, options.seed)
        model, image_processor = make_model(case, "supervised", options.seed).eval(), make_image_processor()
        _spread(model, torch.cat([_pixel_values(image_processor, file) for file in files[:BATCH_SIZE]]))
        found = {}
        if PLAIN_LOOP in variants:
            found[PLAIN_LOOP] = partial(plain_loop, model, image_processor, output_dir=masks)
        if PREDICT in variants:
            found[PREDICT] = partial(predict, model, image_processor, output_dir=masks, num_workers=num_workers)
        if ONNX in variants and device.type == "cpu" and _has_onnx():
            export_graph(model, graph)
            segmenter = OnnxSegmenter(graph, model.config)
            found[ONNX] = partial(predict, segmenter, image_processor, output_dir=masks, num_workers=num_workers)
        model.to(device)
        yield files, found


def _pixel_values(image_processor, file: Path) -> torch.Tensor:
    return image_processor(images=Image.open(file), return_tensors="pt")["pixel_values"]


@torch.no_grad()
def _spread(model, pixel_values: torch.Tensor):
    """Lets random weights predict every class: a mask of one class is packed sooner than a real one."""
    nn.init.normal_(model.decode_head.classifier.weight)
    model.decode_head.classifier.bias -= model(pixel_values=pixel_values).logits.mean(dim=(0, 2, 3))


def _has_onnx() -> bool:
    try:
        require_onnx()
    except ImportError as error:
        print(f"    {ONNX} is left out. {error}", flush=True)
        return False
    return True


def predict_times(case: Case, device: torch.device, options) -> dict:
    """
    By variant, `seconds` and `cpu_seconds`, of all threads and processes, of one image. Each turn takes the next share
    of the images, so that all turns together take all of them.
    """
    share = max(1, options.num_images // options.repeats)
    spent = {}

    def turns(name: str, predict_files: Callable, files: list[Path]) -> Callable[[], None]:
        shares = cycle([files[start : start + share] for start in range(0, len(files) - share + 1, share)])
        spent[name] = []

        def turn():
            before = _cpu_seconds()
            with autocast(case, device):
                predict_files(files=next(shares))
            spent[name].append((_cpu_seconds() - before) / share)

        return turn

    workers = default_workers(1, device.type == "cpu")
    with predictors(case, device, options, PREDICT_VARIANTS, workers) as (files, found):
        works = {name: turns(name, predict_files, files) for name, predict_files in found.items()}
        taken = take_turns(works, device, options.repeats)
    results = per_image(taken, share)
    for name, entry in results.items():
        if "seconds" in entry:
            entry["cpu_seconds"] = summary(spent[name][-options.repeats :])
    return results


def _cpu_seconds() -> float:
    """Of this process and of those that it has started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def predict_memory(case: Case, device: torch.device, options, variant: str) -> dict:
    """
    `peak_bytes` of a process that predicts all images, everything counted, so without other processes; `extra_bytes`:
    of these what is there only while it predicts; `extra_bytes_of_quarter`: the same with a quarter of the images.
    Nothing of ONNX, whose export takes a minute.
    """
    if variant == ONNX:
        return {}
    if device.type == "cpu":
        make_memory_exact()
    with predictors(case, device, options, [variant], num_workers=0) as (files, found):
        found[variant](files=files[:1])  # loads what is loaded late
        few = measure_peak(lambda: found[variant](files=files[: max(1, len(files) // 4)]), device)
        every = measure_peak(lambda: found[variant](files=files), device)
    return {"peak_bytes": every.peak, "extra_bytes": every.extra, "extra_bytes_of_quarter": few.extra}
