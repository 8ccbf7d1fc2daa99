"""Figure 1c: how far the error on labeled images lies below that on unlabeled and validation images."""

from collections.abc import Mapping

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..evaluation.arguments import EvaluationArguments
from ..evaluation.evaluator import Evaluation, EvaluationDataset


__all__ = ["error_by_set", "evaluate_set"]


def evaluate_set(
    model: PreTrainedModel, image_processor, dataset: Dataset, name: str = "images"
) -> tuple[np.ndarray, float]:
    """Evaluate a model on whole images, image by image, at the masks' own size.

    Args:
        model: Segmentation model in eval mode.
        image_processor: Its image processor.
        dataset: Columns `image` and `label`, every row with a mask.
        name: What the progress bar calls the set.

    Returns:
        Pixels by class, int64 (true class, predicted class) without ignored ones, and the mean IoU in [0, 1], which
        leaves out classes in neither masks nor predictions.
    """
    config = model.config
    evaluation = Evaluation(config, EvaluationArguments(), model.device)
    samples = EvaluationDataset(dataset, image_processor, config.num_labels, config.semantic_loss_ignore_index)
    for row in tqdm(range(len(samples)), desc=name, unit="image", disable=None):
        evaluation.add(model, [samples[row]])
    return evaluation.confusion.counts.cpu().numpy(), evaluation.metrics()["mean_iou"]


def error_by_set(models: Mapping[str, tuple[PreTrainedModel, object]], sets: Mapping[str, Dataset]) -> dict:
    """Mean IoU of some models on the labeled, the unlabeled (masks hidden in training) and the validation images.

    Label dominance (paper, Figure 1c) shows as an error on labeled images far below the other two.

    Args:
        models: Name -> (model in eval mode, image processor); all of the same classes.
        sets: Name -> images with masks, columns `image` and `label`; the margins are measured from the first set.

    Returns:
        `models` str (models,), `sets` str (sets,), `num_images` int64 (sets,), `class_names` str (num_labels,),
        `counts` int64 (models, sets, true class, predicted class), and as float64 (models, sets) `mean_iou` in [0, 1],
        `error` = 1 - mean IoU and `margin` = error - error on the first set.

    Raises:
        ValueError: If there is no model or no set, a set has no image, or the models' classes differ.
    """
    if not models or not sets or not all(len(dataset) for dataset in sets.values()):
        raise ValueError("Figure 1c needs a model and sets of at least one image with a mask each: give both.")
    configs = [model.config for model, _ in models.values()]
    names = [[config.id2label[index] for index in range(config.num_labels)] for config in configs]
    if any(other != names[0] for other in names):
        raise ValueError("The models have different classes, so that their errors do not compare: draw them apart.")
    results = [
        [evaluate_set(*model, dataset, f"{title}, {name}") for name, dataset in sets.items()]
        for title, model in models.items()
    ]
    mean_iou = np.array([[value for _, value in of_model] for of_model in results])
    return {
        "models": np.array(list(models)),
        "sets": np.array(list(sets)),
        "num_images": np.array([len(dataset) for dataset in sets.values()]),
        "class_names": np.array(names[0]),
        "counts": np.array([[counts for counts, _ in of_model] for of_model in results]),
        "mean_iou": mean_iou,
        "error": 1 - mean_iou,
        "margin": mean_iou[:, :1] - mean_iou,
    }
