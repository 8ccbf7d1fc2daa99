"""[`Processes`]: what several processes that train one model must have in common."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, parse_flag_from_env
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel


MEMORY_PREFIX = "bottleneck.memory."
UNLABELED_PREFIX = "bottleneck.unlabeled_attention."


class Processes:
    """
    Keeps weights, buffers and memories of the processes of a training equal.

    All processes start with the weights and buffers of the first one. Each step and each evaluation starts with its
    BatchNorm statistics, which are also saved. A shared memory stays equal without being sent, because every process
    enqueues the channels of all; with `local_memory` each process keeps, saves and restores a memory of its own.

    Args:
        trainer ([`AllSparkTrainer`]): the trainer whose model the processes train.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    @property
    def model(self) -> PreTrainedModel:
        """The trained model without its wrappers."""
        return self.trainer.accelerator.unwrap_model(self.trainer.model, keep_torch_compile=False)

    @property
    def are_sharded(self) -> bool:
        """Whether FSDP or DeepSpeed cuts weights and optimizer into parts, and saves them in formats of its own."""
        return self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled

    @property
    def local_memory(self) -> nn.Module | None:
        """This process's own memory; None if all processes share one, or there is none."""
        bottleneck = self.model.bottleneck
        return bottleneck.memory if bottleneck is not None and not bottleneck.share_memory else None

    def unread_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Weights of a model, wrapped or not, that no step of the method reads: their gradients never come."""
        method = self.trainer.method
        if method.uses_unlabeled and method.trains_unlabeled_branch:
            return {}
        return {name: value for name, value in model.named_parameters() if UNLABELED_PREFIX in name}

    def prepare_to_wrap(self):
        """Called before DDP or FSDP wraps the model, which an earlier training may have wrapped already."""
        if self.trainer.args.world_size == 1:
            return
        model = self.model
        # DDP would broadcast the memory, up to 100 MB a step, also over local ones. torch.compile adds the prefix.
        names = [name for name, _ in model.named_buffers() if name.startswith(MEMORY_PREFIX)]
        names += self.unread_parameters(model)
        model._ddp_params_and_buffers_to_ignore = [*names, *(f"_orig_mod.{name}" for name in names)]
        if isinstance(model, FSDPModule):
            return
        self._share(model.parameters())  # each process keeps a part of its own with FSDP
        if self.trainer.is_fsdp_enabled:
            # accelerate would shard input embeddings apart, and SegFormer raises if it is asked for them.
            model.get_input_embeddings = lambda: None

    def start(self):
        """Sends buffers and the method's state from the first process; called after wrapping and loading."""
        if self.trainer.args.world_size == 1:
            return
        self.share_statistics(self.model)
        self._share(self.trainer.method.state_dict(keep_vars=True).values())
        if self.local_memory is None:
            self._share(buffer for name, buffer in self.model.named_buffers() if name.startswith(MEMORY_PREFIX))

    def share_statistics(self, *models: nn.Module):
        """Gives all processes the BatchNorm statistics that models have in the first one."""
        if self.trainer.args.world_size > 1:
            named = [one for model in models for one in model.named_buffers()]
            self._share(buffer for name, buffer in named if not name.startswith(MEMORY_PREFIX))

    @torch.no_grad()
    def _share(self, tensors: Iterable[torch.Tensor]):
        """Overwrites tensors with those of the first process."""
        for tensor in tensors:
            sent = tensor.detach().to(self.trainer.args.device)  # a copy only where the model is not on its device yet
            torch.distributed.broadcast(sent, src=0)
            if sent.data_ptr() != tensor.data_ptr():
                tensor.copy_(sent)

    @contextmanager
    def predicting_apart(self, *models: nn.Module) -> Iterator[None]:
        """
        Inside, each process may predict by itself with the weights and statistics of `models` that are saved, and they
        are in eval mode. Afterwards, each module has the mode of before.
        """
        self.share_statistics(*models)
        plugin = self.trainer.accelerator.state.fsdp_plugin if self.trainer.is_fsdp_enabled else None
        modes = {module: module.training for model in models for module in model.modules()}
        for model in models:
            model.eval()
        try:
            with nullcontext() if plugin is None else gathered(self.model, plugin):
                yield
        finally:
            for module, was_training in modes.items():
                module.training = was_training

    def gather_method_modules(self):
        """Makes the method's modules whole for a step; FSDP2 gathers them in the model's own forward alone."""
        model = self.model
        if isinstance(model, FSDPModule) and hasattr(model, "method_modules"):
            model.unshard()

    def check_saved_memory(self, checkpoint, run: dict):
        """
        Args:
            checkpoint (`Path`): the folder to resume from.
            run (`dict`): the content of its `allspark_run.json`.

        Raises:
            ValueError: if its memories are not as many as this run's processes need.
        """
        own = self.trainer.args.world_size if self.local_memory is not None else 0
        saved = run["processes"] if run.get("local_memory") else 0
        if saved == own:
            return
        kinds = [
            f"a memory for each of {count} processes" if count else "one memory for all" for count in (saved, own)
        ]
        fix = f"start {saved} processes with local_memory=True" if saved else "leave local_memory out"
        raise ValueError(f"{checkpoint} holds {kinds[0]}, but this run has {kinds[1]}: {fix}, or begin anew.")


@contextmanager
def gathered(model: nn.Module, plugin: FullyShardedDataParallelPlugin) -> Iterator[None]:
    """
    Inside, every process has all weights, so that each may predict by itself.

    Args:
        model (`nn.Module`): the model, possibly wrapped by FSDP2.
        plugin (`FullyShardedDataParallelPlugin`): how it was wrapped.
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
    """A model without weights, of the class that FSDP2 replaced by its own, to save whole weights with."""
    plain_class = next(one for one in type(model).__mro__ if not issubclass(one, FSDPModule))
    with torch.device("meta"):
        plain = plain_class(model.config).to(model.dtype)
    return plain


def synchronize_batchnorm(model: PreTrainedModel, world_size: int, device: torch.device):
    """
    Makes the model's BatchNorm count the batches of all processes as one, as the authors train. The weights keep their
    names. With one process nothing changes.

    Args:
        model ([`SemiSupervisedSegmenter`]): the model before it is wrapped; changed in place.
        world_size (`int`): number of processes.
        device (`torch.device`): device to train on.

    Raises:
        ValueError: for several processes on CPUs, on which torch's SyncBatchNorm cannot train.
    """
    if world_size == 1:
        return
    if device.type == "cpu":
        raise ValueError(
            f"sync_batchnorm=True needs GPUs, and these {world_size} processes train on CPUs, which torch's "
            "SyncBatchNorm does not support: set it to false."
        )
    nn.SyncBatchNorm.convert_sync_batchnorm(model)


def check_sharding(accelerator: Accelerator):
    """
    Args:
        accelerator (`Accelerator`): the Trainer's.

    Raises:
        ValueError: if it shards the model in a way that breaks training, saving or the pseudo-label pass.
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
