"""Fields of argument classes: what is to be known about an argument stands beside the argument."""

from collections.abc import Sequence
from dataclasses import MISSING, Field, field
from typing import Any


RESUME = ("refused", "kept", "changed", "free")


def argument(
    default: Any = MISSING,
    help: str = "",
    *,
    default_factory: Any = MISSING,
    choices: Sequence[str] | None = None,
    resume: str = "free",
    common: bool = False,
    shown: bool = False,
    recorded: bool = True,
) -> Field:
    """
    A dataclass field for [`~transformers.HfArgumentParser`] with the facts that the rest of the package reads.

    Args:
        default: of the argument.
        help (`str`): for `--help`.
        default_factory: for a default that is made anew each time.
        choices (`Sequence[str]`, *optional*): the values allowed; [`check_choices`] refuses others.
        resume (`str`):
            what another value at a resume means: "refused" (the run cannot go on with it), "kept" (the checkpoint's
            value stays, since its optimizer or schedule carries it), "changed" (the new value holds from here on, and
            a warning says so), or "free" (nothing of the result depends on it).
        common (`bool`): one of the about twenty arguments that `--help` shows first.
        shown (`bool`): whether a model card lists it among the training settings, default or not.
        recorded (`bool`): whether run_record.json has it when it differs from its default.
    """
    metadata = {"help": help, "resume": resume, "common": common, "shown": shown, "recorded": recorded}
    if choices is not None:
        metadata["choices"] = list(choices)
    return field(default=default, default_factory=default_factory, metadata=metadata)


def check_choices(arguments: Any):
    """Raises ValueError if a field that declares choices has none of them."""
    for name, one in type(arguments).__dataclass_fields__.items():
        choices, value = one.metadata.get("choices"), getattr(arguments, name)
        if choices and value is not None and value not in choices:
            raise ValueError(f"{name}={value!r} is unknown: choose one of {', '.join(map(str, choices))}.")


__all__ = ["RESUME", "argument", "check_choices"]
