"""What was measured: kept in one file that is written anew after every measurement."""

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
import transformers

import allspark_hf

from .cases import Case


def describe_machine(device: torch.device) -> dict:
    """Of the process that calls it; to be called where the device may be touched."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
    machine = {
        "cpu": _cpu_name(),
        "cores": len(cores),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "device": device.type,
        "gpu": None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "allspark_hf": allspark_hf.__version__,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return machine


def _cpu_name() -> str:
    """Model of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@dataclass
class Results:
    """
    Measurements, found by what was measured, of which case and variant.

    Args:
        settings: Of the run, for the file.
        machine: Of [`describe_machine`].
        output_file: JSON file, written after every [`add`]; None for none.

    Attributes:
        entries: (measure, case, variant) -> `seconds` ([`summary`]), `peak_bytes`, `extra_bytes`, and `error` or
            `memory_error` where time or memory has none.
        targets: Rows of [`check_targets`].
    """

    settings: dict
    machine: dict
    output_file: Path | None = None
    entries: dict[tuple[str, Case, str], dict] = field(default_factory=dict)
    targets: list[dict] = field(default_factory=list)

    def add(self, measure: str, case: Case, variant: str, values: dict):
        """Adds to what is known of the variant, and writes the file."""
        self.entries.setdefault((measure, case, variant), {}).update(values)
        self.write()

    def write(self):
        """The file is whole at any moment: a new one takes the place of the old one."""
        if self.output_file is None:
            return
        content = {
            "settings": self.settings,
            "machine": self.machine,
            "targets": self.targets,
            "measurements": [
                {"measure": measure, "case": case.record(), "variant": variant, **values}
                for (measure, case, variant), values in self.entries.items()
            ],
        }
        unfinished = self.output_file.with_name(self.output_file.name + ".unfinished")
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(self.output_file)

    def cases(self, measure: str) -> Iterator[Case]:
        """Cases of a measure, in the order they were measured."""
        yield from dict.fromkeys(case for name, case, _ in self.entries if name == measure)

    def variants(self, measure: str, case: Case) -> Iterator[str]:
        """Variants of a case, in the order they were measured."""
        yield from (variant for name, of_case, variant in self.entries if (name, of_case) == (measure, case))

    def get(self, measure: str, case: Case, variant: str) -> dict:
        """What is known of a variant; empty if it was not measured."""
        return self.entries.get((measure, case, variant), {})

    def failures(self) -> list[str]:
        """A line for each measurement that failed, but for those that ran out of memory, which is a result."""
        lines = []
        for (measure, case, variant), values in self.entries.items():
            for error in (values.get("error"), values.get("memory_error")):
                if error is not None and not error.startswith("out of memory"):
                    lines.append(f"{measure}, {case}, {variant}: {error}")
        return lines


__all__ = ["Results", "describe_machine"]
