"""
Plain oracle of the AllSpark bottleneck: the method's definition in loops, written from its description alone.

Nothing here shares code or layout with the package. A feature map is a tensor (channels, height, width) of one
image, its tokens are a matrix (tokens, channels), and weights are in `x @ W` form, (inputs, outputs).
"""

import math

import torch


NORM_EPS = 1e-6
INSTANCE_NORM_EPS = 1e-5


def gelu(x):
    """The exact one: x times the normal distribution function."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def layer_norm(tokens, weight, bias):
    rows = []
    for token in tokens:
        centered = token - token.mean()
        rows.append(centered / torch.sqrt((centered**2).mean() + NORM_EPS) * weight + bias)
    return torch.stack(rows)


def instance_norm(matrix):
    """One mean and one (biased) variance for the whole matrix."""
    centered = matrix - matrix.sum() / matrix.numel()
    return centered / torch.sqrt((centered**2).sum() / matrix.numel() + INSTANCE_NORM_EPS)


def softmax(row):
    powers = torch.exp(row - row.max())
    return powers / powers.sum()


def attend(queries, keys, values):
    """Channel-wise attention. `queries` (tokens, n), `keys` and `values` (tokens, m); returns (tokens, n)."""
    scores = instance_norm(queries.T @ keys)
    weights = torch.stack([softmax(row) for row in scores])
    return (weights @ values.T).T


def self_attention(tokens, weights):
    """The unlabeled branch for one image: tokens (tokens, C) -> (tokens, C), head by head."""
    channels = tokens.shape[1]
    heads = weights["query"].shape[1] // channels
    query, key, value = (tokens @ weights[name] for name in ("query", "key", "value"))
    outputs = []
    for head in range(heads):
        part = slice(head * channels, (head + 1) * channels)
        outputs.append(attend(query[:, part], key[:, part], value[:, part]))
    # merged with the head index varying fastest: channel 0 of every head, channel 1 of every head, ...
    columns = [outputs[head][:, channel] for channel in range(channels) for head in range(heads)]
    return torch.stack(columns, dim=1) @ weights["out"]


def cross_attention(tokens, sources, weights):
    """The labeled branch for one image: the heads stay together, the sources lie side by side."""
    keys = torch.cat([source @ weights["key"] for source in sources], dim=1)
    values = torch.cat([source @ weights["value"] for source in sources], dim=1)
    return attend(tokens @ weights["query"], keys, values) @ weights["out"]


def resize_weights(size, target):
    """For every target place: two source places and the share of the second (bilinear, align_corners False)."""
    rows = []
    for place in range(target):
        source = max((place + 0.5) * size / target - 0.5, 0.0)
        low = min(int(source), size - 1)
        high = min(low + 1, size - 1)
        rows.append((low, high, source - low if high > low else 0.0))
    return rows


def resize(plane, target):
    """Bilinear resize of a (height, width) plane, one pixel at a time."""
    if tuple(plane.shape) == tuple(target):
        return plane
    rows = []
    for top, bottom, down in resize_weights(plane.shape[0], target[0]):
        row = []
        for left, right, across in resize_weights(plane.shape[1], target[1]):
            upper = plane[top, left] * (1 - across) + plane[top, right] * across
            lower = plane[bottom, left] * (1 - across) + plane[bottom, right] * across
            row.append(upper * (1 - down) + lower * down)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def resize_tokens(tokens, grid, target):
    """Tokens (tokens, channels) on `grid` -> on `target`, every channel as a plane of its own."""
    planes = [resize(channel.reshape(grid), target).flatten() for channel in tokens.T]
    return torch.stack(planes, dim=1)


def similarities(tokens, class_map, grid, similarity="cosine", source="logits"):
    """Similarity of every class and channel of one image, (classes, C). `class_map`: (classes, height, width)."""
    if source == "probabilities":
        class_map = class_map.exp() / class_map.exp().sum(dim=0)
    planes = [resize(plane, grid).flatten() for plane in class_map]
    vectors = list(tokens.T)
    if similarity == "cosine":
        planes = [plane / plane.norm().clamp(min=1e-12) for plane in planes]
        vectors = [vector / vector.norm().clamp(min=1e-12) for vector in vectors]
    table = torch.zeros(len(planes), len(vectors), dtype=tokens.dtype)
    for label, plane in enumerate(planes):
        for channel, vector in enumerate(vectors):
            table[label, channel] = sum(a * b for a, b in zip(plane.tolist(), vector.tolist(), strict=True))
    return table if similarity == "cosine" else instance_norm(table)


def group(tokens, class_map, grid, similarity="cosine", source="logits"):
    """Class of every channel: the first class of greatest similarity."""
    table = similarities(tokens, class_map, grid, similarity, source).tolist()
    classes = []
    for channel in range(len(table[0])):
        column = [row[channel] for row in table]
        classes.append(column.index(max(column)))
    return classes


class Memory:
    """
    The semantic memory, literally: a list of channels per class and the place of the next write.

    Args:
        content: tensor (classes, slot, tokens), what the memory starts with.
        grouping: off means that all slots, in order of their classes, are one ring.
    """

    def __init__(self, content, grouping=True):
        self.slots = [[channel.clone() for channel in slot] for slot in content]
        self.grouping = grouping
        if not grouping:
            self.slots = [[channel for slot in self.slots for channel in slot]]
        self.positions = [0] * len(self.slots)

    def write(self, label, channel):
        slot = self.slots[label]
        slot[self.positions[label]] = channel.detach().clone()
        self.positions[label] = (self.positions[label] + 1) % len(slot)

    def enqueue(self, tokens, classes):
        """One image: its channels in index order, each to its class (one ring: class 0). Images come in turn."""
        for channel, label in enumerate(classes):
            self.write(label, tokens[:, channel])

    def sources(self, channels):
        """
        Matrices (tokens, C) that the attention projects: C channels each, in the order of classes and places.
        Half slots are joined in pairs of neighboring classes, an odd last one is completed by class 0's.
        """
        flat = [channel for slot in self.slots for channel in slot]
        first = list(flat)
        while len(flat) % channels:
            flat.append(first[len(flat) - len(first)])
        return [torch.stack(flat[i : i + channels], dim=1) for i in range(0, len(flat), channels)]


def tokens_of(features):
    """(C, height, width) -> (tokens, C), rows of the grid one after the other."""
    _, height, width = features.shape
    return torch.stack([features[:, y, x] for y in range(height) for x in range(width)])


def embed(features, weights):
    """Feature map of one image -> residual tokens x and normalized tokens z."""
    residual = gelu(tokens_of(features) @ weights["map_in"] + weights["map_in_bias"])
    return residual, layer_norm(residual, weights["norm_in"], weights["norm_in_bias"])


def finish(output, residual, weights, grid):
    """Residual, second norm, second 1x1 convolution: tokens back to a feature map (C, height, width)."""
    tokens = layer_norm(output + residual, weights["norm_out"], weights["norm_out_bias"])
    return gelu(tokens @ weights["map_out"] + weights["map_out_bias"]).T.reshape(-1, *grid)


def infer(features, weights, mix=False):
    """Eval mode: every image attends to itself, or (`mix`) to all images of the batch. (images, C, h, w)."""
    grid = tuple(features.shape[2:])
    embedded = [embed(image, weights) for image in features]
    outputs = []
    for residual, tokens in embedded:
        sources = [other for _, other in embedded] if mix else [tokens]
        outputs.append(finish(cross_attention(tokens, sources, weights["cross"]), residual, weights, grid))
    return torch.stack(outputs)


def train(labeled, unlabeled, weights, memory=None, logits=None, read=False, **options):
    """
    One training forward: the channels are grouped and enqueued before anything attends.

    Args:
        labeled, unlabeled: feature maps (images, C, height, width), counts may differ.
        memory: [`Memory`] or None, with `memory_grid` in `options`: the grid its channels have.
        logits: (unlabeled images, classes, any height, any width), for grouping.
        options: `similarity` and `source` of the grouping.
    Returns:
        Feature maps of the labeled and of the unlabeled images.
    """
    grid = tuple(labeled.shape[2:])
    memory_grid = options.pop("memory_grid", grid)
    embedded = [embed(image, weights) for image in unlabeled]
    if memory is not None:
        for image, (_, tokens) in enumerate(embedded):
            classes = [0] * tokens.shape[1]
            if memory.grouping:
                classes = group(tokens.detach(), logits[image], grid, **options)
            memory.enqueue(resize_tokens(tokens.detach(), grid, memory_grid), classes)
    sources = [tokens for _, tokens in embedded]
    if memory is not None and read:
        sources = [resize_tokens(source, memory_grid, grid) for source in memory.sources(labeled.shape[1])]
    labeled_out = []
    for image in labeled:
        residual, tokens = embed(image, weights)
        labeled_out.append(finish(cross_attention(tokens, sources, weights["cross"]), residual, weights, grid))
    unlabeled_out = [
        finish(self_attention(tokens, weights["self"]), residual, weights, grid) for residual, tokens in embedded
    ]
    return torch.stack(labeled_out), torch.stack(unlabeled_out)
