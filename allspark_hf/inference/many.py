"""
Prediction of many images: workers decode them, the model predicts batches of one size, and threads write the results.

Memory depends on the size of the images, not on their number. A batch always has the same images, whatever was
predicted before and whichever process predicts it, so that its results have the same bits.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import get_image_size_for_max_height_width

from ..data.pixels import Reading, open_image
from ..evaluation.arguments import PredictionArguments
from ..evaluation.prediction import predict_logits
from ..utils.machine import num_cpus
from ..utils.text import one_line
from .handler import classify_pixels, finite_logits, process_picture, require_finite
from .prediction import model_picture
from .writers import ResultWriter


BATCH_MODEL_PIXELS = 2**22  # most pixels of a batch as the model gets them, unless the batch is a single image
BATCH_IMAGE_PIXELS = 2**26  # most pixels of a batch as the images are stored, unless the batch is a single image
MOST_WORKERS = 8


# ---- Batches ----


def plan_batches(
    files: Sequence[Path],
    image_processor: BaseImageProcessor,
    batch_size: int,
    args: PredictionArguments,
    left_out: Collection[int] = (),
    tiff_page: int | None = None,
) -> list[list[int]]:
    """
    Puts images that reach the model with one size into batches. The sizes are read from the headers of the files.

    Args:
        files (`Sequence[Path]`): the images.
        image_processor ([`BaseImageProcessor`]): the model's.
        batch_size (`int`): images of a batch; a batch of large images has fewer, 4 megapixels in all for the model.
        args ([`PredictionArguments`]): how the images are predicted.
        left_out (`Collection[int]`): positions of images that no batch may have.
        tiff_page (`int`, *optional*): page of TIFF files, see [`Reading`].

    Returns:
        `list[list[int]]`: positions in `files`, each in one batch. The result depends only on the arguments.
    """
    taken = sorted(set(range(len(files))).difference(left_out))
    if batch_size == 1:
        return [[row] for row in taken]
    batches, waiting = [], {}
    with ThreadPoolExecutor() as pool:
        for row, size in zip(
            taken, pool.map(partial(_stored_size, tiff_page=tiff_page), [files[row] for row in taken]), strict=True
        ):
            given = processed_size(image_processor, size)
            group = given if in_one_piece(args) else (given, size)
            rows = waiting.setdefault(group, [])
            rows.append(row)
            if len(rows) >= min(batch_size, _images_at_a_time(given, size, args)):
                batches.append(waiting.pop(group))
    return [*batches, *waiting.values()]


def _stored_size(file: Path, tiff_page: int | None) -> tuple[int, int]:
    """(height, width) in the header of an image file; (1, 1) if it cannot be read, which is reported later."""
    try:
        with open_image(file, tiff_page=tiff_page) as opened:
            return opened.height, opened.width
    except Exception:  # Pillow raises nearly anything on bad files
        return 1, 1


def _images_at_a_time(given: tuple[int, int], size: tuple[int, int], args: PredictionArguments) -> int:
    # To average maps, all classes of all images are held at the images' own size.
    pixels = given if in_one_piece(args) else max(given, size, key=np.prod)
    at_a_time = min(BATCH_MODEL_PIXELS // max(1, np.prod(pixels)), BATCH_IMAGE_PIXELS // max(1, np.prod(size)))
    return max(1, int(at_a_time))


def processed_size(image_processor: BaseImageProcessor, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) after the image processor of an image of `size` (height, width), as far as it can be told."""
    wanted = dict(image_processor.size or {}) if image_processor.do_resize else {}
    if wanted.get("height") and wanted.get("width"):
        return wanted["height"], wanted["width"]
    if wanted.get("max_height") and wanted.get("max_width"):
        return get_image_size_for_max_height_width(size, wanted["max_height"], wanted["max_width"])
    return size


