"""Measurements of inference, evaluation and the data loader."""

import io
from collections.abc import Callable
from dataclasses import replace

import datasets
import torch
from PIL import Image

from ..data import DataArguments, load_data
from ..demo.data import CLASS_NAMES, generate_demo_image
from ..evaluation.arguments import EvaluationArguments
from ..evaluation.evaluator import Evaluation, EvaluationDataset
from ..inference.loading import make_image_processor
from ..utils.machine import num_cpus
from .cases import OURS, TINY, Case, autocast, make_model
from .timing import take_turns
from .training import as_results, make_trainer


PHOTO_SIZE = (375, 500)  # height and width, usual in Pascal VOC
JPEG_QUALITY = 90
INFERENCE_VARIANTS = ("supervised", "allspark", "textbook")
EVALUATION_VARIANTS = ("supervised", "allspark")


def inference_times(case: Case, device: torch.device, options) -> dict:
    """By variant ("supervised" is a plain SegFormer), `seconds` of one image of the crop's size, pixels to logits."""
    generator = torch.Generator().manual_seed(options.seed)
    pixel_values = torch.randn(1, 3, case.crop, case.crop, generator=generator).to(device)

    def predictor(variant: str) -> Callable[[], torch.Tensor]:
        model = make_model(case, variant, options.seed).to(device).eval()

        def predict():
            with torch.inference_mode(), autocast(case, device):
                return model(pixel_values=pixel_values).logits

        return predict

    predictors = {name: predictor(name) for name in INFERENCE_VARIANTS}
    return as_results(take_turns(predictors, device, options.repeats, warmup=2))


def photographs(options) -> tuple[datasets.Dataset, int]:
    """
    Images with masks, and the number of classes: the first training images of `data_dir`, or else generated ones of
    375 x 500 pixels, as JPEG and PNG in memory.
    """
    if options.data_dir is not None:
        report = load_data(DataArguments(data_dir=options.data_dir))
        rows = report.data.labeled
        return rows.select(range(min(options.num_images, len(rows)))), report.num_labels
    columns = {"image": [], "label": []}
    for index in range(options.num_images):
        image, mask = generate_demo_image(index, size=PHOTO_SIZE, seed=options.seed)
        columns["image"].append(_encoded(image, format="JPEG", quality=JPEG_QUALITY))
        columns["label"].append(_encoded(Image.fromarray(mask), format="PNG"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    return datasets.Dataset.from_dict(columns, features=features), len(CLASS_NAMES)


def _encoded(image: Image.Image, **options) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def evaluation_times(case: Case, device: torch.device, options) -> dict:
    """By variant, `seconds` of one image of an evaluation: reading, predicting the whole image, scoring."""
    rows, num_labels = photographs(options)
    case = replace(case, num_labels=num_labels)
    samples = EvaluationDataset(rows, make_image_processor(), num_labels)

    def evaluator(variant: str) -> Callable[[], None]:
        model = make_model(case, variant, options.seed).to(device).eval()

        def evaluate():
            evaluation = Evaluation(model.config, EvaluationArguments(), device)
            with autocast(case, device):
                for row in range(len(samples)):
                    evaluation.add(model, [samples[row]])

        return evaluate

    variants = {name: evaluator(name) for name in EVALUATION_VARIANTS}
    return per_image(take_turns(variants, device, options.repeats), len(samples))


def loader_times(case: Case, device: torch.device, options) -> dict:
    """
    By number of workers, `seconds` of one image of the trainer's data loader, half of them labeled; by default without
    workers and with one per core.
    """
    torch.set_num_threads(1)
    rows, num_labels = photographs(options)
    case = replace(case, num_labels=num_labels)
    loaders = {
        f"{count} worker{'s' if count != 1 else ''}": _loader(case, options.seed, rows, count)
        for count in options.workers or [0, num_cpus()]
    }

    def reader(loader) -> Callable[[], None]:
        def read():
            for _ in loader:
                pass

        return read

    # Workers are started by the first round, which does not count, and stay.
    readers = {name: reader(loader) for name, loader in loaders.items()}
    return per_image(take_turns(readers, torch.device("cpu"), options.repeats), 2 * len(rows))


def _loader(case: Case, seed: int, rows: datasets.Dataset, num_workers: int):
    """The trainer's; an epoch has every row once as a labeled and once as an unlabeled image."""
    settings = {"dataloader_num_workers": num_workers, "dataloader_persistent_workers": num_workers > 0}
    model_case = replace(case, size=TINY, precision="fp32", batch_size=min(case.batch_size, len(rows)))
    unlabeled = rows.remove_columns("label")
    trainer = make_trainer(model_case, OURS, torch.device("cpu"), seed, rows, unlabeled, **settings)
    return trainer.get_train_dataloader()


def per_image(times: dict[str, list[float] | str], num_images: int) -> dict[str, dict]:
    """The result of [`take_turns`], with times of all images, as times of one image."""
    return as_results(
        {
            name: taken if isinstance(taken, str) else [seconds / num_images for seconds in taken]
            for name, taken in times.items()
        }
    )
