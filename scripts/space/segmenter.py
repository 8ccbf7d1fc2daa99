"""Models, images and predictions of the Space. Stands alone: it needs torch, transformers and Pillow, not allspark_hf.

`pixels.py` beside it is a link to the package's, which `hf upload` follows.

A sentence that a visitor should read is a `VisitorError`; what only the owner should know goes to the log.
"""

import logging
import re
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pixels import ImageError, Reading, deep_values, load_image, open_image, to_rgb
from rendering import decode_mask, encode_mask, model_colors
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor


logger = logging.getLogger("space")

MAX_IMAGE_PIXELS = 40_000_000
# A model without an input size of its own would get a photo of 12 megapixels whole: minutes and many GB on a CPU.
MAX_MODEL_PIXELS = 2_000_000
MAX_SHOWN_SIDE = 1600
# SegFormer's attention cannot work on less; other encoders see little in less.
MIN_SIDE = 32
MAX_LOADED_MODELS = 3
# Float32 values of upsampled logits held at a time: 256 MB.
_MAX_LOGIT_VALUES = 64_000_000


class VisitorError(ValueError):
    """A sentence for the visitor: what is wrong, and what to do."""


def parse_models(arguments: Sequence[str] | None, variable: str | None) -> dict[str, str]:
    """The models of this Space, by the short name that visitors see.

    Args:
        arguments: Folders or Hub ids (`user/name` or `user/name@revision`) from the command line; they win.
        variable: The same, separated by commas, from the environment.

    Returns:
        Id by name: the last part of the id, or all of it where two last parts are equal.

    Raises:
        ValueError: If there is no model, one is given twice, or one is neither a folder nor looks like a Hub id.
    """
    ids = [text.strip() for text in (arguments or (variable or "").split(",")) if text.strip()]
    if not ids:
        raise ValueError(
            'No model is given: set the variable ALLSPARK_MODELS, for example "user/model-a,user/model-b", or run '
            "app.py --models MODEL [MODEL ...] with folders or Hub ids."
        )
    if len(set(ids)) != len(ids):
        raise ValueError(f"A model is given twice in {', '.join(ids)}: give each model once.")
    for model_id in ids:
        if not Path(model_id).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", model_id):
            raise ValueError(
                f"The model {model_id!r} is neither a folder here nor a Hub id: give the output folder of a training, "
                "user/name, or user/name@revision."
            )
    short = [Path(model_id).resolve().name if Path(model_id).is_dir() else model_id.split("/")[1] for model_id in ids]
    names = [name if short.count(name) == 1 else model_id for name, model_id in zip(short, ids, strict=True)]
    return dict(zip(names, ids, strict=True))


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode with its image processor, its class names (unique), and uint8 (num_labels, 3) colors."""

    model: PreTrainedModel
    image_processor: BaseImageProcessor
    labels: tuple[str, ...]
    colors: np.ndarray


def load_model(model_id: str) -> LoadedModel:
    """Load one of the owner's models, running the code in its repository; never call it with a visitor's text.

    Args:
        model_id: Folder, `user/name` or `user/name@revision`.

    Raises:
        ValueError: If weights are missing, which would stay random, or the configuration's palette is unusable.
    """
    name, revision = model_id, None
    if not Path(model_id).is_dir():
        name, _, revision = model_id.partition("@")
    options = {"trust_remote_code": True, "revision": revision or "main"}
    # In float32 even if the weights are saved in half precision, as the image processor's pixels are.
    model, loading = AutoModelForSemanticSegmentation.from_pretrained(
        name, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **options
    )
    if loading["missing_keys"]:
        raise ValueError(
            f"{model_id!r} has no weights for {len(loading['missing_keys'])} parameters of the model (first: "
            f"{sorted(loading['missing_keys'])[0]}), which would stay random: give a trained segmentation model."
        )
    # Pillow's variant gives the same pixels with and without torchvision.
    image_processor = AutoImageProcessor.from_pretrained(name, backend="pil", **options)
    config = model.config
    labels = [str(config.id2label.get(index, f"class {index}")) for index in range(config.num_labels)]
    unique = [text if labels.count(text) == 1 else f"{text} ({index})" for index, text in enumerate(labels)]
    colors = model_colors(getattr(config, "palette", None), config.num_labels)
    return LoadedModel(model.eval(), image_processor, tuple(unique), colors)


class ModelShelf:
    """The owner's models by name: loaded at first use, the latest `MAX_LOADED_MODELS` kept in memory."""

    def __init__(self, ids: dict[str, str]):
        self.ids = ids
        self._loaded: OrderedDict[str, LoadedModel] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """The names that visitors choose from, in the owner's order."""
        return list(self.ids)

    def get(self, name: str) -> LoadedModel:
        """The model of that name. Raises `VisitorError` if there is none, or it cannot be loaded (logged)."""
        if name not in self.ids:
            raise VisitorError("This Space has no such model: choose one from the list.")
        with self._lock:
            if name not in self._loaded:
                try:
                    self._loaded[name] = load_model(self.ids[name])
                except Exception as error:  # code from the repository may raise anything
                    logger.exception("The model %s cannot be loaded", self.ids[name])
                    raise VisitorError(
                        f"The model {name} cannot be loaded. The reason is in this Space's log; please tell its owner."
                    ) from error
            self._loaded.move_to_end(name)
            while len(self._loaded) > MAX_LOADED_MODELS:
                self._loaded.popitem(last=False)
            return self._loaded[name]


