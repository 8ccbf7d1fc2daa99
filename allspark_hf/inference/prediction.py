"""Predicts one image at its own size, with a trained model and its image processor."""

import numpy as np
from PIL import Image
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..data.pixels import Reading, deep_values, load_image, to_rgb
from ..data.summary import value_range, warn_of_range
from ..models.pretrained import stored_palette
from .handler import classify_pixels, model_logits
from .visualization import default_palette


def predict_mask(model: PreTrainedModel, image_processor: BaseImageProcessor, image: Image.Image) -> np.ndarray:
    """
    Predicts the class of every pixel of one image.

    The result is that of the image processor's `post_process_semantic_segmentation` at image size, with less memory.

    Args:
        model ([`PreTrainedModel`]): segmentation model in eval mode.
        image_processor ([`BaseImageProcessor`]): the model's.
        image (`PIL.Image.Image`):
            an image of any size and mode that [`to_rgb`] takes; turned upright by its EXIF orientation.

    Returns:
        `np.ndarray`: class indices 0 to num_labels - 1 (height, width), the size of the upright image: uint8 up to
        256 classes, int32 above.

    Raises:
        ValueError: if the model is in training mode, where dropout makes predictions random, the image is too small
            or too narrow for the model, or [`to_rgb`] refuses it.
        RuntimeError: if the model's output is not finite.
    """
    return _predict(model, image_processor, image, with_confidence=False)[0]


def predict_confidence(
    model: PreTrainedModel, image_processor: BaseImageProcessor, image: Image.Image
) -> tuple[np.ndarray, np.ndarray]:
    """
    Predicts the class of every pixel of one image, and the probability of the class; arguments and errors are those of
    [`predict_mask`].

    Returns:
        `tuple[np.ndarray, np.ndarray]`: the mask of [`predict_mask`], and the probability of each pixel's class,
        float32 in 0..1 (height, width): the softmax of the logits at image size, with a single class their sigmoid.
    """
    return _predict(model, image_processor, image, with_confidence=True)


def _predict(model, image_processor, image, with_confidence: bool) -> tuple[np.ndarray, np.ndarray | None]:
    if model.training:
        raise ValueError("The model is in training mode, but prediction needs eval mode: call model.eval() first.")
    picture = model_picture(image, Reading.of(model.config))
    logits = model_logits(model, image_processor, picture)
    classes, confidence = classify_pixels(logits, (picture.height, picture.width), with_confidence)
    return classes.cpu().numpy(), confidence.cpu().numpy() if with_confidence else None


def model_picture(image: Image.Image, reading: Reading) -> Image.Image:
    """As [`to_rgb`], and logs once if the model sees little of a 16-bit image, see [`warn_of_range`]."""
    image = image if hasattr(image, "orientation") else load_image(image, tiff_page=reading.tiff_page)
    values = deep_values(image)
    warn_of_range([None if values is None else value_range(values)], reading.image_range)
    return to_rgb(image, reading)


def palette_of(config: PreTrainedConfig) -> np.ndarray:
    """
    The colors of the classes of a model with this configuration: `config.palette`, which the training saves, or else
    the default palette.

    Returns:
        `np.ndarray`: uint8 (num_labels, 3), red, green and blue in 0..255.

    Raises:
        ValueError: if `config.palette` does not have three values in 0..255 for each class.
    """
    palette = stored_palette(config)
    return default_palette(config.num_labels) if palette is None else palette
