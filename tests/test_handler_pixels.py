"""From logits and images to classes: the part of handler.py that the whole package uses."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from served_model import variants
from torch.nn import functional as F

from allspark_hf.data.pixels import to_rgb
from allspark_hf.inference import handler as package_handler
from allspark_hf.inference.loading import SegformerImageProcessorPil


@pytest.mark.parametrize("num_labels", [1, 2, 3, 4, 81, 300])
@pytest.mark.parametrize(
    ("whole_bytes", "dtype"),
    [(2**28, torch.float32), (0, torch.float32), (2**28, torch.bfloat16), (0, torch.bfloat16)],
    ids=["whole", "class by class", "whole in half precision", "class by class in half precision"],
)
def test_classes_are_those_of_post_processing(monkeypatch, num_labels, whole_bytes, dtype):
    monkeypatch.setattr(package_handler, "WHOLE_LOGITS_BYTES", whole_bytes)
    logits = torch.randn(1, num_labels, 9, 13, generator=torch.Generator().manual_seed(0)).to(dtype)
    for size in [(37, 51), (9, 13), (1, 200)]:
        (expected,) = SegformerImageProcessorPil().post_process_semantic_segmentation(
            SimpleNamespace(logits=logits.float()), target_sizes=[size]
        )
        classes, confidence = package_handler.classify_pixels(logits, size, with_confidence=True)
        assert classes.dtype == (torch.uint8 if num_labels <= 256 else torch.int32)
        np.testing.assert_array_equal(classes.numpy(), expected.numpy())
        scaled = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)[0].double()
        highest = scaled.sigmoid()[0] if num_labels == 1 else scaled.softmax(dim=0).amax(dim=0)
        assert confidence.dtype == torch.float32
        torch.testing.assert_close(confidence.double(), highest, atol=2e-6, rtol=0)


def test_first_of_equal_classes_wins():
    logits = torch.randint(3, (1, 7, 20, 30), generator=torch.Generator().manual_seed(0)).float()
    classes, confidence = package_handler.classify_pixels(logits, (20, 30), with_confidence=True)
    np.testing.assert_array_equal(classes.numpy(), logits[0].numpy().argmax(axis=0))
    torch.testing.assert_close(confidence, logits[0].softmax(dim=0).amax(dim=0))


def test_memory_does_not_grow_with_the_number_of_classes(monkeypatch):
    monkeypatch.setattr(package_handler, "WHOLE_LOGITS_BYTES", 150 * 120 * 160 * 4 - 1)
    largest = []
    scale = F.interpolate

    def recording(*args, **kwargs):
        scaled = scale(*args, **kwargs)
        largest.append(scaled.numel())
        return scaled

    monkeypatch.setattr(package_handler.F, "interpolate", recording)
    package_handler.classify_pixels(torch.zeros(1, 150, 8, 8), (120, 160), with_confidence=True)
    assert len(largest) == 300 and max(largest) == 120 * 160


@pytest.mark.parametrize("name", variants())
def test_modes_are_seen_as_in_training(name):
    image = variants()[name]
    np.testing.assert_array_equal(np.asarray(package_handler.to_rgb(image)), np.asarray(to_rgb(image)))
