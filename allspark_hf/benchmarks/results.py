"""Measurements, kept in one file that is written anew after each of them."""

import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import torch
import transformers

from ..utils import __version__
from ..utils.files import write_json
from ..utils.machine import cpu_name, num_cpus
from .cases import Case
from .timing import OUT_OF_MEMORY, ratio


def describe_machine(device: torch.device) -> dict:
    """The machine as the calling process sees it; with CUDA this touches the device."""
    machine = {
        "cpu": cpu_name(),
        "cores": num_cpus(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "device": device.type,
        "gpu": None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "allspark_hf": __version__,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return machine


@dataclass
class Results:
    """
    Measurements by measure, case and variant.

    Args:
        settings (`dict`): of the run, for the file.
        machine (`dict`): of [`describe_machine`].
        output_file (`Path`, *optional*): JSON file, written after every [`add`].

    Attributes:
        entries (`dict`): (measure, case, variant) -> `seconds`, `cpu_seconds` ([`summary`]), `peak_bytes`,
            `extra_bytes`, and `error` or `memory_error` where time or memory has none.
        targets (`list[dict]`): rows of [`check_targets`].
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
        """Writes the file, if there is one, whole."""
        if self.output_file is None:
            return
        measurements = [
            {"measure": measure, "case": asdict(case), "variant": variant, **values}
            for (measure, case, variant), values in self.entries.items()
        ]
        content = {"settings": self.settings, "machine": self.machine, "targets": self.targets}
        write_json(self.output_file, {**content, "measurements": measurements})

    def cases(self, measure: str) -> list[Case]:
        """Cases of a measure, in the order they were measured."""
        return list(dict.fromkeys(case for name, case, _ in self.entries if name == measure))

    def variants(self, measure: str) -> list[str]:
        """Variants of a measure, in the order they were measured."""
        return list(dict.fromkeys(variant for name, _, variant in self.entries if name == measure))

    def get(self, measure: str, case: Case, variant: str) -> dict:
        """What is known of a variant; empty if it was not measured."""
        return self.entries.get((measure, case, variant), {})

    def ratio(self, measure: str, case: Case, own: str, other: str, what: str = "seconds") -> float | str | None:
        """
        Of two variants' `seconds` or `cpu_seconds`, taken in turns, `peak_bytes` or `extra_bytes`; a string if one of
        them has an error instead, None if one was not measured.
        """
        found, error = [], "error" if what.endswith("seconds") else "memory_error"
        for name in (own, other):
            entry = self.get(measure, case, name)
            if what not in entry:
                return f"{name}: {entry[error]}" if error in entry else None
            found.append(entry[what])
        return ratio(found[0]["all"], found[1]["all"]) if what.endswith("seconds") else found[0] / found[1]

    def failures(self) -> list[str]:
        """A line for each measurement that failed; running out of memory is a result and no failure."""
        return [
            f"{measure}, {case}, {variant}: {error}"
            for (measure, case, variant), values in self.entries.items()
            for error in (values.get("error"), values.get("memory_error"))
            if error is not None and not error.startswith(OUT_OF_MEMORY)
        ]
