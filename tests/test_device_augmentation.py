"""Photometry on the device: Pillow's levels, one by one, whatever else is in the batch."""

import numpy as np
import pytest
import torch
from conftest import small_model
from PIL import Image
from run_training import make_trainer, result_of
from test_mixed_batches import mixed_dataset, sampler

from allspark_hf.data import device_photometry as device_augmentation
from allspark_hf.data.device_photometry import finish_on_device, normalize, pack_photometry
from allspark_hf.data.mixed import MixedBatchCollator
from allspark_hf.data.photometry import JITTER, Photometry, apply_photometry, draw_photometry, to_pixel_values


NOTHING = Photometry((), False, None)


def make_images(number, size, seed=0) -> np.ndarray:
    """uint8 (number, height, width, 3): noise, half of it smooth, and some of it gray or black."""
    rng = np.random.default_rng(seed)
    images = rng.integers(256, size=(number, *size, 3))
    images[::2] = images[::2] // 16 + rng.integers(220, size=(len(images[::2]), 1, 1, 3))
    images[0, :, : size[1] // 2] = images[0, :, : size[1] // 2, :1]
    images[0, : size[0] // 3] = 0
    return images.astype(np.uint8)


def on_device(images: np.ndarray, drawn: list[Photometry]) -> np.ndarray:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    result = device_augmentation.apply_photometry(pixels, torch.stack([pack_photometry(one) for one in drawn]))
    assert result.dtype == torch.uint8
    return result.permute(0, 2, 3, 1).numpy()


def in_pillow(images: np.ndarray, drawn: list[Photometry]) -> np.ndarray:
    return np.stack([apply_photometry(Image.fromarray(image), one) for image, one in zip(images, drawn, strict=True)])


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2), (33, 47), (64, 40)])
def test_every_level_is_that_of_pillow(size):
    images, drawn = make_images(50, size), [draw_photometry(np.random.default_rng(seed)) for seed in range(50)]
    expected = in_pillow(images, drawn)
    assert np.array_equal(on_device(images, drawn), expected)
    assert not np.array_equal(images, expected)


@pytest.mark.parametrize("name", JITTER)
def test_each_jitter_alone_over_its_whole_range(name):
    amounts = np.linspace(-JITTER[name], JITTER[name], 21).tolist()
    drawn = [Photometry(((name, amount),), False, None) for amount in amounts]
    images = make_images(21, (40, 31), seed=1)
    assert np.array_equal(on_device(images, drawn), in_pillow(images, drawn))
    assert np.array_equal(on_device(images, drawn)[10], images[10]) == (name != "hue")  # HSV has fewer colors


@pytest.mark.parametrize("shift", [-64, -1, 0, 1, 64])
def test_hue_of_every_kind_of_color(shift):
    """A grid over all of RGB, in steps that hit both ends."""
    steps = np.arange(0, 256, 5)
    colors = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, 52 * 4, -1, 3).astype(np.uint8)
    drawn = [Photometry((("hue", shift / 255),), False, None)]
    assert np.array_equal(on_device(colors, drawn), in_pillow(colors, drawn))


def test_blur_over_its_whole_range():
    sigmas = np.linspace(0.1, 2.0, 39).tolist()
    drawn = [Photometry((), False, sigma) for sigma in sigmas]
    images = np.repeat(make_images(2, (19, 24), seed=2)[1:], 39, axis=0)
    blurred = on_device(images, drawn)
    assert np.array_equal(blurred, in_pillow(images, drawn))
    roughness = [np.abs(np.diff(image.astype(int), axis=1)).mean() for image in blurred]
    assert roughness == sorted(roughness, reverse=True) and roughness[-1] < 0.2 * roughness[0]


def test_an_image_does_not_depend_on_its_batch():
    images, drawn = make_images(6, (21, 30)), [draw_photometry(np.random.default_rng(seed)) for seed in range(6)]
    together = on_device(images, drawn)
    for index in range(6):
        assert np.array_equal(on_device(images[index : index + 1], drawn[index : index + 1])[0], together[index])
    assert np.array_equal(on_device(images, [NOTHING] * 6), images)


def test_normalized_as_in_a_worker():
    images, mean, std = make_images(2, (40, 50)), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = torch.stack([to_pixel_values(Image.fromarray(image), mean, std) for image in images])
    assert torch.equal(normalize(torch.from_numpy(images).permute(0, 3, 1, 2), mean, std), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_finished_on_the_device_is_that_of_the_workers(workers):
    collate = MixedBatchCollator()
    batches = list(sampler(4, 5))
    late = torch.utils.data.DataLoader(
        mixed_dataset(augment_on_device=True), batch_sampler=sampler(4, 5), collate_fn=collate, num_workers=workers
    )
    for batch, drawn in zip(late, batches, strict=True):
        expected = collate([mixed_dataset()[draw] for draw in drawn])
        assert batch["pixel_values"].dtype == batch["unlabeled_pixel_values"].dtype == torch.uint8
        finished = finish_on_device(batch, (0.5,) * 3, (0.5,) * 3)
        assert finished.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(finished[name], value), name


@pytest.mark.parametrize("method", ["supervised", "allspark"])
def test_training_is_the_same_either_way(tmp_path, method):
    results = []
    for augment_on_device in (False, True):
        settings = {"output_dir": str(tmp_path), "method": method, "max_steps": 3, "seed": 1}
        trainer = make_trainer(small_model(), **settings, augment_on_device=augment_on_device)
        trainer.train()
        results.append(result_of(trainer))
    assert results[0]["losses"] == results[1]["losses"]
    for name, value in results[0]["state"].items():
        assert torch.equal(results[1]["state"][name], value), name
