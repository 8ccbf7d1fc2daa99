"""Figure 1c: how far the error on labeled images lies below that on unlabeled and validation images."""

from collections.abc import Mapping

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.summary import require_known_values
from ..evaluation.arguments import EvaluationArguments
from ..evaluation.evaluator import Evaluation, EvaluationDataset
from ..evaluation.intervals import margin_interval
from .crops import class_names, require_same_classes


def error_by_set(models: Mapping[str, tuple[PreTrainedModel, object]], sets: Mapping[str, Dataset]) -> dict:
    """
    Mean IoU of some models on the labeled, the unlabeled (masks hidden in training) and the validation images: whole
    images, at the masks' own size.

    Label dominance (paper, Figure 1c) shows as an error on labeled images far below the other two.

    Args:
        models (`Mapping[str, tuple]`): name -> (model in eval mode, image processor); all of the same classes.
        sets (`Mapping[str, Dataset]`):
            name -> images with masks, columns `image` and `label`; the margins are measured from the first set.

    Returns:
        `dict`: `models` str (models,), `sets` str (sets,), `num_images` int64 (sets,), `class_names` str
        (num_labels,), `counts` int64 (models, sets, true class, predicted class), `by_image` int64 (models, images, 3,
        num_labels), the [`image_counts`] of one set after the other, as float64 (models, sets) `mean_iou` in [0, 1],
        `error` = 1 - mean IoU and `margin` = error - error on the first set, and as float64 (models, sets, 2)
        `margin_ends`, the ends of the margin's 95 % interval over images (0 for the first set).

    Raises:
        ValueError: if there is no model or no set, a set has no image, the models' classes differ, or masks are not as
            the models' configurations say.
    """
    if not models or not sets or not all(len(dataset) for dataset in sets.values()):
        raise ValueError("Figure 1c needs a model and sets of at least one image with a mask each: give both.")
    require_same_classes(models)
    for model, _ in models.values():
        require_known_values(sets, model.config)
    evaluations = [
        [_evaluate(*model, dataset, f"{title}, {name}") for name, dataset in sets.items()]
        for title, model in models.items()
    ]
    mean_iou = np.array([[one.metrics()["mean_iou"] for one in of_model] for of_model in evaluations])
    return {
        "models": np.array(list(models)),
        "sets": np.array(list(sets)),
        "num_images": np.array([len(dataset) for dataset in sets.values()]),
        "class_names": class_names(next(iter(models.values()))[0].config),
        "counts": np.array([[one.confusion.counts.cpu().numpy() for one in of_model] for of_model in evaluations]),
        "by_image": np.array([[image for one in of_model for image in one.by_image] for of_model in evaluations]),
        "mean_iou": mean_iou,
        "error": 1 - mean_iou,
        "margin": mean_iou[:, :1] - mean_iou,
        "margin_ends": np.array([_margin_ends(*of_model) for of_model in evaluations]),
    }


def _margin_ends(first: Evaluation, *others: Evaluation) -> list[tuple[float, float]]:
    """The ends of the intervals of the margins to the first set."""
    counts = np.stack(first.by_image)
    return [(0.0, 0.0), *(margin_interval(counts, np.stack(other.by_image))[1:] for other in others)]


def _evaluate(model: PreTrainedModel, image_processor, dataset: Dataset, title: str) -> Evaluation:
    config = model.config
    evaluation = Evaluation(config, EvaluationArguments(), model.device)
    samples = EvaluationDataset.of(dataset, image_processor, config)
    for row in tqdm(range(len(samples)), desc=title, unit="image", disable=None):
        evaluation.add(model, [samples[row]])
    return evaluation
