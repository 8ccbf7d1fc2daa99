"""From a command line, and a recipe, to the arguments of a command."""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches

from transformers import HfArgumentParser

from ..methods import METHODS, arguments_of_others
from ..training.arguments import AllSparkTrainingArguments
from ..training.recipes import RECIPE_SUFFIXES, read_recipe
from ..utils.arguments import argument, documented
from .help import render
from .help_content import help_content


@documented
@dataclass
class ModelArguments:
    """Which model. What is not given is as in the checkpoint, or else as in AllSparkConfig."""

    encoder: str | None = argument(
        None,
        "Pre-trained encoder: a Hub id such as facebook/dinov2-small or nvidia/mit-b2, or a folder, whose README.md "
        "tells the license; or a model type of transformers, such as dinov2, to start at random.",
        common=True,
    )
    model_name_or_path: str | None = argument(
        None,
        "Model to start from, with its head: an AllSpark model, or a SegFormer (nvidia/segformer-*).",
        common=True,
    )
    backbone: str | None = argument(None, "Train a Mix Transformer from scratch: b0 to b5.", common=True)
    head: str | None = argument(
        None, "Decode head: dpt (the default) or all_mlp. With --encoder, but for a Mix Transformer."
    )
    use_skip_classifier: bool | None = argument(
        None, "Add a linear classifier on the encoder's features; on unless set to false. With --encoder."
    )
    use_image_stem: bool | None = argument(
        None, "Add convolutions of the image at half its size, for small objects. With --encoder."
    )
    hidden_sizes: list[int] | None = argument(
        None, "From scratch: channels of the four stages, instead of the backbone's."
    )
    depths: list[int] | None = argument(None, "From scratch: layers of the four stages, instead of the backbone's.")
    decoder_hidden_size: int | None = argument(
        None, "From scratch: width of the decode head, instead of the backbone's."
    )
    crop_size: list[int] | None = argument(
        None,
        "Training crop in pixels, one side or height and width; whole patches of the encoder waste nothing (DINOv2: "
        "518). With --preset none: that of model_name_or_path, else 513.",
        common=True,
    )
    memory_size: float | None = argument(None, "Memory slot as a multiple of C: 0.5, 1, 2, 4.")
    channel_attention_heads: int | None = argument(None, "Heads of the channel attention.")
    use_memory: bool | None = argument(None, "Paper, Table 5: S-Mem.")
    use_grouping: bool | None = argument(None, "Paper, Table 5: CSG.")
    grouping_similarity: str | None = argument(None, "cosine (code) or instance_norm (Eq. 4).")
    grouping_source: str | None = argument(None, "logits (code) or probabilities (paper).")
    mix_images_in_eval: bool | None = argument(
        None, "The authors' pseudo-label pass: images of a batch see each other."
    )
    drop_path_rate: float | None = argument(None, "Stochastic depth of the encoder.")
    attn_implementation: str | None = argument(None, "Encoder attention: eager or sdpa.")


def parse_arguments(types: tuple[type, ...], argv: list[str] | None = None, chosen: Sequence[str] = ()) -> tuple:
    """
    Reads a command line into argument classes. If its first argument is a recipe (.yaml, .yml, .json), the others
    override the recipe's entries.

    Args:
        types (`tuple[type, ...]`): argument classes.
        argv (`list[str]`, *optional*): the command line without the command; defaults to that of this process.
        chosen (`Sequence[str]`, *optional*): arguments that a recipe and the command line override.

    Returns:
        `tuple`: an instance of each class. Training arguments have an attribute `given`, the names that were given.

    Raises:
        FileNotFoundError: if the recipe, or one it is based on, does not exist.
        ValueError: if a recipe is not a flat mapping or is based on itself, an argument does not exist, is missing or
            has a value of another type, or a typed argument belongs to other methods than the chosen one.
    """
    typed = list(sys.argv[1:] if argv is None else argv)
    recipe = read_recipe(typed.pop(0)) if typed and typed[0].endswith(RECIPE_SUFFIXES) else []
    recipe = [*chosen, *recipe]
    *parsed, unknown = _Parser(types).parse_args_into_dataclasses(recipe + typed, return_remaining_strings=True)
    if unknown:
        names = [argument.split("=")[0] for argument in unknown if argument.startswith("--")] or unknown
        known = [f"--{one.name}" for kind in types for one in fields(kind)]
        close = [match for name in names for match in get_close_matches(name, known, n=1)]
        hint = f"did you mean {', '.join(close)}?" if close else "see --help."
        if names is unknown:
            hint = "put a glob pattern in quotes, and a value with blanks too."
        raise ValueError(f"There is no argument {', '.join(names)}: {hint}")
    for arguments in parsed:
        if isinstance(arguments, AllSparkTrainingArguments):
            _check_method(arguments.method, typed)
            arguments.given = _options(recipe + typed)
    return tuple(parsed)


def _options(command_line: list[str]) -> set[str]:
    """Names of the arguments on a command line."""
    return {option.split("=")[0].removeprefix("--").replace("-", "_") for option in command_line if option[:2] == "--"}


def _check_method(method: str, typed: list[str]):
    """
    Raises ValueError if a typed argument belongs to other methods only. A recipe may hold such arguments, because the
    command line may choose another method than the recipe.
    """
    options = _options(typed)
    for name in arguments_of_others(method):
        if name in options or f"no_{name}" in options:
            others = [other for other, kind in METHODS.items() if hasattr(kind.arguments_class, name)]
            raise ValueError(
                f"--{name} belongs to --method {' or '.join(others)} and changes nothing with {method}: leave it out, "
                "or choose another method."
            )


class _Help(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        print(render(help_content(parser.dataclass_types, None, everything=True)))
        parser.exit()


class _Parser(HfArgumentParser):
    """Raises ValueError instead of printing a long usage; [`~allspark_hf.cli.main`] answers `--help`."""

    def __init__(self, types: tuple[type, ...]):
        super().__init__(types, add_help=False, allow_abbrev=False)
        self.add_argument("--help_all", action=_Help, nargs=0, default=argparse.SUPPRESS)

    def error(self, message: str):
        list_in_one = re.search(r"invalid (int|float) value: '\S*[\d.][,; ]", message)
        hint = "give several numbers with blanks between them, such as 0 255; " if list_in_one else ""
        raise ValueError(f"{' '.join(message.split())}; {hint}--help explains the arguments.")
