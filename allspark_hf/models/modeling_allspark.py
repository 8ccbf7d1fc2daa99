"""AllSpark: channel-wise cross-attention from unlabeled to labeled features, with a semantic memory.

Source: *AllSpark: Reborn Labeled Features from Unlabeled in Transformer for Semi-Supervised Semantic Segmentation*,
CVPR 2024. The bottleneck works on any feature map; only the model at the end of the file knows SegFormer.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import SegformerModel, SegformerPreTrainedModel
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead
from transformers.utils.generic import can_return_tuple, maybe_autocast

from .configuration_allspark import AllSparkConfig


BOTTLENECK_NORM_EPS = 1e-6
INSTANCE_NORM_EPS = 1e-5
COSINE_EPS = 1e-12
TILE_ELEMENTS = 2**22  # of an attention map: about so many exist at a time in training
TOKEN_ALIGNMENT = 8  # CUDA's kernels are fast, and fused, for multiples of it


@dataclass
class SemiSupervisedSegmenterOutput(SemanticSegmenterOutput):
    """
    [`~transformers.modeling_outputs.SemanticSegmenterOutput`] (`loss` of the labeled images, `logits` at a quarter of
    the resolution, `hidden_states` of the encoder's stages, `attentions`), and in a step with unlabeled images
    `unlabeled_logits`, float (unlabeled_batch, num_labels, height / 4, width / 4). `hidden_states` and `attentions`
    then hold the labeled images followed by the unlabeled ones.
    """

    unlabeled_logits: torch.Tensor | None = None


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def moments(channels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (..., 1, tokens) and covariance (..., tokens, tokens) of (..., channels, tokens), at least float32."""
    with maybe_autocast(channels.device.type, enabled=False):
        channels = at_least_float32(channels)
        mean = channels.mean(dim=-2, keepdim=True)
        centred = channels - mean
        return mean, centred.mT @ centred / channels.shape[-2]


def pool_moments(parts: list[tuple], sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """[`moments`] of all channels from those of parts, of the given relative sizes."""
    shares = [size / sum(sizes) for size in sizes]
    mean = sum(share * part_mean for share, (part_mean, _) in zip(shares, parts, strict=True))
    spread = [covariance + (part_mean - mean).mT * (part_mean - mean) for part_mean, covariance in parts]
    return mean, sum(share * covariance for share, covariance in zip(shares, spread, strict=True))


def normalize_query(query: torch.Tensor, key_moments: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """
    The query with which softmax(query @ key.mT) becomes softmax(IN(query @ key.mT)), IN over each whole map: softmax
    does not see what is subtracted from a row of it, so only the normalisation's scale counts.

    With q = mean + q' and k alike, the map's variance is that of q'k', plus that of q' mean_k, plus that of mean_q k':
    it follows from the [`moments`] without the map, and as these are squares, nothing cancels. `query` is float
    (batch, maps, queries, tokens), as is the result; `key_moments` are those of (batch or 1, maps, keys, tokens).
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
    Channel-wise semantic grouping (paper, Section 3.4): int64 (batch, channels), each channel's nearest class.

    `tokens` are float (batch, tokens, channels) on a `grid` (height, width), `prediction` float logits (batch,
    num_labels, any height, any width) of the same images. The `similarity` of a class map and a channel is "cosine"
    over the tokens or "instance_norm" (Eq. 4), the `source` of the class maps "logits" or softmax "probabilities".
    """
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    class_maps = prediction.to(dtype)
    if source == "probabilities":
        class_maps = class_maps.softmax(dim=1)
    class_maps = F.interpolate(class_maps, size=grid, mode="bilinear", align_corners=False).flatten(2)
    if similarity == "cosine":
        # Only the class maps: a channel's own norm is the same for every class and cannot change its argmax.
        class_maps = F.normalize(class_maps, dim=2, eps=COSINE_EPS)
    # Eq. 4 would instance-normalise this map next, which is increasing and cannot change the argmax either.
    return (class_maps @ tokens.to(dtype)).argmax(dim=1)


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
        distributed.all_reduce(grad)  # every process's loss depends on these images
        return grad.chunk(distributed.get_world_size())[distributed.get_rank()]


def gather_images(images: torch.Tensor) -> torch.Tensor:
    """(batch, ...) of every process -> (processes * batch, ...) in order of their ranks, with gradient."""
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return images
    return _GatherImages.apply(images)


class SemanticMemory(nn.Module):
    """
    First-in-first-out rings of unlabeled channels, one per class (paper, Section 3.3, S-Mem). The buffers are
    channels: float (num_slots, slot_size, num_tokens); at first standard normal noise, which counts as content;
    num_enqueued: int64 (num_slots,), channels ever written to a slot; modulo `slot_size` it is the write position.
    """

    def __init__(self, num_slots: int, slot_size: int, num_tokens: int):
        super().__init__()
        self.register_buffer("channels", torch.empty(num_slots, slot_size, num_tokens))
        self.register_buffer("num_enqueued", torch.empty(num_slots, dtype=torch.int64))
        self.reset()

    def reset(self):
        """Noise content, nothing written."""
        init.normal_(self.channels)
        init.zeros_(self.num_enqueued)

    @property
    def position(self) -> torch.Tensor:
        """int64 (num_slots,): place in [0, slot_size) that the next channel of a slot goes to."""
        return self.num_enqueued % self.channels.shape[1]

    @property
    def fill(self) -> torch.Tensor:
        """float32 (num_slots,): share in [0, 1] of each slot that is no longer the initial noise."""
        slot_size = self.channels.shape[1]
        return self.num_enqueued.clamp(max=slot_size) / slot_size

    @torch.no_grad()
    def enqueue(self, tokens: torch.Tensor, slots: torch.Tensor):
        """
        Writes channels into their slots: images in order, channels in index order, the oldest overwritten first.
        `tokens` is float (batch, tokens, channels), `slots` int64 (batch, channels), out of [0, num_slots) to skip.
        """
        num_slots, slot_size, _ = self.channels.shape
        incoming = tokens.transpose(1, 2).flatten(0, 1).to(self.channels.dtype)  # (batch * channels, tokens)
        slots = slots.flatten()
        member = slots[:, None] == torch.arange(num_slots, device=slots.device)  # (batch * channels, num_slots)
        inside = member.any(dim=1)
        slots = slots.where(inside, 0)
        # Each channel's place in the queue of its own slot, counted from 0.
        rank = member.cumsum(dim=0).gather(1, slots[:, None]).squeeze(1) - 1
        rows = (slots * slot_size + (self.num_enqueued[slots] + rank) % slot_size).where(inside, 0)
        # More channels than a slot holds meet in one row, where the last one stays; what is skipped changes nothing.
        order = torch.arange(len(slots), device=slots.device).where(inside, -1)
        last = order.new_full((num_slots * slot_size,), -1).scatter_reduce(0, rows, order, "amax")[rows]
        content = self.channels.flatten(0, 1)
        content[rows] = incoming[last.clamp(min=0)].where((last >= 0)[:, None], content[rows])
        self.num_enqueued += member.sum(dim=0)

    def sources(self, num_channels: int) -> torch.Tensor:
        """
        A copy of the content as float (pieces, tokens, num_channels), which the cross-attention projects one by one.
        A slot of 2 or 4 times `num_channels` gives 2 or 4 pieces. Half slots are joined in pairs of neighbouring
        classes; with an odd class count the last one is completed by class 0.
        """
        rows = self.channels.flatten(0, 1)
        missing = -rows.shape[0] % num_channels
        rows = torch.cat([rows, rows[:missing]])
        return rows.unflatten(0, (-1, num_channels)).transpose(1, 2)


class ChannelProjection(nn.Linear):
    """A projection without bias; a class of its own so that `_init_weights` can tell it, which skips its parents."""


class ChannelAttention(nn.Module):
    """
    dropout(softmax(IN(query @ key.mT))) @ value without the map, and what comes before and after: C channels are
    projected to C * heads, and back. A softmax does not see what is subtracted from a row of it, so of the instance
    normalisation only the scale counts, and that goes into the query. `project` says what the heads are.
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
        """float (batch, sources, tokens, channels) -> (batch, maps, queries or keys, tokens)."""
        raise NotImplementedError

    def attend(self, tokens: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
        """
        float (batch, tokens, channels) and (batch or 1, sources, tokens, channels) -> (batch, maps, queries, tokens).
        """
        num_tokens = tokens.shape[1]
        if tokens.is_cuda and num_tokens % TOKEN_ALIGNMENT:
            padding = (0, 0, 0, -num_tokens % TOKEN_ALIGNMENT)  # zeros, which no product sees
            tokens, sources = F.pad(tokens, padding), F.pad(sources, padding)
        query = self.project(self.q_proj, tokens.unsqueeze(1))
        attend = self._attend_by_tiles if self.training else self._attend_fused
        return attend(query, sources)[..., :num_tokens]

    def _attend_fused(self, query, sources):
        """For inference: torch's kernel, which has dropout on some devices only, and holds all keys and values."""
        key, value = (self.project(proj, sources).contiguous() for proj in (self.k_proj, self.v_proj))
        query = normalize_query(query, moments(key)).contiguous()
        if len(key) != len(query):
            key, value = key.expand(len(query), -1, -1, -1), value.expand(len(query), -1, -1, -1)
        return F.scaled_dot_product_attention(query, key, value, scale=1.0)

    def _attend_by_tiles(self, query, sources):
        """
        For training: some sources at a time, of which nothing is kept. Their keys, values and part of the map are
        computed again for the gradient, so that these take no memory however many sources there are.
        """
        images, elements = len(query), query[..., 0].numel() * self.num_heads * sources.shape[-1]
        tiles = sources.split(max(1, TILE_ELEMENTS // elements), dim=1)
        recomputed = partial(checkpoint, use_reentrant=False, preserve_rng_state=self.dropout.p > 0)
        parts = [recomputed(self._key_moments, tile) for tile in tiles]
        query = normalize_query(query, pool_moments(parts, [tile.shape[1] for tile in tiles]))
        shared = len(sources) != images
        if shared:  # the queries of all images make one map with the keys, which are not repeated
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
        """Sums of weighted values and of weights, both relative to the highest score so far, which comes third."""
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
        """float (batch, tokens, channels) -> the same shape; every image by itself."""
        context = self.attend(tokens, tokens.unsqueeze(1))
        # (batch, heads, channels, tokens) -> (batch, tokens, channels * heads), the head index varying fastest
        return self.dropout(self.o_proj(context.permute(0, 3, 2, 1).flatten(2)))


class ChannelCrossAttention(ChannelAttention):
    """Attention from an image's channels to those of several sources (paper, Eq. 2): the labeled branch."""

    def project(self, proj, sources):
        # (batch, sources, tokens, channels * heads) -> (batch, 1, sources * channels * heads, tokens): the heads are
        # not split here, there is one map per image.
        return proj(sources).transpose(2, 3).flatten(1, 2).unsqueeze(1)

    def forward(self, tokens: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
        """float (batch, tokens, channels) and (batch or 1, sources, tokens, channels) -> the first one's shape."""
        return self.dropout(self.o_proj(self.attend(tokens, sources).squeeze(1).transpose(1, 2)))


class AllSparkBottleneck(nn.Module):
    """
    Rebuilds labeled features from unlabeled ones (paper, Section 3.2). Knows feature maps only, no encoder.

    Args:
        config ([`AllSparkConfig`]): of which it reads `num_labels` and AllSpark's own fields.
        num_channels (`int`): C, channels of the feature map.
    """

    def __init__(self, config: AllSparkConfig, num_channels: int):
        super().__init__()
        self.config = config
        heads, dropout = config.channel_attention_heads, config.channel_attention_dropout
        self.project_in = nn.Conv2d(num_channels, num_channels, kernel_size=1)
        self.token_norm = nn.LayerNorm(num_channels, eps=BOTTLENECK_NORM_EPS)
        self.labeled_attention = ChannelCrossAttention(num_channels, heads, dropout)
        self.unlabeled_attention = ChannelSelfAttention(num_channels, heads, dropout)
        self.output_norm = nn.LayerNorm(num_channels, eps=BOTTLENECK_NORM_EPS)
        self.project_out = nn.Conv2d(num_channels, num_channels, kernel_size=1)
        self.memory = None
        if config.use_memory:
            num_slots, slot_size = config.num_labels, int(num_channels * config.memory_size)
            if not config.use_grouping:  # one ring of the same total size
                num_slots, slot_size = 1, num_slots * slot_size
            self.memory = SemanticMemory(num_slots, slot_size, math.prod(config.token_grid))

    def forward(
        self,
        features: torch.Tensor,
        num_unlabeled: int = 0,
        unlabeled_logits: torch.Tensor | None = None,
        read_memory: bool = True,
    ) -> torch.Tensor:
        """
        Args:
            features (`torch.Tensor`):
                float (batch, channels, height, width), and so is the result; the unlabeled images come last.
            num_unlabeled (`int`): 0 for inference and for training without unlabeled images.
            unlabeled_logits (`torch.Tensor`, *optional*):
                float (num_unlabeled, num_labels, any height, any width), what the grouping is computed from.
            read_memory (`bool`): False before the warm-up is over; the memory is written all the same.
        """
        grid = tuple(features.shape[2:])
        mapped = F.gelu(self.project_in(features)).flatten(2).transpose(1, 2)  # (batch, tokens, channels)
        tokens = self.token_norm(mapped)
        if num_unlabeled:
            labeled, unlabeled = tokens.tensor_split([tokens.shape[0] - num_unlabeled])
            sources = self._unlabeled_sources(unlabeled, grid, unlabeled_logits, read_memory)
            attended = torch.cat([self.labeled_attention(labeled, sources), self.unlabeled_attention(unlabeled)])
        elif self.config.mix_images_in_eval and not self.training:
            attended = self.labeled_attention(tokens, tokens.unsqueeze(0))
        else:
            attended = self.labeled_attention(tokens, tokens.unsqueeze(1))  # each image is its own only source
        output = self.output_norm(attended + mapped).transpose(1, 2).unflatten(2, grid)
        return F.gelu(self.project_out(output))

    def _unlabeled_sources(self, unlabeled, grid, unlabeled_logits, read_memory) -> torch.Tensor:
        """What labeled images attend to, (1, sources, tokens, channels). Writes the memory before it is read."""
        slots = self._choose_slots(unlabeled, grid, unlabeled_logits)
        if self.config.share_memory:
            unlabeled, slots = gather_images(unlabeled), gather_images(slots)
        if self.memory is None:
            return unlabeled.unsqueeze(0)
        memory_grid = self.config.token_grid
        self.memory.enqueue(resize_tokens(unlabeled.detach(), grid, memory_grid), slots)
        if not read_memory:
            return unlabeled.unsqueeze(0)
        remembered = self.memory.sources(unlabeled.shape[2]).to(unlabeled.dtype)
        return resize_tokens(remembered, memory_grid, grid).unsqueeze(0)

    def _choose_slots(self, unlabeled, grid, unlabeled_logits) -> torch.Tensor:
        """int64 (unlabeled, channels): slot of each channel."""
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


class SegformerForSemiSupervisedSegmentation(SegformerPreTrainedModel):
    """
    SegFormer with the AllSpark bottleneck between the Mix Transformer encoder and the all-MLP decode head.

    With `pixel_values` and `labels` alone it works as transformers' SegformerForSemanticSegmentation. In training,
    `unlabeled_pixel_values` adds images from which the labeled features are rebuilt.
    """

    config: AllSparkConfig
    config_class = AllSparkConfig
    # The loss is a mean over pixels: Trainer must divide it by the accumulation steps itself.
    accepts_loss_kwargs = False
    _keys_to_ignore_on_save = [r"bottleneck.memory.channels", r"bottleneck.memory.num_enqueued"]
    _keys_to_ignore_on_load_missing = [r"bottleneck\.memory\."]

    def __init__(self, config: AllSparkConfig):
        super().__init__(config)
        self.segformer = SegformerModel(config)
        self.bottleneck = AllSparkBottleneck(config, config.hidden_sizes[-1]) if config.use_cross_attention else None
        self.decode_head = SegformerDecodeHead(config)
        self.decode_head.dropout = nn.Dropout2d(config.classifier_dropout_prob)  # whole channels, as in the paper
        for name, module in self.segformer.named_modules():
            # Blocks' and stage-end norms, which transformers' SegFormer leaves at 1e-5.
            if isinstance(module, nn.LayerNorm) and "patch_embeddings" not in name and "sequence_red" not in name:
                module.eps = config.layer_norm_eps
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, ChannelProjection):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, SemanticMemory):
            module.reset()

    def save_pretrained(self, save_directory, *args, save_original_format: bool = False, **kwargs):
        """As in transformers, but not with SegFormer's old weight names: Trainer cannot resume from those (#48805)."""
        super().save_pretrained(save_directory, *args, save_original_format=save_original_format, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs):
        """As in transformers; with allspark_hf installed, the card states license and task, and the code goes too."""
        try:  # this file also runs alone, as a repository's code
            from allspark_hf.publishing.publish import push_model_to_hub
        except ImportError:
            return super().push_to_hub(repo_id, **kwargs)
        return push_model_to_hub(self, repo_id, **kwargs)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        unlabeled_pixel_values: torch.Tensor | None = None,
        unlabeled_logits: torch.Tensor | None = None,
        read_memory: bool = True,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> SemiSupervisedSegmenterOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor`): float (batch, 3, height, width), normalised with the ImageNet mean and std.
            labels (`torch.Tensor`, *optional*):
                int64 (batch, height, width), in [0, num_labels) or `config.semantic_loss_ignore_index`.
            unlabeled_pixel_values (`torch.Tensor`, *optional*):
                float (unlabeled_batch, 3, height, width), any number, height and width as above; training only.
            unlabeled_logits (`torch.Tensor`, *optional*):
                float (unlabeled_batch, num_labels, any height, any width): the logits of an eval-mode pass over
                `unlabeled_pixel_values`. Needed when `config.use_grouping`.
            read_memory (`bool`, *optional*, defaults to `True`):
                Whether labeled images attend to the memory, or, in its warm-up, to the batch's unlabeled images.
            output_attentions, output_hidden_states (`bool`, *optional*): whether to return them, see the output.

        Raises:
            ValueError: if `unlabeled_pixel_values` is given in eval mode or differs in size from `pixel_values`, or
                `unlabeled_logits` is missing.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        num_unlabeled = 0
        if unlabeled_pixel_values is not None:
            self._check_unlabeled(pixel_values, unlabeled_pixel_values)
            num_unlabeled = unlabeled_pixel_values.shape[0]
            pixel_values = torch.cat([pixel_values, unlabeled_pixel_values])
        encoded = self.segformer(
            pixel_values, output_hidden_states=True, output_attentions=output_attentions, return_dict=True, **kwargs
        )
        features = encoded.hidden_states
        if self.bottleneck is not None:
            last = self.bottleneck(features[-1], num_unlabeled, unlabeled_logits, read_memory)
            features = (*features[:-1], last)
        logits = self.decode_head(features)
        logits, of_unlabeled = logits.tensor_split([logits.shape[0] - num_unlabeled])
        return SemiSupervisedSegmenterOutput(
            loss=None if labels is None else self._labeled_loss(logits, labels),
            logits=logits,
            unlabeled_logits=of_unlabeled if num_unlabeled else None,
            hidden_states=encoded.hidden_states if output_hidden_states else None,
            attentions=encoded.attentions,
        )

    def _check_unlabeled(self, pixel_values: torch.Tensor, unlabeled_pixel_values: torch.Tensor):
        if not self.training:
            raise ValueError(
                "unlabeled_pixel_values belongs to training, but the model is in eval mode: call model.train(), or "
                "predict unlabeled images as pixel_values."
            )
        if pixel_values.shape[2:] != unlabeled_pixel_values.shape[2:]:
            raise ValueError(
                f"Labeled images are {tuple(pixel_values.shape[2:])} and unlabeled ones "
                f"{tuple(unlabeled_pixel_values.shape[2:])} pixels (height, width): crop both to one size."
            )

    def _labeled_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """SegFormer's loss: cross-entropy at label size; binary cross-entropy for a single class."""
        ignore_index = self.config.semantic_loss_ignore_index
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        if self.config.num_labels > 1:
            return F.cross_entropy(logits, labels, ignore_index=ignore_index)
        valid = ((labels >= 0) & (labels != ignore_index)).float()
        loss = F.binary_cross_entropy_with_logits(logits.squeeze(1), labels.float(), reduction="none")
        return (loss * valid).mean()


# Keyed by class name, because a configuration loaded from a SegFormer checkpoint says model_type "segformer".
CLASS_NAME = SegformerForSemiSupervisedSegmentation.__name__
RENAMING = WeightRenaming("decode_head.linear_c", "decode_head.linear_projections")
register_checkpoint_conversion_mapping(CLASS_NAME, [RENAMING], overwrite=True)
# Read by pipeline("image-segmentation") alone, which logs an error for a class that it does not find there.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[AllSparkConfig.model_type] = CLASS_NAME

__all__ = ["SegformerForSemiSupervisedSegmentation", "SemiSupervisedSegmenterOutput"]
