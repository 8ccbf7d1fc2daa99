"""AllSpark's bottleneck: channel-wise cross-attention from unlabeled to labeled features, with a semantic memory.

Source: *AllSpark: Reborn Labeled Features from Unlabeled in Transformer for Semi-Supervised Semantic Segmentation*,
CVPR 2024. It works on any feature map and knows no encoder. This file travels with every published model.
"""

import math
from functools import partial

import torch
from torch import distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.utils.generic import maybe_autocast

from .configuration_allspark import AllSparkFields


BOTTLENECK_NORM_EPS = 1e-6
INSTANCE_NORM_EPS = 1e-5
COSINE_EPS = 1e-12
TILE_ELEMENTS = 2**22  # about so many elements of the attention map exist at a time in training
# Names of the memory in a model's state dict: it belongs to training, so saved models do not hold it.
MEMORY_KEYS = ("bottleneck.memory.channels", "bottleneck.memory.num_enqueued")
TOKEN_ALIGNMENT = 8  # CUDA's fused attention kernels need a multiple of it


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, in float32 if they were less precise: a softmax or a sum over a map needs it."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def moments(channels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (..., 1, tokens) and covariance (..., tokens, tokens) of (..., channels, tokens), at least float32."""
    with maybe_autocast(channels.device.type, enabled=False):
        channels = at_least_float32(channels)
        mean = channels.mean(dim=-2, keepdim=True)
        centered = channels - mean
        return mean, centered.mT @ centered / channels.shape[-2]


