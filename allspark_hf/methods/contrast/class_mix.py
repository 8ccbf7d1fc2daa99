"""ClassMix (Olsson et al., WACV 2021): an image gets the pixels of some classes of another one."""

import numpy as np
import torch


def draw_class_order(num_labels: int, probability: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """`class_order`, int64 (num_labels,): a random order of the classes, or all -1: the image gives nothing."""
    order = rng.permutation(num_labels)
    return {"class_order": order if rng.random() < probability else np.full_like(order, -1)}


def choose_classes(class_order: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Chooses n // 2 + 1 of the n classes that an image's labels show, so both of two, as published.

    Args:
        class_order (`torch.Tensor`):
            int64 (batch, num_labels), the place of each class in a random order, whose first ones are chosen; all -1
            for an image that gives nothing. See [`draw_class_order`].
        labels (`torch.Tensor`): int64 (batch, height, width), in [0, num_labels); other values are no class.

    Returns:
        `torch.Tensor`: bool (batch, num_labels).
    """
    num_labels = class_order.shape[1]
    index = _as_index(labels, num_labels)
    shown = torch.zeros(len(labels), num_labels + 1, dtype=torch.bool, device=labels.device)
    shown = shown.scatter_(1, index.flatten(1), True)[:, :num_labels]
    # The place in the order among the classes that are shown; the others come last.
    place = class_order.where(shown, num_labels).argsort(dim=1).argsort(dim=1)
    return shown & (class_order >= 0) & (place < shown.sum(dim=1, keepdim=True) // 2 + 1)


def class_mix(
    chosen: torch.Tensor, labels: torch.Tensor, partners: torch.Tensor, *maps: torch.Tensor
) -> list[torch.Tensor]:
    """
    Pastes the chosen classes of each image's partner into it.

    Args:
        chosen (`torch.Tensor`): bool (batch, num_labels), the classes that each image gives.
        labels (`torch.Tensor`): int64 (batch, height, width), in [0, num_labels); other values are not pasted.
        partners (`torch.Tensor`): int64 (batch,), the image that each image gets pixels from.
        maps (`torch.Tensor`): (batch, height, width) or (batch, channels, height, width) each.

    Returns:
        `list[torch.Tensor]`: the mixed maps.
    """
    index = _as_index(labels, chosen.shape[1])
    chosen = torch.cat([chosen, torch.zeros_like(chosen[:, :1])], dim=1)  # the last one is no class
    given = chosen.gather(1, index.flatten(1)).view_as(labels)[partners]
    return [one[partners].where(given if one.ndim == 3 else given[:, None], one) for one in maps]


def _as_index(labels: torch.Tensor, num_labels: int) -> torch.Tensor:
    """The labels, with `num_labels` for all that is no class."""
    return labels.where((labels >= 0) & (labels < num_labels), num_labels)


def mix_with_neighbors(class_order: torch.Tensor, labels: torch.Tensor, *maps: torch.Tensor) -> list[torch.Tensor]:
    """
    Mixes images 0 and 1, 2 and 3, and so on: the same ones however an even batch is cut by processes or accumulation
    (published: each with the next one, all round). The last image of an odd batch stays as it is. Arguments and result
    are those of the two functions above.
    """
    partners = (torch.arange(len(labels), device=labels.device) ^ 1).clamp(max=len(labels) - 1)
    return class_mix(choose_classes(class_order, labels), labels, partners, *maps)
