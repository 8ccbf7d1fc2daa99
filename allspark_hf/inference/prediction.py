"""Prediction of one image at its own size, with a trained model and its image processor."""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

# From its module: transformers 5.17 hides it at the top level when torchvision is missing, which it does not need.
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from ..data.images import to_rgb
from ..models.modeling_allspark import SegformerForSemiSupervisedSegmentation
from ..models.pretrained import check_image_processor, check_labels, loading, stored_palette
from .handler import classify_pixels, model_logits
from .visualization import default_palette


__all__ = [
    "load_trained",
    "long_side_of",
    "make_image_processor",
    "model_palette",
    "predict_confidence",
    "predict_mask",
]


def load_trained(
    model_id: str, device: str | None = None, revision: str | None = None, token: str | bool | None = None
) -> tuple[SegformerForSemiSupervisedSegmentation, BaseImageProcessor]:
    """Load a trained model and its image processor.

    Args:
        model_id: Folder or Hub id.
        device: Such as "cpu" or "cuda:0"; None takes the GPU if there is one.
        revision: Branch, tag or commit of a Hub id; None for the main branch.
        token: Access token of a private Hub id; None for the one that is logged in, if any.

    Returns:
        The model in eval mode on the device, and the image processor.

    Raises:
        ValueError: If the device or the model cannot be used, or weights are missing, which would stay random.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)  # before the model is loaded, which may take long
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"The device {device!r} cannot be used: {error}") from error
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", model_id)
    if not is_hub_id and not Path(model_id).is_dir():
        raise ValueError(
            f"There is no folder {model_id}: give the output folder of a training, or a Hub id user/name."
        )
    source = {"revision": revision or "main", "token": token}
    with loading(model_id):
        model, info = SegformerForSemiSupervisedSegmentation.from_pretrained(
            model_id, output_loading_info=True, **source
        )
        image_processor = SegformerImageProcessorPil.from_pretrained(model_id, **source)
        check_labels(model.config)
        stored_palette(model.config)
        check_image_processor(image_processor)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{model_id!r} has no weights for {len(missing)} parameters of the model (first: {missing[0]}), which "
            "would stay random: give a model trained by this library."
        )
    return model.to(device).eval(), image_processor


def make_image_processor(long_side: int | None = None) -> SegformerImageProcessorPil:
    """SegFormer's image processor: normalises with the ImageNet mean and std, and resizes only if asked to.

    Args:
        long_side: Pixels to scale the long side to, keeping the aspect; None leaves the size alone.

    Returns:
        The Pillow variant, which gives the same pixels with and without torchvision.
    """
    if long_side is None:
        return SegformerImageProcessorPil(do_resize=False)
    return SegformerImageProcessorPil(size={"max_height": long_side, "max_width": long_side})


def long_side_of(image_processor) -> int | None:
    """What the image processor makes of an image's long side; None if it leaves the size alone."""
    if not image_processor.do_resize:
        return None
    size = dict(image_processor.size)
    if size.get("max_height") and size.get("max_height") == size.get("max_width"):
        return size["max_height"]
    given = {name: value for name, value in size.items() if value}
    raise ValueError(
        f"The image processor resizes to {given}, which training cannot follow: set do_resize=False, or "
        'size={"max_height": n, "max_width": n} to scale the long side to n pixels.'
    )


def predict_mask(model: PreTrainedModel, image_processor: BaseImageProcessor, image: Image.Image) -> np.ndarray:
    """Predict the class of every pixel of one image.

    The same as the image processor's `post_process_semantic_segmentation` at image size, in less memory.

    Args:
        model: SegFormer, with or without AllSpark, in eval mode.
        image_processor: The model's image processor.
        image: Image of any size and mode that `to_rgb` takes; turned upright if it has an EXIF orientation.

    Returns:
        Class indices 0 to num_labels - 1 (height, width), the size of the upright image: uint8 up to 256 classes,
        int32 above.

    Raises:
        ValueError: If the model is in training mode, where dropout makes predictions random, the image is too small
            or too narrow for the model, or `to_rgb` refuses it.
        RuntimeError: If the model's output is not finite.
    """
    return _predict(model, image_processor, image, with_confidence=False)[0]


def predict_confidence(
    model: PreTrainedModel, image_processor: BaseImageProcessor, image: Image.Image
) -> tuple[np.ndarray, np.ndarray]:
    """Predict the class of every pixel of one image, and how probable it is.

    Args:
        model, image_processor, image: As for `predict_mask`.

    Returns:
        The mask of `predict_mask`, and the probability of each pixel's class, float32 in 0..1 (height, width): the
        softmax of the logits at image size, with a single class their sigmoid.

    Raises:
        ValueError, RuntimeError: As `predict_mask`.
    """
    return _predict(model, image_processor, image, with_confidence=True)


def _predict(model, image_processor, image, with_confidence: bool) -> tuple[np.ndarray, np.ndarray | None]:
    if model.training:
        raise ValueError("The model is in training mode, but prediction needs eval mode: call model.eval() first.")
    picture = to_rgb(image)
    logits = model_logits(model, image_processor, picture)
    classes, confidence = classify_pixels(logits, (picture.height, picture.width), with_confidence)
    return classes.cpu().numpy(), confidence.cpu().numpy() if with_confidence else None


def model_palette(model: PreTrainedModel) -> np.ndarray:
    """Colours of a model's classes: `config.palette` as saved by the training script, else the default palette.

    Args:
        model: Model whose configuration has `num_labels` and, optionally, `palette`, a list of [red, green, blue].

    Returns:
        uint8 (num_labels, 3), red, green and blue in 0..255.

    Raises:
        ValueError: If `config.palette` is not one colour of three values in 0..255 per class, or there is none and
            the model has over 256 classes.
    """
    palette = stored_palette(model.config)
    return default_palette(model.config.num_labels) if palette is None else palette
