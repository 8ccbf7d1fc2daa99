"""The results to read: ratios first, absolute figures second, targets last."""

from collections.abc import Callable, Sequence

from .cases import OURS, TEXTBOOK, VARIANTS, Case
from .results import Results
from .targets import memory_ratio, time_ratio, update_share
from .timing import OUT_OF_MEMORY


TITLES = {
    "supervised": "supervised",
    "pseudo_label": "pseudo-label",
    "allspark": "AllSpark",
    "textbook": "textbook",
}


def machine_lines(machine: dict) -> list[str]:
    """What the figures were measured on."""
    gpu = f"{machine['gpu']}, {machine['gpu_memory_bytes'] / 1e9:.0f} GB" if machine["gpu"] else "no GPU used"
    load = "" if machine["load_before"] is None else f", load {machine['load_before']:.2f} before the start"
    return [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_bytes'] / 1e9:.0f} GB{load}; {gpu}",
        f"{machine['system']}, Python {machine['python']}, torch {machine['torch']}, transformers "
        f"{machine['transformers']}, allspark_hf {machine['allspark_hf']}",
    ]


def report(results: Results) -> str:
    """All tables."""
    parts = [
        ("Ratios: training step, time", _step_ratios(results, _step_time)),
        ("Ratios: training step, peak memory", _step_ratios(results, _step_peak)),
        ("Ratios: bottleneck alone, AllSpark / textbook", _bottleneck_ratios(results)),
        ("Ratios: memory update", _update_ratios(results)),
        ("Ratios: inference", _inference_ratios(results)),
        ("Training step, milliseconds: median (lowest to highest)", _times(results, "step", tuple(VARIANTS))),
        ("Training step, peak memory in GB, and of it only during the step", _memory(results, "step")),
        ("Bottleneck alone, forward and backward, milliseconds", _times(results, "bottleneck", (OURS, TEXTBOOK))),
        ("Bottleneck alone, extra peak memory in GB", _memory(results, "bottleneck")),
        ("Memory update, milliseconds", _times(results, "memory_update", (OURS, TEXTBOOK))),
        ("Inference of one image, milliseconds", _times(results, "inference", ("supervised", OURS, TEXTBOOK))),
        ("Evaluation, images per second", _rates(results, "evaluation")),
        ("Data loader, one image on one core, milliseconds (mean)", _stages(results)),
        ("Data loader, images per second", _rates(results, "loader")),
    ]
    tables = [f"{title}\n{table(rows)}" for title, rows in parts if len(rows) > 1]
    return "\n\n".join([*tables, _targets(results)])


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns, the first one to the left; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(f"  {row[0].ljust(widths[0])}  {'  '.join(cells)}".rstrip())
    return "\n".join(lines)


def _number(value: float | str | None, form: str = ".3g") -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return "no memory" if OUT_OF_MEMORY in value else "failed"
    return format(value, form)


def _step_time(results: Results, case: Case, own: str, other: str) -> float | str | None:
    return time_ratio(results, "step", case, own, other)


def _step_peak(results: Results, case: Case, own: str, other: str) -> float | str | None:
    return memory_ratio(results, "step", case, own, other, "peak_bytes")


def _step_ratios(results: Results, value: Callable) -> list[list[str]]:
    pairs = [(OURS, "pseudo_label"), (OURS, TEXTBOOK), (TEXTBOOK, "pseudo_label"), (OURS, "supervised")]
    rows = [["", *(f"{TITLES[own]} / {TITLES[other]}" for own, other in pairs)]]
    for case in results.cases("step"):
        values = [value(results, case, *pair) for pair in pairs]
        if any(each is not None for each in values):
            rows.append([str(case), *(_number(each) for each in values)])
    return rows


def _bottleneck_ratios(results: Results) -> list[list[str]]:
    rows = [["", "time", "extra peak memory"]]
    for case in results.cases("bottleneck"):
        time = time_ratio(results, "bottleneck", case, OURS, TEXTBOOK)
        memory = memory_ratio(results, "bottleneck", case, OURS, TEXTBOOK, "extra_bytes")
        rows.append([str(case), _number(time), _number(memory)])
    return rows


