"""Makes the model to train from arguments and data."""

import re
from dataclasses import replace

from huggingface_hub.errors import StrictDataclassError

from ..data import CheckReport, Classes
from ..models.configuration_allspark import MIT_SIZES, AllSparkConfig
from ..models.configuration_backbone_allspark import AllSparkBackboneConfig
from ..models.encoders import encoder_config, encoder_normalization, is_model_type, load_encoder
from ..models.modeling_allspark import SegformerForSemiSupervisedSegmentation, SemiSupervisedSegmenter
from ..models.pretrained import check_reachable, loading
from ..models.registration import SEGMENTERS
from ..publishing.licenses import FROM_SCRATCH, base_license_of, base_weights_of
from .arguments import ModelArguments


# Weights that start anew if classes, crop or bottleneck are others than the checkpoint's.
REPLACEABLE = re.compile(r"(.*\.)?classifier\.|skip_classifier\.|bottleneck\.")
# Entries of a checkpoint's config.json that a new training does not take over.
NOT_TAKEN_OVER = ("model_type", "num_labels", "mask_values", "ignored_mask_values")
GEOMETRY_FIELDS = ("hidden_sizes", "depths", "decoder_hidden_size")
HEAD_FIELDS = ("head", "use_skip_classifier", "use_image_stem")  # with --encoder
SHOWN_CLASSES = 5  # in a sentence
SEGFORMER_TYPES = ("segformer", *SEGMENTERS)
MIT_NAME = re.compile(r"nvidia/(?:mit|segformer)-b[0-5].*")
CONFIG_FIELDS = (
    *("memory_size", "channel_attention_heads", "use_memory", "use_grouping", "grouping_similarity"),
    *("grouping_source", "mix_images_in_eval"),
)


