"""Evaluation inside the Trainer: what is summed, what is logged, what is refused."""

import datasets
import numpy as np
import pytest
import torch
from conftest import make_dataset, tiny_model
from PIL import Image

from allspark_hf import AllSparkTrainer, AllSparkTrainingArguments
from allspark_hf.evaluation.arguments import EvaluationArguments
from allspark_hf.evaluation.evaluator import Evaluation, EvaluationDataset
from allspark_hf.evaluation.metrics import BoundaryCounts, ConfusionMatrix
from allspark_hf.evaluation.prediction import center_crop, predict_logits, sliding_window_sum
from allspark_hf.inference.loading import make_image_processor
from allspark_hf.models.upsampling import cross_entropy_sum, upsample


SLIDING = {"eval_mode": "sliding_window", "eval_crop_size": [48, 56]}
MODES = {
    "whole": {},
    "sliding_window": SLIDING,
    "center_crop": {"eval_mode": "center_crop", "eval_crop_size": [33, 90]},
    "scales and flip": {"eval_scales": [0.75, 1.0], "eval_flip": True},
    "all at once": {**SLIDING, "eval_scales": [1.0, 1.25], "eval_flip": True, "eval_boundary_iou": True},
}


def make_trainer(output_dir, model=None, dataset=None, long_side=None, **settings):
    args = AllSparkTrainingArguments(
        output_dir=str(output_dir), use_cpu=True, report_to="none", disable_tqdm=True, **settings
    )
    dataset = mixed_sizes() if dataset is None else dataset
    return AllSparkTrainer(model or tiny_model(), args, make_image_processor(long_side), eval_dataset=dataset)


def mixed_sizes():
    sizes = [(48, 72), (48, 72), (72, 48), (120, 96), (96, 120)]
    return datasets.concatenate_datasets([make_dataset(1, seed=seed, size=size) for seed, size in enumerate(sizes)])


def test_images_of_different_sizes_are_scored_at_their_masks_size(image_processor):
    model = tiny_model().eval()
    dataset = EvaluationDataset(mixed_sizes(), image_processor, 3)
    samples = [dataset[row] for row in range(4)]
    evaluation = Evaluation(model.config, EvaluationArguments(), torch.device("cpu"))
    evaluation.add(model, samples[:3])
    evaluation.add(model, samples[3:])
    expected = ConfusionMatrix(3)
    expected_loss = 0.0
    for sample, size in zip(samples, [(48, 72), (48, 72), (72, 48), (120, 96)], strict=True):
        assert sample["labels"].shape == size
        with torch.no_grad():
            logits = upsample(model(sample["pixel_values"][None]).logits, size)
        expected.update(logits.argmax(1)[0], sample["labels"])
        expected_loss += torch.nn.functional.cross_entropy(
            logits, sample["labels"][None], ignore_index=255, reduction="sum"
        ).item()
    assert torch.equal(evaluation.confusion.counts, expected.counts)
    assert evaluation.num_pixels == expected.counts.sum() and evaluation.num_images == 4
    assert evaluation.loss_sum == pytest.approx(expected_loss, rel=1e-5)
    assert evaluation.boundary is None


def test_sliding_window_with_images_scaled_down(tmp_path):
    """Windows lie on the image as processed; probabilities are brought to the mask's own size."""
    model = tiny_model()
    trainer = make_trainer(tmp_path, model, long_side=80, **SLIDING)
    metrics = trainer.evaluate()
    confusion, loss, pixels = ConfusionMatrix(3), 0.0, 0
    for (sample,) in trainer.get_eval_dataloader():
        assert max(sample["pixel_values"].shape) == 80
        labels = sample["labels"][None]
        total, coverage = sliding_window_sum(model.eval(), sample["pixel_values"][None], (48, 56))
        probabilities = upsample(total / coverage, labels.shape[1:])
        confusion.update(probabilities.argmax(1), labels)
        loss += cross_entropy_sum(probabilities.log(), labels).item()
        pixels += int((labels != 255).sum())
    assert metrics["eval_mean_iou"] == pytest.approx(confusion.iou().nanmean().item(), abs=1e-12)
    assert torch.equal(trainer.evaluation.confusion.counts, confusion.counts)
    assert metrics["eval_loss"] == pytest.approx(loss / pixels, rel=1e-5)