def read_image(path: str, tiff_page: int | None = None) -> Image.Image:
    """A picture of any usual kind, upright, at its own size, for `to_rgb`; of a TIFF file that page.

    Raises:
        VisitorError: If the file is gone, is no picture that Pillow reads, is damaged, or is too large or too small.
    """
    if not Path(path).is_file():
        raise VisitorError("The image is no longer on the server: please upload it again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with open_image(path, tiff_page=tiff_page) as image:
                if image.width * image.height > MAX_IMAGE_PIXELS:
                    raise VisitorError(
                        f"The image has {image.width} x {image.height} pixels, over the limit of "
                        f"{MAX_IMAGE_PIXELS // 1_000_000} megapixels: please upload a smaller one."
                    )
                if min(image.size) < MIN_SIDE:
                    raise VisitorError(
                        f"The image has {image.width} x {image.height} pixels: please upload one with at least "
                        f"{MIN_SIDE} pixels a side."
                    )
                picture = load_image(image, tiff_page=tiff_page)
                deep_values(picture)  # which refuses what has no range
                return picture
    except VisitorError:
        raise
    except ImageError as error:
        raise VisitorError(str(error)) from error
    except Image.DecompressionBombError as error:
        raise VisitorError(
            f"The image is far over the limit of {MAX_IMAGE_PIXELS // 1_000_000} megapixels: please upload a smaller "
            "one."
        ) from error
    except Exception as error:  # Pillow's decoders raise many kinds of errors on damaged files
        raise VisitorError(
            "This file cannot be read as an image: please upload a JPEG, PNG, WebP or TIFF file that opens elsewhere."
        ) from error


@dataclass(frozen=True)
class Prediction:
    """What one model says of one image.

    `mask_png` is the indexed PNG of class indices at the image's own size; `shown_mask` the same indices, integers
    (height, width) at the size shown; `areas` float (num_labels,), each class's share of the pixels, sum 1;
    `confidence` the mean over the image of the highest class probability, None for a model with a single class;
    `reading` how the model has image files read.
    """

    model_name: str
    labels: tuple[str, ...]
    colors: np.ndarray
    areas: np.ndarray
    confidence: float | None
    mask_png: bytes
    shown_mask: np.ndarray
    model_size: tuple[int, int] | None
    reading: Reading


@dataclass(frozen=True)
class Result:
    """What a session keeps: the latest image at the size shown, and one or two predictions of it.

    `photo` is uint8 (height, width, 3); `size` the image's own (width, height); `agreement` the share of its pixels
    to which two models give the same class name; `warning` a sentence about a second model that failed.
    """

    path: str
    stem: str
    size: tuple[int, int]
    photo: np.ndarray
    predictions: tuple[Prediction, ...]
    agreement: float | None
    warning: str | None


def segment(shelf: ModelShelf, path: str, names: Sequence[str], previous: Result | None = None) -> Result:
    """Segment an image with one or two models; predictions of the same image in `previous` are not made again.

    Raises:
        VisitorError: If the image cannot be read or the first model not be used. A second model that fails leaves
            its sentence in `warning`.
    """
    known = {made.model_name: made for made in previous.predictions} if previous and previous.path == path else {}
    predictions, warning, pictures = [], None, {}
    for name in dict.fromkeys(names):
        try:
            made = known.get(name)
            loaded = None if made else shelf.get(name)
            page = (made.reading if made else Reading.of(loaded.model.config)).tiff_page
            if page not in pictures:
                pictures[page] = read_image(path, page)
            picture = next(iter(pictures.values()))
            if pictures[page] is not picture and pictures[page].tobytes() != picture.tobytes():
                raise VisitorError(f"The model {name} reads another page of TIFF files: please choose it alone.")
            predictions.append(made or predict(loaded, picture, name))
        except VisitorError as error:
            if not predictions:
                raise
            warning = str(error)
    width, height = shown_size(picture.size)
    shown = to_rgb(picture, predictions[0].reading)
    photo = np.asarray(shown if shown.size == (width, height) else shown.resize((width, height)))
    agreement = agreement_of(*predictions) if len(predictions) == 2 else None
    return Result(path, Path(path).stem, picture.size, photo, tuple(predictions), agreement, warning)


@torch.no_grad()
def predict(loaded: LoadedModel, picture: Image.Image, name: str) -> Prediction:
    """Predict the class of every pixel of a picture of `read_image`.

    Raises:
        VisitorError: If the model fails on this picture (logged).
    """
    start = time.perf_counter()
    reading = Reading.of(loaded.model.config)
    picture = to_rgb(picture, reading)
    fitted = picture if getattr(loaded.image_processor, "do_resize", False) else _at_most(picture, MAX_MODEL_PIXELS)
    try:
        inputs = loaded.image_processor(images=fitted, return_tensors="pt")
        logits = loaded.model(**inputs).logits
        mask = classes_at_size(logits, picture.height, picture.width)
    except Exception as error:  # out of memory, or code from the repository
        logger.exception("The model %s failed on an image of %d x %d pixels", name, *picture.size)
        raise VisitorError(
            f"The model {name} failed on this image. The reason is in this Space's log; another size may work."
        ) from error
    # No file name: what visitors upload is not the log's business.
    logger.info("predicted %d x %d pixels with %s in %.2f s", *picture.size, name, time.perf_counter() - start)
    width, height = shown_size(picture.size)
    return Prediction(
        model_name=name,
        labels=loaded.labels,
        colors=loaded.colors,
        areas=np.bincount(mask.ravel(), minlength=len(loaded.labels)) / mask.size,
        confidence=mean_confidence(logits) if len(loaded.labels) > 1 else None,
        mask_png=encode_mask(mask, loaded.colors),
        shown_mask=_nearest(mask, height, width),
        model_size=fitted.size if fitted is not picture else None,
        reading=reading,
    )


def classes_at_size(logits: torch.Tensor, height: int, width: int) -> np.ndarray:
    """The most likely class of every pixel after bilinear upsampling, a few classes at a time to bound memory.

    Args:
        logits: float (1, num_labels, any height, any width).
        height, width: Size of the mask.

    Returns:
        Class indices (height, width), uint8 up to 256 classes and uint16 above; the lowest index on a tie.
    """
    num_labels = logits.shape[1]
    best = np.zeros((height, width), dtype=np.uint8 if num_labels <= 256 else np.uint16)
    highest = torch.full((height, width), -torch.inf)
    step = max(1, _MAX_LOGIT_VALUES // (height * width))
    for first in range(0, num_labels, step):
        part = F.interpolate(
            logits[:, first : first + step].float(), size=(height, width), mode="bilinear", align_corners=False
        )
        values, indices = part[0].max(dim=0)
        better = values > highest
        highest = torch.where(better, values, highest)
        best[better.numpy()] = (indices[better] + first).numpy()
    return best


def mean_confidence(logits: torch.Tensor) -> float:
    """Mean of the highest class probability of float (1, num_labels, height, width), row by row to bound memory."""
    return float(torch.stack([row.softmax(dim=0).amax(dim=0).mean() for row in logits[0].unbind(1)]).mean())


def agreement_of(first: Prediction, second: Prediction) -> float:
    """Share of the pixels, at the image's own size, to which both models give a class of the same name."""
    number = {label: index for index, label in enumerate(first.labels)}
    translated = np.array([number.get(label, -1) for label in second.labels])
    return float((decode_mask(first.mask_png) == translated[decode_mask(second.mask_png)]).mean())


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) with the long side brought down to `MAX_SHOWN_SIDE`; smaller pictures stay as they are."""
    scale = min(1.0, MAX_SHOWN_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _at_most(picture: Image.Image, pixels: int) -> Image.Image:
    scale = (pixels / (picture.width * picture.height)) ** 0.5
    if scale >= 1:
        return picture
    return picture.resize((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))))


def _nearest(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(int)
    return mask[rows[:, None], columns]
