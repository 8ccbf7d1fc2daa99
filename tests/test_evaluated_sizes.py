"""Images too small to be evaluated are named before the first step."""

import datasets
import pytest
from conftest import small_model
from in_process import run_script
from layout_folders import make_folder
from PIL import Image

from allspark_hf import AllSparkConfig, AllSparkTrainer, AllSparkTrainingArguments
from allspark_hf.evaluation.arguments import EvaluationArguments
from allspark_hf.evaluation.sizes import require_large_enough
from allspark_hf.inference.loading import make_image_processor


def rows(*sizes, start: int = 0) -> datasets.Dataset:
    """Images of one color of these (width, height), and their masks."""
    images = [Image.new("RGB", size, (start + index, 0, 0)) for index, size in enumerate(sizes)]
    columns = {"id": [f"i{start + index}" for index in range(len(sizes))], "image": images}
    columns["label"] = [Image.new("L", size, 1) for size in sizes]
    features = {"id": datasets.Value("string"), "image": datasets.Image(), "label": datasets.Image()}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


class Config:
    smallest_side = 29


@pytest.mark.parametrize(
    ("size", "settings", "long_side", "given"),
    [
        ((24, 80), {}, None, "with 24x80 pixels: the encoder needs 29 a side"),
        ((80, 28), {"eval_mode": "sliding_window", "eval_crop_size": [64]}, None, "with 80x28 pixels: "),
        ((1600, 100), {}, 256, "with 1600x100 pixels, 256x16 where the model gets it: the encoder needs 29 a side"),
        ((56, 70), {"eval_scales": [1, 0.5]}, None, "with 56x70 pixels, 28x35 where the model gets it"),
        ((29, 29), {}, None, None),
        ((20, 24), {}, 256, None),  # which enlarges it
        ((1600, 200), {"eval_flip": True}, 256, None),
    ],
)
def test_the_size_is_that_which_the_model_gets(size, settings, long_side, given):
    sets, args = {"validation": rows((64, 80), size, (64, 64))}, EvaluationArguments(**settings)
    if given is None:
        assert require_large_enough(sets, Config, args, long_side) is None
        return
    with pytest.raises(ValueError, match=f"1 of 3 validation images is too small, first i1 {given}"):
        require_large_enough(sets, Config, args, long_side)


def test_the_trainer_names_the_image(tmp_path):
    model = small_model(num_labels=2, **AllSparkConfig.plain_segformer_switches())
    smallest = model.config.smallest_side
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "method": "pseudo_label"}
    large, small = rows((64, 80), (72, 64)), rows((64, 64), (64, smallest - 1), start=9)

    def build(validation, labeled=large, **more):
        args = AllSparkTrainingArguments(**settings, **more)
        sets = {"unlabeled_dataset": rows((64, 64), start=20), "eval_dataset": validation}
        return AllSparkTrainer(model, args, make_image_processor(), train_dataset=labeled, **sets)

    several = {"one": rows((64, 64), start=30), "other": small}
    for name, validation, metric in (("validation", small, "mean_iou"), ("other", several, "one_mean_iou")):
        with pytest.raises(ValueError, match=rf"1 of 2 {name} images is too small, first i10 with 64x{smallest - 1}"):
            build(validation, metric_for_best_model=metric)
    trainer = build(rows((smallest, 64), start=30), labeled=small)  # in training it is padded
    with pytest.raises(ValueError, match="1 of 2 validation images is too small, first i10"):
        trainer.evaluate(small)
    with pytest.raises(ValueError, match=r"1 of 1 held-out images is too small, first i(9|10) with"):
        build(None, labeled=rows((smallest - 1, 64), (smallest - 1, 64), start=9), holdout_fraction=0.5, seed=1)


def test_a_dry_run_tells_it_and_what_training_will_warn_of(tmp_path):
    """Images of 11 x 7 pixels; which is enough for training, where crops are padded."""
    model = ["--backbone", "b0", "--crop_size", 32, "--hidden_sizes", 8, 8, 8, 8, "--depths", 1, 1, 1, 1]
    data = ["--data_dir", make_folder(tmp_path / "data"), "--num_labels", 2, "--output_dir", tmp_path / "out"]
    done = run_script(
        "train.py", *model, *data, "--decoder_hidden_size", 8, "--use_cpu", "--dry_run", "--preset", "none"
    )
    assert done.returncode == 1, done.stderr
    consider, to_do = done.stdout.split("To consider:")[1].split("To do before training:")
    assert "- The validation set has 2 images, so" in consider
    assert "- 80 epochs are 80 steps because there are 2 unlabeled images" in consider
    assert "- 2 of 2 validation images are too small, first " in to_do and "v000.jpg with 11x7 pixels:" in to_do
