"""The project's targets for speed and memory, checked against what was measured."""

from collections.abc import Callable
from typing import NamedTuple

from .cases import OURS, TEXTBOOK, TINY, Case
from .results import Results


class Target(NamedTuple):
    """
    Something that must not be exceeded.

    Args:
        name (`str`): to print.
        limit (`float`): the most that is allowed; a ratio, or bytes.
        measure (`str`): under which the results have it.
        value (`Callable`):
            the figure, from results and case; a string says why there is none, None that it was not measured.
        set_for (`dict`): what the target was set for: fields of a case with their values; empty for every case.
        only (`dict`): fields that a case must have to say anything about it; one of size "tiny" never does.
    """

    name: str
    limit: float
    measure: str
    value: Callable[[Results, Case], float | str | None]
    set_for: dict = {}
    only: dict = {}


def update_share(results: Results, case: Case) -> float | str | None:
    """Time of one memory update by that of AllSpark's step of the same case."""
    update, step = (results.get(measure, case, OURS) for measure in ("memory_update", "step"))
    if "seconds" not in update or "seconds" not in step:
        return f"{OURS}: {step['error']}" if "error" in step else None
    return update["seconds"]["median"] / step["seconds"]["median"]


def _ratio(*arguments: str) -> Callable[[Results, Case], float | str | None]:
    measure, *others = arguments
    return lambda results, case: results.ratio(measure, case, *others)


def _peak(results: Results, case: Case) -> float | str | None:
    entry = results.get("step", case, OURS)
    return entry.get("peak_bytes", entry.get("memory_error"))


_STEP = {"size": "b5", "crop": 513, "num_labels": 21, "precision": "bf16"}
_LARGE = {"memory_size": 4, "batch_size": 2}
_K81 = {"num_labels": 81}

TARGETS = (
    Target(
        "training step, AllSpark / pseudo-label baseline", 1.15, "step", _ratio("step", OURS, "pseudo_label"), _STEP
    ),
    Target("training step, AllSpark / textbook form", 0.5, "step", _ratio("step", OURS, TEXTBOOK), _STEP),
    Target(
        "extra peak memory of the bottleneck, ours / textbook form, K=81",
        0.1,
        "bottleneck",
        _ratio("bottleneck", OURS, TEXTBOOK, "extra_bytes"),
        _K81,
        _K81,
    ),
    Target(
        "peak memory of training with a memory of 4 C, batch 2+2",
        24e9,
        "step",
        _peak,
        {"size": "b5", "crop": 513, "num_labels": 21, **_LARGE},
        _LARGE,
    ),
    Target("inference, AllSpark / plain SegFormer", 1.05, "inference", _ratio("inference", OURS, "supervised")),
    Target("memory update / training step", 0.01, "memory_update", update_share),
)


def check_targets(results: Results) -> list[dict]:
    """
    A row for each target and case that says something about it: `target`, `limit`, `case` (None where no such case
    was measured), `as_set` (whether the case is the one that the target was set for), `value` (a number, or None),
    and `verdict` in words.
    """
    rows = []
    for target in TARGETS:
        found = []
        for case in results.cases(target.measure):
            value = target.value(results, case) if case.size != TINY and case.has(target.only) else None
            if value is not None:
                number = None if isinstance(value, str) else value
                found.append(_row(target, str(case), case.has(target.set_for), number, verdict(target, value)))
        if not any(row["as_set"] for row in found):
            where = ", ".join(f"{name} {value}" for name, value in target.set_for.items()) or "any of b0 to b5"
            found.append(_row(target, None, True, None, f"not measured on this machine ({where})"))
        rows += found
    return rows


def _row(target: Target, case: str | None, as_set: bool, value: float | None, verdict: str) -> dict:
    common = {"target": target.name, "limit": target.limit}
    return common | {"case": case, "as_set": as_set, "value": value, "verdict": verdict}


def verdict(target: Target, value: float | str) -> str:
    """In words: the figure, and "met" or by how much it is missed."""
    if isinstance(value, str):
        return f"no figure: {value}"
    if value <= target.limit:
        return f"{shown(value)}, met"
    return f"{shown(value)}, missed by {100 * (value / target.limit - 1):.0f} % (at most {shown(target.limit)})"


def shown(figure: float) -> str:
    """A ratio, or bytes."""
    return f"{figure / 1e9:.2f} GB" if figure > 1e6 else f"{figure:.3g}"
