"""[`DistributedMixin`]: what [`AllSparkTrainer`] adds so that several processes train one model."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, parse_flag_from_env
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from .resuming import MEMORY_FILE


try:
    from torch.distributed.fsdp import FSDPModule
except ImportError:  # before torch 2.6, where accelerate refuses FSDP2
    FSDPModule = ()


MEMORY_PREFIX = "bottleneck.memory."
UNLABELED_PREFIX = "bottleneck.unlabeled_attention."


class DistributedMixin:
    """
    Overrides how [`~transformers.Trainer`] starts, saves and resumes on several processes; to be named before it and
    [`CheckpointMixin`] among the base classes.

    All processes start from the first one's weights and buffers, and each step and each evaluation from its BatchNorm
    statistics, with which the model is saved. A shared memory stays the same everywhere without being sent, because
    all processes enqueue the channels of all; with `config.share_memory=False` each keeps, saves and restores its own.
    """

    _statistics: tuple[torch.Tensor, ...] = ()

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """As [`CheckpointMixin.train`]."""
        if self.args.world_size > 1:
            self._prepare_to_wrap()
        callback = _StartCallback(self)
        self.add_callback(callback)
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        finally:
            self.remove_callback(callback)

    def _prepare_to_wrap(self):
        model = self._bare_model()
        # Up to 100 MB a step, and wrong for a local memory; torch.compile puts the prefix before the names.
        names = [name for name, _ in model.named_buffers() if name.startswith(MEMORY_PREFIX)]
        if not self.method.uses_unlabeled:  # DDP would wait for gradients that never come
            names += [name for name, _ in model.named_parameters() if name.startswith(UNLABELED_PREFIX)]
        model._ddp_params_and_buffers_to_ignore = [*names, *(f"_orig_mod.{name}" for name in names)]
        if isinstance(model, FSDPModule):  # trained before
            return
        self._share(model.parameters())  # FSDP, say, has each process keep a part of its own
        if self.is_fsdp_enabled:
            # accelerate asks for them to shard them apart, and SegFormer's answer is an exception.
            model.get_input_embeddings = lambda: None

    def _start(self):
        """Once the model is wrapped and a checkpoint loaded: makes the processes equal where they should be."""
        model = self._bare_model()
        if self._resumed_from and self._has_local_memory:
            self._load_memory(Path(self._resumed_from))
        if self.args.world_size == 1:
            return
        named = list(model.named_buffers())
        self._statistics = tuple(buffer for name, buffer in named if not name.startswith(MEMORY_PREFIX))
        self._share(self._statistics)
        if not self._has_local_memory:
            self._share(buffer for name, buffer in named if name.startswith(MEMORY_PREFIX))

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As in transformers, with the first process's BatchNorm statistics, which the pseudo-label pass reads."""
        self._share(self._statistics)
        return super().training_step(model, inputs, num_items_in_batch)

    def evaluate(self, *args, **kwargs):
        """Of the model that is saved, which has the first process's BatchNorm statistics; each process by itself."""
        self._share(self._statistics)
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        with gathered(self._bare_model(), plugin):
            return super().evaluate(*args, **kwargs)

    @torch.no_grad()
    def _share(self, tensors: Iterable[torch.Tensor]):
        """Overwrites tensors with those of the first process."""
        for tensor in tensors:
            sent = tensor.detach().to(self.args.device)  # a copy only where the model is not on its device yet
            torch.distributed.broadcast(sent, src=0)
            if sent.data_ptr() != tensor.data_ptr():
                tensor.copy_(sent)

    def _bare_model(self) -> PreTrainedModel:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def _save(self, output_dir=None, state_dict=None):
        """FSDP has made the model's class one of torch's, which a saved folder must not name nor copy the code of."""
        if state_dict is None or not self.is_fsdp_enabled or not self.args.should_save:
            return super()._save(output_dir, state_dict)
        sharded = self.model
        self.model = plain_model(self._bare_model())
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.model = sharded

    # ---- A memory of each process ----

    @property
    def _has_local_memory(self) -> bool:
        config = self._bare_model().config
        return config.use_memory and not getattr(config, "share_memory", True)

    def _save_rng_state(self, output_dir):
        """With what each process saves for itself also its memory; all of it before the checkpoint counts as whole."""
        super()._save_rng_state(output_dir)
        if self._has_local_memory:
            state = {name: buffer.cpu().contiguous() for name, buffer in self._memory().named_buffers()}
            path = Path(output_dir) / memory_file(self.args.process_index)
            save_file(state, path, metadata={"processes": str(self.args.world_size)})
        self.accelerator.wait_for_everyone()

    def _load_memory(self, checkpoint: Path):
        state = load_file(checkpoint / memory_file(self.args.process_index))
        self._memory().load_state_dict(state)

    def _memory(self) -> nn.Module:
        return self._bare_model().bottleneck.memory

    def check_resume(self, checkpoint: str | Path) -> dict:
        """As [`CheckpointMixin.check_resume`]; refuses memories that are not those of this run's processes, too."""
        run = super().check_resume(checkpoint)
        self.check_saved_memory(checkpoint)
        return run

    def check_saved_memory(self, checkpoint: str | Path):
        """
        Args:
            checkpoint (`str` or `Path`): a folder to resume from.

        Raises:
            ValueError: if its memories are not those of this run's processes.
        """
        checkpoint, processes = Path(checkpoint), self.args.world_size
        saved = saved_memories(checkpoint)
        if not saved and self._has_local_memory:
            raise ValueError(
                f"{checkpoint} holds one memory for all processes, but local_memory=True gives each its own: resume "
                "without it, or begin anew."
            )
        if saved and not self._has_local_memory:
            raise ValueError(
                f"{checkpoint} holds a memory of its own for each of {saved} processes, but this run has one for "
                "all: resume with local_memory=True, or begin anew."
            )
        if saved and saved != processes:
            raise ValueError(
                f"{checkpoint} holds the memories of {saved} processes, but this run has {processes}: start "
                f"{saved}, or begin anew."
            )


