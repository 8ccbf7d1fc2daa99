"""What the scripts share: recipes, and the way from arguments to a model; data has [`DataArguments`] of its own."""

import argparse
import dataclasses
import os
import re
import sys
from dataclasses import dataclass, field
from difflib import get_close_matches

import torch
from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser

from ..data import CheckReport
from ..models.configuration_allspark import MIT_SIZES, AllSparkConfig
from ..models.modeling_allspark import SegformerForSemiSupervisedSegmentation
from ..models.pretrained import loading
from ..publishing.licenses import FROM_SCRATCH, base_weights_of
from ..training.recipes import RECIPE_SUFFIXES, read_recipe, recipe_arguments, resolve_recipe


@dataclass
class ModelArguments:
    """Which model. Fields that are left out keep what the checkpoint, or else AllSparkConfig, says."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Weights to start from: nvidia/mit-b0..b5, nvidia/segformer-*, or an AllSpark model."},
    )
    backbone: str | None = field(default=None, metadata={"help": "Train from scratch: b0 to b5."})
    hidden_sizes: list[int] | None = field(
        default=None, metadata={"help": "From scratch: channels of the four stages, instead of the backbone's."}
    )
    depths: list[int] | None = field(
        default=None, metadata={"help": "From scratch: layers of the four stages, instead of the backbone's."}
    )
    decoder_hidden_size: int | None = field(
        default=None, metadata={"help": "From scratch: width of the decode head, instead of the backbone's."}
    )
    crop_size: list[int] | None = field(
        default=None, metadata={"help": "Training crop in pixels, one side or height and width. Default 513."}
    )
    memory_size: float | None = field(default=None, metadata={"help": "Memory slot as a multiple of C: 0.5, 1, 2, 4."})
    channel_attention_heads: int | None = field(default=None, metadata={"help": "Heads of the channel attention."})
    use_memory: bool | None = field(default=None, metadata={"help": "Paper, Table 5: S-Mem."})
    use_grouping: bool | None = field(default=None, metadata={"help": "Paper, Table 5: CSG."})
    grouping_similarity: str | None = field(default=None, metadata={"help": "cosine (code) or instance_norm (Eq. 4)."})
    grouping_source: str | None = field(default=None, metadata={"help": "logits (code) or probabilities (paper)."})
    mix_images_in_eval: bool | None = field(
        default=None, metadata={"help": "The authors' pseudo-label pass: images of a batch see each other."}
    )
    drop_path_rate: float | None = field(default=None, metadata={"help": "Stochastic depth of the encoder."})
    attn_implementation: str | None = field(default=None, metadata={"help": "Encoder attention: eager or sdpa."})


# What other classes, crops or bottleneck settings may start anew.
REPLACEABLE = re.compile(r"decode_head\.classifier\.|bottleneck\.")
# Of a checkpoint's config.json; the last one is for --local_memory to say, anew in each training.
NOT_TAKEN_OVER = ("model_type", "num_labels", "share_memory")
GEOMETRY_FIELDS = ("hidden_sizes", "depths", "decoder_hidden_size")
CONFIG_FIELDS = (
    "memory_size",
    "channel_attention_heads",
    "use_memory",
    "use_grouping",
    "grouping_similarity",
    "grouping_source",
    "mix_images_in_eval",
    "drop_path_rate",
)


def parse_arguments(types: tuple[type, ...], argv: list[str] | None = None) -> tuple:
    """
    Command line to dataclasses. If the first argument is a recipe (.yaml, .yml, .json), its entries come first and the
    rest of the command line overrides them.

    Raises:
        FileNotFoundError: if the recipe, or one it is based on, does not exist.
        ValueError: if a recipe is not a flat mapping or is based on itself, or an argument does not exist.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0].endswith(RECIPE_SUFFIXES):
        argv = read_recipe(argv[0]) + argv[1:]
    parser = _Parser(
        types, description=sys.modules["__main__"].__doc__, formatter_class=_HelpFormatter, allow_abbrev=False
    )
    *parsed, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        names = [argument.split("=")[0] for argument in unknown if argument.startswith("--")] or unknown
        known = [f"--{field.name}" for one in types for field in dataclasses.fields(one)]
        close = [match for name in names for match in get_close_matches(name, known, n=1)]
        hint = f"did you mean {', '.join(close)}?" if close else "see --help."
        raise ValueError(f"There is no argument {', '.join(names)}: {hint}")
    return tuple(parsed)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The script's own words as they stand, and defaults."""


class _Parser(HfArgumentParser):
    """Without the usage, which is longer than a screen, before an error."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}; --help explains all arguments.\n")


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
    """Configuration fields with the names and colours of the data's classes."""
    classes = report.data.classes
    if classes is None:
        names = {index: f"class_{index}" for index in range(report.num_labels)}
        return {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    fields = {"id2label": classes.id2label, "label2id": classes.label2id}
    if classes.colors:
        fields["palette"] = [list(color) for color in classes.colors]
    return fields


def leave(accelerator: Accelerator, failure: str | None = None):
    """
    Ends a script whose work is done, the last thing that it calls.

    Processes on CPUs wait for each other and then end at once: gloo's threads outlive the interpreter, and now and
    then abort a process that has done its work.

    Args:
        accelerator (`Accelerator`): of the Trainer.
        failure (`str`, *optional*): a sentence for the error output; the exit code is then 1.
    """
    if _on_gloo():
        accelerator.wait_for_everyone()
        _leave_at_once(failure)
    accelerator.end_training()
    if failure:
        sys.exit(failure)


def fail(failure: str):
    """
    Ends a script that cannot go on. One of several processes ends at once: the others may wait for it in a collective
    operation, until the launcher (torchrun, accelerate launch) sees that one is gone and ends them.

    Args:
        failure (`str`): a sentence for the error output; the exit code is 1.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        _leave_at_once(failure)
    sys.exit(failure)


def _on_gloo() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_backend() == "gloo"


def _leave_at_once(failure: str | None):
    if failure:
        print(failure, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if failure else 0)


__all__ = [
    "ModelArguments",
    "check_source",
    "class_fields",
    "fail",
    "leave",
    "load_model",
    "parse_arguments",
    "read_recipe",
    "recipe_arguments",
    "resolve_recipe",
]