def test_center_crop_scores_the_middle_only(tmp_path):
    model = tiny_model()
    trainer = make_trainer(tmp_path, model, eval_boundary_iou=True, **MODES["center_crop"])
    metrics = trainer.evaluate()
    confusion, boundary = ConfusionMatrix(3), BoundaryCounts(3)
    for (sample,) in trainer.get_eval_dataloader():
        labels = center_crop(sample["labels"], (33, 90))[None]
        with torch.no_grad():
            logits = model.eval()(center_crop(sample["pixel_values"], (33, 90))[None]).logits
        prediction = upsample(logits, labels.shape[1:]).argmax(1)
        confusion.update(prediction, labels)
        boundary.update(prediction, labels)
    assert torch.equal(trainer.evaluation.confusion.counts, confusion.counts)
    assert metrics["eval_mean_boundary_iou"] == pytest.approx(boundary.iou().nanmean().item(), abs=1e-12)
    assert trainer.evaluation.num_pixels == confusion.counts.sum()


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_no_mode_depends_on_the_batch_size(tmp_path, mode):
    model = tiny_model()
    one = make_trainer(tmp_path, model, **mode)
    expected = one.evaluate()
    assert expected.keys() >= {"eval_loss", "eval_mean_iou", "eval_iou_LABEL_0"}
    windows = {"eval_windows_per_batch": 3} if "sliding_window" in mode.values() else {}
    for settings in ({"per_device_eval_batch_size": 2}, {"per_device_eval_batch_size": 5, **windows}):
        other = make_trainer(tmp_path, model, **mode, **settings)
        actual = other.evaluate()
        assert torch.equal(other.evaluation.confusion.counts, one.evaluation.confusion.counts)
        assert actual["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
        assert other.evaluation.num_images == 5


def test_loss_of_averaged_probabilities(tmp_path):
    model = tiny_model()
    trainer = make_trainer(tmp_path, model, **MODES["scales and flip"])
    loss = trainer.evaluate()["eval_loss"]
    total, pixels = 0.0, 0
    for (sample,) in trainer.get_eval_dataloader():
        labels = sample["labels"][None]
        logits = predict_logits(model.eval(), sample["pixel_values"][None], labels.shape[1:], trainer.args)
        probability = logits.exp().gather(1, labels.where(labels != 255, 0)[:, None])[:, 0]
        total -= probability[labels != 255].double().log().sum().item()
        pixels += int((labels != 255).sum())
    assert loss == pytest.approx(total / pixels, rel=1e-5)


def test_names_of_metrics(tmp_path):
    plain = make_trainer(tmp_path).evaluate()
    assert not [name for name in plain if "boundary" in name]
    trainer = make_trainer(tmp_path, eval_boundary_iou=True, eval_boundary_ratio=0.05)
    metrics = trainer.evaluate()
    for index, value in enumerate(trainer.evaluation.boundary.iou().tolist()):
        assert metrics[f"eval_boundary_iou_LABEL_{index}"] == value
    assert metrics["eval_mean_boundary_iou"] == pytest.approx(trainer.evaluation.boundary.iou().mean().item())
    assert trainer.evaluation.boundary.dilation_ratio == 0.05
    # What other scripts read as "the IoU of each class" must not take in the boundary's.
    assert {name for name in metrics if "eval_iou_" in name} == {f"eval_iou_LABEL_{index}" for index in range(3)}


def test_a_class_that_does_not_occur_has_no_value(tmp_path):
    model = tiny_model(num_labels=4)
    with torch.no_grad():
        model.decode_head.classifier.bias[3] = -100.0
    trainer = make_trainer(tmp_path, model, eval_boundary_iou=True)
    trainer.evaluate()
    *others, absent = trainer.evaluation.per_class()
    assert absent == {
        "index": 3,
        "name": "LABEL_3",
        "iou": None,
        "accuracy": None,
        "boundary_iou": None,
        "pixel_share": 0,
    }
    assert sum(row["pixel_share"] for row in others) == pytest.approx(1)
    for index, row in enumerate(others):
        counts = trainer.evaluation.confusion.counts
        assert row["accuracy"] == pytest.approx((counts[index, index] / counts[index].sum()).item(), rel=1e-6)


def test_evaluation_leaves_the_model_as_it_was(tmp_path):
    trainer = make_trainer(tmp_path, **MODES["all at once"])
    trainer.model.train()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.evaluate()
    assert trainer.model.training
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_a_mask_that_does_not_fit_is_named(tmp_path):
    wrong = Image.fromarray(np.full((48, 72), 7, dtype=np.uint8))
    rows = {"id": ["street/12"], "image": [Image.new("RGB", (72, 48))], "label": [wrong]}
    dataset = datasets.Dataset.from_dict(
        rows,
        features=datasets.Features(
            {"id": datasets.Value("string"), "image": datasets.Image(), "label": datasets.Image()}
        ),
    )
    with pytest.raises(ValueError, match=r"The mask of street/12 has the value 7, but the model has classes"):
        make_trainer(tmp_path, dataset=dataset)
    trainer = make_trainer(tmp_path)
    trainer.model.train()
    with pytest.raises(ValueError, match=r"The mask of row 0 \(street/12\) has the value 7, but the model has cl"):
        trainer.evaluate(dataset)
    assert all(module.training for module in trainer.model.modules())


REFUSED = [
    ({"eval_mode": "center_crop"}, {"long_side": 60}, "cuts image and mask alike, but the image processor resizes"),
    ({**SLIDING, "eval_crop_size": [20]}, {}, "would crop to 20x20 pixels .* but the encoder needs 29 a side"),
    (
        {"eval_mode": "sliding_window", "eval_windows_per_batch": 2},
        {"model": tiny_model(mix_images_in_eval=True)},
        "eval_windows_per_batch=2 would mix the windows of an image",
    ),
]


@pytest.mark.parametrize(("settings", "parts", "sentence"), REFUSED)
def test_what_the_model_or_the_image_processor_does_not_allow(tmp_path, settings, parts, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_trainer(tmp_path, **parts, **settings)


def test_a_resized_image_cannot_be_cropped_beside_its_mask(image_processor):
    """For users of Evaluation without the Trainer's check."""
    model = tiny_model().eval()
    args = EvaluationArguments(eval_mode="center_crop")
    sample = EvaluationDataset(mixed_sizes(), make_image_processor(60), 3)[0]
    with pytest.raises(ValueError, match=r"An image is resized to \(40, 60\), its mask is \(48, 72\)"):
        Evaluation(model.config, args, torch.device("cpu")).add(model, [sample])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            {"eval_mode": "tiles"},
            "eval_mode='tiles' is unknown: choose one of whole, resized, center_crop, slid",
        ),
        ({"eval_mode": "center_crop", "eval_crop_size": [1, 2, 3]}, r"eval_crop_size=\[1, 2, 3\] is neither"),
        ({"eval_mode": "center_crop", "eval_crop_size": []}, r"eval_crop_size=\[\] is neither"),
        ({"eval_mode": "center_crop", "eval_crop_size": [64, 0]}, r"eval_crop_size=\[64, 0\] is out of range"),
        ({"eval_crop_size": 64}, r"eval_crop_size=\[64\] changes nothing with eval_mode='whole': set eval_mode"),
        ({"eval_stride": 0.5}, "eval_stride=0.5 changes nothing with eval_mode='whole': set eval_mode to sl"),
        ({"eval_windows_per_batch": 2, "eval_mode": "center_crop"}, "eval_windows_per_batch=2 changes nothing with"),
        ({"eval_stride": 0.0}, "eval_stride=0.0 is out of range: set a number above 0 and at most 1"),
        ({"eval_stride": 1.5}, "eval_stride=1.5 is out of range"),
        ({"eval_windows_per_batch": 0}, "eval_windows_per_batch=0 is out of range"),
        ({"eval_scales": [1.0, 0.0]}, r"eval_scales=\[1.0, 0.0\] is out of range"),
        ({"eval_scales": [11.0]}, r"eval_scales=\[11.0\] is out of range: set a number above 0 and at most 10"),
        ({"eval_boundary_ratio": 0.0}, "eval_boundary_ratio=0.0 is out of range"),
    ],
)
@pytest.mark.parametrize("arguments", [EvaluationArguments, AllSparkTrainingArguments])
def test_mistakes_are_refused(arguments, wrong, sentence):
    shared = {} if arguments is EvaluationArguments else {"output_dir": "unused", "use_cpu": True}
    with pytest.raises(ValueError, match=sentence):
        arguments(**wrong, **shared)
