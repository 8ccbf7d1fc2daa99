"""Measurements of what happens around training: inference, evaluation, reading of images."""

import io
import os
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import datasets
import numpy as np
import torch
from PIL import Image

from allspark_hf.data import DataArguments, load_data, to_rgb
from allspark_hf.data.masks import read_label
from allspark_hf.data.photometry import random_geometry, random_photometry, to_pixel_values
from allspark_hf.demo.data import CLASS_NAMES, generate_demo_image
from allspark_hf.evaluation.arguments import EvaluationArguments
from allspark_hf.evaluation.evaluator import Evaluation, EvaluationDataset
from allspark_hf.inference.loading import make_image_processor

from .cases import Case, autocast, make_model
from .timing import summary, take_turns
from .training import as_results, make_trainer


PHOTO_SIZE = (375, 500)  # height and width, usual in Pascal VOC
JPEG_QUALITY = 90
IGNORE_INDEX = 255
INFERENCE_VARIANTS = ("supervised", "allspark", "textbook")
EVALUATION_VARIANTS = ("supervised", "allspark")


def inference_times(case: Case, device: torch.device, seed: int, repeats: int) -> dict:
    """By variant ("supervised" is a plain SegFormer), `seconds` of one image of the crop's size, pixels to logits."""
    pixel_values = torch.randn(1, 3, case.crop, case.crop, generator=torch.Generator().manual_seed(seed)).to(device)

    def predictor(variant: str) -> Callable[[], torch.Tensor]:
        model = make_model(case, variant, seed).to(device).eval()

        def predict():
            with torch.inference_mode(), autocast(case, device):
                return model(pixel_values=pixel_values).logits

        return predict

    return as_results(take_turns({name: predictor(name) for name in INFERENCE_VARIANTS}, device, repeats, warmup=2))


