"""Encoders, or their first layers, that training leaves as they are."""

from torch import nn

from .modeling_allspark import SemiSupervisedSegmenter


def freeze_encoder(model: SemiSupervisedSegmenter, num_layers: int | None = None):
    """
    Freezes the encoder, or the first layers of a plain ViT: they get no gradient, and no memory is kept for one.
    Frozen parts stay in eval mode, so their dropout is off and their batch statistics do not change.

    Args:
        model ([`SemiSupervisedSegmenter`]): changed in place.
        num_layers (`int`, *optional*): how many layers to freeze, with the embeddings before them. Default: all.

    Raises:
        ValueError: if the encoder has no layers of one kind, or not as many.
    """
    encoder = model.base_model
    frozen = [encoder] if num_layers is None else _first_layers(model, num_layers)
    found = {id(parameter) for part in frozen for parameter in part.parameters() if parameter.requires_grad}
    model.frozen_names = [name for name, parameter in model.named_parameters() if id(parameter) in found]
    for part in frozen:
        part.requires_grad_(False)
    model.train(model.training)


def thaw_encoder(model: SemiSupervisedSegmenter):
    """Undoes [`freeze_encoder`] of an earlier training with the same model; what others froze stays as it is."""
    for name in model.__dict__.pop("frozen_names", ()):
        model.get_parameter(name).requires_grad_(True)
    model.train(model.training)


def _first_layers(model: SemiSupervisedSegmenter, num_layers: int) -> list[nn.Module]:
    encoder, strides = model.base_model, getattr(model.config, "feature_strides", ())
    total = getattr(encoder.config, "num_hidden_layers", None)
    parts = dict(encoder.named_modules())
    stacks = [name for name, part in parts.items() if isinstance(part, nn.ModuleList) and len(part) == total]
    if not stacks or len(set(strides)) > 1:  # some pyramids call their stages layers
        raise ValueError(
            f"freeze_encoder_layers={num_layers} counts the layers of a plain ViT, and {encoder.config.model_type!r} "
            "is none: leave it out, or freeze the whole encoder (freeze_encoder=True)."
        )
    if num_layers > total:
        raise ValueError(
            f"freeze_encoder_layers={num_layers}, but the encoder has {total} layers: set at most {total}."
        )
    stack = stacks[0]
    before = [name for name in parts if "embed" in name.rpartition(".")[2] and not name.startswith(f"{stack}.")]
    return [*(parts[name] for name in before), *parts[stack][:num_layers]]