def _update_ratios(results: Results) -> list[list[str]]:
    rows = [["", "AllSpark / textbook", "AllSpark / its step"]]
    for case in results.cases("memory_update"):
        own = time_ratio(results, "memory_update", case, OURS, TEXTBOOK)
        rows.append([str(case), _number(own), _number(update_share(results, case), ".3%")])
    return rows


def _inference_ratios(results: Results) -> list[list[str]]:
    rows = [["", "AllSpark / plain SegFormer", "AllSpark / textbook"]]
    for case in results.cases("inference"):
        values = [time_ratio(results, "inference", case, OURS, other) for other in ("supervised", TEXTBOOK)]
        rows.append([str(case), *map(_number, values)])
    return rows


def _times(results: Results, measure: str, variants: Sequence[str]) -> list[list[str]]:
    rows = [["", *(TITLES[name] for name in variants)]]
    for case in results.cases(measure):
        entries = [results.get(measure, case, name) for name in variants]
        if any("seconds" in entry or "error" in entry for entry in entries):
            rows.append([str(case), *map(_time, entries)])
    return rows


def _time(entry: dict) -> str:
    if "seconds" not in entry:
        return _number(entry.get("error"))
    seconds = entry["seconds"]
    median, lowest, highest = (f"{1000 * seconds[name]:.4g}" for name in ("median", "lowest", "highest"))
    return f"{median} ({lowest} to {highest})"


def _memory(results: Results, measure: str) -> list[list[str]]:
    variants = tuple(VARIANTS) if measure == "step" else (OURS, TEXTBOOK)
    rows = [["", *(TITLES[name] for name in variants)]]
    for case in results.cases(measure):
        entries = [results.get(measure, case, name) for name in variants]
        if any("extra_bytes" in entry or "memory_error" in entry for entry in entries):
            rows.append([str(case), *map(_gigabytes, entries)])
    return rows


def _gigabytes(entry: dict) -> str:
    if "extra_bytes" not in entry:
        return _number(entry.get("memory_error"))
    extra = f"{entry['extra_bytes'] / 1e9:.3g}"
    return f"{entry['peak_bytes'] / 1e9:.3g} ({extra})" if "peak_bytes" in entry else extra


def _rates(results: Results, measure: str) -> list[list[str]]:
    columns = list(dict.fromkeys(name for case in results.cases(measure) for name in results.variants(measure, case)))
    rows = [["", *(TITLES.get(name, name) for name in columns)]]
    for case in results.cases(measure):
        entries = [results.get(measure, case, name) for name in columns]
        shown = [
            f"{1 / entry['seconds']['median']:.3g}" if "seconds" in entry else _number(entry.get("error"))
            for entry in entries
        ]
        rows.append([str(case), *shown])
    return rows


def _stages(results: Results) -> list[list[str]]:
    columns = list(
        dict.fromkeys(name for case in results.cases("stages") for name in results.variants("stages", case))
    )
    rows = [["", *columns]]
    for case in results.cases("stages"):
        entries = [results.get("stages", case, name) for name in columns]
        shown = [f"{1000 * entry['seconds']['mean']:.2f}" if "seconds" in entry else "-" for entry in entries]
        rows.append([str(case), *shown])
    return rows


def _targets(results: Results) -> str:
    lines, title = [], None
    for row in results.targets:
        if row["target"] != title:
            title = row["target"]
            limit = f"{row['limit'] / 1e9:.0f} GB" if row["limit"] > 1e6 else f"{row['limit']:g}"
            lines.append(f"  {title}: at most {limit}")
        star = "*" if row["as_set"] else " "
        lines.append(f"    {star} {row['case'] + ': ' if row['case'] else ''}{row['verdict']}")
    return "\n".join(["Targets (* measured where the target was set)", *lines])


__all__ = ["machine_lines", "report", "table"]
