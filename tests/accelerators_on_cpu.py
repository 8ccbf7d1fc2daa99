"""What torch and accelerate have for GPUs only, made to run on CPUs, so that what this project adds can be tested."""

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

import allspark_hf.training.trainer
from allspark_hf.training.processes import synchronize_batchnorm


def allow_fsdp():
    """FSDP on gloo: accelerate leaves it out on CPUs, although torch has it there."""
    create = AcceleratorState.__init__

    def create_with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
        create(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = create_with_fsdp


def allow_sync_batchnorm():
    """torch's SyncBatchNorm with its own communication; of its five CUDA kernels these are plain versions."""
    allspark_hf.training.trainer.synchronize_batchnorm = lambda model, world_size, device: synchronize_batchnorm(
        model, world_size, torch.device("cuda")
    )
    torch.nn.parallel.DistributedDataParallel._passing_sync_batchnorm_handle = lambda self, module: None  # a check
    torch.nn.SyncBatchNorm.forward = forward_on_cpu
    torch.batch_norm_stats = batch_norm_stats
    torch.batch_norm_gather_stats_with_counts = gather_stats
    torch.batch_norm_elemt = normalize
    torch.batch_norm_backward_reduce = backward_reduce
    torch.batch_norm_backward_elemt = backward


def forward_on_cpu(self, features, forward=torch.nn.SyncBatchNorm.forward):
    """It takes tensors of GPUs, and of what device this function names; autocast asks it too."""
    name = torch._C._get_privateuse1_backend_name
    torch._C._get_privateuse1_backend_name = lambda: "cpu"
    try:
        return forward(self, features)
    finally:
        torch._C._get_privateuse1_backend_name = name


def per_channel(values: torch.Tensor) -> torch.Tensor:
    """(channels,) beside (batch, channels, height, width)."""
    return values[None, :, None, None]


def batch_norm_stats(features, eps):
    variance, mean = torch.var_mean(features, dim=(0, 2, 3), correction=0)
    return mean, (variance + eps).rsqrt()


def gather_stats(features, means, inverse_stds, running_mean, running_var, momentum, eps, counts):
    share = (counts / counts.sum())[:, None]
    mean = (share * means).sum(dim=0)
    variance = (share * (inverse_stds**-2 - eps + (means - mean) ** 2)).sum(dim=0)
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(variance * counts.sum() / (counts.sum() - 1), momentum)
    return mean, (variance + eps).rsqrt()


def normalize(features, weight, bias, mean, inverse_std, eps):
    scaled = (features - per_channel(mean)) * per_channel(inverse_std * weight)
    return scaled + per_channel(bias)


def backward_reduce(grad, features, mean, inverse_std, weight, *needed):
    sum_grad = grad.sum(dim=(0, 2, 3))
    sum_product = (grad * (features - per_channel(mean))).sum(dim=(0, 2, 3))
    return sum_grad, sum_product, sum_product * inverse_std, sum_grad.clone()


def backward(grad, features, mean, inverse_std, weight, sum_grad, sum_product, counts):
    count = counts.sum()
    slope = per_channel(sum_product / count * inverse_std**2) * (features - per_channel(mean))
    return (grad - per_channel(sum_grad / count) - slope) * per_channel(inverse_std * weight)
