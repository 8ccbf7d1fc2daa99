"""The authors' checkpoints, renamed and loaded into [`SegformerForSemiSupervisedSegmentation`]."""

import math
import pickle
import re
from pathlib import Path

import numpy as np
import torch

from .configuration_allspark import MIT_SIZES, AllSparkConfig
from .modeling_allspark import SegformerForSemiSupervisedSegmentation
from .pretrained import failure


MIT_ATTENTION_HEADS = (1, 2, 5, 8)  # the shapes of the weights do not tell the number of heads
WRAPPER_KEYS = ("model", "state_dict", "model_state", "model_state_dict")
# A best score saved as a numpy number needs these: they hold data only. Older numpy has another name for the module.
NUMPY_SCALARS = [np._core.multiarray.scalar, (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"), np.dtype]
NUMPY_SCALARS += [type(np.dtype(name)) for name in ("float64", "float32", "int64")]

# Authors' name -> ours. Stages are counted from 1 there and from 0 here.
RENAMES = (
    (r"backbone\.patch_embed(?P<stage>\d)\.proj", "segformer.stages.{stage}.patch_embeddings.proj"),
    (r"backbone\.patch_embed(?P<stage>\d)\.norm", "segformer.stages.{stage}.patch_embeddings.layer_norm"),
    (r"backbone\.norm(?P<stage>\d)", "segformer.stages.{stage}.layer_norm"),
    (
        r"backbone\.block(?P<stage>\d)\.(?P<block>\d+)\.norm1",
        "segformer.stages.{stage}.blocks.{block}.layernorm_before",
    ),
    (
        r"backbone\.block(?P<stage>\d)\.(?P<block>\d+)\.norm2",
        "segformer.stages.{stage}.blocks.{block}.layernorm_after",
    ),
    (
        r"backbone\.block(?P<stage>\d)\.(?P<block>\d+)\.attn\.(?P<part>[qkv])",
        "segformer.stages.{stage}.blocks.{block}.attention.{part}_proj",
    ),
    (
        r"backbone\.block(?P<stage>\d)\.(?P<block>\d+)\.attn\.proj",
        "segformer.stages.{stage}.blocks.{block}.attention.o_proj",
    ),
    (
        r"backbone\.block(?P<stage>\d)\.(?P<block>\d+)\.attn\.sr",
        "segformer.stages.{stage}.blocks.{block}.attention.sequence_reduction.sequence_reduction",
    ),
    (
        r"backbone\.block(?P<stage>\d)\.(?P<block>\d+)\.attn\.norm",
        "segformer.stages.{stage}.blocks.{block}.attention.sequence_reduction.layer_norm",
    ),
    (
        r"backbone\.block(?P<stage>\d)\.(?P<block>\d+)\.mlp\.(?P<part>fc1|fc2|dwconv\.dwconv)",
        "segformer.stages.{stage}.blocks.{block}.mlp.{part}",
    ),
    (r"decoder\.decoder\.linear_c(?P<stage>\d)\.proj", "decode_head.linear_projections.{stage}.proj"),
    (r"decoder\.decoder\.linear_fuse\.conv", "decode_head.linear_fuse"),
    (r"decoder\.decoder\.linear_fuse\.bn", "decode_head.batch_norm"),
    (r"decoder\.decoder\.linear_pred", "decode_head.classifier"),
    (r"decoder\.allspark\.map_in\.0", "bottleneck.project_in"),
    (r"decoder\.allspark\.map_out\.0", "bottleneck.project_out"),
    (r"decoder\.allspark\.attn_norm", "bottleneck.token_norm"),
    (r"decoder\.allspark\.encoder_norm", "bottleneck.output_norm"),
    (r"decoder\.allspark\.attn\.(?P<part>[qkv])_l2u", "bottleneck.labeled_attention.{part}_proj"),
    (r"decoder\.allspark\.attn\.(?P<part>[qkv])_u", "bottleneck.unlabeled_attention.{part}_proj"),
    (r"decoder\.allspark\.attn\.out_l2u", "bottleneck.labeled_attention.o_proj"),
    (r"decoder\.allspark\.attn\.out_u", "bottleneck.unlabeled_attention.o_proj"),
    (r"decoder\.allspark\.attn\.kv_queue", "bottleneck.memory.channels"),
    (r"decoder\.allspark\.attn\.queue_ptr", "bottleneck.memory.num_enqueued"),
)


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """
    The state dict in a `.pth` of the authors, without the `module.` prefix or the training-checkpoint wrapper.

    Only tensors and plain containers are read (`weights_only=True`): the file cannot run code.

    Args:
        path (`str` or `Path`): the file.

    Raises:
        ValueError: if the file holds something else, or no state dict.
    """
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file makes the unpickler raise nearly anything, such as KeyError, TypeError and struct.error.
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:  # no such file; torch's own errors name none
            raise
        refused = isinstance(error, pickle.UnpicklingError | RuntimeError)
        if refused and "global" in str(error).lower():  # torch calls a class or function in a pickle so
            raise ValueError(
                f"{path} holds Python objects besides tensors, which are not loaded because they could run code: "
                "save its state dict alone and convert that."
            ) from error
        raise ValueError(f"{path} is damaged or no PyTorch checkpoint: get the file again.") from error
    for key in WRAPPER_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not named or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(
            f"{path} holds no state dict: give a file whose content, or whose entry {' or '.join(WRAPPER_KEYS)}, "
            "maps names to tensors."
        )
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def rename(reference: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """
    Authors' state dict to ours, splitting the encoder's joint key-value projections.

    Args:
        reference (`dict[str, torch.Tensor]`): from [`read_checkpoint`].

    Returns:
        `tuple[dict[str, torch.Tensor], list[str]]`: the renamed tensors, and the names that fit no rule.

    Raises:
        ValueError: if a joint projection cannot be halved.
    """
    split = {}
    for name, tensor in reference.items():
        match = re.fullmatch(r"(backbone\.block\d\.\d+\.attn\.)kv\.(weight|bias)", name)
        if match:
            if tensor.ndim == 0 or not tensor.shape[0] or tensor.shape[0] % 2:
                raise ValueError(
                    f"{name!r} has shape {tuple(tensor.shape)}, which cannot be halved into key and value."
                )
            key, value = tensor.chunk(2)
            split[f"{match[1]}k.{match[2]}"] = key
            split[f"{match[1]}v.{match[2]}"] = value
        else:
            split[name] = tensor
    renamed, unmapped = {}, []
    for name, tensor in split.items():
        new_name = _rename_one(name)
        if new_name is None:
            unmapped.append(name)
        else:
            renamed[new_name] = tensor
    return renamed, unmapped


def _rename_one(name: str) -> str | None:
    for pattern, template in RENAMES:
        match = re.fullmatch(pattern + r"(?P<leaf>\.\w+)?", name)
        if match:
            groups = match.groupdict()
            if "stage" in groups:
                groups["stage"] = int(groups["stage"]) - 1
            return template.format(**groups) + (groups["leaf"] or "")
    return None


def infer_config(renamed: dict[str, torch.Tensor], **kwargs) -> AllSparkConfig:
    """
    The configuration that the shapes of a renamed state dict imply.

    Args:
        renamed (`dict[str, torch.Tensor]`): from [`rename`].
        kwargs: fields of [`AllSparkConfig`] that shapes cannot tell; they win.

    Raises:
        ValueError: if a tensor that the geometry is read from is absent or has another number of axes.
    """
    try:
        fields = {**_encoder_fields(renamed), **_bottleneck_fields(renamed)}
    except ZeroDivisionError as error:
        raise ValueError("A tensor that the model's geometry is read from has an axis of size 0.") from error
    fields["decoder_hidden_size"] = _shape(renamed, "decode_head.linear_fuse.weight", 4)[0]
    fields["num_labels"] = _shape(renamed, "decode_head.classifier.weight", 4)[0]
    return AllSparkConfig(**{**fields, "base_weights": _base_weights(fields), **kwargs})


def _base_weights(fields: dict) -> str:
    """What the authors' training started from: NVIDIA's ImageNet weights, under NVIDIA's license."""
    geometry = tuple(fields["hidden_sizes"]), tuple(fields["depths"])
    sizes = [size for size, (hidden_sizes, depths, _) in MIT_SIZES.items() if (hidden_sizes, depths) == geometry]
    return f"nvidia/mit-{sizes[0]}" if sizes else "authors-checkpoint"


def _shape(renamed: dict[str, torch.Tensor], name: str, num_axes: int) -> tuple[int, ...]:
    """The shape of a tensor that the geometry is read from; ValueError if it is absent or has other axes."""
    if name not in renamed:
        raise ValueError(f"The checkpoint lacks {name!r}, which the model's geometry is read from.")
    shape = tuple(renamed[name].shape)
    if len(shape) != num_axes:
        raise ValueError(f"{name!r}, which the model's geometry is read from, has shape {shape}, not {num_axes} axes.")
    return shape


def _encoder_fields(renamed: dict[str, torch.Tensor]) -> dict:
    fields = {"hidden_sizes": [], "depths": [], "sr_ratios": [], "mlp_ratios": [], "patch_sizes": []}
    for stage in range(len(MIT_ATTENTION_HEADS)):
        prefix = f"segformer.stages.{stage}."
        width, *_, patch_size = _shape(renamed, f"{prefix}patch_embeddings.proj.weight", 4)
        blocks = {name.split(".")[4] for name in renamed if name.startswith(f"{prefix}blocks.")}
        reduction = f"{prefix}blocks.0.attention.sequence_reduction.sequence_reduction.weight"
        fields["hidden_sizes"].append(width)
        fields["patch_sizes"].append(patch_size)
        fields["depths"].append(len(blocks))
        fields["sr_ratios"].append(_shape(renamed, reduction, 4)[-1] if reduction in renamed else 1)
        fields["mlp_ratios"].append(_shape(renamed, f"{prefix}blocks.0.mlp.fc1.weight", 2)[0] // width)
    return {**fields, "num_attention_heads": list(MIT_ATTENTION_HEADS)}


def _bottleneck_fields(renamed: dict[str, torch.Tensor]) -> dict:
    if not any(name.startswith("bottleneck.") for name in renamed):
        return AllSparkConfig.plain_segformer_switches()
    projected, num_channels = _shape(renamed, "bottleneck.labeled_attention.q_proj.weight", 2)
    _, slot_size, num_tokens = _shape(renamed, "bottleneck.memory.channels", 3)
    side = math.isqrt(num_tokens)
    if side * side != num_tokens:
        raise ValueError(f"The memory has {num_tokens} tokens, but the authors' crops are square: check the file.")
    return {
        "channel_attention_heads": projected // num_channels,
        "memory_size": slot_size / num_channels,
        "crop_size": 32 * (side - 1) + 1,  # the authors' crops, 513 and 801, are the smallest of their grid
    }


def convert_state_dict(
    reference: dict[str, torch.Tensor], class_names: list[str] | None = None, **kwargs
) -> SegformerForSemiSupervisedSegmentation:
    """
    A model with the authors' weights, in eval mode.

    Args:
        reference (`dict[str, torch.Tensor]`): state dict with the authors' names, from [`read_checkpoint`].
        class_names (`list[str]`, *optional*): in the order of the class indices.
        kwargs: fields of [`AllSparkConfig`] that shapes cannot tell.

    Raises:
        ValueError: listing every name that is unmapped, missing or of another shape.
    """
    renamed, unmapped = rename(reference)
    problems = [f"{name} is mapped by no rule" for name in unmapped]
    config = infer_config(renamed, **kwargs)
    if class_names is not None:
        if len(class_names) != config.num_labels:
            raise ValueError(
                f"{len(class_names)} class names were given for the checkpoint's {config.num_labels} classes: "
                "give one name per class."
            )
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: index for index, name in enumerate(class_names)}
    try:
        model = SegformerForSemiSupervisedSegmentation(config)
    except (ArithmeticError, LookupError, RuntimeError, TypeError) as error:  # sizes of 0, or too large for the memory
        raise ValueError(f"No model can be built from the checkpoint's shapes ({failure(error)}).") from error
    own = model.state_dict()
    problems += [f"{name} is missing" for name in own if name not in renamed]
    problems += [f"{name} is not part of the model" for name in renamed if name not in own]
    problems += [
        f"{name} has shape {tuple(tensor.shape)} instead of {tuple(own[name].shape)}"
        for name, tensor in renamed.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if problems:
        raise ValueError(f"The checkpoint does not fit the model it implies: {'; '.join(problems)}.")
    model.load_state_dict(renamed)
    return model.eval()