def load_model(
    arguments: ModelArguments, report: CheckReport, ignore_index: int, plain_segformer: bool
) -> SemiSupervisedSegmenter:
    """
    The model to train, with the data's classes.

    Args:
        arguments ([`ModelArguments`]): arguments of the model.
        report ([`CheckReport`]): the checked data.
        ignore_index (`int`): mask value of pixels that do not count.
        plain_segformer (`bool`): whether to leave out the bottleneck, as in the baselines.

    Raises:
        ValueError: unless exactly one of `encoder`, `model_name_or_path` and `backbone` is given, if the backbone is
            no Mix Transformer, or if a checkpoint does not fit or cannot be loaded.
        OSError, StrictDataclassError: if a checkpoint's files or configuration are missing or wrong.
    """
    arguments = resolve_encoder(arguments)
    geometry = check_source(arguments)
    fields = {name: getattr(arguments, name) for name in CONFIG_FIELDS if getattr(arguments, name) is not None}
    if arguments.crop_size:
        fields["crop_size"] = arguments.crop_size[0] if len(arguments.crop_size) == 1 else arguments.crop_size
    if plain_segformer:
        fields |= AllSparkConfig.plain_segformer_switches()
    fields |= class_fields(report) | {"semantic_loss_ignore_index": ignore_index}
    if arguments.encoder:
        return _new_head(arguments, fields)
    if arguments.backbone:
        config = AllSparkConfig.mit(arguments.backbone, **fields, **geometry, base_weights=FROM_SCRATCH)
        _set_drop_path(config, arguments.drop_path_rate)
        config._attn_implementation = arguments.attn_implementation
        return SegformerForSemiSupervisedSegmentation(config)
    name = arguments.model_name_or_path
    check_reachable(name)
    with loading(name, keep=(OSError, StrictDataclassError)):
        stored, _ = AllSparkConfig.get_config_dict(name)
        kind = stored.get("model_type")
        config_class, model_class = SEGMENTERS.get(kind, (AllSparkConfig, SegformerForSemiSupervisedSegmentation))
        fields["base_weights"] = base_weights_of(stored, name)
        if stored.get("base_weights") is None:
            fields["base_license"] = base_license_of(name)
        stored = {name: value for name, value in stored.items() if name not in NOT_TAKEN_OVER}
        if len(stored.get("palette") or ()) != report.num_labels:
            stored.pop("palette", None)
        _check_order(stored.get("id2label"), report.data.classes)
        config = config_class.from_dict({**stored, **fields})
        _set_drop_path(config, arguments.drop_path_rate)
        model, info = model_class.from_pretrained(
            name,
            output_loading_info=True,
            config=config,
            dtype="float32",  # to train in, whatever type the weights were saved in
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


def _check_order(id2label: dict[str, str] | None, classes: Classes | None):
    """Refuses the classes of a checkpoint in another order, in which each would begin with the weights of another."""
    if not isinstance(id2label, dict) or classes is None:
        return
    stored, given = ([str(of[index]) for index in sorted(of, key=int)] for of in (id2label, classes.id2label))
    if stored != given and sorted(stored) == sorted(given):
        raise ValueError(
            f"its classes are the data's in another order ({', '.join(stored[:SHOWN_CLASSES])}; data: "
            f"{', '.join(given[:SHOWN_CLASSES])}): give masks and class list in the model's order, or start from an "
            "encoder."
        )


def _set_drop_path(config: AllSparkConfig | AllSparkBackboneConfig, rate: float | None):
    """Sets the stochastic depth of the encoder, if a rate was given."""
    if rate is None:
        return
    encoder = getattr(config, "backbone_config", config)
    if not hasattr(encoder, "drop_path_rate"):
        raise ValueError(f"The encoder, {encoder.model_type}, has no drop_path_rate: leave it out.")
    encoder.drop_path_rate = rate


def _new_head(arguments: ModelArguments, fields: dict) -> SemiSupervisedSegmenter:
    """A model with the encoder that was asked for."""
    name, encoder_fields = arguments.encoder, {}
    fields |= {name: getattr(arguments, name) for name in HEAD_FIELDS if getattr(arguments, name) is not None}
    if arguments.decoder_hidden_size is not None:
        fields["decoder_hidden_size"] = arguments.decoder_hidden_size
    if arguments.drop_path_rate is not None:
        encoder_fields["drop_path_rate"] = arguments.drop_path_rate
    fields["base_weights"] = FROM_SCRATCH
    if not is_model_type(name):
        fields |= {"base_weights": base_weights_of({}, name), "base_license": base_license_of(name)}
    return load_encoder(name, arguments.attn_implementation, encoder_fields, **fields)


def resolve_encoder(arguments: ModelArguments) -> ModelArguments:
    """The arguments; an `encoder` that is a SegFormer or a model of this package becomes `model_name_or_path`."""
    name = arguments.encoder
    if name is None or arguments.model_name_or_path or arguments.backbone or is_model_type(name):
        return arguments
    if MIT_NAME.fullmatch(name) or encoder_config(name).model_type in SEGFORMER_TYPES:
        return replace(arguments, encoder=None, model_name_or_path=name)
    return arguments


def normalization_of(arguments: ModelArguments) -> dict[str, list[float]]:
    """`image_mean` and `image_std` of the weights that training starts from; from scratch those of ImageNet."""
    return encoder_normalization(arguments.encoder or arguments.model_name_or_path or "dinov2")


def check_source(arguments: ModelArguments) -> dict:
    """The geometry that was given; raises ValueError unless there is one known source of weights that it fits."""
    sources = [name for name in ("encoder", "model_name_or_path", "backbone") if getattr(arguments, name)]
    if len(sources) != 1:
        given = f", not {' and '.join(sources)}; `null` in a recipe removes what its base gives" if sources else ""
        raise ValueError(
            "Give one of --encoder (a pre-trained encoder, such as facebook/dinov2-small), --model_name_or_path (a "
            f"model with its head) and --backbone (b0 to b5 from scratch){given}."
        )
    if arguments.backbone not in (None, *MIT_SIZES):
        raise ValueError(
            f"backbone={arguments.backbone!r} is no Mix Transformer: choose one of {', '.join(MIT_SIZES)}, or give "
            "another encoder as --encoder."
        )
    if not arguments.encoder and (given := [name for name in HEAD_FIELDS if getattr(arguments, name) is not None]):
        raise ValueError(
            f"{', '.join(given)} can only be given with an --encoder that is no Mix Transformer: leave out."
        )
    geometry = {name: getattr(arguments, name) for name in GEOMETRY_FIELDS if getattr(arguments, name) is not None}
    if arguments.encoder:
        geometry.pop("decoder_hidden_size", None)
    if geometry and not arguments.backbone:
        raise ValueError(
            f"{', '.join(geometry)} would not fit the checkpoint's weights: leave them out, or use --backbone."
        )
    return geometry


def class_fields(report: CheckReport) -> dict:
    """Configuration fields with the names and colors of the data's classes, and how its images are read."""
    classes, fields = report.data.classes, report.reading._asdict()
    if classes is None:
        names = {index: f"class_{index}" for index in range(report.num_labels)}
        return fields | {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    fields |= {"id2label": classes.id2label, "label2id": classes.label2id}
    if classes.colors:
        fields["palette"] = [list(color) for color in classes.colors]
    return fields