def pool_moments(parts: list[tuple], sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """[`moments`] of all channels, from the moments of parts and the number of channels in each part."""
    shares = [size / sum(sizes) for size in sizes]
    mean = sum(share * part_mean for share, (part_mean, _) in zip(shares, parts, strict=True))
    spread = [covariance + (part_mean - mean).mT * (part_mean - mean) for part_mean, covariance in parts]
    return mean, sum(share * covariance for share, covariance in zip(shares, spread, strict=True))


def normalize_query(query: torch.Tensor, key_moments: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """
    Scales float `query` (batch, maps, queries, tokens) so that softmax(query @ key.mT) becomes softmax(IN(query @
    key.mT)). IN is the instance normalization of each whole map. A softmax ignores what is subtracted from a row, so
    only IN's scale is needed.

    The scale follows from the variance of the map, and the variance follows from the [`moments`] of query and key
    (batch or 1, maps, keys, tokens), without the map: with q = mean_q + q' and k = mean_k + k' it is the sum of the
    variances of q'k', q'mean_k and mean_q k'. They are sums of squares, so no precision is lost to cancellation.
    """
    query_mean, query_covariance = moments(query)
    key_mean, key_covariance = key_moments
    with maybe_autocast(query.device.type, enabled=False):
        variance = (query_covariance * key_covariance).sum(dim=(-2, -1), keepdim=True)
        variance = variance + key_mean @ query_covariance @ key_mean.mT
        variance = (variance + query_mean @ key_covariance @ query_mean.mT).clamp(min=0)
        return (query * (variance + INSTANCE_NORM_EPS).rsqrt()).to(query.dtype)


def resize_tokens(tokens: torch.Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> torch.Tensor:
    """Bilinear resize of float (batch, tokens, channels) from one (height, width) token grid to another."""
    if grid == new_grid:
        return tokens
    maps = tokens.transpose(1, 2).unflatten(2, grid)
    maps = F.interpolate(maps, size=new_grid, mode="bilinear", align_corners=False)
    return maps.flatten(2).transpose(1, 2)


@torch.no_grad()
def group_channels(
    tokens: torch.Tensor,
    prediction: torch.Tensor,
    grid: tuple[int, int],
    similarity: str = "cosine",
    source: str = "logits",
) -> torch.Tensor:
    """
    Channel-wise semantic grouping (paper, Section 3.4): int64 (batch, channels), the class nearest to each channel.

    Args:
        tokens (`torch.Tensor`): float (batch, tokens, channels).
        prediction (`torch.Tensor`): float logits (batch, num_labels, any height, any width) of the same images.
        grid (`tuple[int, int]`): (height, width) of the tokens.
        similarity (`str`): of a class map and a channel, `"cosine"` or `"instance_norm"` (Eq. 4).
        source (`str`): of the class maps, `"logits"` or `"probabilities"`.
    """
    tokens = at_least_float32(tokens)
    class_maps = prediction.to(tokens.dtype)
    class_maps = class_maps.softmax(dim=1) if source == "probabilities" else class_maps
    class_maps = F.interpolate(class_maps, size=grid, mode="bilinear", align_corners=False).flatten(2)
    if similarity == "cosine":
        # The channels stay as they are: a channel's norm is the same for every class and cannot change its argmax.
        class_maps = F.normalize(class_maps, dim=2, eps=COSINE_EPS)
    # Eq. 4 normalizes the product next, which is an increasing function and cannot change the argmax either.
    with maybe_autocast(tokens.device.type, enabled=False):  # rounded products tie, and the first class gets the tie
        return (class_maps @ tokens).argmax(dim=1)


class _GatherImages(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images):
        gathered = images.new_empty(distributed.get_world_size() * images.shape[0], *images.shape[1:])
        distributed.all_gather_into_tensor(gathered, images.contiguous())
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad = grad.contiguous()
        distributed.all_reduce(grad)  # the loss of every process depends on these images
        return grad.chunk(distributed.get_world_size())[distributed.get_rank()]


def gather_images(images: torch.Tensor) -> torch.Tensor:
    """Joins (batch, ...) of every process to (processes * batch, ...), in order of their ranks, with gradient."""
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return images
    return _GatherImages.apply(images)


class SemanticMemory(nn.Module):
    """
    First-in-first-out rings of unlabeled channels, one ring per class (paper, Section 3.3, S-Mem).

    Buffers:
        channels: float (num_slots, slot_size, num_tokens), at first standard normal noise, which is read like data.
        num_enqueued: int64 (num_slots,), how many channels were ever written to a slot.
    """

    def __init__(self, num_slots: int, slot_size: int, num_tokens: int):
        super().__init__()
        self.register_buffer("channels", torch.empty(num_slots, slot_size, num_tokens))
        self.register_buffer("num_enqueued", torch.empty(num_slots, dtype=torch.int64))
        self.reset()

    def reset(self):
        """Fills the slots with noise and forgets what was written."""
        init.normal_(self.channels)
        init.zeros_(self.num_enqueued)

    @property
    def position(self) -> torch.Tensor:
        """int64 (num_slots,): the place in [0, slot_size) where the next channel of a slot is written."""
        return self.num_enqueued % self.channels.shape[1]

    @property
    def fill(self) -> torch.Tensor:
        """float32 (num_slots,): the share of each slot, in [0, 1], that was written since the initial noise."""
        slot_size = self.channels.shape[1]
        return self.num_enqueued.clamp(max=slot_size) / slot_size

    @torch.no_grad()
    def enqueue(self, tokens: torch.Tensor, slots: torch.Tensor):
        """
        Writes channels into their slots: images in order, channels in index order, the oldest overwritten first.

        `tokens` are float (batch, tokens, channels), `slots` int64 (batch, channels). A channel whose slot is not in
        [0, num_slots) is skipped.
        """
        num_slots, slot_size, _ = self.channels.shape
        incoming = tokens.transpose(1, 2).flatten(0, 1).to(self.channels.dtype)  # (batch * channels, tokens)
        slots = slots.flatten()
        member = slots[:, None] == torch.arange(num_slots, device=slots.device)  # (batch * channels, num_slots)
        inside = member.any(dim=1)
        slots = slots.where(inside, 0)
        # How many channels of this call go into the same slot before this one.
        rank = member.cumsum(dim=0).gather(1, slots[:, None]).squeeze(1) - 1
        rows = (slots * slot_size + (self.num_enqueued[slots] + rank) % slot_size).where(inside, 0)
        # If a slot gets more channels than it holds, several go to one row, and the last of them is kept there.
        order = torch.arange(len(slots), device=slots.device).where(inside, -1)
        last = order.new_full((num_slots * slot_size,), -1).scatter_reduce(0, rows, order, "amax")[rows]
        content = self.channels.flatten(0, 1)
        content[rows] = incoming[last.clamp(min=0)].where((last >= 0)[:, None], content[rows])
        self.num_enqueued += member.sum(dim=0)

    def sources(self, num_channels: int) -> torch.Tensor:
        """
        The content in pieces of `num_channels`, which the cross-attention projects one by one: a copy, float (pieces,
        tokens, num_channels). A slot of 2 or 4 times `num_channels` gives 2 or 4 pieces. Half slots are joined in
        pairs of neighboring classes; with an odd number of classes, class 0 completes the last pair.
        """
        rows = self.channels.flatten(0, 1)
        missing = -rows.shape[0] % num_channels
        rows = torch.cat([rows, rows[:missing]])
        return rows.unflatten(0, (-1, num_channels)).transpose(1, 2)


class ChannelProjection(nn.Linear):
    """A linear layer of a class of its own, so that `_init_weights` can give it Xavier-uniform weights."""


class ChannelAttention(nn.Module):
    """
    Attention among channels, dropout(softmax(IN(query @ key.mT))) @ value, between projections from C channels to
    C * heads and back. The map of query @ key.mT never exists as a whole: see [`normalize_query`]. Subclasses say in
    `project` how the heads are arranged.
    """

    def __init__(self, num_channels: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = ChannelProjection(num_channels, num_channels * num_heads, bias=False)
        self.k_proj = ChannelProjection(num_channels, num_channels * num_heads, bias=False)
        self.v_proj = ChannelProjection(num_channels, num_channels * num_heads, bias=False)
        self.o_proj = ChannelProjection(num_channels * num_heads, num_channels, bias=False)
        self.dropout = nn.Dropout(dropout)

    def project(self, proj: ChannelProjection, sources: torch.Tensor) -> torch.Tensor:
        """Projects float (batch, sources, tokens, channels) to (batch, maps, queries or keys, tokens)."""
        raise NotImplementedError

    def attend(self, tokens: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
        """
        Queries from float `tokens` (batch, tokens, channels) attend to keys and values from `sources` (batch or 1,
        sources, tokens, channels). The result is (batch, maps, queries, tokens).
        """
        num_tokens = tokens.shape[1]
        if tokens.is_cuda and num_tokens % TOKEN_ALIGNMENT:
            padding = (0, 0, 0, -num_tokens % TOKEN_ALIGNMENT)  # zeros add nothing to the products
            tokens, sources = F.pad(tokens, padding), F.pad(sources, padding)
        query = self.project(self.q_proj, tokens.unsqueeze(1))
        attend = self._attend_by_tiles if self.training else self._attend_fused
        return attend(query, sources)[..., :num_tokens]

    def _attend_fused(self, query, sources):
        """For inference: torch's fused kernel. It has dropout on some devices only and keeps all keys and values."""
        key, value = (self.project(proj, sources).contiguous() for proj in (self.k_proj, self.v_proj))
        query = normalize_query(query, moments(key)).contiguous()
        images = query.shape[0]  # torch.export would take len() for a constant
        if key.shape[0] != images:
            key, value = key.expand(images, -1, -1, -1), value.expand(images, -1, -1, -1)
        return F.scaled_dot_product_attention(query, key, value, scale=1.0)

    def _attend_by_tiles(self, query, sources):
        """
        For training: some sources at a time. Their keys, values and part of the map are not kept but computed again
        for the gradient, so the memory needed does not grow with the number of sources.
        """
        images, elements = len(query), query[..., 0].numel() * self.num_heads * sources.shape[-1]
        tiles = sources.split(max(1, TILE_ELEMENTS // elements), dim=1)
        recomputed = partial(checkpoint, use_reentrant=False, preserve_rng_state=self.dropout.p > 0)
        parts = [recomputed(self._key_moments, tile) for tile in tiles]
        query = normalize_query(query, pool_moments(parts, [tile.shape[1] for tile in tiles]))
        shared = len(sources) != images
        if shared:  # all images have the same keys: put their queries into one map instead of repeating the keys
            query = query.transpose(0, 1).flatten(1, 2).unsqueeze(0)
        maximum = torch.full_like(at_least_float32(query[..., :1]), -torch.inf)
        context = total = 0
        for tile in tiles:
            part, part_total, higher = recomputed(self._attend_tile, query, tile, maximum)
            shrink = (maximum - higher).exp()
            context, total, maximum = context * shrink + part, total * shrink + part_total, higher
        context = (context / total).to(query.dtype)
        return context.squeeze(0).unflatten(1, (images, -1)).transpose(0, 1) if shared else context

    def _key_moments(self, tile):
        return moments(self.project(self.k_proj, tile))

    def _attend_tile(self, query, tile, maximum):
        """The sums of weighted values and of weights, both relative to the highest score so far, and that score."""
        key, value = (self.project(proj, tile) for proj in (self.k_proj, self.v_proj))
        scores = at_least_float32(query @ key.mT)
        maximum = torch.maximum(maximum, scores.detach().amax(dim=-1, keepdim=True))
        weights = (scores - maximum).exp()
        part = self.dropout(weights).to(value.dtype) @ value
        return at_least_float32(part), weights.sum(dim=-1, keepdim=True), maximum


class ChannelSelfAttention(ChannelAttention):
    """Attention among the channels of one image, head by head (paper, Eq. 1): the unlabeled branch."""

    def project(self, proj, sources):
        # (batch, 1, tokens, heads * channels) -> (batch, heads, channels, tokens)
        return proj(sources).squeeze(1).unflatten(2, (self.num_heads, -1)).permute(0, 2, 3, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Float (batch, tokens, channels) to the same shape; every image attends to itself alone."""
        context = self.attend(tokens, tokens.unsqueeze(1))
        # (batch, heads, channels, tokens) -> (batch, tokens, channels * heads), the head index varying fastest
        return self.dropout(self.o_proj(context.permute(0, 3, 2, 1).flatten(2)))


class ChannelCrossAttention(ChannelAttention):
    """Attention from an image's channels to those of several sources (paper, Eq. 2): the labeled branch."""

    def project(self, proj, sources):
        # (batch, sources, tokens, channels * heads) -> (batch, 1, sources * channels * heads, tokens). The authors do
        # not split the heads here: there is one map per image.
        return proj(sources).transpose(2, 3).flatten(1, 2).unsqueeze(1)

    def forward(self, tokens: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
        """Float `tokens` (batch, tokens, channels) attend to `sources` (batch or 1, sources, tokens, channels)."""
        return self.dropout(self.o_proj(self.attend(tokens, sources).squeeze(1).transpose(1, 2)))


class AllSparkBottleneck(nn.Module):
    """
    Rebuilds labeled features from unlabeled ones (paper, Section 3.2).

    Args:
        config ([`AllSparkFields`]): a configuration with these fields.
        num_channels (`int`): C, the channels of the feature map.

    Attributes:
        memory ([`SemanticMemory`], *optional*): None with `config.use_memory=False`.
        share_memory (`bool`, defaults to `True`):
            Whether several processes fill and read one memory, with the unlabeled images of all of them in order of
            their ranks. If False, every process has a memory of its own.
    """

    def __init__(self, config: AllSparkFields, num_channels: int):
        super().__init__()
        self.config = config
        self.share_memory = True
        heads, dropout = config.channel_attention_heads, config.channel_attention_dropout
        self.project_in = nn.Conv2d(num_channels, num_channels, kernel_size=1)
        self.token_norm = nn.LayerNorm(num_channels, eps=BOTTLENECK_NORM_EPS)
        self.labeled_attention = ChannelCrossAttention(num_channels, heads, dropout)
        self.unlabeled_attention = ChannelSelfAttention(num_channels, heads, dropout)
        self.output_norm = nn.LayerNorm(num_channels, eps=BOTTLENECK_NORM_EPS)
        self.project_out = nn.Conv2d(num_channels, num_channels, kernel_size=1)
        self.memory, self.memory_grid = None, config.token_grid
        if config.use_memory:
            num_slots, slot_size = config.num_labels, int(num_channels * config.memory_size)
            if not config.use_grouping:  # one ring of the same total size for all classes
                num_slots, slot_size = 1, num_slots * slot_size
            self.memory = SemanticMemory(num_slots, slot_size, math.prod(self.memory_grid))

    def forward(
        self,
        features: torch.Tensor,
        num_unlabeled: int = 0,
        unlabeled_logits: torch.Tensor | None = None,
        read_memory: bool = True,
        rebuild_unlabeled: bool = True,
    ) -> torch.Tensor:
        """
        Args:
            features (`torch.Tensor`): float (batch, channels, height, width), unlabeled images last, as is the result.
            num_unlabeled (`int`, *optional*, defaults to 0): how many of the images are unlabeled.
            unlabeled_logits (`torch.Tensor`, *optional*):
                float (num_unlabeled, num_labels, any height, any width), from which channels are grouped by class.
            read_memory (`bool`, *optional*, defaults to `True`):
                If False, labeled images attend to the batch's unlabeled images; the memory is written all the same.
            rebuild_unlabeled (`bool`, *optional*, defaults to `True`): If False, the result has labeled images alone.
        """
        grid = tuple(features.shape[2:])
        mapped = F.gelu(self.project_in(features)).flatten(2).transpose(1, 2)  # (batch, tokens, channels)
        tokens = self.token_norm(mapped)
        if num_unlabeled:
            labeled, unlabeled = tokens.tensor_split([tokens.shape[0] - num_unlabeled])
            sources = self._unlabeled_sources(unlabeled, grid, unlabeled_logits, read_memory)
            attended = self.labeled_attention(labeled, sources)
            if rebuild_unlabeled:
                attended = torch.cat([attended, self.unlabeled_attention(unlabeled)])
            mapped = mapped[: attended.shape[0]]
        elif self.config.mix_images_in_eval and not self.training:
            attended = self.labeled_attention(tokens, tokens.unsqueeze(0))
        else:
            attended = self.labeled_attention(tokens, tokens.unsqueeze(1))  # each image is its own only source
        output = self.output_norm(attended + mapped).transpose(1, 2).unflatten(2, grid)
        return F.gelu(self.project_out(output))

    def _unlabeled_sources(self, unlabeled, grid, unlabeled_logits, read_memory) -> torch.Tensor:
        """Writes the memory, then returns what labeled images attend to: (1, sources, tokens, channels)."""
        slots = self._choose_slots(unlabeled, grid, unlabeled_logits)
        if self.share_memory:
            unlabeled, slots = gather_images(unlabeled), gather_images(slots)
        if self.memory is not None:
            self.memory.enqueue(resize_tokens(unlabeled.detach(), grid, self.memory_grid), slots)
            if read_memory:
                remembered = self.memory.sources(unlabeled.shape[2]).to(unlabeled.dtype)
                return resize_tokens(remembered, self.memory_grid, grid).unsqueeze(0)
        return unlabeled.unsqueeze(0)

    def _choose_slots(self, unlabeled, grid, unlabeled_logits) -> torch.Tensor:
        """The memory slot of each channel, int64 (unlabeled, channels)."""
        if not self.config.use_grouping:
            return torch.zeros(unlabeled.shape[0], unlabeled.shape[2], dtype=torch.int64, device=unlabeled.device)
        if unlabeled_logits is None or unlabeled_logits.shape[:2] != (unlabeled.shape[0], self.config.num_labels):
            given = "none" if unlabeled_logits is None else f"shape {tuple(unlabeled_logits.shape)}"
            raise ValueError(
                f"Grouping needs unlabeled_logits of {unlabeled.shape[0]} images, {self.config.num_labels} classes; "
                f"{given} was given: pass the logits of an eval-mode pass over unlabeled_pixel_values, or set "
                "use_grouping=False in the configuration."
            )
        similarity, source = self.config.grouping_similarity, self.config.grouping_source
        return group_channels(unlabeled, unlabeled_logits, grid, similarity, source)
