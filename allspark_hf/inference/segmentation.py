"""One call from an image to its segmentation, for a notebook."""

import base64
import html
import io
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..data.images import array_to_image, decode
from ..data.pixels import Reading, deep_values, load_image
from ..utils.text import one_line
from .classes import unknown_class
from .loading import load_config, load_trained
from .prediction import model_picture, palette_of, predict_confidence
from .visualization import legend, overlay


_CACHED_MODELS = 2
_NOTEBOOK_SIDE = 800
_MODEL_FILES = ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json")
_loaded = OrderedDict()
_lock = threading.Lock()

ImageInput = Image.Image | str | Path | np.ndarray | dict
_NOT_SEVERAL = (Image.Image, str, bytes, Path, np.ndarray, Mapping, torch.Tensor)


@dataclass(frozen=True)
class LegendEntry:
    """
    A class of a segmentation.

    Args:
        index (`int`): class index.
        label (`str`): name of the class.
        color (`tuple[int, int, int]`): red, green and blue, 0 to 255.
        share (`float`): share of the image's pixels, over 0, up to 1.
        confidence (`float`): mean probability, 0 to 1, that the model gives the class on those pixels.
    """

    index: int
    label: str
    color: tuple[int, int, int]
    share: float
    confidence: float


@dataclass(frozen=True, eq=False)
class Segmentation:
    """
    A segmented image. As the last line of a notebook's cell, it shows its overlay and legend.

    Args:
        image (`PIL.Image.Image`): the image, RGB and upright.
        mask (`np.ndarray`):
            class indices 0 to num_labels - 1 (height, width), the size of `image`: uint8 up to 256 classes, int32
            above.
        confidence (`np.ndarray`): probability of each pixel's class, float32 in 0..1 (height, width).
        id2label (`dict[int, str]`): name of every class index.
        palette (`np.ndarray`): colors of all classes, uint8 (num_labels, 3), red, green and blue in 0..255.
    """

    image: Image.Image
    mask: np.ndarray
    confidence: np.ndarray
    id2label: dict[int, str]
    palette: np.ndarray

    @property
    def legend(self) -> list[LegendEntry]:
        """The classes that occur, the largest area first; of equal areas, the lower index first."""
        classes = self.mask.ravel()
        pixels = np.bincount(classes, minlength=len(self.palette))
        confidence = np.bincount(classes, weights=self.confidence.ravel(), minlength=len(self.palette))
        present = sorted(np.flatnonzero(pixels).tolist(), key=lambda index: (-pixels[index], index))
        return [
            LegendEntry(
                index=index,
                label=self.id2label[index],
                color=tuple(self.palette[index].tolist()),
                share=float(pixels[index] / classes.size),
                confidence=float(confidence[index] / pixels[index]),
            )
            for index in present
        ]

    def overlay(self, alpha: float = 0.5) -> Image.Image:
        """
        The image under the colors of its classes: RGB, of the same size.

        Args:
            alpha (`float`, *optional*, defaults to 0.5): weight of the colors, 0 (image only) to 1 (colors only).

        Raises:
            ValueError: if `alpha` is out of range.
        """
        return overlay(self.image, self.mask, self.palette, alpha, ignore_index=None)

    def legend_image(self) -> Image.Image:
        """A picture of colors and names of the classes that occur, in the order of class indices: RGB, on white."""
        names = [self.id2label[index] for index in range(len(self.palette))]
        return legend(names, self.palette, present=np.unique(self.mask))

    def class_mask(self, label: str | int) -> np.ndarray:
        """
        Where one class is: bool (height, width); all False if the class does not occur.

        Args:
            label (`str` or `int`): name or index; a name that several classes have stands for all of them.

        Raises:
            ValueError: if the model has no such class.
        """
        indices = [index for index, name in self.id2label.items() if label in (name, index)]
        if not indices:
            raise unknown_class(label, [str(name) for name in self.id2label.values()])
        return np.isin(self.mask, indices)

    def __repr__(self) -> str:
        entries = self.legend
        shown = ", ".join(f"{entry.label} {entry.share:.1%}" for entry in entries[:3])
        more = f", {len(entries) - 3} more" if len(entries) > 3 else ""
        return f"Segmentation({self.image.width}x{self.image.height} pixels: {shown}{more})"

    def _repr_html_(self) -> str:
        picture = self.overlay()
        picture.thumbnail((_NOTEBOOK_SIDE, _NOTEBOOK_SIDE))  # small, because the notebook's file holds the picture
        content = io.BytesIO()
        picture.save(content, format="PNG")
        source = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
        rows = "".join(_html_row(entry) for entry in self.legend)
        return (
            '<div style="display:flex;flex-wrap:wrap;gap:1em;align-items:flex-start">'
            f'<img src="{source}" alt="{html.escape(repr(self))}" style="max-width:100%"/>'
            "<table><thead><tr><th></th><th>class</th><th>area</th><th>confidence</th></tr></thead>"
            f"<tbody>{rows}</tbody></table></div>"
        )


def _html_row(entry: LegendEntry) -> str:
    swatch = f"display:inline-block;width:1.6em;height:1em;border:1px solid #606060;background:rgb{entry.color}"
    return (
        f'<tr><td><span style="{swatch}"></span></td><td style="text-align:left">{html.escape(entry.label)}</td>'
        f"<td>{entry.share:.1%}</td><td>{entry.confidence:.2f}</td></tr>"
    )


