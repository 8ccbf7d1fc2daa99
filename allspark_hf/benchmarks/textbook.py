"""The AllSpark bottleneck as a plain reading of the method gives it: what ours is measured against.

Written from the method's description, as the stand-in for the authors' code: the whole attention map of every image is
made, its instance norm and softmax are maps of their own, keys and values are repeated for every labeled image, and
the memory is written in a Python loop over classes and channels that waits for the device. Same mathematics, same
weights and state dict names as [`allspark_hf.models.bottleneck_allspark.AllSparkBottleneck`].
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


NORM_EPS = 1e-6
INSTANCE_NORM_EPS = 1e-5
COSINE_EPS = 1e-12


class TextbookMemory(nn.Module):
    """
    S-Mem with the buffers of ours: channels float (num_slots, slot_size, num_tokens), num_enqueued int64 (num_slots,).
    """

    def __init__(self, num_slots: int, slot_size: int, num_tokens: int):
        super().__init__()
        self.register_buffer("channels", torch.randn(num_slots, slot_size, num_tokens))
        self.register_buffer("num_enqueued", torch.zeros(num_slots, dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, tokens: torch.Tensor, slots: torch.Tensor):
        """float (batch, tokens, channels) and int64 (batch, channels), image by image, class by class, one by one."""
        num_slots, slot_size, _ = self.channels.shape
        for image, of_image in zip(tokens, slots, strict=True):
            for slot in range(num_slots):
                for channel in (of_image == slot).nonzero().flatten().cpu().tolist():
                    place = self.num_enqueued[slot].item() % slot_size
                    self.channels[slot, place] = image[:, channel].to(self.channels.dtype)
                    self.num_enqueued[slot] += 1

    def sources(self, num_channels: int) -> list[torch.Tensor]:
        """
        float (tokens, num_channels) each. A half slot is completed by the next class's, the last one of an odd number
        by class 0's.
        """
        rows = self.channels.flatten(0, 1)
        if rows.shape[0] % num_channels:
            rows = torch.cat([rows, rows[: num_channels - rows.shape[0] % num_channels]])
        return [piece.T for piece in rows.split(num_channels)]


class TextbookAttention(nn.Module):
    """Projections C -> C * heads and back, without bias; maps, instance norm, softmax, dropout in plain sight."""

    def __init__(self, num_channels: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(num_channels, num_channels * num_heads, bias=False)
        self.k_proj = nn.Linear(num_channels, num_channels * num_heads, bias=False)
        self.v_proj = nn.Linear(num_channels, num_channels * num_heads, bias=False)
        self.o_proj = nn.Linear(num_channels * num_heads, num_channels, bias=False)
        self.instance_norm = nn.InstanceNorm2d(num_heads, eps=INSTANCE_NORM_EPS)
        self.map_norm = nn.InstanceNorm2d(1, eps=INSTANCE_NORM_EPS)
        self.map_dropout = nn.Dropout(dropout)
        self.output_dropout = nn.Dropout(dropout)

    def among_own_channels(self, tokens: torch.Tensor) -> torch.Tensor:
        """Self-attention (Eq. 1), head by head: float (batch, tokens, channels) -> the same."""
        batch, num_tokens, num_channels = tokens.shape
        shape = (batch, num_tokens, self.num_heads, num_channels)
        # (batch, heads, channels, tokens)
        query = self.q_proj(tokens).reshape(shape).permute(0, 2, 3, 1)
        key = self.k_proj(tokens).reshape(shape).permute(0, 2, 3, 1)
        value = self.v_proj(tokens).reshape(shape).permute(0, 2, 3, 1)
        weights = self.map_dropout(self.instance_norm(query @ key.transpose(2, 3)).softmax(dim=-1))
        context = weights @ value
        # (batch, tokens, channels * heads), the head index varying fastest
        context = context.permute(0, 3, 2, 1).reshape(batch, num_tokens, num_channels * self.num_heads)
        return self.output_dropout(self.o_proj(context))

    def to_sources(self, tokens: torch.Tensor, sources: list[torch.Tensor]) -> torch.Tensor:
        """
        Cross-attention (Eq. 2): float (batch, tokens, channels), and sources that each are float (tokens, channels),
        the same for all images, or (batch, tokens, channels).
        """
        batch = tokens.shape[0]
        # (batch, tokens, sources * channels * heads): every image gets its own copy
        keys = torch.cat([self.k_proj(source).expand(batch, -1, -1) for source in sources], dim=2)
        values = torch.cat([self.v_proj(source).expand(batch, -1, -1) for source in sources], dim=2)
        scores = self.q_proj(tokens).transpose(1, 2) @ keys  # (batch, channels * heads, sources * channels * heads)
        weights = self.map_dropout(self.map_norm(scores.unsqueeze(1)).squeeze(1).softmax(dim=-1))
        context = weights @ values.transpose(1, 2)
        return self.output_dropout(self.o_proj(context.transpose(1, 2)))


class TextbookBottleneck(nn.Module):
    """
    Takes the place of `model.bottleneck`: same call, same state dict.

    Args:
        config ([`AllSparkConfig`]): with memory and grouping on, the latter by cosine and logits: the full method.
        num_channels (`int`): C, channels of the feature map.

    Raises:
        ValueError: for a configuration that is not the full method.
    """

    def __init__(self, config, num_channels: int):
        super().__init__()
        full = config.use_memory and config.use_grouping and not config.mix_images_in_eval
        if not full or (config.grouping_similarity, config.grouping_source) != ("cosine", "logits"):
            raise ValueError(
                "The textbook form is AllSpark with its defaults: leave use_memory, use_grouping, "
                "grouping_similarity, grouping_source and mix_images_in_eval as they are."
            )
        heads, dropout = config.channel_attention_heads, config.channel_attention_dropout
        self.memory_grid = config.token_grid
        self.project_in = nn.Conv2d(num_channels, num_channels, kernel_size=1)
        self.token_norm = nn.LayerNorm(num_channels, eps=NORM_EPS)
        self.labeled_attention = TextbookAttention(num_channels, heads, dropout)
        self.unlabeled_attention = TextbookAttention(num_channels, heads, dropout)
        self.output_norm = nn.LayerNorm(num_channels, eps=NORM_EPS)
        self.project_out = nn.Conv2d(num_channels, num_channels, kernel_size=1)
        slot_size = int(num_channels * config.memory_size)
        self.memory = TextbookMemory(config.num_labels, slot_size, math.prod(config.token_grid))

    @classmethod
    def like(cls, bottleneck: nn.Module) -> "TextbookBottleneck":
        """With the weights, memory, mode, device and data type of [`AllSparkBottleneck`]."""
        weight = bottleneck.project_in.weight
        textbook = cls(bottleneck.config, weight.shape[0]).to(weight)
        textbook.load_state_dict(bottleneck.state_dict())
        return textbook.train(bottleneck.training)

    def forward(
        self,
        features: torch.Tensor,
        num_unlabeled: int = 0,
        unlabeled_logits: torch.Tensor | None = None,
        read_memory: bool = True,
    ) -> torch.Tensor:
        """As [`AllSparkBottleneck.forward`]; training crops must be those of the configuration."""
        grid = tuple(features.shape[2:])
        embedded = F.gelu(self.project_in(features)).flatten(2).transpose(1, 2)  # (batch, tokens, channels)
        tokens = self.token_norm(embedded)
        if num_unlabeled:
            labeled, unlabeled = tokens[:-num_unlabeled], tokens[-num_unlabeled:]
            self._remember(unlabeled.detach(), unlabeled_logits, grid)
            sources = self.memory.sources(tokens.shape[2]) if read_memory else list(unlabeled)
            from_labeled = self.labeled_attention.to_sources(labeled, [source.to(tokens.dtype) for source in sources])
            attended = torch.cat([from_labeled, self.unlabeled_attention.among_own_channels(unlabeled)])
        else:
            attended = self.labeled_attention.to_sources(tokens, [tokens])  # each image is its own only source
        output = self.output_norm(attended + embedded).transpose(1, 2).reshape(features.shape)
        return F.gelu(self.project_out(output))

    @torch.no_grad()
    def _remember(self, unlabeled: torch.Tensor, logits: torch.Tensor, grid: tuple[int, int]):
        """Every channel of float (images, tokens, channels) into the slot of the class whose map it is nearest to."""
        if grid != self.memory_grid:
            raise ValueError(f"The crops give {grid} tokens, the memory holds {self.memory_grid}: use its crop size.")
        class_maps = F.interpolate(logits.to(unlabeled.dtype), size=grid, mode="bilinear", align_corners=False)
        class_maps = F.normalize(class_maps.flatten(2), dim=2, eps=COSINE_EPS)  # (images, classes, tokens)
        channels = F.normalize(unlabeled, dim=1, eps=COSINE_EPS)
        self.memory.enqueue(unlabeled, (class_maps @ channels).argmax(dim=1))
