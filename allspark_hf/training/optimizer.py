"""Learning rates: of encoder, head, and what a method trains beside the model."""

import torch
from torch import nn


def split_by_rate(
    optimizer: torch.optim.Optimizer, model: nn.Module, head_multiplier: float, method_rates: dict[str, float]
):
    """
    Splits the groups of an optimizer, all of one learning rate, by the rate that a parameter is to have.

    Args:
        optimizer (`torch.optim.Optimizer`): changed in place; without state yet.
        model ([`Segmenter`]): whose parameters it has. The encoder keeps the rate.
        head_multiplier (`float`): of all that is neither encoder nor the method's, as a multiple of the rate.
        method_rates (`dict[str, float]`): of each of `model.method_modules`, likewise.
    """
    encoder = {id(parameter) for parameter in model.encoder_parameters()}
    of_method = [
        ({id(parameter) for parameter in model.method_modules[name].parameters()}, rate)
        for name, rate in method_rates.items()
    ]
    rest = {id(parameter) for parameter in model.parameters()} - encoder
    head = rest.difference(*(members for members, _ in of_method))
    groups, optimizer.param_groups = optimizer.param_groups, []
    for members, multiplier in [(encoder, 1.0), (head, head_multiplier), *of_method]:
        for group in groups:
            own = [parameter for parameter in group["params"] if id(parameter) in members]
            if own:
                optimizer.add_param_group({**group, "params": own, "lr": group["lr"] * multiplier})


__all__ = ["split_by_rate"]
