"""Fields of argument classes: what is to be known about an argument stands beside the argument."""

import inspect
import math
from collections.abc import Collection
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from typing import Any


@dataclass(frozen=True)
class Facts:
    """
    What the rest of the package reads of an argument.

    Args:
        resume (`str`, *optional*, defaults to `"free"`):
            what another value at a resume means: `"refused"` (the run cannot go on with it), `"kept"` (the value of
            the checkpoint stays, since its optimizer or schedule carries it), `"changed"` (the new value holds from
            here on, and a warning says so), `"cut"` (it cuts the images of one update into batches; refused if an
            update then has others) or `"free"` (no result depends on it, or something else is compared).
        common (`bool`, *optional*, defaults to `False`): one of the about twenty arguments that `--help` shows first.
        shown (`bool`, *optional*, defaults to `False`): whether a model card lists it, default or not.
        recorded (`bool`, *optional*, defaults to `True`):
            whether run_record.json has it when it differs from its default.
        by_encoder (`bool`, *optional*, defaults to `False`):
            whether `allspark train` chooses the value for the encoder where nobody gives it; the default is the
            Mix Transformer's.
        group (`str`, *optional*): heading of `--help` that it stands under; else that of its class.
        interval (`str`, *optional*):
            the numbers allowed, as in `"[0, 1)"`; with `inf` for no bound. Of a list, each entry is one.
    """

    resume: str = "free"
    common: bool = False
    shown: bool = False
    recorded: bool = True
    by_encoder: bool = False
    group: str | None = None
    interval: str | None = None


class _Metadata(dict):
    """What [`~transformers.HfArgumentParser`] hands to argparse, and beside it the facts, which argparse refuses."""

    facts: Facts


def argument(
    default: Any = MISSING,
    help: str = "",
    *,
    default_factory: Any = MISSING,
    choices: Collection[str] | None = None,
    **facts,
) -> Field:
    """
    A dataclass field for [`~transformers.HfArgumentParser`] with the facts that the rest of the package reads.

    Args:
        default: of the argument.
        help (`str`): for `--help` and the docstring of a [`documented`] class.
        default_factory: for a default that is made anew each time.
        choices (`Collection[str]`, *optional*): the values allowed.
        facts: of [`Facts`].
    """
    made = field(default=default, default_factory=default_factory)
    made.metadata = _Metadata({"help": help} if choices is None else {"help": help, "choices": choices})
    made.metadata.facts = Facts(**facts)
    return made


def facts_of(one: Field) -> Facts:
    """Facts of a field; the defaults for one that was not made with [`argument`]."""
    return getattr(one.metadata, "facts", Facts())


def names(arguments: Any, **facts) -> list[str]:
    """
    Names of the arguments of which all these facts hold.

    Args:
        arguments: an argument class, or an instance of one.
        facts: of [`Facts`], such as `resume="kept"`.
    """
    wanted = facts.items()
    return [one.name for one in fields(arguments) if all(getattr(facts_of(one), name) == it for name, it in wanted)]


# ---- Values ----


def check_values(arguments: Any):
    """
    Raises ValueError if a value is none of its field's choices, or outside its interval. A tuple or a single value of
    a field that holds a list becomes a list.
    """
    for one in fields(arguments):
        value = getattr(arguments, one.name)
        if value is None or not isinstance(one.metadata, _Metadata):
            continue
        if str(one.type).startswith("list[") and not isinstance(value, list):
            value = list(value) if isinstance(value, tuple) else [value]
            setattr(arguments, one.name, value)
        choices, interval = one.metadata.get("choices"), facts_of(one).interval
        if choices is not None and value not in choices:
            raise ValueError(f"{one.name}={value!r} is unknown: choose one of {', '.join(choices)}.")
        for number in (value if isinstance(value, list) else [value]) if interval else ():
            if not _is_in(number, interval):
                raise ValueError(f"{one.name}={value!r} is out of range: set {_in_words(interval)}.")


def _bounds(interval: str) -> tuple[float, float]:
    low, high = interval[1:-1].split(",")
    return float(low), float(high)


def _is_in(number: float, interval: str) -> bool:
    low, high = _bounds(interval)
    above = low <= number if interval[0] == "[" else low < number
    return above and (number <= high if interval[-1] == "]" else number < high)


def _in_words(interval: str) -> str:
    """ "a number above 0 and at most 1"."""
    low, high = _bounds(interval)
    above = f"{'of at least' if interval[0] == '[' else 'above'} {low:g}"
    if high == math.inf:
        return f"a finite number {above}"
    return f"a number {above} and {'at most' if interval[-1] == ']' else 'below'} {high:g}"


def recorded(arguments: Any) -> dict[str, Any]:
    """
    Arguments that a user gave: their values differ from the defaults, and not because the class filled them in, which
    it says in a mapping `filled_in`. Values as JSON holds them.
    """
    filled_in, given = getattr(arguments, "filled_in", {}), {}
    for one in fields(arguments):
        if not (one.init and facts_of(one).recorded):
            continue
        value = getattr(arguments, one.name)
        if value != default_of(one) and not (one.name in filled_in and value == filled_in[one.name]):
            given[one.name] = plain(value)
    return given


def shown(arguments: Any) -> dict[str, Any]:
    """Arguments that a model card lists, default or not, as JSON holds them."""
    return {name: plain(getattr(arguments, name)) for name in names(arguments, shown=True)}


def default_of(one: Field) -> Any:
    """The default of a field, `MISSING` if it has none."""
    return one.default if one.default_factory is MISSING else one.default_factory()


def plain(value: Any) -> Any:
    """A value as JSON holds it: an enum as its value, what JSON cannot hold as text."""
    if isinstance(value, Enum):
        return plain(value.value)
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if isinstance(value, dict):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


# ---- Docstrings ----


def documented(cls: type) -> type:
    """Decorates a dataclass: its docstring gets an `Args:` part, from the help of the fields that it declares."""
    own = [one for one in fields(cls) if one.name in inspect.get_annotations(cls)]
    entries = [f"    {one.name} ({_described(one)}): {one.metadata.get('help', '')}" for one in own]
    head, raises, errors = inspect.cleandoc(cls.__doc__).partition("\n\nRaises:")
    cls.__doc__ = "\n".join([f"{head}\n", "Args:", *entries]) + raises + errors
    return cls


def _described(one: Field) -> str:
    kind = one.type.__name__ if type(one.type) is type else str(one.type).replace(" | None", "")
    default = default_of(one)
    if default is MISSING:
        return f"`{kind}`"
    shown_default = f'"{default}"' if isinstance(default, str) else repr(default)
    return f"`{kind}`, *optional*" + ("" if default is None else f", defaults to `{shown_default}`")