@dataclass
class Prepared:
    """
    Images that the model gets together.

    Args:
        rows (`list[int]`): positions of the images in the list of files.
        images (`list[torch.Tensor]`): the upright RGB images, uint8 (height, width, 3) each.
        pixel_values (`torch.Tensor`): float32 (batch, 3, height, width), as the image processor gives them.
    """

    rows: list[int]
    images: list[torch.Tensor]
    pixel_values: torch.Tensor

    def alone(self) -> "list[Prepared]":
        """Each of the images by itself."""
        return [
            Prepared([row], [image], pixel_values[None])
            for row, image, pixel_values in zip(self.rows, self.images, self.pixel_values, strict=True)
        ]


class PreparedBatches(Dataset):
    """
    Batches of decoded and processed images: the work of the workers of a DataLoader.

    Args:
        files (`Sequence[Path]`): the images.
        batches (`list[list[int]]`): result of [`plan_batches`].
        image_processor ([`BaseImageProcessor`]): the model's.
        config ([`AllSparkFields`]): the model's configuration.
        args ([`PredictionArguments`]): how the images are predicted.
    """

    def __init__(self, files, batches, image_processor, config, args: PredictionArguments):
        self.files, self.batches = files, batches
        self.image_processor, self.config, self.args = image_processor, config, args

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[list[Prepared], dict[int, str]]:
        """The images of a batch, grouped by their decoded size, and row -> reason for those that cannot be read."""
        groups, failures = {}, {}
        for row in self.batches[index]:
            try:
                picture = read_picture(self.files[row], Reading.of(self.config))
                pixel_values = process_picture(self.config, self.image_processor, picture)
            except (OSError, RuntimeError, ValueError) as error:
                failures[row] = one_line(error)
                continue
            group = pixel_values.shape if in_one_piece(self.args) else (pixel_values.shape, picture.size)
            groups.setdefault(group, []).append((row, torch.from_numpy(np.array(picture)), pixel_values))
        stacked = [
            Prepared(list(rows), list(images), torch.cat(parts))
            for rows, images, parts in (zip(*group, strict=True) for group in groups.values())
        ]
        return stacked, failures


def read_picture(file: Path, reading: Reading) -> Image.Image:
    """Upright RGB of an image file, by [`to_rgb`]; ValueError if it cannot be read."""
    try:
        with open_image(file) as opened:
            return model_picture(opened, reading)
    # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error and others on bad files.
    except Exception as error:
        raise ValueError(f"it cannot be read as an image ({one_line(error)})") from error


# ---- Prediction ----


def in_one_piece(args: PredictionArguments) -> bool:
    """Whether the model gets whole images and nothing is averaged, as in [`predict_mask`]."""
    return args.eval_mode == "whole" and args.eval_scales in (None, [1.0]) and not args.eval_flip


