"""Measures speed and memory on this machine: supervised, pseudo-label, AllSpark, and AllSpark as in a textbook.

    python scripts/benchmark.py                                        # a few minutes on two CPU cores
    python scripts/benchmark.py --full                                 # hours: B0 to B5, crops, classes, memory sizes
    python scripts/benchmark.py --sizes b5 --crops 513 --precisions bf16 --cases step inference

The textbook form (whole attention maps, memory written in a Python loop) stands in for the authors' code. What is
compared takes turns in one process; peak memory is taken in a fresh process for each variant. Prints ratios, absolute
figures and the project's targets; writes them as JSON after every measurement, and a plot of memory beside it. A case
that runs out of memory is recorded as such. Random weights, generated images unless --data_dir is given.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from benchmarks import cases, peak, serving, training
from benchmarks.children import in_fresh_process
from benchmarks.plot import write_plot
from benchmarks.report import machine_lines, report
from benchmarks.results import Results, describe_machine
from benchmarks.targets import check_targets

from allspark_hf.cli.arguments import parse_arguments
from allspark_hf.utils.arguments import argument


class Measure(NamedTuple):
    """What measures the times of all variants in turns, and the peak memory of one of them, if that is measured."""

    variants: Sequence[str]
    times: Callable[..., dict]
    memory: Callable[..., dict] | None = None


BOTH = (cases.OURS, cases.TEXTBOOK)
MEASURES = {
    "step": Measure(tuple(cases.VARIANTS), training.step_times, training.step_memory),
    "memory_update": Measure(BOTH, training.memory_update_times),
    "bottleneck": Measure(BOTH, training.bottleneck_times, training.bottleneck_memory),
    "inference": Measure(serving.INFERENCE_VARIANTS, serving.inference_times),
    "evaluation": Measure(serving.EVALUATION_VARIANTS, serving.evaluation_times),
    "loader": Measure(("all",), serving.loader_times),
}
GRIDS = ("reference", "star", "all")
PRESETS = {
    "quick": {
        "sizes": ["b0"],
        "crops": [321],
        "num_labels": [21, 2, 81],
        "memory_sizes": [1.0, 2.0],
        "precisions": ["fp32"],
        "grid": "reference",
        "repeats": 3,
    },
    "full": {
        "sizes": ["b5", "b0", "b1", "b2", "b3", "b4"],
        "crops": [513, 321, 801],
        "num_labels": [21, 2, 81, 150],
        "memory_sizes": [1.0, 0.5, 2.0, 4.0],
        "precisions": ["bf16", "fp32"],
        "grid": "star",
        "repeats": 10,
    },
}


@dataclass
class BenchmarkArguments:
    """What to measure. Lists that are left out are those of --quick, or of --full if that is given."""

    full: bool = argument(
        False, "Everything, for a GPU: B0 to B5, crops 321 to 801, 2 to 150 classes, memory 0.5 to 4 C."
    )
    quick: bool = argument(
        False, "B0 at 321, K 21 (bottleneck also 2 and 81, memory 1 and 2 C), fp32. What happens anyway."
    )
    cases: list[str] | None = argument(
        None,
        "What to measure: step (time and peak memory of an update), memory_update, bottleneck (alone), "
        "inference, evaluation (images per second), loader (data loader). Default: all.",
    )
    variants: list[str] | None = argument(
        None, "Of the step: supervised, pseudo_label, allspark, textbook. Default: all four."
    )
    sizes: list[str] | None = argument(None, "Mix Transformers, b0 to b5; or tiny, to try the script.")
    crops: list[int] | None = argument(None, "Sides of the square crop in pixels.")
    num_labels: list[int] | None = argument(None, "Class counts K.")
    memory_sizes: list[float] | None = argument(None, "Memory slots, 0.5, 1, 2 or 4 times C.")
    precisions: list[str] | None = argument(None, "fp32, or bf16 (autocast).")
    grid: str | None = argument(
        None,
        "Which combinations: reference (the first value of each list), star (also every other value, with "
        "the first ones of the other lists) or all. The bottleneck alone always gets all class counts with all "
        "memory sizes at the reference; evaluation and loader get the reference.",
        choices=GRIDS,
    )
    training_arguments: str | None = argument(
        None,
        'More training arguments of the step as JSON, e.g. \'{"gradient_checkpointing": true, "tf32": true}\'.',
    )
    batch_size: int = argument(2, "Labeled images of a step, and as many unlabeled ones.")
    repeats: int | None = argument(None, "Rounds that count; one more comes before.")
    data_dir: str | None = argument(
        None, "Images and masks for evaluation and loader; default: generated ones of 375 x 500."
    )
    num_images: int = argument(16, "Images for evaluation and loader.")
    workers: list[int] | None = argument(None, "Worker counts of the data loader. Default: none, and one per core.")
    seed: int = argument(0, "Of weights, images, augmentation and classes of channels.")
    use_cpu: bool = argument(False, "Measure the CPU even if there is a GPU.")
    output_file: str = argument("outputs/benchmark.json", "JSON file; the plot gets its name, as .png and .svg.")
    overwrite: bool = argument(False, "Replace an earlier output_file.")

    def __post_init__(self):
        if self.quick and self.full:
            raise ValueError("Both --quick and --full were given: leave one of them out.")
        preset = PRESETS["full" if self.full else "quick"]
        for name, value in preset.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self.cases = self.cases or list(MEASURES)
        self.variants = self.variants or list(cases.VARIANTS)
        for name, known in (("cases", MEASURES), ("variants", cases.VARIANTS)):
            for value in getattr(self, name):
                if value not in known:
                    raise ValueError(f"{name} has {value!r}, which is unknown: choose from {', '.join(known)}.")
        self.settings = _read_settings(self.training_arguments)
        training.check_settings(self.settings)
        for name in ("repeats", "num_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: set at least 1.")
        if self.data_dir is not None and not Path(self.data_dir).is_dir():
            raise ValueError(f"There is no folder {self.data_dir}: correct it, or leave --data_dir out.")
        if Path(self.output_file).suffix != ".json":
            raise ValueError(f"output_file={self.output_file}: give a name that ends in .json.")
        if Path(self.output_file).exists() and not self.overwrite:
            raise ValueError(f"{self.output_file} exists: pass --overwrite, or choose another --output_file.")


def _read_settings(text: str | None) -> dict:
    """Training arguments beyond those of the case."""
    try:
        settings = json.loads(text or "{}")
    except json.JSONDecodeError:
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f'training_arguments={text} is no JSON object: write {{"name": value}}.')
    return settings


class Job(NamedTuple):
    """One process: the times of all variants of a measure in turns, or the peak memory of one of them."""

    measure: str
    case: cases.Case
    variant: str | None

    def __str__(self) -> str:
        what = "time" if self.variant is None else "peak memory"
        return f"{what}: {self.measure}, {self.case}" + (f", {self.variant}" if self.variant else "")


def plan(options: BenchmarkArguments, with_memory: bool) -> list[Job]:
    """All jobs; the least costly kinds come last, and what the targets need first."""
    lists = (options.sizes, options.crops, options.num_labels, options.memory_sizes, options.precisions)
    grid = cases.make_cases(*lists, batch_size=options.batch_size, grid=options.grid)
    jobs = []
    for measure in options.cases:
        chosen = grid[:1] if measure in ("evaluation", "loader") else grid
        if measure == "bottleneck":
            chosen = cases.memory_grid(grid, options.num_labels, options.memory_sizes)
        for case in chosen:
            jobs.append(Job(measure, case, None))
            if with_memory and MEASURES[measure].memory is not None:
                variants = options.variants if measure == "step" else MEASURES[measure].variants
                jobs += [Job(measure, case, name) for name in variants]
    return jobs


def run(jobs: list[Job], results: Results, device, options: SimpleNamespace) -> None:
    """Runs the jobs in turn, with a line before and after each; Ctrl-C ends it early, with what there is."""
    start = time.monotonic()
    for number, job in enumerate(jobs, 1):
        elapsed = time.strftime("%H:%M:%S", time.gmtime(time.monotonic() - start))
        print(f"[{number}/{len(jobs)}, {elapsed}] {job}", flush=True)
        try:
            found = _run_job(job, device, options)
        except KeyboardInterrupt:
            print("Stopped; what was measured follows.", flush=True)
            return
        for variant, values in found.items():
            results.add(job.measure, job.case, variant, values)
            if "error" in values or "memory_error" in values:
                print(f"    {variant}: {values.get('error') or values['memory_error']}", flush=True)


def _run_job(job: Job, device, options: SimpleNamespace) -> dict[str, dict]:
    """By variant, what was found."""
    measure = MEASURES[job.measure]
    if job.variant is not None:
        found = in_fresh_process(device, measure.memory, job.case, device, options, job.variant)
        return {job.variant: {"memory_error": found["error"]} if "error" in found else found}
    found = in_fresh_process(device, measure.times, job.case, device, options)
    if "error" in found:  # the whole process failed, and with it all that would have taken turns in it
        return dict.fromkeys(options.variants if job.measure == "step" else measure.variants, found)
    return found


def finish(results: Results) -> None:
    """Targets, report, plot."""
    results.targets = check_targets(results)
    results.write()
    print("\n" + "\n".join(machine_lines(results.machine)) + "\n\n" + report(results) + "\n")
    print(f"Figures: {results.output_file}")
    try:
        for path in write_plot(results, results.output_file.parent, results.output_file.stem):
            print(f"Plot: {path}")
    except ImportError as error:
        print(f"No plot: {error}")


def main():
    try:
        (arguments,) = parse_arguments((BenchmarkArguments,))
        device = cases.find_device(arguments.use_cpu)
        with_memory = peak.can_measure(device)
        jobs = plan(arguments, with_memory)
        machine = in_fresh_process(device, describe_machine, device)
        if "error" in machine:
            raise ValueError(f"The device {device} cannot be used: {machine['error']}")
        output_file = Path(arguments.output_file)
        output_file.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if not with_memory:
        print("Peak memory is not measured: that needs a GPU, or Linux with glibc.")
    measured = Results(asdict(arguments), machine, output_file)
    run(jobs, measured, device, SimpleNamespace(**asdict(arguments), settings=arguments.settings))
    finish(measured)
    failures = measured.failures()
    if failures:
        sys.exit("Failed, and not for want of memory:\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
