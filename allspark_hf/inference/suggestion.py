"""Chooses the unlabeled images to label next, by how unsure a model is of each and by how much they differ."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from .handler import process_picture, require_finite


CANDIDATES = 4  # times as many images with the highest doubt are candidates as are chosen by features
EDGE = 0.01  # width of the strip on either side of an edge between regions, as a share of the shorter side
AT_EDGES = 2  # if doubt in the strip is so many times that elsewhere, the reason names edges


@dataclass(frozen=True, eq=False)
class Doubt:
    """
    How unsure a model is of an image, as means over its pixels.

    Args:
        entropy (`float`): entropy of the class probabilities, in [0, 1]: 1 if all classes are equally probable.
        disagreement (`float`): share of the pixels, in [0, 1], that have another class in the mirror image.
        weighted_entropy, weighted_disagreement (`float`):
            the same, with each pixel multiplied by the mean of the class weights, weighted by the class probabilities.
        label (`int`): index of the class with the largest part in the weighted doubt.
        is_at_edges (`bool`):
            whether the doubt about this class near edges of predicted regions is more than twice that elsewhere.
        features (`np.ndarray`): float32 (channels,), the mean of the encoder's last feature map, with length 1.
    """

    entropy: float
    disagreement: float
    weighted_entropy: float
    weighted_disagreement: float
    label: int
    is_at_edges: bool
    features: np.ndarray

    def reason(self, id2label: dict[int, str]) -> str:
        """Why to label the image, in a few words."""
        edges = " edges" if self.is_at_edges else ""
        percent = 100 * self.disagreement
        differ = f"{percent:.0f}" if percent >= 1 or not percent else f"{percent:.1f}"
        # A model with a single class has a second column for pixels that do not belong to the class.
        name = id2label[min(self.label, len(id2label) - 1)]
        return f"unsure about {name}{edges}: entropy {self.entropy:.2f}, flips differ on {differ} %"


def class_weights(iou: Sequence[float | None]) -> np.ndarray:
    """
    Weights of classes in proportion to 1 - IoU, with a mean of 1.

    Args:
        iou (`Sequence[float | None]`): IoU of each class, in [0, 1]; None or NaN if it is not known.

    Returns:
        `np.ndarray`: float64 (num_labels,); 1 for a class without a known IoU, and for all if every known IoU is 1.
    """
    lack = 1 - np.array([np.nan if value is None else value for value in iou], dtype=np.float64)
    known = ~np.isnan(lack)
    if not known.any() or not lack[known].mean():
        return np.ones(len(lack))
    return np.where(known, lack / lack[known].mean(), 1.0)


def read_features(model: PreTrainedModel, image_processor: BaseImageProcessor, picture: Image.Image) -> np.ndarray:
    """
    The encoder's features of an image, as [`Doubt`] has them.

    Args:
        model ([`SemiSupervisedSegmenter`]): the model, in eval mode.
        image_processor ([`BaseImageProcessor`]): the model's.
        picture (`PIL.Image.Image`): the image, RGB and upright.

    Raises:
        ValueError: if the picture is too small or too narrow for the model.
    """
    return _run(model, image_processor, picture)[1]


def read_doubt(
    model: PreTrainedModel, image_processor: BaseImageProcessor, picture: Image.Image, weights: np.ndarray
) -> tuple[Doubt, np.ndarray]:
    """
    Measures how unsure a model is of an image, at the size of the logits.

    Args:
        model ([`SemiSupervisedSegmenter`]): the model, in eval mode.
        image_processor ([`BaseImageProcessor`]): the model's.
        picture (`PIL.Image.Image`): the image, RGB and upright.
        weights (`np.ndarray`): float (num_labels,), of [`class_weights`].

    Returns:
        `tuple[Doubt, np.ndarray]`: the doubt about the image, and the doubt about each pixel: float32 (logits height,
        logits width) in [0, 2], the entropy, plus 1 if the mirror image has another class.

    Raises:
        ValueError: if the picture is too small or too narrow for the model.
        RuntimeError: if the model's output is not finite.
    """
    logits, features = _run(model, image_processor, picture)
    mirrored, _ = _run(model, image_processor, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    classes = logits.argmax(dim=1)
    differs = (classes != mirrored.flip(3).argmax(dim=1))[0].float()
    del mirrored
    probabilities = logits.softmax(dim=1)[0]
    entropy = -(probabilities * logits.log_softmax(dim=1)[0]).sum(dim=0) / np.log(len(probabilities))
    weights = torch.as_tensor(weights, dtype=probabilities.dtype, device=probabilities.device)
    if len(weights) < len(probabilities):  # the model has a single class
        weights = weights.expand(len(probabilities))
    weight = torch.einsum("c,chw->hw", weights, probabilities)
    doubt = entropy + differs
    label = int((weights * torch.einsum("chw,hw->c", probabilities, doubt)).argmax())
    found = Doubt(
        *(float(values.mean()) for values in (entropy, differs, weight * entropy, weight * differs)),
        label=label,
        is_at_edges=_is_at_edges(probabilities[label], doubt, _edges(classes)),
        features=features,
    )
    return found, doubt.cpu().numpy()


@torch.no_grad()
def _run(model, image_processor, picture) -> tuple[torch.Tensor, np.ndarray]:
    """Logits, float32 (1, classes, height, width), and the features of [`Doubt`], from one forward pass."""
    maps = []

    def keep(features):
        maps.append(features[-1])
        return features

    pixel_values = process_picture(model.config, image_processor, picture).to(device=model.device, dtype=model.dtype)
    logits = require_finite(model(pixel_values=pixel_values, perturb=keep).logits).float()
    if logits.shape[1] == 1:  # with a second logit of 0, the softmax is the sigmoid of the single class
        logits = torch.cat([logits, torch.zeros_like(logits)], dim=1)
    return logits, F.normalize(maps[0].float().mean(dim=(2, 3)), dim=1)[0].cpu().numpy()


def _edges(classes: torch.Tensor) -> torch.Tensor:
    """Bool (height, width): whether a pixel of another class is near; classes are int64 (1, height, width)."""
    reach = max(1, round(EDGE * min(classes.shape[1:])))
    window = {"kernel_size": 2 * reach + 1, "stride": 1, "padding": reach}
    values = classes.float()
    return (F.max_pool2d(values, **window) != -F.max_pool2d(-values, **window))[0]


def _is_at_edges(probability: torch.Tensor, doubt: torch.Tensor, edges: torch.Tensor) -> bool:
    """Whether the doubt about a class is larger near edges; all are (height, width), float, float and bool."""
    near, elsewhere = ((probability * doubt)[where].sum() / probability[where].sum() for where in (edges, ~edges))
    return bool(near > AT_EDGES * elsewhere)  # False if there is no such pixel, since 0 / 0 is NaN


def scores(doubts: Sequence[Doubt]) -> np.ndarray:
    """
    How useful a mask of each image is expected to be: the sum of weighted entropy and weighted disagreement, each
    divided by its mean over all images, so that both have equal influence.

    Returns:
        `np.ndarray`: float64 (images,), with a mean of 2, or less if the model has no doubt of one kind.
    """
    kinds = np.array([(doubt.weighted_entropy, doubt.weighted_disagreement) for doubt in doubts], dtype=np.float64)
    means = kinds.mean(axis=0)
    return (kinds / np.where(means > 0, means, 1)).sum(axis=1)


def k_center(features: np.ndarray, centers: np.ndarray, count: int) -> list[int]:
    """
    Greedy k-center: takes, one after another, the image that is farthest from all taken and labeled ones.

    Args:
        features (`np.ndarray`): float (images, channels), features of the images to choose from.
        centers (`np.ndarray`): float (labeled images, channels), features of labeled images; may have no row.
        count (`int`): how many images to take; at most all are taken.

    Returns:
        `list[int]`: rows of `features` in the order in which they are taken. Of equally far images, and if there is no
        center yet, the first is taken.
    """
    nearest = np.full(len(features), np.inf)
    taken = []
    for center in centers:
        np.minimum(nearest, np.linalg.norm(features - center, axis=1), out=nearest)
    for _ in range(min(count, len(features))):
        row = int(nearest.argmax())
        np.minimum(nearest, np.linalg.norm(features - features[row], axis=1), out=nearest)
        taken.append(row)
        nearest[taken] = -1  # below 0, the distance of an image equal to a taken one
    return taken


def choose(doubts: Sequence[Doubt], labeled: np.ndarray, count: int) -> list[int]:
    """
    Chooses images to label: [`k_center`] takes `count` of the [`CANDIDATES`] x `count` images with the highest
    [`scores`], with the labeled images as centers.

    Args:
        doubts (`Sequence[Doubt]`): the doubt about every unlabeled image.
        labeled (`np.ndarray`): float32 (labeled images, channels), of [`read_features`].
        count (`int`): how many images to choose.

    Returns:
        `list[int]`: rows of `doubts`, in the order in which to label the images.
    """
    best = np.argsort(-scores(doubts), kind="stable")[: CANDIDATES * count]
    features = np.stack([doubts[row].features for row in best])
    return [int(best[place]) for place in k_center(features, labeled, count)]
