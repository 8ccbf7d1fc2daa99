"""`scripts/benchmark_encoder.py`: what an encoder does not allow is told, the rest is measured."""

import torch
from test_backbone import ENCODERS
from transformers import AutoBackbone

from allspark_hf.benchmarks import encoders as benchmarked


def test_an_encoder_that_cannot_be_half_frozen_is_measured_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarked, "ENCODER_PARTS", ("first half frozen", "whole"))
    AutoBackbone.from_config(ENCODERS["resnet"]).save_pretrained(tmp_path)
    taken = benchmarked.times(
        benchmarked.EncoderCase(str(tmp_path), 64, num_labels=3, batch_size=2, repeats=1), torch.device("cpu")
    )
    assert list(taken) == benchmarked.variant_names() and len(taken) == 4
    for name in ("whole", "whole + bottleneck"):
        assert len(taken[name]) == 1 and taken[name][0] > 0
    for name in ("first half frozen", "first half frozen + bottleneck"):
        assert "counts the layers of a plain ViT, and 'resnet' is none" in taken[name]
