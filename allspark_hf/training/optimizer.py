"""Learning rates of encoder, head, and what a method trains beside the model."""

from collections.abc import Iterable

import torch
from torch import nn


def split_by_rate(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    head_multiplier: float,
    method_rates: dict[str, float],
    unread: Iterable[nn.Parameter] = (),
) -> int | None:
    """
    Splits the parameter groups of an optimizer, which all have one learning rate, by the rates of the model's parts.
    The encoder keeps the rate. Unread parameters leave the optimizer, as FSDP cannot restore one that has no state.

    Args:
        optimizer (`torch.optim.Optimizer`): optimizer of the model's parameters, without state; changed in place.
        model ([`SemiSupervisedSegmenter`]): the model.
        head_multiplier (`float`): rate of all that is neither the encoder's nor the method's, as a multiple.
        method_rates (`dict[str, float]`): rate of each module in `model.method_modules`, as a multiple.
        unread (`Iterable[nn.Parameter]`, *optional*): parameters that no step reads.

    Returns:
        `int`: place of the head's first group in `optimizer.param_groups`; None if the optimizer has no weight of it.
    """
    encoder = {id(parameter) for parameter in model.encoder_parameters()}
    of_method = [
        ({id(parameter) for parameter in model.method_modules[name].parameters()}, rate)
        for name, rate in method_rates.items()
    ]
    rest = {id(parameter) for parameter in model.parameters()} - encoder - set(map(id, unread))
    head = rest.difference(*(members for members, _ in of_method))
    groups, optimizer.param_groups = optimizer.param_groups, []
    for members, multiplier in [(encoder, 1.0), (head, head_multiplier), *of_method]:
        for group in groups:
            own = [parameter for parameter in group["params"] if id(parameter) in members]
            if own:
                optimizer.add_param_group({**group, "params": own, "lr": group["lr"] * multiplier})
    of_head = (place for place, group in enumerate(optimizer.param_groups) if id(group["params"][0]) in head)
    return next(of_head, None)


def check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, method: str):
    """Raises ValueError if an optimizer, as a user may give one, lacks parameters of `model.method_modules`."""
    given = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    built = getattr(model, "method_modules", nn.ModuleDict())
    if not given.issuperset(map(id, built.parameters())):
        raise ValueError(
            f"method={method!r} also trains {', '.join(built)}, which the given optimizer lacks: leave optimizers "
            "out, and give the optimizer's class and settings as optimizer_cls_and_kwargs."
        )
