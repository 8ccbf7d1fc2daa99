"""The contrastive part of Alonso et al. (ICCV 2021): heads on the decoder's features, and the memory they fill."""

import torch
from torch import nn

from .heads import ClassMLP, pixel_rows
from .loss import contrastive_loss
from .memory import PixelMemory, rows_per_image
from .teacher import TeacherPrediction


WIDTH = 256  # channels of a projected pixel
MEMORY_ROWS = 256  # of each class


class PixelContrast(nn.Module):
    """
    Fills a memory with good labeled pixels, and draws pixels toward that of their class. Features are what the
    classifier gets, at every position of a stride of about 4 pixels: see [`pixel_rows`].

    The heads' batch statistics, the memory's quota and the loss are those of one batch of all processes, so that two
    processes equal one with twice the batch; accumulated batches each have their own.

    Args:
        config ([`AllSparkFields`]): of the model.
        args ([`MemoryContrastiveArguments`]): which pixels are good, which of them are taken, and how they weigh.
        num_labeled (`int`): labeled images.
    """

    def __init__(self, config, args, num_labeled: int):
        super().__init__()
        self.args, self.num_labels, self.ignore_index = args, config.num_labels, config.semantic_loss_ignore_index
        self.padded_multiple = getattr(config, "padded_multiple", 1)
        quota = args.per_device_train_batch_size * args.world_size
        quota *= rows_per_image(MEMORY_ROWS, max(1, num_labeled), args.memory_inflow)
        # At most the whole memory, so that its size does not depend on how a resumed run cuts an update.
        self.memory = PixelMemory(self.num_labels, MEMORY_ROWS, min(MEMORY_ROWS, quota), WIDTH)

    def make_heads(self, features: int) -> nn.ModuleDict:
        """
        What is trained beside the model: `projection` and `prediction` of a pixel, `selectors` that score it for each
        class, and with scored memory weights `memory_selectors` that do so for the memory's rows.

        Args:
            features (`int`): channels of the decoder's features.
        """
        heads = {"projection": ClassMLP(1, features, WIDTH, WIDTH), "prediction": ClassMLP(1, WIDTH, WIDTH, WIDTH)}
        selectors = ["selectors", "memory_selectors"] if self.args.memory_weights == "scored" else ["selectors"]
        return nn.ModuleDict(
            heads | {name: ClassMLP(self.num_labels, WIDTH, WIDTH, 1, slope=0.2) for name in selectors}
        )

    @torch.no_grad()
    def fill(self, predicted: TeacherPrediction, labels: torch.Tensor, heads: nn.ModuleDict):
        """
        Offers the memory the pixels of which the teacher is right and sure.

        Args:
            predicted ([`TeacherPrediction`]): of labeled images.
            labels (`torch.Tensor`): int64 (labeled, height, width), class or the ignore index.
            heads (`nn.ModuleDict`): of `make_heads`, the teacher's.
        """
        good = (predicted.labels == labels) & (predicted.confidence > self.args.memory_confidence)
        with torch.autocast(labels.device.type, enabled=False):
            rows, labels, mask = self._rows(predicted.features, labels.where(good, self.ignore_index))
            rows = heads["projection"](rows[None], mask)[0]
            self.memory.update(rows, labels, heads["selectors"], self.args.memory_keeps)

    def loss(self, features: torch.Tensor, labels: torch.Tensor, heads: nn.ModuleDict) -> torch.Tensor:
        """
        Float scalar of a batch of all processes, see [`contrastive_loss`].

        Args:
            features (`torch.Tensor`): float (batch, channels, head height, head width), of the student's decoder.
            labels (`torch.Tensor`): int64 (batch, height, width), class or the ignore index.
            heads (`nn.ModuleDict`): of `make_heads`, the student's.
        """
        with torch.autocast(labels.device.type, enabled=False):
            rows, labels, mask = self._rows(features, labels)
            rows = heads["prediction"](heads["projection"](rows[None], mask), mask)[0]
            memory_selectors = heads["memory_selectors"] if "memory_selectors" in heads else None  # noqa: SIM401
            return contrastive_loss(rows, labels, self.memory, heads["selectors"], memory_selectors)

    def _rows(self, features, labels) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Float (rows, channels), int64 (rows,) and bool (1, rows), False where ignored."""
        rows, labels = pixel_rows(features, labels, self.ignore_index, self.padded_multiple)
        return rows, labels, (labels != self.ignore_index)[None]
