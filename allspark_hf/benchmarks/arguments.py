"""Arguments of `allspark benchmark`."""

import json
from dataclasses import dataclass
from pathlib import Path

from ..utils.arguments import argument
from .cases import VARIANTS
from .running import MEASURES
from .training import check_settings


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
    """What to measure. Lists that are left out are those of [`PRESETS`], "quick" unless `full`."""

    full: bool = argument(
        False,
        "Everything, for a GPU: B0 to B5, crops 321 to 801, 2 to 150 classes, memory 0.5 to 4 C. Without it: B0 at "
        "321, K 21 (bottleneck also 2 and 81, memory 1 and 2 C), fp32.",
    )
    cases: list[str] | None = argument(
        None,
        "What to measure: step (time and peak memory of an update), memory_update, bottleneck (alone), "
        "inference, evaluation (images per second), predict (of image files, by a plain loop, allspark predict and "
        "ONNX), loader (data loader). Default: all.",
    )
    variants: list[str] | None = argument(None, f"Of the step: {', '.join(VARIANTS)}. Default: all.")
    sizes: list[str] | None = argument(None, "Mix Transformers, b0 to b5; or tiny, to try the script.")
    crops: list[int] | None = argument(None, "Sides of the square crop in pixels.")
    num_labels: list[int] | None = argument(None, "Class counts K.")
    memory_sizes: list[float] | None = argument(None, "Memory slots, 0.5, 1, 2 or 4 times C.")
    precisions: list[str] | None = argument(None, "fp32, or bf16 (autocast).")
    grid: str | None = argument(
        None,
        "Which combinations: reference (the first value of each list), star (also every other value, with "
        "the first ones of the other lists) or all. The bottleneck alone always gets all class counts with all "
        "memory sizes at the reference; evaluation, predict and loader get the reference.",
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
    num_images: int = argument(16, "Images for evaluation, predict (generated, of the crop's size) and loader.")
    workers: list[int] | None = argument(None, "Worker counts of the data loader. Default: none, and one per core.")
    seed: int = argument(0, "Of weights, images, augmentation and classes of channels.")
    use_cpu: bool = argument(False, "Measure the CPU even if there is a GPU.")
    output_file: str = argument("outputs/benchmark.json", "JSON file; the plot gets its name, as .png and .svg.")
    overwrite: bool = argument(False, "Replace an earlier output_file.")

    def __post_init__(self):
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
        check_settings(self.settings)
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