class _StartCallback(TrainerCallback):
    """The one moment between loading a checkpoint and the first step that transformers lets others into."""

    def __init__(self, trainer: DistributedMixin):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._start()


@contextmanager
def gathered(model: nn.Module, plugin: FullyShardedDataParallelPlugin | None) -> Iterator[None]:
    """
    All weights on every process inside, so that each may predict by itself: shards need all processes at each batch.

    Args:
        model (`nn.Module`): the model, possibly wrapped by FSDP2.
        plugin (`FullyShardedDataParallelPlugin`, *optional*): how it was wrapped.
    """
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.set_reshard_after_forward(False)
        module.unshard()
    try:
        yield
    finally:
        for module in shards:
            module.reshard()
            module.set_reshard_after_forward(plugin.reshard_after_forward and module is not model, recurse=False)


def plain_model(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the class that FSDP2 wrapped, without weights, which says no less about what is saved."""
    plain_class = next(one for one in type(model).__mro__ if not issubclass(one, FSDPModule))
    with torch.device("meta"):
        plain = plain_class(model.config).to(model.dtype)
    return plain


def memory_file(process_index: int) -> str:
    """Name of a process's own memory in a checkpoint folder."""
    return MEMORY_FILE.format(rank=process_index)


def saved_memories(checkpoint: Path) -> int:
    """How many processes saved a memory of their own in a checkpoint; 0 if they had one in common."""
    path = next(iter(sorted(checkpoint.glob(memory_file("*")))), None)
    if path is None:
        return 0
    with safe_open(path, framework="pt") as file:
        return int(file.metadata()["processes"])


def synchronize_batchnorm(model: PreTrainedModel, world_size: int, device: torch.device):
    """
    Makes the decode head's BatchNorm count the batches of all processes as one (METHOD: as the authors train). The
    weights keep their names. With one process there is nothing to synchronise, and nothing changes.

    Args:
        model ([`SegformerForSemiSupervisedSegmentation`]): changed in place; not wrapped yet.
        world_size (`int`): processes.
        device (`torch.device`): to train on.

    Raises:
        ValueError: on several processes on CPUs, which torch's SyncBatchNorm cannot train on.
    """
    if world_size == 1:
        return
    if device.type == "cpu":
        raise ValueError(
            f"sync_batchnorm=True needs GPUs, and these {world_size} processes train on CPUs, which torch's "
            "SyncBatchNorm does not support: set it to false."
        )
    model.decode_head = nn.SyncBatchNorm.convert_sync_batchnorm(model.decode_head)


def check_sharding(accelerator: Accelerator):
    """
    Args:
        accelerator (`Accelerator`): of the Trainer.

    Raises:
        ValueError: for ways of sharding a model that training, saving or the pseudo-label pass would go wrong with.
    """
    state = accelerator.state
    if accelerator.distributed_type == DistributedType.FSDP:
        _check_fsdp(state.fsdp_plugin)
    elif parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise ValueError(
            f"FSDP was asked for, but accelerate has none for {accelerator.device.type} with "
            f"{accelerator.num_processes} process(es) and would train without: use a configuration without FSDP, "
            "such as scripts/accelerate/ddp_cpu.yaml."
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED and state.deepspeed_plugin.zero_stage == 3:
        raise ValueError(
            "zero_stage=3 shards the weights, which predicting the pseudo-labels beneath DeepSpeed was never tested "
            "with: set zero_stage to 2, or use scripts/accelerate/fsdp.yaml."
        )


def _check_fsdp(plugin):
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"fsdp_version={plugin.fsdp_version} hides the weights from the pseudo-label pass, which goes beneath the "
            "wrapper: set fsdp_version to 2."
        )
    if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise ValueError(
            f"fsdp_state_dict_type={str(plugin.state_dict_type).rpartition('.')[2]} would save no model that can be "
            "loaded: set it to FULL_STATE_DICT."
        )
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "fsdp_cpu_ram_efficient_loading=True cannot load buffers, of which this model has some (BatchNorm, "
            "memory): set it to false."
        )


__all__ = ["DistributedMixin", "check_sharding", "memory_file", "saved_memories", "synchronize_batchnorm"]
