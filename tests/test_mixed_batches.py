"""What is drawn, in which order, and that nothing but seed, epoch and position decides it."""

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from conftest import make_dataset
from torch.utils.data import DataLoader

from allspark_hf.data.mixed import Draw, MixedBatchCollator, MixedBatchSampler, MixedDataset


def sampler(num_labeled=3, num_unlabeled=7, labeled=2, unlabeled=2, seed=0, **kwargs):
    return MixedBatchSampler(num_labeled, num_unlabeled, labeled, unlabeled, seed, **kwargs)


def rows(batches, labeled):
    return [draw.row for batch in batches for draw in batch if draw.labeled == labeled]


def test_epoch_is_one_pass_over_the_unlabeled_set():
    batches = list(sampler())
    assert len(batches) == len(sampler()) == 4
    assert all([draw.labeled for draw in batch] == [True, True, False, False] for batch in batches)
    assert sorted(rows(batches, labeled=False)[:7]) == list(range(7))


def test_labeled_rows_repeat_and_are_reshuffled_each_round():
    order = rows(sampler(num_labeled=5, num_unlabeled=40), labeled=True)
    rounds = [order[start : start + 5] for start in range(0, 40, 5)]
    assert all(sorted(one) == list(range(5)) for one in rounds)
    assert len({tuple(one) for one in rounds}) > 4


def test_epochs_and_seeds_differ_and_repeat():
    first, again, other_seed, other_epoch = sampler(), sampler(), sampler(seed=1), sampler()
    other_epoch.set_epoch(1)
    assert list(first) == list(again) == list(first)
    assert rows(first, False) != rows(other_epoch, False)
    assert rows(first, False) != rows(other_seed, False)


@pytest.mark.parametrize(("drop_last", "expected"), [(False, 3), (True, 2)])
def test_last_batch_is_full_or_dropped(drop_last, expected):
    batches = list(sampler(num_unlabeled=7, unlabeled=3, drop_last=drop_last))
    assert [len(batch) for batch in batches] == [5] * expected


def test_batch_size_cuts_one_order():
    small = list(sampler(num_unlabeled=8, labeled=1, unlabeled=2))
    large = list(sampler(num_unlabeled=8, labeled=2, unlabeled=4))
    for labeled in (True, False):
        flat = [[draw for batch in batches for draw in batch if draw.labeled == labeled] for batches in (small, large)]
        assert flat[0] == flat[1]


def test_two_processes_get_whole_mixed_batches():
    whole = list(sampler(num_unlabeled=12))
    shards = [list(BatchSamplerShard(sampler(num_unlabeled=12), 2, rank)) for rank in range(2)]
    assert shards[0] == whole[::2] and shards[1] == whole[1::2]


def test_uneven_shards_are_evened_out_with_whole_batches():
    shards = [list(BatchSamplerShard(sampler(num_unlabeled=6), 2, rank)) for rank in range(2)]
    assert [len(shard) for shard in shards] == [2, 2]
    for batch in shards[0] + shards[1]:
        assert [draw.labeled for draw in batch] == [True, True, False, False]


def test_supervised_keeps_the_epoch_length_without_reading():
    batches = list(sampler(read_unlabeled=False))
    assert [len(batch) for batch in batches] == [2] * 4
    assert rows(batches, labeled=False) == []
    assert rows(batches, labeled=True) == rows(sampler(), labeled=True)


def test_without_unlabeled_set_an_epoch_is_one_pass_over_the_labeled():
    batches = list(sampler(num_labeled=6, num_unlabeled=0))
    assert sorted(rows(batches, labeled=True)) == list(range(6))


def mixed_dataset(crop=(64, 96), **kwargs):
    return MixedDataset(
        labeled=make_dataset(4),
        unlabeled=make_dataset(5, seed=1),
        crop=crop,
        num_labels=3,
        long_side=None,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        **{"seed": 0, **kwargs},
    )


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_pixels_do_not_depend_on_workers_or_the_global_seed(workers):
    torch.manual_seed(workers)
    loader = DataLoader(
        mixed_dataset(), batch_sampler=sampler(4, 5), collate_fn=MixedBatchCollator(), num_workers=workers
    )
    reference = [mixed_dataset()[draw] for batch in sampler(4, 5) for draw in batch]
    batches = list(loader)
    labeled = torch.cat([batch["pixel_values"] for batch in batches])
    unlabeled = torch.cat([batch["unlabeled_pixel_values"] for batch in batches])
    assert torch.equal(labeled, torch.stack([sample["pixel_values"] for sample in reference if "labels" in sample]))
    assert torch.equal(unlabeled, torch.stack([s["pixel_values"] for s in reference if "labels" not in s]))


def test_every_draw_of_a_row_is_another_crop():
    dataset = mixed_dataset()
    draws = [dataset[Draw(True, 0, epoch, position)]["pixel_values"] for epoch in (0, 1) for position in (0, 1)]
    for index, one in enumerate(draws):
        assert not any(torch.equal(one, other) for other in draws[index + 1 :])


def test_padding_is_ignored_in_labels_and_marked_in_the_mask():
    dataset = mixed_dataset(crop=(300, 400))  # no scale makes the 72 x 96 images this large
    labeled = dataset[Draw(True, 0, 0, 0)]
    assert labeled["pixel_values"].dtype == torch.float32 and labeled["labels"].dtype == torch.int64
    known = labeled["labels"] != 255
    assert not known[-1].any() and 36 <= known.any(1).sum() <= 144 and 48 <= known.any(0).sum() <= 192
    unlabeled = dataset[Draw(False, 0, 0, 0)]
    mask = unlabeled["pixel_mask"]
    assert mask.dtype == torch.bool and mask.any()
    height, width = mask.any(1).sum(), mask.any(0).sum()
    assert mask.sum() == height * width and 36 <= height <= 144 and 48 <= width <= 192
    assert unlabeled["pixel_values"][:, ~mask].eq(-1).all()  # black, normalized
    assert unlabeled["pixel_values"][:, mask].gt(-1).float().mean() > 0.9


def test_mask_errors_name_the_row():
    dataset = mixed_dataset()
    dataset.num_labels = 2
    with pytest.raises(ValueError, match=r"labeled row 0 has the value 2, but the model has classes 0 to 1"):
        dataset[Draw(True, 0, 0, 0)]
