"""Reading the numbers of the authors' code, and comparing to them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from allspark_hf.models.conversion import convert_state_dict
from allspark_hf.models.upsampling import upsample


F64_TOLERANCE = 1e-9
# float32: ten times the largest difference between the authors' own float32 and float64 runs.
F32_FACTOR = 10
NO_DROPOUT = {"drop_path_rate": 0.0, "classifier_dropout_prob": 0.0, "channel_attention_dropout": 0.0}
PRECISIONS = {"f64": torch.float64, "f32": torch.float32}


class Reference:
    """The fixtures of one folder; `tolerance` is that of a kind of tensor in a precision."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.description = json.loads((folder / "description.json").read_text())

    def load(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def model(self, precision: str):
        model = convert_state_dict(self.load("reference_state_dict"), **NO_DROPOUT)
        return model.to(PRECISIONS[precision])

    def tolerance(self, precision: str, kind: str) -> float:
        if precision == "f64":
            return F64_TOLERANCE
        return F32_FACTOR * self.description["f32_vs_f64_summary"][kind]["max_abs_diff"]


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str):
    assert actual.shape == expected.shape, what
    difference = (actual.detach().double() - expected.double()).abs().max().item()
    assert difference <= tolerance, f"{what}: largest difference {difference:.3g}, allowed {tolerance:.3g}"


def predict_full_size(model, pixel_values: torch.Tensor) -> torch.Tensor:
    """The authors' pseudo-label pass: eval mode, full resolution; leaves the model in train mode."""
    model.eval()
    with torch.no_grad():
        logits = upsample(model(pixel_values=pixel_values).logits, pixel_values.shape[2:])
    model.train()
    return logits
