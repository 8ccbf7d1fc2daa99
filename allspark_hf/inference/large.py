"""Prediction of images too large for one piece, in overlapping tiles; see raster.py for reading and writing."""

import math
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..data.pixels import Reading, open_image
from ..evaluation.arguments import PredictionArguments
from ..evaluation.prediction import predict_logits
from ..utils.files import whole_file
from .handler import process_picture, require_finite
from .prediction import palette_of
from .raster import WindowedPicture, gdal, new_mask, open_page
from .tiles import Span, blended_rows, tile_spans


def find_large(files: Sequence[Path], image_processor: BaseImageProcessor, tiff_page: int | None = None) -> list[int]:
    """
    Finds the images that must be predicted in tiles: those above 89 megapixels, of which Pillow warns; none if the
    image processor scales images down. Of TIFF files, the page `tiff_page` is looked at.

    Returns:
        `list[int]`: positions in `files`.
    """
    if getattr(image_processor, "do_resize", False):
        return []
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        return [row for row, large in enumerate(pool.map(partial(_is_large, tiff_page=tiff_page), files)) if large]


def _is_large(file: Path, tiff_page: int | None) -> bool:
    try:
        with open_image(file, tiff_page=tiff_page) as opened:
            return opened.width * opened.height > (PIL.Image.MAX_IMAGE_PIXELS or math.inf)
    except PIL.Image.DecompressionBombError:  # above twice Pillow's limit
        return True
    except Exception:  # Pillow raises nearly anything on bad files; the error is reported when the file is read
        return False


def predict_large(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    source: str | Path,
    target: str | Path,
    tile_size: int | None = None,
    overlap: int | None = None,
    args: PredictionArguments | None = None,
    palette: np.ndarray | None = None,
    mask_values: Sequence[int] | None = None,
    progress: bool = True,
) -> np.ndarray:
    """
    Predicts the class of every pixel of a large image file, and writes the classes as a TIFF file.

    Overlapping tiles are predicted as [`predict_mask`] predicts an image, and the class with the largest mean of their
    probabilities, weighted by [`tile_weights`], is chosen. Memory does not grow with the image's height: it is that of
    the model on one tile, `4 * num_labels * overlap * width` bytes, and rasterio's cache.

    Args:
        model ([`PreTrainedModel`]): segmentation model in eval mode.
        image_processor ([`BaseImageProcessor`]): the model's, which must not resize.
        source (`str` or `Path`):
            file that rasterio reads, TIFF or another: gray or RGB, with or without opacity, or with a palette, of 8 or
            16 bits. Of files with more bands, those that are red, green and blue are read.
        target (`str` or `Path`):
            TIFF file, which replaces an existing one when it is whole. Its values are uint8 in the classes' colors, or
            uint16 if one is above 255. It has the image's place and coordinate system.
        tile_size (`int`, *optional*): pixels of a tile's side; by default the longer side of the training crop.
        overlap (`int`, *optional*): pixels that tiles have in common, at most half of `tile_size`; default: a quarter.
        args ([`PredictionArguments`], *optional*): how each tile is predicted; by default as the model has it.
        palette (`np.ndarray`, *optional*): uint8 (num_labels, 3), color of each class; by default the model's.
        mask_values (`Sequence[int]`, *optional*): value of each class in the file, 0 to 65535; by default its index.
        progress (`bool`, *optional*, defaults to `True`): whether to show a bar, of tiles.

    Returns:
        `np.ndarray`: int64 (num_labels,), the number of pixels of each class.

    Raises:
        ValueError: if rasterio is missing, the image is of another kind or too small, `target` is the image,
            `tile_size` or `overlap` is out of range, the image processor resizes, or the model is in training mode.
        OSError: if a file cannot be read or written.
        RuntimeError: if the model's output is not finite.
    """
    source, target = Path(source), Path(target)
    tile_size, overlap = require_usable(model, image_processor, source, tile_size, overlap)
    palette = palette_of(model.config) if palette is None else palette
    values = np.array(range(len(palette)) if mask_values is None else mask_values)
    args = PredictionArguments() if args is None else args
    if target.exists() and target.samefile(source):
        raise ValueError(f"{target} is the image itself, which the mask would replace: choose another target.")
    reading = Reading.of(model.config)
    with gdal(source) as rasterio, open_page(rasterio, source, reading.tiff_page) as raster:
        picture = WindowedPicture.of(raster, reading)
        smallest = getattr(model.config, "smallest_side", 1)
        if min(picture.size) < smallest:
            raise ValueError(
                f"{source} has {raster.width}x{raster.height} pixels, but the model needs {smallest} a side: take a "
                "larger image."
            )
        counts = np.zeros(model.config.num_labels, dtype=np.int64)
        colors = dict(zip(values.tolist(), palette.tolist(), strict=True))
        total = int(np.prod([len(tile_spans(side, tile_size, overlap)) for side in picture.size]))
        with (
            tqdm(total=total, unit="tile", desc=source.name, disable=not progress, leave=False) as bar,
            whole_file(target) as part,
            new_mask(rasterio, part, raster, colors) as write,
        ):

            def predict(rows: Span, columns: Span) -> torch.Tensor:
                bar.update()
                return _probabilities(model, image_processor, picture.read(rows, columns), args)

            for top, strip in blended_rows(predict, picture.size, tile_size, overlap):
                write(top, values[strip])
                counts += np.bincount(strip.ravel(), minlength=len(counts))
    return counts


def require_usable(
    model, image_processor, source: Path, tile_size: int | None, overlap: int | None = None
) -> tuple[int, int]:
    """`tile_size` and `overlap` of [`predict_large`], after its checks that do not need the image."""
    with gdal(source):
        pass
    tile_size = max(model.config.crop_height_width) if tile_size is None else tile_size
    overlap = tile_size // 4 if overlap is None else overlap
    smallest = getattr(model.config, "smallest_side", 1)
    if tile_size < smallest:
        raise ValueError(f"tile_size is {tile_size}, but the model needs {smallest} pixels a side: set that or more.")
    if not 0 <= overlap <= tile_size // 2:
        raise ValueError(
            f"overlap is {overlap}, but 0 to {tile_size // 2} is needed, half of the tile_size {tile_size}."
        )
    if model.training:
        raise ValueError("The model is in training mode, but prediction needs eval mode: call model.eval() first.")
    if getattr(image_processor, "do_resize", False):
        raise ValueError(
            f"The model's image processor scales every image to {dict(image_processor.size)}, so a large image would "
            "lose its details, and unscaled tiles would show objects larger than in training: scale the file down "
            "yourself (gdal_translate -outsize 4000 0), or train without --image_long_side."
        )
    return tile_size, overlap


def _probabilities(model, image_processor, picture: PIL.Image.Image, args: PredictionArguments) -> torch.Tensor:
    """float32 (num_labels, height, width)"""
    pixel_values = process_picture(model.config, image_processor, picture).to(model.device)
    # Some modes give logarithms of probabilities; their softmax is the probabilities again.
    return require_finite(predict_logits(model, pixel_values, picture.size[::-1], args))[0].softmax(dim=0)
