"""What the optimizer's arguments are, where nobody gave them, with an encoder of transformers' AutoBackbone."""

import math
from collections.abc import Callable

from ..data.streaming import whole_steps
from ..models.configuration_backbone_allspark import AllSparkBackboneConfig
from ..training.arguments import AllSparkTrainingArguments
from ..training.loaders import make_sampler


LONG_RUN = 5000  # updates
# UniMatch V2's for tens of thousands of updates. Short runs need more, but 5e-5 spoils the first layers of a whole
# encoder, and a dpt head at 3e-3 dies: both on CamVid, 600 updates, see scripts/studies/README.md.
PLAIN_VIT = {"learning_rate": 5e-6, "head_learning_rate_multiplier": 40.0}
PLAIN_VIT_SHORT = {"learning_rate": 1e-5, "head_learning_rate_multiplier": 50.0}
OTHERS = {"learning_rate": 1e-5, "head_learning_rate_multiplier": 10.0}  # UniMatch V2's, of its training logs
ADAMW = {"optim": "adamw_torch_fused", "weight_decay": 0.01}


def planned_updates(
    args: AllSparkTrainingArguments, num_labeled: int, num_unlabeled: int, streams: bool = False
) -> int:
    """
    Updates of a whole training.

    Args:
        args ([`AllSparkTrainingArguments`]): of the training.
        num_labeled (`int`): labeled images.
        num_unlabeled (`int`): unlabeled images, if they are no stream.
        streams (`bool`, *optional*, defaults to `False`): whether the unlabeled images are a stream.
    """
    if args.max_steps > 0:
        return args.max_steps
    num_unlabeled = whole_steps(args) if streams else num_unlabeled
    batches = math.ceil(len(make_sampler(args, num_labeled, num_unlabeled, streams)) / args.world_size)
    return math.ceil(args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps))


def encoder_defaults(config, num_updates: int) -> dict:
    """
    Optimizer, weight decay and learning rates for an encoder and a length of the training; none for a Mix
    Transformer, which has the paper's.

    Args:
        config ([`AllSparkFields`]): of the model.
        num_updates (`int`): of the training.
    """
    if not isinstance(config, AllSparkBackboneConfig):
        return {}
    if len(set(config.feature_strides)) > 1:
        return ADAMW | OTHERS
    return ADAMW | (PLAIN_VIT if num_updates >= LONG_RUN else PLAIN_VIT_SHORT)


def apply_encoder_defaults(
    args: AllSparkTrainingArguments, config, num_updates: int, say: Callable[[str], None] | None = None
) -> list[str]:
    """
    Sets what was given neither on the command line nor in a recipe.

    Args:
        args ([`AllSparkTrainingArguments`]): of [`parse_arguments`]; changed in place.
        config ([`AllSparkFields`]): of the model.
        num_updates (`int`): of the training.
        say (`Callable`, *optional*): told in one line what was set, if anything was.

    Returns:
        `list[str]`: what was set, as `"name value"`.
    """
    given = getattr(args, "given", ())
    defaults = {name: value for name, value in encoder_defaults(config, num_updates).items() if name not in given}
    for name, value in defaults.items():
        setattr(args, name, value)
    args.filled_in = args.filled_in | defaults
    chosen = [f"{name} {value}" for name, value in defaults.items()]
    if chosen and say is not None:
        say(f"for this encoder and {num_updates} updates: {', '.join(chosen)}")
    return chosen


__all__ = ["apply_encoder_defaults", "encoder_defaults", "planned_updates"]
