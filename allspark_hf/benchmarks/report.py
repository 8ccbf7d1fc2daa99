"""The results to read: ratios first, absolute figures second, targets last."""

from collections.abc import Callable, Sequence
from functools import partial

from ..utils.text import text_table
from .cases import OURS, PLAIN_STEP, TEXTBOOK, VARIANTS, Case
from .predicting import ONNX, PLAIN_LOOP, PREDICT, PREDICT_VARIANTS
from .results import Results
from .targets import shown, update_share
from .timing import OUT_OF_MEMORY


TITLES = {"supervised": "supervised", "pseudo_label": "pseudo-label", "fixmatch": "FixMatch"}
TITLES |= {"unimatch_v2": "UniMatch V2", PLAIN_STEP: "plain UniMatch V2", "memory_contrastive": "memory contrast"}
TITLES |= {"allspark_unimatch": "AllSpark + UniMatch V2", "allspark": "AllSpark", "textbook": "textbook"}
TITLES |= {PLAIN_LOOP: "plain loop", PREDICT: "allspark predict", ONNX: "with ONNX"}
STEP_PAIRS = (
    (OURS, "pseudo_label"),
    (OURS, TEXTBOOK),
    (TEXTBOOK, "pseudo_label"),
    ("unimatch_v2", PLAIN_STEP),
    *((name, "supervised") for name in VARIANTS if name not in ("supervised", PLAIN_STEP, TEXTBOOK)),
)
BOTH = (OURS, TEXTBOOK)
Columns = dict[str, Callable[[Case], str]]


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
    ratios, entries = partial(_ratios, results), partial(_entries, results)
    bottleneck = ratios("bottleneck", {"time": (*BOTH, "seconds"), "extra peak memory": (*BOTH, "extra_bytes")})
    update = ratios("memory_update", {"AllSpark / textbook": BOTH})
    update["AllSpark / its step"] = lambda case: _number(update_share(results, case), ".3%")
    plain = ratios("inference", {"AllSpark / plain SegFormer": (OURS, "supervised"), "AllSpark / textbook": BOTH})
    predict = {
        f"{TITLES[own]} / {TITLES[other]}{title}": (own, other, what)
        for own, other in ((PREDICT, PLAIN_LOOP), (ONNX, PREDICT))
        for title, what in (("", "seconds"), (", CPU seconds", "cpu_seconds"))
    }
    pairs = {f"{TITLES[own]} / {TITLES[other]}": (own, other) for own, other in STEP_PAIRS}
    peaks = {title: (*pair, "peak_bytes") for title, pair in pairs.items()}
    tables = [
        ("Ratios: training step, time", "step", ratios("step", pairs)),
        ("Ratios: training step, peak memory", "step", ratios("step", peaks)),
        ("Ratios: bottleneck alone, AllSpark / textbook", "bottleneck", bottleneck),
        ("Ratios: memory update", "memory_update", update),
        ("Ratios: inference", "inference", plain),
        ("Ratios: prediction of image files, time", "predict", ratios("predict", predict)),
        ("Training step, milliseconds: median (lowest to highest)", "step", entries("step", VARIANTS, _time)),
        (
            "Training step, peak memory in GB, and of it only during the step",
            "step",
            entries("step", VARIANTS, _memory),
        ),
        ("Bottleneck alone, forward and backward, milliseconds", "bottleneck", entries("bottleneck", BOTH, _time)),
        ("Bottleneck alone, extra peak memory in GB", "bottleneck", entries("bottleneck", BOTH, _memory)),
        ("Memory update, milliseconds", "memory_update", entries("memory_update", BOTH, _time)),
        ("Inference of one image, milliseconds", "inference", entries("inference", ("supervised", *BOTH), _time)),
        ("Evaluation, images per second", "evaluation", entries("evaluation", results.variants("evaluation"), _rate)),
        (
            "Prediction of image files, images per second, and per second of a CPU",
            "predict",
            entries("predict", PREDICT_VARIANTS, _rates),
        ),
        (
            "Prediction of image files, extra peak memory in MB: of a quarter of them, and of all",
            "predict",
            entries("predict", PREDICT_VARIANTS, _growth),
        ),
        ("Data loader, images per second", "loader", entries("loader", results.variants("loader"), _rate)),
    ]
    parts = [_table(results, *each) for each in tables]
    return "\n\n".join([*filter(None, parts), _targets(results)])


def _table(results: Results, title: str, measure: str, columns: Columns) -> str:
    """A row for each case that has something in it; empty without any."""
    rows = [[str(case), *(cell(case) for cell in columns.values())] for case in results.cases(measure)]
    rows = [row for row in rows if set(row[1:]) != {"-"}]
    return f"{title}\n{text_table(['', *columns], rows)}" if rows else ""


def _ratios(results: Results, measure: str, columns: dict[str, Sequence[str]]) -> Columns:
    return {
        title: lambda case, arguments=arguments: _number(results.ratio(measure, case, *arguments))
        for title, arguments in columns.items()
    }


def _entries(results: Results, measure: str, variants: Sequence[str], cell: Callable[[dict], str]) -> Columns:
    return {
        TITLES.get(name, name): lambda case, name=name: cell(results.get(measure, case, name)) for name in variants
    }


def _number(value: float | str | None, form: str = ".3g") -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return "no memory" if OUT_OF_MEMORY in value else "failed"
    return format(value, form)


def _time(entry: dict) -> str:
    if "seconds" not in entry:
        return _number(entry.get("error"))
    median, lowest, highest = (f"{1000 * entry['seconds'][name]:.4g}" for name in ("median", "lowest", "highest"))
    return f"{median} ({lowest} to {highest})"


def _memory(entry: dict) -> str:
    if "extra_bytes" not in entry:
        return _number(entry.get("memory_error"))
    extra = f"{entry['extra_bytes'] / 1e9:.3g}"
    return f"{entry['peak_bytes'] / 1e9:.3g} ({extra})" if "peak_bytes" in entry else extra


def _rate(entry: dict) -> str:
    return _number(1 / entry["seconds"]["median"] if "seconds" in entry else entry.get("error"))


def _rates(entry: dict) -> str:
    return f"{_rate(entry)} ({1 / entry['cpu_seconds']['median']:.3g})" if "cpu_seconds" in entry else _rate(entry)


def _growth(entry: dict) -> str:
    if "extra_bytes_of_quarter" not in entry:
        return _number(entry.get("memory_error"))
    return ", ".join(f"{entry[name] / 1e6:.3g}" for name in ("extra_bytes_of_quarter", "extra_bytes"))


def _targets(results: Results) -> str:
    lines, title = ["Targets (* measured where the target was set)"], None
    for row in results.targets:
        if row["target"] != title:
            title = row["target"]
            lines.append(f"  {title}: at most {shown(row['limit'])}")
        star = "*" if row["as_set"] else " "
        lines.append(f"    {star} {row['case'] + ': ' if row['case'] else ''}{row['verdict']}")
    return "\n".join(lines)
