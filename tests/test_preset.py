"""What `--preset auto` chooses, and how long a training it fits into a time."""

import pytest
from datasets import Dataset, Features
from datasets import Image as ImageColumn
from PIL import Image

from allspark_hf.cli.apply_preset import geometry_of, median_side
from allspark_hf.cli.preset import BASE_ENCODER, SMALL_ENCODER, Situation, Times, best_encoder, choose, choose_length


def chosen(**changes) -> dict:
    facts = {"num_labeled": 24, "num_unlabeled": 400, "side": (360, 480), "device": "cpu"}
    return {choice.name: choice.value for choice in choose(Situation(**{**facts, **changes}))}


def test_a_cpu_and_a_gpu():
    on_cpu = chosen()
    assert on_cpu["encoder"] == SMALL_ENCODER and on_cpu["crop_size"] == [224, 224]
    assert on_cpu["freeze_encoder_layers"] == 6 and on_cpu["per_device_train_batch_size"] == 2
    on_gpu = chosen(device="cuda", device_memory=79.0, weights=best_encoder("cuda", 79.0), side=(600, 1200))
    assert on_gpu["encoder"] == BASE_ENCODER and on_gpu["crop_size"] == [518, 518]
    assert on_gpu["per_device_train_batch_size"] == 8 and "learning_rate" not in on_gpu
    assert best_encoder("cuda", 11.6) == SMALL_ENCODER
    assert chosen(device="cuda", device_memory=11.6)["per_device_train_batch_size"] == 4


@pytest.mark.parametrize(
    ("side", "crop"), [((100, 500), [98, 224]), ((9, 14), [14, 14]), ((224, 223), [224, 210]), ((30, 2000), [28, 224])]
)
def test_crops_are_whole_patches_of_what_images_fill(side, crop):
    assert chosen(side=side)["crop_size"] == crop


def test_without_an_encoder():
    choices = chosen(weights=None, patch=32, num_layers=0)
    assert choices["backbone"] == "b0" and choices["method"] == "supervised" and choices["crop_size"] == [128, 128]
    assert "encoder" not in choices and "freeze_encoder_layers" not in choices
    asked = chosen(weights=None, is_given=True, patch=32)
    assert "backbone" not in asked and "hidden_sizes" not in asked and asked["learning_rate"] == 2e-3


def test_an_encoder_of_the_users_stays():
    plain = chosen(weights="folder", is_given=True, num_layers=24, patch=16)
    assert "encoder" not in plain and plain["freeze_encoder_layers"] == 12 and plain["crop_size"] == [224, 224]
    pyramid = chosen(weights="folder", is_given=True, num_layers=0, patch=32)
    assert "freeze_encoder_layers" not in pyramid and "learning_rate" not in pyramid


def test_method_follows_device_and_unlabeled_images():
    gpu = {"device": "cuda", "device_memory": 79.0}
    assert chosen()["method"] == "supervised" and "keep_quantile" not in chosen()
    assert chosen(**gpu)["method"] == "unimatch_v2" and chosen(**gpu)["keep_quantile"] == 0.8
    assert chosen(**gpu, num_unlabeled=None)["method"] == "unimatch_v2"  # a stream
    given = chosen(method="fixmatch")
    assert "method" not in given and given["keep_quantile"] == 0.8
    assert "keep_quantile" not in chosen(method="allspark", **gpu)
    few = chosen(**gpu, num_unlabeled=23)
    assert few["method"] == "supervised" and "keep_quantile" not in few
    assert chosen(num_labeled=1)["per_device_train_batch_size"] == 1


@pytest.mark.parametrize(
    ("encoder", "geometry"),
    [
        ("dinov2", (14, 12)),
        ("dinov3_vit", (16, 12)),
        ("swin", (32, 0)),
        ("convnext", (32, 0)),
        ("resnet", (32, 0)),
        ("segformer", (32, 0)),
    ],
)
def test_only_a_plain_vit_has_layers_to_freeze(encoder, geometry):
    assert geometry_of(encoder) == geometry


def test_median_side():
    """Of the images as stored; (height, width), each median by itself."""
    images = [Image.new("RGB", size) for size in ((30, 20), (90, 10), (60, 40))]
    rows = Dataset.from_dict({"image": images}, features=Features({"image": ImageColumn()}))
    assert median_side(rows) == (20, 60) and median_side(rows, long_side=30) == (10, 30)


def test_every_choice_has_a_reason():
    for weights in (SMALL_ENCODER, None):
        for choice in choose(Situation(24, 400, (360, 480), "cpu", weights=weights)):
            assert 5 < len(choice.reason) < 120


def test_length():
    choices = {choice.name: choice.value for choice in choose_length(20, Times(update=2.0, evaluation=30.0))}
    assert choices["max_steps"] == 5 * choices["eval_steps"] == 525  # 1200 s - 5 x 30 s, at 2 s
    assert choices["save_steps"] == choices["eval_steps"] and choices["logging_steps"] == 10
    slow = {choice.name: choice.value for choice in choose_length(20, Times(update=2.0, evaluation=200.0))}
    assert slow["max_steps"] == slow["eval_steps"] == 500  # one evaluation, a sixth of the time
    with pytest.raises(ValueError, match=r"minutes=1 leaves 5 updates of 10.0 s, and at least 20 .*--minutes 4"):
        choose_length(1, Times(update=10.0, evaluation=5.0))
