"""From arguments and data to the model to train."""

import re

from huggingface_hub.errors import StrictDataclassError

from ..data import CheckReport
from ..models.configuration_allspark import MIT_SIZES, AllSparkConfig
from ..models.modeling_allspark import SegformerForSemiSupervisedSegmentation
from ..models.pretrained import loading
from ..publishing.licenses import FROM_SCRATCH, base_weights_of
from .arguments import ModelArguments


# What other classes, crops or bottleneck settings may start anew.
REPLACEABLE = re.compile(r"(.*\.)?classifier\.|bottleneck\.")
# Entries of a checkpoint's config.json that a new training does not begin with.
NOT_TAKEN_OVER = ("model_type", "num_labels", "mask_values", "ignored_mask_values")
GEOMETRY_FIELDS = ("hidden_sizes", "depths", "decoder_hidden_size")
CONFIG_FIELDS = (
    *("memory_size", "channel_attention_heads", "use_memory", "use_grouping", "grouping_similarity"),
    *("grouping_source", "mix_images_in_eval", "drop_path_rate"),
)


def load_model(
    arguments: ModelArguments, report: CheckReport, ignore_index: int, plain_segformer: bool
) -> SegformerForSemiSupervisedSegmentation:
    """
    The model to train, with the data's classes.

    Args:
        arguments ([`ModelArguments`]): which model.
        report ([`CheckReport`]): the data.
        ignore_index (`int`): mask value of pixels that do not count.
        plain_segformer (`bool`): whether to leave the bottleneck out, for the baselines.

    Raises:
        ValueError: unless exactly one of `model_name_or_path` and `backbone` is given, if the backbone is no Mix
            Transformer, if a checkpoint is to get another geometry, and if it cannot be loaded, unless that is an
            `OSError` or a `StrictDataclassError`.
    """
    geometry = check_source(arguments)
    fields = {name: getattr(arguments, name) for name in CONFIG_FIELDS if getattr(arguments, name) is not None}
    if arguments.crop_size:
        fields["crop_size"] = arguments.crop_size[0] if len(arguments.crop_size) == 1 else arguments.crop_size
    if plain_segformer:
        fields |= AllSparkConfig.plain_segformer_switches()
    fields |= class_fields(report) | {"semantic_loss_ignore_index": ignore_index}
    if arguments.backbone:
        fields |= geometry | {"base_weights": FROM_SCRATCH}
        config = AllSparkConfig.mit(arguments.backbone, **fields)
        config._attn_implementation = arguments.attn_implementation
        return SegformerForSemiSupervisedSegmentation(config)
    name = arguments.model_name_or_path
    with loading(name, keep=(OSError, StrictDataclassError)):
        stored, _ = AllSparkConfig.get_config_dict(name)
        fields["base_weights"] = base_weights_of(stored, name)
        stored = {name: value for name, value in stored.items() if name not in NOT_TAKEN_OVER}
        if len(stored.get("palette") or ()) != report.num_labels:
            stored.pop("palette", None)
        model, info = SegformerForSemiSupervisedSegmentation.from_pretrained(
            name,
            output_loading_info=True,
            config=AllSparkConfig.from_dict({**stored, **fields}),
            ignore_mismatched_sizes=True,  # a head for other classes starts anew, and from_pretrained says so
            attn_implementation=arguments.attn_implementation,
        )
    misfits = sorted(str(entry[0]) for entry in info["mismatched_keys"] if not REPLACEABLE.match(str(entry[0])))
    if misfits:
        raise ValueError(
            f"{len(misfits)} weights of {name!r} (first: {misfits[0]}) have other shapes than its config.json says, "
            "and would start anew: get the checkpoint again."
        )
    return model


def check_source(arguments: ModelArguments) -> dict:
    """The geometry fields that were given; ValueError unless there is one source of weights, known, that they fit."""
    if (arguments.model_name_or_path is None) == (arguments.backbone is None):
        hint = "; `null` in a recipe removes what its base gives" if arguments.backbone else ""
        raise ValueError(
            f"Give either --model_name_or_path (weights to start from) or --backbone (from scratch){hint}."
        )
    if arguments.backbone not in (None, *MIT_SIZES):
        raise ValueError(
            f"backbone={arguments.backbone!r} is no Mix Transformer, and AllSpark is built on SegFormer's encoder "
            f"(on a CNN it hurts: the paper's Table 6): choose one of {', '.join(MIT_SIZES)}."
        )
    geometry = {name: getattr(arguments, name) for name in GEOMETRY_FIELDS if getattr(arguments, name) is not None}
    if geometry and arguments.model_name_or_path:
        raise ValueError(
            f"{', '.join(geometry)} would not fit the checkpoint's weights: leave them out, or use --backbone."
        )
    return geometry


def class_fields(report: CheckReport) -> dict:
    """Configuration fields with the names and colors of the data's classes."""
    classes = report.data.classes
    if classes is None:
        names = {index: f"class_{index}" for index in range(report.num_labels)}
        return {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    fields = {"id2label": classes.id2label, "label2id": classes.label2id}
    if classes.colors:
        fields["palette"] = [list(color) for color in classes.colors]
    return fields


__all__ = ["check_source", "class_fields", "load_model"]
