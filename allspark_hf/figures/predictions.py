"""Figure b: predictions of several models beside the truth, and where each of them is wrong."""

from collections.abc import Mapping, Sequence

import numpy as np
from transformers import PreTrainedModel

from ..data.images import to_rgb
from ..data.masks import read_label
from ..inference.prediction import model_palette, predict_mask
from .crops import row_ids


__all__ = ["BASELINE_WRONG", "BOTH_RIGHT", "BOTH_WRONG", "IGNORED", "MODEL_WRONG", "compare_predictions", "difference"]

# Values of a difference map.
BOTH_RIGHT, BASELINE_WRONG, MODEL_WRONG, BOTH_WRONG, IGNORED = 0, 1, 2, 3, 255


def difference(
    truth: np.ndarray, model: np.ndarray, baseline: np.ndarray | None = None, ignore_index: int = 255
) -> np.ndarray:
    """Tell apart, pixel by pixel, which of two predictions is wrong.

    Args:
        truth: Integers (height, width), class or `ignore_index`.
        model: Integers of the same shape, predicted class.
        baseline: Integers of the same shape, predicted class; without it only `BOTH_RIGHT` and `MODEL_WRONG` occur.
        ignore_index: Value of pixels that do not count.

    Returns:
        uint8 (height, width): `BOTH_RIGHT` 0, `BASELINE_WRONG` 1 and `MODEL_WRONG` 2 for only one of them being wrong,
        `BOTH_WRONG` 3, `IGNORED` 255.
    """
    wrong = MODEL_WRONG * (model != truth).astype(np.uint8)
    if baseline is not None:
        wrong += BASELINE_WRONG * (baseline != truth).astype(np.uint8)
    return np.where(truth == ignore_index, IGNORED, wrong).astype(np.uint8)


def compare_predictions(models: Mapping[str, tuple[PreTrainedModel, object]], images: Sequence[dict]) -> dict:
    """Whole images, their masks, what each model predicts, and the last model's difference to each of the others.

    Args:
        models: Name -> (model in eval mode, image processor); the baselines first, the model of interest last.
        images: Rows with `image` and `label`, and perhaps `id`: a `datasets.Dataset` or a list.

    Returns:
        `models` str (models,), `ids` str (images,), `class_names` str (num_labels,), `palette` uint8 (num_labels, 3),
        `ignore_index` int64 (), and, as images differ in size, for image i: `picture_i` uint8 (height, width, 3),
        `truth_i` uint8 (height, width), class or ignore index, `predictions_i` integers (models, height, width),
        `differences_i` uint8 (models - 1, or 1 if there is one model, height, width), see [`difference`].

    Raises:
        ValueError: If there is no model or image, an image has no mask, or a mask does not fit.
    """
    if not models or not len(images):
        raise ValueError("Figure b needs at least one model and one image with a mask: give both.")
    model_of_interest = list(models.values())[-1][0]
    config = model_of_interest.config
    ids = row_ids(images)
    arrays = {
        "models": np.array(list(models)),
        "ids": np.array(ids),
        "class_names": np.array([config.id2label[index] for index in range(config.num_labels)]),
        "palette": model_palette(model_of_interest),
        "ignore_index": np.array(config.semantic_loss_ignore_index),
    }
    for row, name in enumerate(ids):
        example = images[row]
        if example.get("label") is None:
            raise ValueError(f"The image {name} has no mask, which figure b shows as the truth: choose another image.")
        picture = to_rgb(example["image"])
        ignore_index = config.semantic_loss_ignore_index
        truth = read_label(example["label"], picture.size, config.num_labels, ignore_index, f"image {name}")
        predictions = [predict_mask(model, processor, picture) for model, processor in models.values()]
        baselines = predictions[:-1] or [None]
        arrays[f"picture_{row}"] = np.array(picture)
        arrays[f"truth_{row}"] = truth
        arrays[f"predictions_{row}"] = np.stack(predictions)
        arrays[f"differences_{row}"] = np.stack(
            [difference(truth, predictions[-1], baseline, ignore_index) for baseline in baselines]
        )
    return arrays
