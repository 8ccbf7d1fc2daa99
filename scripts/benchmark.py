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
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple


MEASURES = ("step", "memory_update", "bottleneck", "inference", "evaluation", "loader")
VARIANTS = ("supervised", "pseudo_label", "allspark", "textbook")
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

    full: bool = field(
        default=False,
        metadata={"help": "Everything, for a GPU: B0 to B5, crops 321 to 801, 2 to 150 classes, memory 0.5 to 4 C."},
    )
    quick: bool = field(
        default=False,
        metadata={"help": "B0 at 321, K 21 (bottleneck also 2 and 81, memory 1 and 2 C), fp32. What happens anyway."},
    )
    cases: list[str] | None = field(
        default=None,
        metadata={
            "help": "What to measure: step (time and peak memory of an update), memory_update, bottleneck (alone), "
            "inference, evaluation (images per second), loader (data loader). Default: all."
        },
    )
    variants: list[str] | None = field(
        default=None,
        metadata={"help": "Of the step: supervised, pseudo_label, allspark, textbook. Default: all four."},
    )
    sizes: list[str] | None = field(
        default=None, metadata={"help": "Mix Transformers, b0 to b5; or tiny, to try the script."}
    )
    crops: list[int] | None = field(default=None, metadata={"help": "Sides of the square crop in pixels."})
    num_labels: list[int] | None = field(default=None, metadata={"help": "Class counts K."})
    memory_sizes: list[float] | None = field(default=None, metadata={"help": "Memory slots, 0.5, 1, 2 or 4 times C."})
    precisions: list[str] | None = field(default=None, metadata={"help": "fp32, or bf16 (autocast)."})
    grid: str | None = field(
        default=None,
        metadata={
            "help": "Which combinations: reference (the first value of each list), star (also every other value, with "
            "the first ones of the other lists) or all. The bottleneck alone always gets all class counts with all "
            "memory sizes at the reference; evaluation and loader get the reference.",
            "choices": list(GRIDS),
        },
    )
    training_arguments: str | None = field(
        default=None,
        metadata={
            "help": "Further training arguments of the step as JSON, for example "
            '\'{"gradient_checkpointing": true, "tf32": true}\'.'
        },
    )
    batch_size: int = field(default=2, metadata={"help": "Labeled images of a step, and as many unlabeled ones."})
    repeats: int | None = field(default=None, metadata={"help": "Rounds that count; one more comes before."})
    data_dir: str | None = field(
        default=None,
        metadata={"help": "Images and masks for evaluation and loader; default: generated ones of 375 x 500."},
    )
    num_images: int = field(default=16, metadata={"help": "Images for evaluation and loader."})
    workers: list[int] | None = field(
        default=None, metadata={"help": "Worker counts of the data loader. Default: none, and one per core."}
    )
    seed: int = field(default=0, metadata={"help": "Of weights, images, augmentation and classes of channels."})
    use_cpu: bool = field(default=False, metadata={"help": "Measure the CPU even if there is a GPU."})
    output_file: str = field(
        default="outputs/benchmark.json", metadata={"help": "JSON file; the plot gets its name, as .png and .svg."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace an earlier output_file."})

    def __post_init__(self):
        if self.quick and self.full:
            raise ValueError("Both --quick and --full were given: leave one of them out.")
        preset = PRESETS["full" if self.full else "quick"]
        for name, value in preset.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self.cases = self.cases or list(MEASURES)
        self.variants = self.variants or list(VARIANTS)
        for name, known in (("cases", MEASURES), ("variants", VARIANTS)):
            for value in getattr(self, name):
                if value not in known:
                    raise ValueError(f"{name} has {value!r}, which is unknown: choose from {', '.join(known)}.")
        self.settings = _read_settings(self.training_arguments)
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
    """One process: what it measures, and where its result goes; a variant of None gives results by variant."""

    measure: str
    case: object
    variant: str | None
    what: str
    function: Callable[..., dict]
    arguments: tuple


def plan(options: BenchmarkArguments, device) -> list[Job]:
    """All jobs; the least costly kinds come last, and what the targets need first."""
    from benchmarks import cases, peak, training

    lists = (options.sizes, options.crops, options.num_labels, options.memory_sizes, options.precisions)
    grid = cases.make_cases(*lists, batch_size=options.batch_size, grid=options.grid)
    training.check_settings(options.settings)
    with_memory = peak.can_measure(device)
    jobs = []
    for measure in options.cases:
        if measure == "bottleneck":
            chosen = cases.memory_grid(grid, options.num_labels, options.memory_sizes)
        else:
            chosen = grid[:1] if measure in ("evaluation", "loader") else grid
        for case in chosen:
            jobs += _jobs_of(measure, case, device, options, with_memory)
    return jobs


def _jobs_of(measure: str, case, device, options: BenchmarkArguments, with_memory: bool) -> list[Job]:
    from benchmarks import serving, training

    common, repeats, images = (case, device, options.seed), options.repeats, (options.data_dir, options.num_images)
    if measure == "step":
        jobs = [
            Job(
                "step", case, None, "time", training.step_times, (*common, options.settings, repeats, options.variants)
            )
        ]
        variants, function, common = options.variants, training.step_memory, (*common, options.settings)
    elif measure == "bottleneck":
        jobs = [Job("bottleneck", case, None, "time", training.bottleneck_times, (*common, repeats))]
        variants, function = ("allspark", "textbook"), training.bottleneck_memory
    elif measure == "memory_update":
        return [Job(measure, case, None, "time", training.memory_update_times, (*common, repeats))]
    elif measure == "inference":
        return [Job(measure, case, None, "time", serving.inference_times, (*common, repeats))]
    elif measure == "evaluation":
        return [Job(measure, case, None, "time", serving.evaluation_times, (*common, repeats, *images))]
    else:
        stages = Job("stages", case, None, "time", serving.loader_stages, (case, options.seed, *images))
        arguments = (case, options.seed, repeats, *images, options.workers)
        return [stages, Job("loader", case, None, "time", serving.loader_times, arguments)]
    if with_memory:
        jobs += [Job(measure, case, name, "peak memory", function, (*common, name)) for name in variants]
    return jobs


def run(jobs: list[Job], results, device) -> None:
    """Runs the jobs in turn, with a line before and after each; Ctrl-C ends it early, with what there is."""
    from benchmarks.children import in_fresh_process

    start = time.monotonic()
    for number, job in enumerate(jobs, 1):
        elapsed = time.strftime("%H:%M:%S", time.gmtime(time.monotonic() - start))
        about = f"{job.measure}, {job.case}" + (f", {job.variant}" if job.variant else "")
        print(f"[{number}/{len(jobs)}, {elapsed}] {job.what}: {about}", flush=True)
        try:
            result = in_fresh_process(device, job.function, *job.arguments)
        except KeyboardInterrupt:
            print("Stopped; what was measured follows.", flush=True)
            return
        for variant, values in _by_variant(job, result).items():
            results.add(job.measure, job.case, variant, values)
            if "error" in values or "memory_error" in values:
                print(f"    {variant}: {values.get('error') or values['memory_error']}", flush=True)


def _by_variant(job: Job, result: dict) -> dict[str, dict]:
    if job.variant is not None:
        return {job.variant: {"memory_error": result["error"]} if "error" in result else result}
    if "error" not in result:
        return result
    # The whole process failed, and with it all that would have taken turns in it.
    names = {"step": job.arguments[-1], "inference": ("supervised", "allspark", "textbook")}
    names |= dict.fromkeys(("bottleneck", "memory_update"), ("allspark", "textbook"))
    names |= {"evaluation": ("supervised", "allspark"), "stages": ("labeled",), "loader": ("all",)}
    return dict.fromkeys(names[job.measure], result)


def finish(results) -> None:
    """Targets, report, plot."""
    from benchmarks.plot import write_plot
    from benchmarks.report import machine_lines, report
    from benchmarks.targets import check_targets

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
    from allspark_hf.cli.arguments import parse_arguments

    try:
        (options,) = parse_arguments((BenchmarkArguments,))
        from benchmarks import cases, children, peak, results

        device = cases.find_device(options.use_cpu)
        jobs = plan(options, device)
        machine = children.in_fresh_process(device, results.describe_machine, device)
        if "error" in machine:
            raise ValueError(f"The device {device} cannot be used: {machine['error']}")
        output_file = Path(options.output_file)
        output_file.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if not peak.can_measure(device):
        print("Peak memory is not measured: that needs a GPU, or Linux with glibc.")
    measured = results.Results(asdict(options), machine, output_file)
    run(jobs, measured, device)
    finish(measured)
    failures = measured.failures()
    if failures:
        sys.exit("Failed, and not for want of memory:\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
