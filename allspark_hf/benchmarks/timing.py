"""Times of several variants of one piece of work, taken in turns."""

import time
from collections.abc import Callable
from statistics import median

import torch

from ..utils.machine import ran_out_of_memory


OUT_OF_MEMORY = "out of memory"
SHORTEST_TURN = 0.05  # seconds


def seconds_of(work: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Seconds of one call, the mean over `calls` in a row; with CUDA of events around them, on an idle device."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - start) / calls
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    for _ in range(calls):
        work()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1000 / calls


def take_turns(
    variants: dict[str, Callable[[], object]], device: torch.device, repeats: int, warmup: int = 1
) -> dict[str, list[float] | str]:
    """
    Times variants A, B, C as A B C A B C ..., so that other work on the machine slows all of them alike.

    Args:
        variants (`dict[str, Callable]`): by name, what to run; work too short for the clock runs several times a turn.
        device (`torch.device`): where it runs.
        repeats (`int`): rounds that count.
        warmup (`int`): rounds before that do not.

    Returns:
        `dict`: by name, seconds of a call in each round, or the error of a variant that ran out of memory, which ends
        its turns but not those of the others.
    """
    result: dict[str, list[float] | str] = {name: [] for name in variants}
    calls = dict.fromkeys(variants, 1)
    for turn in range(warmup + repeats):
        for name in [name for name in variants if isinstance(result[name], list)]:
            try:
                if turn == warmup - 1:
                    calls[name] = _calls_per_turn(variants[name], device)
                    continue
                seconds = seconds_of(variants[name], device, calls[name])
            except (RuntimeError, MemoryError) as error:
                result[name] = out_of_memory(error, device)
                continue
            if turn >= warmup:
                result[name].append(seconds)
    return result


def _calls_per_turn(work: Callable[[], object], device: torch.device) -> int:
    """Calls that take SHORTEST_TURN, at least one; the last round of the warm-up."""
    seconds = seconds_of(work, device)
    if seconds < SHORTEST_TURN:  # so short that the first call is mostly start-up
        seconds = seconds_of(work, device, calls=2)
    return max(1, round(SHORTEST_TURN / seconds))


def out_of_memory(error: Exception, device: torch.device) -> str:
    """What to record for an error that says that memory ran out; any other error is raised again."""
    if not ran_out_of_memory(error):
        raise error
    error.__traceback__ = None  # its frames hold the tensors of the failed call
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return OUT_OF_MEMORY


def summary(seconds: list[float]) -> dict[str, float | list[float]]:
    """`median`, `lowest` and `highest` of some times, and all of them in the order they were taken."""
    return {"median": median(seconds), "lowest": min(seconds), "highest": max(seconds), "all": seconds}


def ratio(own: list[float], other: list[float]) -> float:
    """How many times as long as the other one takes: median over the rounds, each with the other of the same round."""
    return median(first / second for first, second in zip(own, other, strict=True))
