"""Which measurements there are, in which order they run, and each in a process of its own."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import predicting, serving, training
from .cases import OURS, TEXTBOOK, VARIANTS, Case, make_cases, memory_grid
from .children import in_fresh_process
from .results import Results


class Measure(NamedTuple):
    """What measures the times of all variants in turns, and the peak memory of one of them, if that is measured."""

    variants: Sequence[str]
    times: Callable[..., dict]
    memory: Callable[..., dict] | None = None


BOTH = (OURS, TEXTBOOK)
MEASURES = {
    "step": Measure(tuple(VARIANTS), training.step_times, training.step_memory),
    "memory_update": Measure(BOTH, training.memory_update_times),
    "bottleneck": Measure(BOTH, training.bottleneck_times, training.bottleneck_memory),
    "inference": Measure(serving.INFERENCE_VARIANTS, serving.inference_times),
    "evaluation": Measure(serving.EVALUATION_VARIANTS, serving.evaluation_times),
    "predict": Measure(predicting.PREDICT_VARIANTS, predicting.predict_times, predicting.predict_memory),
    "loader": Measure(("all",), serving.loader_times),
}


class Job(NamedTuple):
    """One process: the times of all variants of a measure in turns, or the peak memory of one of them."""

    measure: str
    case: Case
    variant: str | None

    def __str__(self) -> str:
        what = "time" if self.variant is None else "peak memory"
        return f"{what}: {self.measure}, {self.case}" + (f", {self.variant}" if self.variant else "")


def plan(options, with_memory: bool) -> list[Job]:
    """All jobs, in the order of the chosen measures; of each case first the times, then the peak memory."""
    lists = (options.sizes, options.crops, options.num_labels, options.memory_sizes, options.precisions)
    grid = make_cases(*lists, batch_size=options.batch_size, grid=options.grid)
    jobs = []
    for measure in options.cases:
        chosen = grid[:1] if measure in ("evaluation", "predict", "loader") else grid
        if measure == "bottleneck":
            chosen = memory_grid(grid, options.num_labels, options.memory_sizes)
        for case in chosen:
            jobs.append(Job(measure, case, None))
            if with_memory and MEASURES[measure].memory is not None:
                variants = options.variants if measure == "step" else MEASURES[measure].variants
                jobs += [Job(measure, case, name) for name in variants]
    return jobs


def run(jobs: list[Job], results: Results, device, options) -> None:
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


def _run_job(job: Job, device, options) -> dict[str, dict]:
    """By variant, what was found."""
    measure = MEASURES[job.measure]
    if job.variant is not None:
        found = in_fresh_process(device, measure.memory, job.case, device, options, job.variant)
        return {job.variant: {"memory_error": found["error"]} if "error" in found else found}
    found = in_fresh_process(device, measure.times, job.case, device, options)
    if "error" in found:  # the whole process failed, and with it all that would have taken turns in it
        return dict.fromkeys(options.variants if job.measure == "step" else measure.variants, found)
    return found