def segment(
    model: str | Path | tuple[PreTrainedModel, BaseImageProcessor],
    image: ImageInput | Iterable[ImageInput],
    *,
    device: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Segmentation | list[Segmentation] | Iterator[Segmentation]:
    """
    Segments one image, a list of images, or any number of them one after another.

    The mask is that of [`predict_mask`]. The last two models stay in memory, so that another call with the same name
    does not load the model again. A folder whose model has changed is loaded again; for a Hub id, the Hub is not asked
    again.

    Args:
        model (`str`, `Path` or `tuple`):
            Hub id or folder of a model trained by this library, or a pair of a model in eval mode and its image
            processor, as [`load_trained`] gives it.
        image (`PIL.Image.Image`, `str`, `Path`, `np.ndarray` or `dict`):
            a picture; the path of an image file; an array uint8 (0..255) or uint16 (0..65535), red, green and blue
            (height, width, 3) or gray (height, width); a dict with the `bytes` or the `path` of a file, as data sets
            store it; a list or tuple of these, or another iterable, such as a generator. 16-bit values are scaled by
            the model's `image_range`. Give a 16-bit color file by its path, because Pillow keeps only 8 bits when it
            decodes the file. Of a TIFF file, the page `tiff_page` of the model's configuration is read.
        device, revision, token (*optional*): see [`load_trained`]; not for a loaded model.

    Returns:
        [`Segmentation`]: for one image. For a list or tuple, a list of them in order. For another iterable, an
        iterator that takes and segments an image when the next result is asked for, so that memory does not grow.

    Raises:
        ValueError: if the model cannot be loaded, or an image cannot be read or is too small for the model.
    """
    many = isinstance(image, (list, tuple))
    one_by_one = isinstance(image, Iterable) and not many and not isinstance(image, _NOT_SEVERAL)
    named = isinstance(model, (str, Path))
    config = _config_of(str(model), device, revision, token) if named else _loaded_pair(model)[0].config
    # A list is read first, so that a bad image raises an error before the model is loaded or segments the others.
    pictures = [] if one_by_one else [_read(item, config) for item in (image if many else [image])]
    if named:
        network, image_processor = _load_cached(str(model), device, revision, token)
    else:
        network, image_processor = _loaded_pair(model)
        if (device, revision, token) != (None, None, None):
            raise ValueError(
                "device, revision and token are for a model's name, but a loaded model is given: leave them out, and "
                "move the model with model.to(device)."
            )
    if one_by_one:
        return _segment_each(network, image_processor, image)
    results = [_segment_one(network, image_processor, picture) for picture in pictures]
    return results if many else results[0]


def _segment_each(network, image_processor, images: Iterable[ImageInput]) -> Iterator[Segmentation]:
    for number, image in enumerate(images, start=1):
        try:
            result = _segment_one(network, image_processor, _read(image, network.config))
        except ValueError as error:
            raise ValueError(f"Image {number} of those to segment: {error}") from error
        yield result


def _segment_one(network, image_processor, picture: Image.Image) -> Segmentation:
    picture = model_picture(picture, Reading.of(network.config))
    mask, confidence = predict_confidence(network, image_processor, picture)
    return Segmentation(picture, mask, confidence, dict(network.config.id2label), palette_of(network.config))


def _read(image: ImageInput, config) -> Image.Image:
    """The decoded, upright picture, for [`to_rgb`]."""
    if isinstance(image, (str, Path)):
        if not Path(image).is_file():
            raise ValueError(f"There is no file {image}: give the path of an image, a PIL image or an array.")
        image = {"path": str(image)}
    if isinstance(image, np.ndarray):
        return array_to_image(image)
    stored = isinstance(image, dict) and bool(image.get("bytes") or image.get("path"))
    if not stored and not isinstance(image, Image.Image):
        raise ValueError(
            f"An image is of type {type(image).__name__}, but a PIL image, a path, a NumPy array or a dict of the "
            "bytes or the path of a file is needed."
        )
    tiff_page = Reading.of(config).tiff_page
    try:
        picture = decode(image, False, tiff_page) if stored else load_image(image, tiff_page=tiff_page)
        deep_values(picture)
        return picture
    # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error and others on bad files.
    except Exception as error:
        name = (image.get("path") if stored else None) or "The image"
        raise ValueError(f"{name} cannot be read as an image: {one_line(error)}") from error


def _loaded_pair(model) -> tuple[PreTrainedModel, BaseImageProcessor]:
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], PreTrainedModel):
        return model
    raise ValueError(
        f"model is of type {type(model).__name__}, but a Hub id, a folder, or a pair (model, image_processor) is "
        "needed: the image comes second."
    )


def _config_of(model_id: str, *source):
    """The configuration of a model for [`_load_cached`]; the model is not loaded."""
    loaded = _loaded.get(_key(model_id, *source))
    return load_config(model_id, *source[1:]) if loaded is None else loaded[0].config


def _key(model_id: str, device: str | None, revision: str | None, token: str | bool | None) -> tuple:
    return model_id, device, revision, model_files(Path(model_id))


def _load_cached(
    model_id: str, device: str | None, revision: str | None, token: str | bool | None
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    key = _key(model_id, device, revision, token)
    with _lock:  # a second thread waits for the load instead of repeating it
        if key not in _loaded:
            # The folder may have held another model before.
            for outdated in [other for other in _loaded if other[:3] == key[:3]]:
                del _loaded[outdated]
            _loaded[key] = load_trained(model_id, device, revision, token)
            if len(_loaded) > _CACHED_MODELS:
                _loaded.popitem(last=False)
        _loaded.move_to_end(key)
        return _loaded[key]


def model_files(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Path, modification time and size of a folder's model files; empty for a Hub id."""
    found = [(file, file.stat()) for pattern in _MODEL_FILES for file in sorted(folder.glob(pattern))]
    return tuple((str(file.resolve()), stat.st_mtime_ns, stat.st_size) for file, stat in found)
