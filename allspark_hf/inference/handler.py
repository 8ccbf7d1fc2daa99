"""
Serves a published model on Hugging Face Inference Endpoints: the file `handler.py` of its repository.

This file needs only the files of its repository, `pixels.py` among them, torch, transformers, Pillow and NumPy. The
rest of the package imports the way from an image to classes from here, so that both give the same results.

A request is `{"inputs": image, "parameters": {...}}`. The answer is a list with an entry for each class that occurs,
in the form of the Hub's image-segmentation task; see [`EndpointHandler`].

Errors are raised, because a returned error would look like a result: Hugging Face's server for custom handlers
(huggingface-inference-toolkit, `_predict` in `webservice_starlette.py`) answers every exception with status 400 and
`{"error": str(exception)}`, and everything that is returned with status 200. [`BadRequest`] has one sentence for the
sender. The log has the details of any other failure, and the sender gets none of its message.
"""

import base64
import binascii
import io
import logging
import math
import re
import reprlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch.nn import functional as F
from transformers import AutoModelForSemanticSegmentation

# From its module: transformers 5.17 hides it at the top level when torchvision is missing, which it does not need.
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil


try:
    from ..data.pixels import ImageError, Reading, open_image, to_rgb
except ImportError:  # in a repository, pixels.py lies beside this file
    sys.path.insert(0, str(Path(__file__).parent))
    from pixels import ImageError, Reading, open_image, to_rgb


logger = logging.getLogger(__name__)

# Pillow's other readers are for rare formats, and one of them (EPS) starts a program.
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
WHOLE_LOGITS_BYTES = 2**28
TASK_PARAMETERS = ("mask_threshold", "overlap_mask_area_threshold", "subtask", "threshold")


class BadRequest(ValueError):
    """An input that cannot be used. The message is one sentence for the sender."""


