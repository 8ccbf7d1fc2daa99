"""Which unlabeled images to label next: how unsure a model is of each, and a choice that spreads over them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from .handler import model_logits


CANDIDATES = 4  # images, for each one to choose, that the doubt leaves to the choice by features
EDGE = 0.01  # width of the strip on either side of the edges of regions, as a share of the shorter side
AT_EDGES = 2  # times as much doubt there as elsewhere on a class, for the words "class edges"


@dataclass(frozen=True, eq=False)
class Doubt:
    """
    How unsure a model is of an image, as means over its pixels.

    Args:
        entropy (`float`): entropy of the class probabilities, in [0, 1]: 1 where all classes are equally probable.
        disagreement (`float`): share of the pixels, in [0, 1], whose class is another one in the mirror image.
        weighted_entropy, weighted_disagreement (`float`):
            the same, each pixel times the weights of the classes that it may be of: their mean by probability.
        label (`int`): index of the class with the largest part in the weighted doubt.
        is_at_edges (`bool`):
            whether pixels of that class that are near an edge of a predicted region are in doubt twice as much as its
            others.
        features (`np.ndarray`): float32 (channels,), the encoder's last feature map, averaged; of length 1.
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
        # A model with a single class also knows pixels that are not of it.
        name = id2label[min(self.label, len(id2label) - 1)]
        return f"unsure about {name}{edges}: entropy {self.entropy:.2f}, flips differ on {differ} %"


def class_weights(iou: Sequence[float | None]) -> np.ndarray:
    """
    Weights of classes by what their IoU lacks, with a mean of 1.

    Args:
        iou (`Sequence[float | None]`): of each class, in [0, 1]; None or NaN where it is not known.

    Returns:
        `np.ndarray`: float64 (num_labels,); 1 where the IoU is not known, and everywhere if nothing is lacking.
    """
    lack = 1 - np.array([np.nan if value is None else value for value in iou], dtype=np.float64)
    known = ~np.isnan(lack)
    if not known.any() or not lack[known].mean():
        return np.ones(len(lack))
    return np.where(known, lack / lack[known].mean(), 1.0)


def read_features(model: PreTrainedModel, image_processor: BaseImageProcessor, picture: Image.Image) -> np.ndarray:
    """
    What the encoder sees in an image: the `features` of [`Doubt`].

    Args:
        model ([`Segmenter`]): in eval mode.
        image_processor ([`BaseImageProcessor`]): the model's.
        picture (`PIL.Image.Image`): RGB, upright.

    Raises:
        ValueError: if the picture is too small or too narrow for the model.
    """
    return _run(model, image_processor, picture)[1]


def read_doubt(
    model: PreTrainedModel, image_processor: BaseImageProcessor, picture: Image.Image, weights: np.ndarray
) -> tuple[Doubt, np.ndarray]:
    """
    Measures how unsure a model is of an image, at the size of its logits.

    Args:
        model ([`Segmenter`]): in eval mode.
        image_processor ([`BaseImageProcessor`]): the model's.
        picture (`PIL.Image.Image`): RGB, upright.
        weights (`np.ndarray`): float (num_labels,), of [`class_weights`].

    Returns:
        `tuple[Doubt, np.ndarray]`: the doubt, and where it is: float32 (logits height, logits width) in [0, 2], the
        entropy of each pixel, and 1 more where the mirror image has another class.

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
    if len(weights) < len(probabilities):  # of a single class
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
    """Logits, float32 (1, classes, height, width), and the features of [`Doubt`], of one pass."""
    maps = []

    def keep(features):
        maps.append(features[-1])
        return features

    def also_keep(module, arguments, named):
        return arguments, named | {"perturb": keep}

    handle = model.register_forward_pre_hook(also_keep, with_kwargs=True)
    try:
        logits = model_logits(model, image_processor, picture).float()
    finally:
        handle.remove()
    if logits.shape[1] == 1:  # with a logit of 0 for what is not of the class, softmax is the sigmoid
        logits = torch.cat([logits, torch.zeros_like(logits)], dim=1)
    return logits, F.normalize(maps[0].float().mean(dim=(2, 3)), dim=1)[0].cpu().numpy()


def _edges(classes: torch.Tensor) -> torch.Tensor:
    """Bool (height, width): where another class is near; classes are int64 (1, height, width)."""
    reach = max(1, round(EDGE * min(classes.shape[1:])))
    window = {"kernel_size": 2 * reach + 1, "stride": 1, "padding": reach}
    values = classes.float()
    return (F.max_pool2d(values, **window) != -F.max_pool2d(-values, **window))[0]


def _is_at_edges(probability: torch.Tensor, doubt: torch.Tensor, edges: torch.Tensor) -> bool:
    """Whether a class is in doubt near edges more than elsewhere; float, float and bool (height, width)."""
    near, elsewhere = ((probability * doubt)[where].sum() / probability[where].sum() for where in (edges, ~edges))
    return bool(near > AT_EDGES * elsewhere)  # no if there is no such pixel: 0 / 0 is NaN


def scores(doubts: Sequence[Doubt]) -> np.ndarray:
    """
    What labeling each image promises: weighted entropy and weighted disagreement, each over its mean of all images, so
    that neither drowns the other.

    Returns:
        `np.ndarray`: float64 (images,), with a mean of 2, or less where the model has no doubt of a kind.
    """
    kinds = np.array([(doubt.weighted_entropy, doubt.weighted_disagreement) for doubt in doubts], dtype=np.float64)
    means = kinds.mean(axis=0)
    return (kinds / np.where(means > 0, means, 1)).sum(axis=1)


def k_center(features: np.ndarray, centers: np.ndarray, count: int) -> list[int]:
    """
    Greedy k-center: takes, one after another, the image that is farthest from all that are taken or labeled.

    Args:
        features (`np.ndarray`): float (images, channels), of the images to take from.
        centers (`np.ndarray`): float (labeled images, channels), of which there may be none.
        count (`int`): how many to take, at most all.

    Returns:
        `list[int]`: rows of `features` in the order in which they are taken: of equally far ones, and if there is no
        center yet, the first.
    """
    nearest = np.full(len(features), np.inf)
    taken = []
    for center in centers:
        np.minimum(nearest, np.linalg.norm(features - center, axis=1), out=nearest)
    for _ in range(min(count, len(features))):
        row = int(nearest.argmax())
        np.minimum(nearest, np.linalg.norm(features - features[row], axis=1), out=nearest)
        taken.append(row)
        nearest[taken] = -1  # an equal image is still farther than one that is taken
    return taken


def choose(doubts: Sequence[Doubt], labeled: np.ndarray, count: int) -> list[int]:
    """
    Chooses images to label: of the [`CANDIDATES`] x `count` with the highest [`scores`], those that [`k_center`]
    takes, seen from the labeled images.

    Args:
        doubts (`Sequence[Doubt]`): of all unlabeled images.
        labeled (`np.ndarray`): float32 (labeled images, channels), of [`read_features`].
        count (`int`): how many to choose.

    Returns:
        `list[int]`: rows of `doubts`, the one to label first at the beginning.
    """
    best = np.argsort(-scores(doubts), kind="stable")[: CANDIDATES * count]
    features = np.stack([doubts[row].features for row in best])
    return [int(best[place]) for place in k_center(features, labeled, count)]


__all__ = ["CANDIDATES", "Doubt", "choose", "class_weights", "k_center", "read_doubt", "read_features", "scores"]
