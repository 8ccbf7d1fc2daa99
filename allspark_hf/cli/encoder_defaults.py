"""Arguments of the optimizer that were not given, for encoders of transformers' AutoBackbone."""

import math
from collections.abc import Callable

from ..models.configuration_backbone_allspark import AllSparkBackboneConfig
from ..publishing.licenses import FROM_SCRATCH
from ..training.arguments import AllSparkTrainingArguments
from ..training.loaders import make_sampler


LONG_RUN = 5000  # updates
# PLAIN_VIT is UniMatch V2's, for tens of thousands of updates. Short runs need rates that are a little higher: in 600
# updates on CamVid, 5e-5 spoiled the first layers of the encoder, and a dpt head learned nothing at 3e-3
# (scripts/studies/README.md).
PLAIN_VIT = {"learning_rate": 5e-6, "head_learning_rate_multiplier": 40.0}
PLAIN_VIT_SHORT = {"learning_rate": 1e-5, "head_learning_rate_multiplier": 50.0}
OTHERS = {"learning_rate": 1e-5, "head_learning_rate_multiplier": 10.0}  # as in UniMatch V2's training logs
ADAMW = {"optim": "adamw_torch_fused", "weight_decay": 0.01}


def planned_updates(args: AllSparkTrainingArguments, num_labeled: int, num_unlabeled: int) -> int:
    """Updates of a whole training; of a stream, the unlabeled images are those of an epoch, see [`whole_steps`]."""
    if args.max_steps > 0:
        return args.max_steps
    batches = math.ceil(len(make_sampler(args, num_labeled, num_unlabeled)) / args.world_size)
    return math.ceil(args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps))


def encoder_defaults(config, num_updates: int) -> dict:
    """
    Optimizer, weight decay and learning rates for the encoder of a configuration and a number of updates; empty for a
    Mix Transformer, for which the arguments' own defaults, the paper's, are right; without rates, which are for
    pre-trained encoders, if the encoder starts at random.
    """
    if not isinstance(config, AllSparkBackboneConfig):
        return {}
    if config.base_weights == FROM_SCRATCH and not config._name_or_path:
        return ADAMW
    if len(set(config.feature_strides)) > 1:
        return ADAMW | OTHERS
    return ADAMW | (PLAIN_VIT if num_updates >= LONG_RUN else PLAIN_VIT_SHORT)


def apply_encoder_defaults(
    args: AllSparkTrainingArguments, config, num_updates: int, say: Callable[[str], None] | None = None
):
    """
    Sets the arguments of [`encoder_defaults`] that neither the command line nor a recipe gave, and says so in a line.
    """
    given = getattr(args, "given", ())
    defaults = {name: value for name, value in encoder_defaults(config, num_updates).items() if name not in given}
    for name, value in defaults.items():
        setattr(args, name, value)
    args.filled_in = args.filled_in | defaults
    if defaults and say is not None:
        chosen = ", ".join(f"{name} {value}" for name, value in defaults.items())
        say(f"for this encoder and {num_updates} updates: {chosen}")
