"""Peak memory of a piece of work.

CUDA: the peak of PyTorch's allocator (`torch.cuda.max_memory_allocated`).

CPU: PyTorch's CPU allocator keeps no peak, so it is the kernel's: the peak resident set of the process (`VmHWM` of
/proc/self/status), set back to the present one before the work (`5` to /proc/self/clear_refs). Unlike a profile of
PyTorch's allocations it also sees the scratch buffers of oneDNN and the BLAS, and what is allocated but never touched
does not count, as in reality. Resident memory is the live memory only if freed blocks go back to the kernel and pages
are small: [`make_memory_exact`] sees to both, which costs time, so that times are measured in other processes.
Libraries that are loaded late would count too: run the work once, or a small case of it, before.
"""

import ctypes
import gc
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import torch


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
PR_SET_THP_DISABLE = 41  # linux/prctl.h
BLOCK_SIZE = 64 * 1024
KEPT_FREE = 0.05  # share of the free memory that a case must leave, so that the machine survives it


class Peak(NamedTuple):
    """Bytes in use just before the work, and the most that were in use during it."""

    before: int
    peak: int

    @property
    def extra(self) -> int:
        return self.peak - self.before


def can_measure(device: torch.device) -> bool:
    """Whether this machine tells the peak: with CUDA, and on Linux with glibc."""
    return device.type == "cuda" or (sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"))


def make_memory_exact():
    """From now on this process gives freed blocks back at once and gets no huge pages. Linux with glibc only."""
    libc = ctypes.CDLL(None)
    for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        if libc.mallopt(option, BLOCK_SIZE) != 1:
            raise OSError("glibc refused a setting of its allocator (mallopt), so peak memory cannot be measured.")
    libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    libc.malloc_trim(0)


def limit_memory():
    """
    From now on this process gets an error instead of more memory than the machine has free, so that a case that is too
    large ends with a record and not with a machine that swaps or kills. On Linux; elsewhere nothing happens. Not for
    CUDA, which reserves far more than it uses.
    """
    if sys.platform == "linux":
        import resource  # not on Windows

        free = psutil.virtual_memory().available * (1 - KEPT_FREE)
        resource.setrlimit(resource.RLIMIT_DATA, (_status("VmData") + int(free), resource.RLIM_INFINITY))


def bytes_in_use(device: torch.device) -> int:
    """Of PyTorch's allocator with CUDA, of the process on the CPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS")


def measure_peak(work: Callable[[], object], device: torch.device) -> Peak:
    """
    Runs `work` once; what it returns is dropped at the end and counts.

    Args:
        work: what to run.
        device (`torch.device`): where it runs; on the CPU, [`make_memory_exact`] must have been called before.
    """
    before = bytes_in_use(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return Peak(before, torch.cuda.max_memory_allocated(device))
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return Peak(before, _status("VmHWM"))


def _status(name: str) -> int:
    """Bytes, of a line of /proc/self/status."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
