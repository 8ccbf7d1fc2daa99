"""What is measured: sizes, and the models and images that belong to them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import datasets
import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers.utils import logging

from ..data.masks import MAX_NUM_LABELS
from ..methods import METHODS
from ..models.bottleneck_allspark import AllSparkBottleneck
from ..models.configuration_allspark import MEMORY_SIZES, MIT_SIZES, AllSparkConfig
from ..models.modeling_allspark import SegformerForSemiSupervisedSegmentation
from .textbook import TextbookBottleneck


# Name in the results -> training method: UniMatch V2 also with a plain step, AllSpark also with a plain bottleneck.
VARIANTS = {
    "supervised": "supervised",
    "pseudo_label": "pseudo_label",
    "fixmatch": "fixmatch",
    "unimatch_v2": "unimatch_v2",
    "unimatch_v2_plain": "unimatch_v2",
    "memory_contrastive": "memory_contrastive",
    "allspark_unimatch": "allspark_unimatch",
    "allspark": "allspark",
    "textbook": "allspark",
}
OURS, TEXTBOOK, PLAIN_STEP = "allspark", "textbook", "unimatch_v2_plain"
TINY = "tiny"  # to try the script, and to load every library before something is measured
TINY_GEOMETRY = {
    "hidden_sizes": [8, 16, 24, 32],
    "num_attention_heads": [1, 2, 3, 4],
    "depths": [1, 1, 1, 1],
    "decoder_hidden_size": 16,
}
SIZES = (*MIT_SIZES, TINY)
PRECISIONS = ("fp32", "bf16")
SMALLEST_CROP = 32


@dataclass(frozen=True)
class Case:
    """
    One point of the grid.

    Args:
        size (`str`): "b0" to "b5", or "tiny".
        crop (`int`): side of the square training crop in pixels.
        num_labels (`int`): K.
        memory_size (`float`): slot of the memory as a multiple of C.
        precision (`str`): "fp32", or "bf16" under autocast.
        batch_size (`int`): labeled images of a step, and as many unlabeled ones.
    """

    size: str
    crop: int
    num_labels: int
    memory_size: float
    precision: str
    batch_size: int

    def __str__(self) -> str:
        return (
            f"{self.size} crop {self.crop} K={self.num_labels} memory {self.memory_size:g}C {self.precision} "
            f"batch {self.batch_size}+{self.batch_size}"
        )

    def has(self, fields: dict) -> bool:
        """Whether these fields of the case have these values."""
        return all(getattr(self, name) == value for name, value in fields.items())


def make_cases(
    sizes: Sequence[str],
    crops: Sequence[int],
    num_labels: Sequence[int],
    memory_sizes: Sequence[float],
    precisions: Sequence[str],
    batch_size: int,
    grid: str,
) -> list[Case]:
    """
    The reference case, which is made of the first value of each list; with the `grid` "star" also, for each other
    value, the reference with it; with "all" all combinations.

    Raises:
        ValueError: if a value is out of range.
    """
    names = ("size", "crop", "num_labels", "memory_size", "precision")
    lists = dict(zip(names, (sizes, crops, num_labels, memory_sizes, precisions), strict=True))
    _check(lists, batch_size)
    if grid == "all":
        return [Case(*values, batch_size) for values in product(*lists.values())]
    reference = Case(*(values[0] for values in lists.values()), batch_size)
    if grid == "reference":
        return [reference]
    others = [replace(reference, **{name: value}) for name, values in lists.items() for value in values[1:]]
    return list(dict.fromkeys([reference, *others]))


def _check(lists: dict[str, Sequence], batch_size: int):
    for name, choices in (("size", SIZES), ("memory_size", MEMORY_SIZES), ("precision", PRECISIONS)):
        for value in lists[name]:
            if value not in choices:
                known = ", ".join(map(str, choices))
                raise ValueError(f"{name}s has {value}, which is unknown: choose from {known}.")
    if min(lists["crop"]) < SMALLEST_CROP:
        raise ValueError(f"crops has {min(lists['crop'])}: set at least {SMALLEST_CROP} pixels.")
    if not 2 <= min(lists["num_labels"]) <= max(lists["num_labels"]) <= MAX_NUM_LABELS:
        raise ValueError(f"num_labels has {lists['num_labels']}: set 2 to {MAX_NUM_LABELS} classes.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: set at least 1 labeled image.")


def memory_grid(cases: Sequence[Case], num_labels: Sequence[int], memory_sizes: Sequence[float]) -> list[Case]:
    """Every class count with every memory size at the reference, the first of `cases`; then the others."""
    grid = [replace(cases[0], num_labels=k, memory_size=m) for m, k in product(memory_sizes, num_labels)]
    return list(dict.fromkeys([*grid, *cases]))


def find_device(use_cpu: bool) -> torch.device:
    """The GPU if there is one and it is not declined; raises ValueError if there are several."""
    if use_cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    if torch.cuda.device_count() > 1:
        raise ValueError(
            f"{torch.cuda.device_count()} GPUs are visible and one is measured: set CUDA_VISIBLE_DEVICES to one of "
            "them."
        )
    return torch.device("cuda")


def make_config(case: Case, plain: bool) -> AllSparkConfig:
    """The configuration of a case; `plain` leaves the bottleneck out."""
    fields = {"num_labels": case.num_labels, "crop_size": case.crop, "memory_size": case.memory_size}
    if plain:
        fields |= AllSparkConfig.plain_segformer_switches()
    if case.size == TINY:
        return AllSparkConfig(**TINY_GEOMETRY, **fields)
    return AllSparkConfig.mit(case.size, **fields)


def make_model(case: Case, variant: str, seed: int) -> SegformerForSemiSupervisedSegmentation:
    """A variant of [`VARIANTS`] with random weights, the same in ours and the textbook's; on the CPU."""
    torch.manual_seed(seed)
    plain = not METHODS[VARIANTS[variant]].needs_bottleneck
    model = SegformerForSemiSupervisedSegmentation(make_config(case, plain=plain))
    if variant == TEXTBOOK:
        model.bottleneck = TextbookBottleneck.like(model.bottleneck)
    return model


def make_bottleneck(case: Case, variant: str, seed: int) -> nn.Module:
    """The bottleneck of "allspark" or "textbook" without a model around it, random; on the CPU."""
    torch.manual_seed(seed)
    config = make_config(case, plain=False)
    bottleneck = AllSparkBottleneck(config, config.bottleneck_channels)
    return TextbookBottleneck.like(bottleneck) if variant == TEXTBOOK else bottleneck


def autocast(case: Case, device: torch.device) -> torch.autocast:
    """Autocast to the case's precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bf16")


def generated_data(num_rows: int, num_labels: int, crop: int, seed: int) -> datasets.Dataset:
    """Squares of noise in blocks that are brighter for higher classes, and their masks, in memory as PNG."""
    rng = np.random.default_rng(seed)
    columns = {"image": [], "label": []}
    for _ in range(num_rows):
        mask = rng.integers(num_labels, size=[-(-crop // 32)] * 2).repeat(32, 0).repeat(32, 1)[:crop, :crop]
        image = mask[..., None] * (200 // num_labels) + rng.integers(56, size=(crop, crop, 3))
        columns["image"].append(Image.fromarray(image.astype(np.uint8)))
        columns["label"].append(Image.fromarray(mask.astype(np.uint8)))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    return datasets.Dataset.from_dict(columns, features=features)


def silence():
    """No progress bars and no advice from libraries between the lines of the report."""
    datasets.disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
