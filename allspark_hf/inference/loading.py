"""Loading of a trained model with its image processor."""

from pathlib import Path

import torch
from transformers.image_processing_utils import BaseImageProcessor

# From its module: transformers 5.17 hides it at the top level when torchvision is missing, which it does not need.
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from ..data.pixels import say_again
from ..models.configuration_allspark import AllSparkConfig
from ..models.configuration_backbone_allspark import AllSparkBackboneConfig
from ..models.modeling_allspark import SemiSupervisedSegmenter
from ..models.pretrained import check_image_processor, check_labels, check_reachable, loading, stored_palette
from ..models.registration import SEGMENTERS
from ..utils.files import HUB_ID
from ..utils.text import one_line


def load_config(
    model_id: str, revision: str | None = None, token: str | bool | None = None
) -> AllSparkConfig | AllSparkBackboneConfig:
    """The configuration of a trained model, checked; arguments and errors are those of [`load_trained`]."""
    if not HUB_ID.fullmatch(model_id) and not Path(model_id).is_dir():
        raise ValueError(
            f"There is no folder {model_id}: give the output folder of a training, or a Hub id user/name."
        )
    check_reachable(model_id, revision)
    source = {"revision": revision or "main", "token": token}
    with loading(model_id):
        fields, _ = AllSparkConfig.get_config_dict(model_id, **source)
        config_class, _ = SEGMENTERS.get(fields.get("model_type"), (AllSparkConfig, None))
        config = config_class.from_dict(fields)
        check_labels(config)
        stored_palette(config)
    return config


def load_trained(
    model_id: str, device: str | None = None, revision: str | None = None, token: str | bool | None = None
) -> tuple[SemiSupervisedSegmenter, BaseImageProcessor]:
    """
    Loads a trained model and its image processor.

    Args:
        model_id (`str`): folder or Hub id.
        device (`str`, *optional*): device, such as "cpu" or "cuda:0"; by default the GPU if there is one.
        revision (`str`, *optional*): branch, tag or commit of a Hub id; by default the main branch.
        token (`str` or `bool`, *optional*): token for a private Hub id; by default that of the login, if any.

    Returns:
        `tuple`: the model in eval mode on the device, and the image processor.

    Raises:
        ValueError: if the device or the model cannot be used, or weights are missing, which would stay random.
    """
    say_again()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        (torch.zeros(1, device=device) + 1).item()  # checked before the model is loaded, which may take long
    except Exception as error:  # of nearly any type, by device
        # Of a device that this PyTorch was not built for, it says that an operator is missing, and lists all others.
        reason = "" if isinstance(error, NotImplementedError) else f" ({one_line(error)})"
        raise ValueError(
            f"The device {device!r} cannot be used on this machine{reason}: give another, such as 'cpu', or none for "
            "the GPU if there is one."
        ) from error
    config = load_config(model_id, revision, token)
    source = {"revision": revision or "main", "token": token}
    with loading(model_id):
        _, model_class = SEGMENTERS[type(config).model_type]
        model, info = model_class.from_pretrained(model_id, config=config, output_loading_info=True, **source)
        image_processor = SegformerImageProcessorPil.from_pretrained(model_id, **source)
        check_image_processor(image_processor)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{model_id!r} has no weights for {len(missing)} parameters of the model (first: {missing[0]}), which "
            "would stay random: give a model trained by this library."
        )
    return model.to(device).eval(), image_processor


def make_image_processor(long_side: int | None = None, **normalization) -> SegformerImageProcessorPil:
    """
    Makes SegFormer's image processor, which normalizes images, and resizes them only if `long_side` is given.

    Args:
        long_side (`int`, *optional*): pixels of the long side after resizing; the aspect ratio is kept.
        normalization: `image_mean` and `image_std`, by default ImageNet's.

    Returns:
        `SegformerImageProcessorPil`: gives the same pixels with and without torchvision.
    """
    if long_side is None:
        return SegformerImageProcessorPil(do_resize=False, **normalization)
    return SegformerImageProcessorPil(size={"max_height": long_side, "max_width": long_side}, **normalization)


def long_side_of(image_processor: BaseImageProcessor) -> int | None:
    """
    The length to which the image processor scales an image's long side; None if it keeps the size.

    Raises:
        ValueError: if the image processor resizes in another way.
    """
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
