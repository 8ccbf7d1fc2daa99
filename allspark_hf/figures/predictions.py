"""Figure b: predictions of several models beside the truth, and where each of them is wrong."""

from collections.abc import Mapping, Sequence

import numpy as np
from transformers import PreTrainedModel

from ..data.columns import exact_columns
from ..data.masks import MaskConvention, read_label
from ..data.pixels import Reading, to_rgb
from ..inference.prediction import palette_of, predict_mask
from .crops import class_names, require_same_classes, row_ids


# Values of a difference map.
BOTH_RIGHT, BASELINE_WRONG, MODEL_WRONG, BOTH_WRONG, IGNORED = 0, 1, 2, 3, 255


def difference(
    truth: np.ndarray, model: np.ndarray, baseline: np.ndarray | None = None, ignore_index: int = 255
) -> np.ndarray:
    """
    Tells apart, pixel by pixel, which of two predictions is wrong.

    Args:
        truth (`np.ndarray`): integers (height, width), class or `ignore_index`.
        model (`np.ndarray`): integers of the same shape, predicted class.
        baseline (`np.ndarray`, *optional*):
            integers of the same shape, its class; without it only `BOTH_RIGHT`, `MODEL_WRONG` and `IGNORED` occur.
        ignore_index (`int`, *optional*, defaults to 255): value of pixels that do not count.

    Returns:
        `np.ndarray`: uint8 (height, width): `BOTH_RIGHT` 0, `BASELINE_WRONG` 1 and `MODEL_WRONG` 2 for only one of
        them being wrong, `BOTH_WRONG` 3, `IGNORED` 255.
    """
    wrong = MODEL_WRONG * (model != truth).astype(np.uint8)
    if baseline is not None:
        wrong += BASELINE_WRONG * (baseline != truth).astype(np.uint8)
    return np.where(truth == ignore_index, IGNORED, wrong).astype(np.uint8)


def compare_predictions(models: Mapping[str, tuple[PreTrainedModel, object]], images: Sequence[dict]) -> dict:
    """
    Whole images, their masks, what each model predicts, and the last model's difference to each of the others.

    Args:
        models (`Mapping[str, tuple]`):
            name -> (model in eval mode, image processor); the baselines first, the model of interest last.
        images (`Sequence[dict]`): rows with `image` and `label`, and perhaps `id`: a `datasets.Dataset` or a list.

    Returns:
        `dict`: `models` str (models,), `ids` str (images,), `class_names` str (num_labels,), `palette` uint8
        (num_labels, 3), `ignore_index` int64 (), and, as images differ in size, for image i: `picture_i` uint8
        (height, width, 3), `truth_i` uint8 (height, width), class or ignore index, `predictions_i` integers (models,
        height, width), `differences_i` uint8 (models - 1, or 1 if there is one model, height, width), see
        [`difference`].

    Raises:
        ValueError: if there is no model or image, the models' classes differ, an image has no mask, or a mask does not
            fit.
    """
    if not models or not len(images):
        raise ValueError("Figure b needs at least one model and one image with a mask: give both.")
    require_same_classes(models)
    *_, (model_of_interest, _) = models.values()
    config = model_of_interest.config
    ids, masks = row_ids(images), MaskConvention.of(config)
    images = exact_columns(images, tiff_page=config.tiff_page)
    arrays = {
        "models": np.array(list(models)),
        "ids": np.array(ids),
        "class_names": class_names(config),
        "palette": palette_of(model_of_interest.config),
        "ignore_index": np.array(masks.ignore_index),
    }
    for row, name in enumerate(ids):
        example = images[row]
        if example.get("label") is None:
            raise ValueError(f"The image {name} has no mask, which figure b shows as the truth: choose another image.")
        picture = to_rgb(example["image"], Reading.of(config))
        truth = read_label(example["label"], picture.size, config.num_labels, masks, f"image {name}")
        predictions = [predict_mask(model, processor, example["image"]) for model, processor in models.values()]
        baselines = predictions[:-1] or [None]
        arrays[f"picture_{row}"] = np.array(picture)
        arrays[f"truth_{row}"] = truth
        arrays[f"predictions_{row}"] = np.stack(predictions)
        arrays[f"differences_{row}"] = np.stack(
            [difference(truth, predictions[-1], baseline, masks.ignore_index) for baseline in baselines]
        )
    return arrays
