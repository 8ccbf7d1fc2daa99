"""What a model is made of, in the words of its card."""

from dataclasses import dataclass

import torch
from transformers import AutoBackbone, PreTrainedConfig

from ..models.configuration_allspark import MIT_SIZES
from ..models.configuration_backbone_allspark import AllSparkBackboneConfig


# Usual spelling of transformers' model types; others are shown as they are.
NAMES = {
    "convnext": "ConvNeXt",
    "dinov2": "DINOv2",
    "dinov2_with_registers": "DINOv2 with registers",
    "dinov3_convnext": "DINOv3 ConvNeXt",
    "dinov3_vit": "DINOv3 ViT",
    "pvt_v2": "PVT v2",
    "resnet": "ResNet",
    "swin": "Swin",
    "swinv2": "Swin V2",
}
VIT_SIZES = {(384, 12): "small", (768, 12): "base", (1024, 24): "large", (1536, 40): "giant"}  # width, blocks
# Encoder -> key of its paper in the template.
PAPERS = {kind: kind[:6] for kind in ("dinov2", "dinov2_with_registers", "dinov3_convnext", "dinov3_vit")}
HEADS = {"dpt": "a DPT head", "all_mlp": "SegFormer's all-MLP head"}


@dataclass(frozen=True)
class Architecture:
    """
    The parts of a model, in words.

    Args:
        encoder (`str`): such as `"the encoder MiT-B5"` or `"the encoder DINOv2 small (22 M parameters)"`.
        tag (`str`): its tag in the Hub's metadata.
        papers (`tuple[str, ...]`): keys of the papers to cite in the template; `"other"` for one that it lacks.
        head (`str`, *optional*): such as `"a DPT head"`; None for a SegFormer, which has its own.
        patch (`int`, *optional*): side in pixels of the square that becomes one vector; None for a SegFormer.
    """

    encoder: str
    tag: str
    papers: tuple[str, ...]
    head: str | None = None
    patch: int | None = None


def architecture_of(config: dict) -> Architecture:
    """
    The parts of a model.

    Args:
        config (`dict`): the content of its config.json.

    Raises:
        `StrictDataclassError`, ValueError: if it describes an encoder that cannot be built.
    """
    if config.get("model_type") != AllSparkBackboneConfig.model_type:
        return Architecture(_mix_transformer(config), "segformer", ("segformer",))
    whole = AllSparkBackboneConfig.from_dict(config)
    encoder = whole.backbone_config
    return Architecture(
        encoder=_described(encoder),
        tag=encoder.model_type,
        papers=("dpt" if whole.head == "dpt" else "segformer", PAPERS.get(encoder.model_type, "other")),
        head=HEADS[whole.head],
        patch=whole.encoder_stride,
    )


def _described(encoder: PreTrainedConfig) -> str:
    """An encoder's name, its size if it is a usual ViT, and its parameters."""
    width = getattr(encoder, "hidden_size", None), getattr(encoder, "num_hidden_layers", None)
    words = [NAMES.get(encoder.model_type, encoder.model_type), VIT_SIZES.get(width)]
    with torch.device("meta"):
        count = AutoBackbone.from_config(encoder).num_parameters()
    shown = f"{count / 1e6:.0f} M" if count >= 1e7 else f"{count / 1e6:.2g} M" if count >= 1e6 else f"{count:,}"
    return f"the encoder {' '.join(filter(None, words))} ({shown} parameters)"


def _mix_transformer(config: dict) -> str:
    """ "the encoder MiT-B5", or a description of another Mix Transformer."""
    widths, depths = (tuple(config.get(name) or ()) for name in ("hidden_sizes", "depths"))
    for size, (hidden_sizes, layers, _) in MIT_SIZES.items():
        if (widths, depths) == (tuple(hidden_sizes), tuple(layers)):
            return f"the encoder MiT-{size.upper()}"
    return f"a Mix Transformer of widths {', '.join(map(str, widths))}" if widths else "a Mix Transformer"
