"""The project's targets for speed and memory, checked against what was measured."""

from collections.abc import Callable
from dataclasses import dataclass

from .cases import OURS, TEXTBOOK, TINY, Case
from .results import Results
from .timing import ratio


@dataclass(frozen=True)
class Target:
    """
    Something that must not be exceeded.

    Args:
        name: To print.
        limit: The most that is allowed.
        where: What the target was set for: fields of a case, each with its value; empty for every case.
        counts: Whether a case says anything about it; one of size "tiny" never does.
        measure: Under which the results have it.
        value: The figure from results and case; a string says why there is none, None that it was not measured.
        gigabytes: Whether limit and value are bytes and not ratios.
    """

    name: str
    limit: float
    where: dict
    counts: Callable[[Case], bool]
    measure: str
    value: Callable[[Results, Case], float | str | None]
    gigabytes: bool = False

    def is_set_for(self, case: Case) -> bool:
        """Whether the case is the very one that the target was set for."""
        return all(getattr(case, name) == value for name, value in self.where.items())


def time_ratio(results: Results, measure: str, case: Case, own: str, other: str) -> float | str | None:
    """Of two variants that took turns; a string if one of them ran out of memory, None if one was not measured."""
    entries = {name: results.get(measure, case, name) for name in (own, other)}
    for name, entry in entries.items():
        if "seconds" not in entry:
            return f"{name}: {entry['error']}" if "error" in entry else None
    return ratio(*(entry["seconds"]["all"] for entry in entries.values()))


def memory_ratio(results: Results, measure: str, case: Case, own: str, other: str, name: str) -> float | str | None:
    """The same of `peak_bytes` or `extra_bytes`."""
    entries = {variant: results.get(measure, case, variant) for variant in (own, other)}
    for variant, entry in entries.items():
        if name not in entry:
            return f"{variant}: {entry['memory_error']}" if "memory_error" in entry else None
    return entries[own][name] / entries[other][name]


def update_share(results: Results, case: Case) -> float | str | None:
    """Time of one memory update by that of AllSpark's step of the same case."""
    update, step = (results.get(measure, case, OURS) for measure in ("memory_update", "step"))
    if "seconds" not in update or "seconds" not in step:
        return f"{OURS}: {step['error']}" if "error" in step else None
    return update["seconds"]["median"] / step["seconds"]["median"]


def _peak(results: Results, case: Case) -> float | str | None:
    entry = results.get("step", case, OURS)
    return entry.get("peak_bytes", entry.get("memory_error"))


_REFERENCE = {"size": "b5", "crop": 513, "num_labels": 21}

TARGETS = (
    Target(
        "training step, AllSpark / pseudo-label baseline",
        1.15,
        _REFERENCE | {"precision": "bf16"},
        lambda case: True,
        "step",
        lambda results, case: time_ratio(results, "step", case, OURS, "pseudo_label"),
    ),
    Target(
        "training step, AllSpark / textbook form",
        0.5,
        _REFERENCE | {"precision": "bf16"},
        lambda case: True,
        "step",
        lambda results, case: time_ratio(results, "step", case, OURS, TEXTBOOK),
    ),
    Target(
        "extra peak memory of the bottleneck, ours / textbook form, K=81",
        0.1,
        {"num_labels": 81},
        lambda case: case.num_labels == 81,
        "bottleneck",
        lambda results, case: memory_ratio(results, "bottleneck", case, OURS, TEXTBOOK, "extra_bytes"),
    ),
    Target(
        "peak memory of training with a memory of 4 C, batch 2+2",
        24e9,
        _REFERENCE | {"memory_size": 4, "batch_size": 2},
        lambda case: case.memory_size == 4 and case.batch_size == 2,
        "step",
        _peak,
        gigabytes=True,
    ),
    Target(
        "inference, AllSpark / plain SegFormer",
        1.05,
        {},
        lambda case: True,
        "inference",
        lambda results, case: time_ratio(results, "inference", case, OURS, "supervised"),
    ),
    Target(
        "memory update / training step",
        0.01,
        {},
        lambda case: True,
        "memory_update",
        update_share,
    ),
)


def check_targets(results: Results) -> list[dict]:
    """
    A row for each target and case that says something about it: `target`, `limit`, `case` (None where no such case
    was measured), `as_set` (whether the case is the one that the target was set for), `value` (a number, or None),
    and `verdict` in words.
    """
    rows = []
    for target in TARGETS:
        measured = []
        for case in results.cases(target.measure):
            counts = case.size != TINY and target.counts(case)
            value = target.value(results, case) if counts else None
            if value is None:
                continue
            measured.append(case)
            rows.append(
                {
                    "target": target.name,
                    "limit": target.limit,
                    "case": str(case),
                    "as_set": target.is_set_for(case),
                    "value": None if isinstance(value, str) else value,
                    "verdict": verdict(target, value),
                }
            )
        if not any(target.is_set_for(case) for case in measured):
            where = ", ".join(f"{name} {value}" for name, value in target.where.items()) or "any of b0 to b5"
            missing = {
                "case": None,
                "as_set": True,
                "value": None,
                "verdict": f"not measured on this machine ({where})",
            }
            rows.append({"target": target.name, "limit": target.limit, **missing})
    return rows


def verdict(target: Target, value: float | str) -> str:
    """In words: the figure, and "met" or by how much it is missed."""
    if isinstance(value, str):
        return f"no figure: {value}"
    shown, limit = (
        f"{figure / 1e9:.2f} GB" if target.gigabytes else f"{figure:.3g}" for figure in (value, target.limit)
    )
    if value <= target.limit:
        return f"{shown}, met"
    return f"{shown}, missed by {100 * (value / target.limit - 1):.0f} % (at most {limit})"


__all__ = ["TARGETS", "Target", "check_targets", "memory_ratio", "time_ratio", "update_share", "verdict"]