def photographs(data_dir: str | None, num_images: int, seed: int) -> tuple[datasets.Dataset, int]:
    """
    Images with masks, and the number of classes: the first training images of `data_dir`, or else generated ones of
    375 x 500 pixels, as JPEG and PNG in memory.
    """
    if data_dir is not None:
        report = load_data(DataArguments(data_dir=data_dir))
        rows = report.data.labeled
        return rows.select(range(min(num_images, len(rows)))), report.num_labels
    columns = {"image": [], "label": []}
    for index in range(num_images):
        image, mask = generate_demo_image(index, size=PHOTO_SIZE, seed=seed)
        columns["image"].append(_encoded(image, format="JPEG", quality=JPEG_QUALITY))
        columns["label"].append(_encoded(Image.fromarray(mask), format="PNG"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    return datasets.Dataset.from_dict(columns, features=features), len(CLASS_NAMES)


def _encoded(image: Image.Image, **options) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def evaluation_times(
    case: Case, device: torch.device, seed: int, repeats: int, data_dir: str | None, num_images: int
) -> dict:
    """By variant, `seconds` of one image of an evaluation: reading, predicting the whole image, scoring."""
    rows, num_labels = photographs(data_dir, num_images, seed)
    case = replace(case, num_labels=num_labels)
    samples = EvaluationDataset(rows, make_image_processor(), num_labels)

    def evaluator(variant: str) -> Callable[[], None]:
        model = make_model(case, variant, seed).to(device).eval()

        def evaluate():
            evaluation = Evaluation(model.config, EvaluationArguments(), device)
            with autocast(case, device):
                for row in range(len(samples)):
                    evaluation.add(model, [samples[row]])

        return evaluate

    variants = {name: evaluator(name) for name in EVALUATION_VARIANTS}
    return _per_image(as_results(take_turns(variants, device, repeats)), len(samples))


def loader_stages(case: Case, seed: int, data_dir: str | None, num_images: int) -> dict:
    """
    By stage, `seconds` of one labeled image on one core: "decode" (image and mask), "geometry", "photometry",
    "tensor"; and "labeled" and "unlabeled", all that the data loader does for such an image.
    """
    torch.set_num_threads(1)
    rows, num_labels = photographs(data_dir, num_images, seed)
    processor = make_image_processor()
    seconds = {name: [] for name in ("decode", "geometry", "photometry", "tensor")}
    for row in range(-1, len(rows)):  # the first image twice: once to warm up
        rng = np.random.default_rng([seed, max(row, 0)])
        times = [time.perf_counter()]
        example = rows[max(row, 0)]
        image = to_rgb(example["image"])
        label = Image.fromarray(read_label(example["label"], image.size, num_labels, IGNORE_INDEX, f"row {row}"))
        times.append(time.perf_counter())
        image, label = random_geometry(image, label, (case.crop, case.crop), rng)
        times.append(time.perf_counter())
        image = random_photometry(image, rng)
        times.append(time.perf_counter())
        to_pixel_values(image, processor.image_mean, processor.image_std)
        times.append(time.perf_counter())
        if row >= 0:
            for name, start, end in zip(seconds, times, times[1:], strict=False):
                seconds[name].append(end - start)
    # The mean, because every image has to be read; a single slow one counts.
    stages = {
        name: {"seconds": {"median": median(taken), "mean": sum(taken) / len(taken)}}
        for name, taken in seconds.items()
    }
    return stages | _whole_samples(replace(case, num_labels=num_labels), seed, rows)


def _whole_samples(case: Case, seed: int, rows: datasets.Dataset) -> dict:
    """By "labeled" and "unlabeled", `seconds` of a sample of the trainer's own dataset."""
    loader = _loader(case, seed, rows, num_workers=0)
    seconds = {"labeled": [], "unlabeled": []}
    for draw in [draw for batch in loader.batch_sampler for draw in batch]:
        start = time.perf_counter()
        sample = loader.dataset[draw]
        seconds["labeled" if "labels" in sample else "unlabeled"].append(time.perf_counter() - start)
    return {
        name: {"seconds": {"median": median(taken), "mean": sum(taken) / len(taken)}}
        for name, taken in seconds.items()
    }


def loader_times(
    case: Case, seed: int, repeats: int, data_dir: str | None, num_images: int, workers: list[int] | None
) -> dict:
    """
    By number of workers, `seconds` of one image of the trainer's data loader, half of them labeled; by default without
    workers and with one per core.
    """
    torch.set_num_threads(1)
    workers = workers or [0, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()]
    rows, num_labels = photographs(data_dir, num_images, seed)
    case = replace(case, num_labels=num_labels)
    loaders = {f"{n} worker{'s' if n != 1 else ''}": _loader(case, seed, rows, n) for n in workers}

    def reader(loader) -> Callable[[], None]:
        def read():
            for _ in loader:
                pass

        return read

    # Workers are started by the first round, which does not count, and stay.
    times = take_turns({name: reader(loader) for name, loader in loaders.items()}, torch.device("cpu"), repeats)
    return _per_image(as_results(times), 2 * len(rows))


def _loader(case: Case, seed: int, rows: datasets.Dataset, num_workers: int):
    """The trainer's; an epoch has every row once as a labeled and once as an unlabeled image."""
    settings = {"dataloader_num_workers": num_workers, "dataloader_persistent_workers": num_workers > 0}
    model_case = replace(case, size="tiny", precision="fp32", batch_size=min(case.batch_size, len(rows)))
    unlabeled = rows.remove_columns("label")
    return make_trainer(
        model_case, "allspark", torch.device("cpu"), seed, rows, unlabeled, **settings
    ).get_train_dataloader()


def _per_image(results: dict[str, dict], num_images: int) -> dict[str, dict]:
    """Times of all images as times of one."""
    return {
        name: {"seconds": summary([seconds / num_images for seconds in entry["seconds"]["all"]])}
        if "seconds" in entry
        else entry
        for name, entry in results.items()
    }


__all__ = ["evaluation_times", "inference_times", "loader_stages", "loader_times"]