@torch.no_grad()
def predict_batch(
    model, pixel_values: torch.Tensor, sizes: Sequence[tuple[int, int]], args: PredictionArguments, confidence: bool
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """
    Predicts images that the model gets with one size.

    Args:
        model (`Callable`): `model(pixel_values=...).logits` with `config`, `dtype` and `device`; in eval mode.
        pixel_values (`torch.Tensor`): float (batch, 3, height, width), as the image processor gives them.
        sizes (`Sequence[tuple[int, int]]`): (height, width) of each image; all equal unless [`in_one_piece`].
        args ([`PredictionArguments`]): how the images are predicted, see [`predict_logits`].
        confidence (`bool`): whether to compute the probabilities too.

    Returns:
        `list[tuple]`: for each image, the class indices (height, width), uint8 up to 256 classes, int32 above, and the
        probability of each pixel's class, float32 in 0..1 (height, width), or None.

    Raises:
        ValueError: if an image is too small for the encoder at one of the scales.
        RuntimeError: if the output is not finite, or memory runs out.
    """
    if in_one_piece(args):
        logits = finite_logits(model, pixel_values)
    else:
        logits = require_finite(predict_logits(model, pixel_values.to(model.device), sizes[0], args))
    results = []
    for own, size in zip(logits.split(1), sizes, strict=True):
        classes, probability = classify_pixels(own, size, with_confidence=confidence)
        results.append((classes.cpu().numpy(), probability.cpu().numpy() if confidence else None))
    return results


def _predicted(model, group: Prepared, args: PredictionArguments, confidence: bool) -> Iterator[tuple]:
    """For each image: its row, the image, and the pair of mask and confidence, or the reason if the image fails."""
    sizes = [tuple(image.shape[:2]) for image in group.images]
    reason = None
    try:
        results = predict_batch(model, group.pixel_values, sizes, args, confidence)
    except (OSError, RuntimeError, ValueError) as error:
        reason = one_line(error)
    if reason is None:
        yield from zip(group.rows, group.images, results, strict=True)
    elif len(group.rows) == 1:
        yield group.rows[0], group.images[0], reason
    else:  # one by one, so that one bad image does not fail the others, and less memory is needed
        for single in group.alone():
            yield from _predicted(model, single, args, confidence)


def predict_many(
    model,
    batches: PreparedBatches,
    names: Sequence[Path],
    writers: Sequence[ResultWriter],
    num_workers: int = 0,
    done: frozenset[int] = frozenset(),
) -> Iterator[tuple[int, str | None]]:
    """
    Predicts images and writes their results.

    Args:
        model (`Callable`): `model(pixel_values=...).logits` with `config`, `dtype` and `device`; in eval mode.
        batches ([`PreparedBatches`]): the images.
        names (`Sequence[Path]`): name of the results of every image, see [`name_results`].
        writers (`Sequence[ResultWriter]`): the writers of the results.
        num_workers (`int`): number of processes that decode and of threads that write; with 0, this process decodes
            and one thread writes.
        done (`frozenset[int]`): rows whose results exist; they stay in their batches, but are not written.

    Yields:
        `tuple[int, str | None]`: a row whose results are all written, and None; or a row that failed, and the reason.

    Raises:
        ValueError: if the model is in training mode.
        RuntimeError: if a worker has died.
    """
    if model.training:
        raise ValueError("The model is in training mode, but prediction needs eval mode: call model.eval() first.")
    confidence = any(writer.wants_confidence for writer in writers)
    prefetch = {"prefetch_factor": 2} if num_workers else {}
    loaded = iter(DataLoader(batches, batch_size=None, collate_fn=_as_is, num_workers=num_workers, **prefetch))
    threads = max(1, num_workers)
    pending = deque()
    with ThreadPoolExecutor(threads) as pool:
        for groups, failures in loaded:
            yield from ((row, reason) for row, reason in failures.items() if row not in done)
            for group in groups:
                for row, image, result in _predicted(model, group, batches.args, confidence):
                    if row in done:
                        continue
                    if isinstance(result, str):
                        yield row, result
                        continue
                    pending.append((row, pool.submit(_write, writers, names[row], image, *result)))
                    while len(pending) > 2 * threads:  # the model waits for the writers, so that memory does not grow
                        yield _outcome(*pending.popleft())
        while pending:
            yield _outcome(*pending.popleft())


def default_workers(num_processes: int, on_cpu: bool) -> int:
    """The number of CPUs for each process of this machine, or a quarter of it if the model runs on CPUs; 1 to 8."""
    cpus = num_cpus() // num_processes
    return max(1, min(MOST_WORKERS, cpus // 4 if on_cpu else cpus))


def _as_is(batch):
    return batch


def _write(writers, name: Path, image: torch.Tensor, mask: np.ndarray, confidence: np.ndarray | None):
    picture = Image.fromarray(image.numpy())
    for writer in writers:
        writer.write(name, picture, mask, confidence)


def _outcome(row: int, written) -> tuple[int, str | None]:
    try:
        written.result()
    except (OSError, RuntimeError, ValueError) as error:
        return row, one_line(error)
    return row, None