class EndpointHandler:
    """
    Answers requests with the model of a repository. Calls share nothing that changes, so several threads may call the
    handler at the same time.

    The limits are class attributes:

    - `max_image_bytes`: largest size of an image file.
    - `max_image_pixels`: largest width times height of an image, read from its header before it is decoded.
    - `max_model_pixels`: if the image processor does not resize, larger images are scaled down to so many pixels for
      the model, whose memory and time grow faster than the image. Masks keep the image's size.

    Args:
        path (`str` or `Path`, *optional*):
            folder of the repository: weights, config.json, preprocessor_config.json and the Python files. By default
            the folder of this file. The model goes to the GPU if there is one.

    Raises:
        ValueError: if the model cannot be loaded (weights in safetensors, never a pickle), or weights are missing.
    """

    max_image_bytes = 20 * 2**20
    max_image_pixels = 50_000_000
    max_model_pixels = 2**22

    def __init__(self, path: str | Path = ""):
        folder = Path(path) if path else Path(__file__).parent
        try:
            # The Pillow variant, even if torchvision is installed, because the model is evaluated with it.
            self.image_processor = SegformerImageProcessorPil.from_pretrained(folder, local_files_only=True)
            model, loading = AutoModelForSemanticSegmentation.from_pretrained(
                folder, trust_remote_code=True, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            self.labels = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
        except Exception as error:  # a broken file raises KeyError, SafetensorError and others
            raise ValueError(f"The repository cannot be loaded: {' '.join(repr(error).split())}") from error
        missing = sorted(loading["missing_keys"])
        if missing:
            raise ValueError(
                f"The repository has no weights for {len(missing)} parameters of the model (first: {missing[0]}), "
                "which would stay random: publish the complete model."
            )
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def __call__(self, data: dict) -> list[dict[str, str | float]]:
        """
        Segments one image.

        Args:
            data (`dict`):
                `inputs` is the image: a PIL image; the bytes of a file (BMP, GIF, JPEG, PNG, PPM, TIFF or WebP); its
                base64 text, with or without `data:image/...;base64,` before it; or `{"image": one of these}`. Of an
                animation, the first frame is read. A URL is not fetched. Send a 16-bit image as base64, because the
                server cuts the body of a request to 8 bits.
                `parameters`, optional, are those of the task:

                - `threshold`, 0 to 1: classes with a lower score are left out. Default 0.
                - `mask_threshold`, 0 to 1: a mask leaves out pixels of its class with a lower probability. With the
                  default 0, each pixel is in exactly one mask.
                - `subtask`: "semantic", the only subtask of the model.
                - `overlap_mask_area_threshold`: refused, since the masks of semantic segmentation do not overlap.

        Returns:
            `list[dict]`: one entry for each class that occurs, in the order of class indices, as in the transformers
            pipeline. `label` is the name of the class. `mask` is base64 of a gray PNG of the upright image's size, 255
            where the class is, else 0. `score`, 0 to 1, is the mean probability of the class over the mask's pixels:
            the softmax of the logits at image size. A model with a single class has the sigmoid instead, and its mask
            is the whole image unless `mask_threshold` leaves pixels out.

        Raises:
            BadRequest: if the request cannot be used; the message is one sentence.
            RuntimeError: if the server fails; its log has the cause.
        """
        try:
            return self._segment(data)
        except BadRequest:
            raise
        except Exception as error:
            logger.exception("A request failed.")
            raise RuntimeError(
                f"The server failed to segment the image ({type(error).__name__}); its log has the details."
            ) from None

    def _segment(self, data: dict) -> list[dict[str, str | float]]:
        if not isinstance(data, dict) or data.get("inputs") is None:
            raise BadRequest('The request has no "inputs": send {"inputs": the image as base64}, or the bytes of it.')
        threshold, mask_threshold = read_parameters(data.get("parameters"))
        picture = self._read_image(data["inputs"])
        logits = model_logits(self.model, self.image_processor, self._shrink(picture))
        classes, confidence = classify_pixels(logits, (picture.height, picture.width), with_confidence=True)
        classes, confidence = classes.cpu().numpy(), confidence.cpu().numpy()
        entries = []
        for index in np.unique(classes):
            own = classes == index
            if mask_threshold:
                own &= confidence >= mask_threshold
            if not own.any():
                continue
            score = float(confidence[own].mean(dtype=np.float64))
            if score >= threshold:
                entries.append({"label": self.labels[index], "score": score, "mask": encode_mask(own)})
        return entries

    def _read_image(self, inputs) -> PIL.Image.Image:
        """The image, RGB and upright."""
        if isinstance(inputs, dict):
            if set(inputs) != {"image"}:
                keys = reprlib.repr(sorted(map(str, inputs)))
                raise BadRequest(f'inputs has the keys {keys}, but {{"image": the image as base64}} is needed.')
            inputs = inputs["image"]
        image = inputs if isinstance(inputs, PIL.Image.Image) else self._open(inputs)
        if image.width * image.height > self.max_image_pixels:
            raise BadRequest(self._too_large(f"{image.width}x{image.height} pixels"))
        if not image.width * image.height:
            raise BadRequest(f"The image has {image.width}x{image.height} pixels: send one with at least one pixel.")
        try:
            return to_rgb(image, Reading.of(self.model.config))
        except ImageError as error:
            raise BadRequest(str(error)) from error
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and others
            raise BadRequest("The image cannot be decoded: the file is damaged or incomplete.") from error

    def _open(self, inputs) -> PIL.Image.Image:
        """The opened image, whose header is read and whose pixels are not decoded."""
        if isinstance(inputs, str):
            inputs = self._decode_base64(inputs)
        if not isinstance(inputs, (bytes, bytearray)):
            raise BadRequest(f"inputs is of type {type(inputs).__name__}, but an image as base64 or bytes is needed.")
        if len(inputs) > self.max_image_bytes:
            raise BadRequest(
                f"The image has {len(inputs)} bytes, but at most {self.max_image_bytes} are taken: send a smaller one."
            )
        if not inputs:
            raise BadRequest("The image has 0 bytes: send the content of an image file.")
        try:
            return open_image(io.BytesIO(inputs), IMAGE_FORMATS, Reading.of(self.model.config).tiff_page)
        except ImageError as error:
            raise BadRequest(str(error)) from error
        except PIL.Image.DecompressionBombError as error:
            raise BadRequest(self._too_large("far more pixels")) from error
        except Exception as error:
            raise BadRequest(f"inputs is not an image of a known format: send {', '.join(IMAGE_FORMATS)}.") from error

    def _decode_base64(self, text: str) -> bytes:
        if re.match(r"\s*[a-zA-Z][a-zA-Z0-9+.-]*://", text):
            raise BadRequest("inputs is a URL, but URLs are not fetched: send the image itself, as base64 or bytes.")
        # The type in a data URL is not used, because the image's header has the type.
        text = re.sub(r"^\s*data:[\w.+/;=-]*;base64,", "", text, count=1)
        # Base64 has 4 characters for 3 bytes, so the size is known before anything is decoded.
        if len(text) * 3 // 4 - 2 > self.max_image_bytes:
            raise BadRequest(
                f"The image has about {len(text) * 3 // 4} bytes, but at most {self.max_image_bytes} are taken: send "
                "a smaller one."
            )
        try:
            return base64.b64decode(re.sub(r"\s+", "", text), validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadRequest(
                "inputs is not base64: send the content of an image file, encoded as base64 with its padding."
            ) from error

    def _too_large(self, given: str) -> str:
        return f"The image has {given}, but at most {self.max_image_pixels} pixels are taken: send a smaller one."

    def _shrink(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        pixels = picture.width * picture.height
        if getattr(self.image_processor, "do_resize", False) or pixels <= self.max_model_pixels:
            return picture
        scale = math.sqrt(self.max_model_pixels / pixels)
        size = tuple(max(1, int(side * scale)) for side in picture.size)
        logger.info("An image of %dx%d pixels is scaled to %dx%d for the model.", *picture.size, *size)
        return picture.resize(size, PIL.Image.Resampling.BILINEAR)


def read_parameters(parameters: dict | None) -> tuple[float, float]:
    """
    Checks the parameters of the image-segmentation task.

    Args:
        parameters (`dict`, *optional*): see [`EndpointHandler`]; a number may be text, as in a query string.

    Returns:
        `tuple[float, float]`: `threshold` and `mask_threshold`, each 0 to 1.

    Raises:
        BadRequest: if a parameter is unknown, out of range or not for this model.
    """
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, dict):
        raise BadRequest(f"parameters is of type {type(parameters).__name__}, but an object is needed.")
    unknown = sorted(set(map(str, parameters)) - set(TASK_PARAMETERS))
    if unknown:
        raise BadRequest(f"Unknown parameters {reprlib.repr(unknown)}: use threshold or mask_threshold.")
    if parameters.get("subtask") not in (None, "semantic"):
        raise BadRequest(
            f"subtask is {reprlib.repr(parameters['subtask'])}, but the model does semantic segmentation only: send "
            '"semantic" or leave it out.'
        )
    if parameters.get("overlap_mask_area_threshold") is not None:
        raise BadRequest(
            "overlap_mask_area_threshold has no meaning, since this model's masks do not overlap: leave it out."
        )
    return _read_share(parameters, "threshold"), _read_share(parameters, "mask_threshold")


def _read_share(parameters: dict, name: str) -> float:
    given = parameters.get(name)
    if given is None:
        return 0.0
    try:
        value = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= 1:  # NaN too
        raise BadRequest(f"{name} is {reprlib.repr(given)}, but a number from 0 to 1 is needed.")
    return value


def encode_mask(mask: np.ndarray) -> str:
    """Base64 of a gray PNG, 255 where the bool (height, width) mask is true and 0 elsewhere."""
    file = io.BytesIO()
    PIL.Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def model_logits(model, image_processor, picture: PIL.Image.Image) -> torch.Tensor:
    """
    The logits of one picture.

    Args:
        model ([`PreTrainedModel`]): segmentation model in eval mode.
        image_processor ([`BaseImageProcessor`]): the model's.
        picture (`PIL.Image.Image`): RGB, upright.

    Returns:
        `torch.Tensor`: finite logits (1, num_labels, height, width), at the size that the image processor makes of the
        picture or at a fraction of it, in the model's type or float32 and on its device.

    Raises:
        BadRequest: if the picture is too small or too narrow for the model.
        RuntimeError: if the model's output is not finite.
    """
    return finite_logits(model, process_picture(model.config, image_processor, picture))


def process_picture(config, image_processor, picture: PIL.Image.Image) -> torch.Tensor:
    """
    Makes the model's input of a picture.

    Args:
        config ([`PreTrainedConfig`]): the model's.
        image_processor ([`BaseImageProcessor`]): the model's.
        picture (`PIL.Image.Image`): RGB, upright.

    Returns:
        `torch.Tensor`: float32 (1, 3, height, width), normalized, at the size that the image processor makes of it.

    Raises:
        BadRequest: if the picture is too small or too narrow for the model.
    """
    given = f"The image has {picture.width}x{picture.height} pixels (width x height)"
    try:
        pixel_values = image_processor(images=picture, return_tensors="pt")["pixel_values"]
    except ValueError as error:  # a side that would be scaled to 0 pixels
        raise BadRequest(f"{given}, too narrow to be scaled to the model's size: send a less narrow one.") from error
    height, width = pixel_values.shape[2:]
    smallest = getattr(config, "smallest_side", 1)
    if min(height, width) < smallest:
        raise BadRequest(
            f"{given} and reaches the model with {width}x{height}, which needs at least {smallest} a side: send a "
            "larger or less narrow one."
        )
    return pixel_values


@torch.no_grad()
def finite_logits(model, pixel_values: torch.Tensor) -> torch.Tensor:
    """
    The logits (batch, num_labels, height, width), in the model's type or float32 and on its device, of `pixel_values`
    float (batch, 3, height, width); RuntimeError if they are not finite.
    """
    return require_finite(model(pixel_values=pixel_values.to(device=model.device, dtype=model.dtype)).logits)


def require_finite(logits: torch.Tensor) -> torch.Tensor:
    """Float logits of any shape as they are; RuntimeError if one is NaN or infinite."""
    if not torch.stack(logits.aminmax()).isfinite().all():  # isfinite of all logits would need as much memory again
        raise RuntimeError("The model's output holds NaN or infinite values: its weights are broken.")
    return logits


@torch.no_grad()
def classify_pixels(
    logits: torch.Tensor, size: tuple[int, int], with_confidence: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    The class of every pixel, as in `post_process_semantic_segmentation`, and its probability. Classes are scaled one
    by one, so that memory does not grow with their number: 150 classes of 12 megapixels would need 7 GB.

    Args:
        logits (`torch.Tensor`): float (1, num_labels, any height, any width), finite.
        size (`tuple[int, int]`): height and width to scale the logits to, bilinearly, in float32.
        with_confidence (`bool`, *optional*, defaults to `False`): whether to compute the probabilities.

    Returns:
        `tuple[torch.Tensor, torch.Tensor | None]`: class indices (*size), uint8 up to 256 classes, else int32, of
        equal logits the first; and, if asked for, the class's probability in [0, 1], float32 (*size): the softmax of
        the scaled logits, or for a single class their sigmoid.
    """
    logits = logits.float()  # in half precision, two classes would often have equal logits
    num_labels = logits.shape[1]
    dtype = torch.uint8 if num_labels <= 256 else torch.int32
    classes = torch.zeros(size, dtype=dtype, device=logits.device)
    best = None
    for index, scaled in enumerate(_scaled_logits(logits, size)):
        if best is None:
            best = scaled.clone()
            continue
        classes.masked_fill_(scaled > best, index)
        torch.maximum(best, scaled, out=best)
    if not with_confidence:
        return classes, None
    if num_labels == 1:
        return classes, best.sigmoid()
    total = torch.zeros_like(best)
    for scaled in _scaled_logits(logits, size):
        total += (scaled - best).exp_()
    return classes, total.reciprocal_()


def _scaled_logits(logits: torch.Tensor, size: tuple[int, int]) -> Iterator[torch.Tensor]:
    """The scaled logits of each class, float32 (*size): together if they need little memory, else one by one."""
    num_labels = logits.shape[1]
    # Up to three channels stay together, because torch has a kernel for them that rounds differently. With more, both
    # ways have equal bits.
    whole = num_labels <= 3 or num_labels * math.prod(size) * logits.element_size() <= WHOLE_LOGITS_BYTES
    for part in [logits] if whole else logits.split(1, dim=1):
        yield from F.interpolate(part, size=size, mode="bilinear", align_corners=False)[0]
