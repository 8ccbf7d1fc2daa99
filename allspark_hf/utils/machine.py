"""What this machine has."""

import os
import platform
from pathlib import Path


NO_MEMORY = ("can't allocate memory", "bad_alloc", "could not create a memory", "out of memory")


def cpu_name() -> str:
    """Model of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def num_cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ran_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out: of PyTorch's GPU or CPU allocator, Python, C++ or oneDNN."""
    return isinstance(error, MemoryError) or any(phrase in str(error) for phrase in NO_MEMORY)
