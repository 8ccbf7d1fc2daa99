"""The content of `--help`, made from the argument classes."""

import inspect
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields

from ..methods import METHODS, MethodArguments, arguments_classes
from ..utils.arguments import default_of, facts_of


# Headings of the arguments that these classes declare; other classes declare "options".
HEADINGS = {
    "DataArguments": "data",
    "Selection": "data",
    "ModelArguments": "model",
    "AllSparkTrainingArguments": "training",
    "TrainingArguments": "training, all of transformers",
    "EvaluationArguments": "evaluation",
    "PredictionArguments": "evaluation",
}
ORDER = ("start with", "options", "data", "model", "method", "training", "evaluation")
# The arguments of a training that people give most often, shown above all others.
FIRST = ("data_dir", "output_dir", "method", "encoder", "crop_size", "max_steps")
# What --preset auto chooses where it is not given: see preset.py.
CHOSEN = (
    *("encoder", "backbone", "hidden_sizes", "decoder_hidden_size", "crop_size", "freeze_encoder_layers", "method"),
    *("optim", "learning_rate", "head_learning_rate_multiplier", "weight_decay", "max_grad_norm", "warmup_steps"),
    *("keep_quantile", "confidence_threshold", "unlabeled_warmup_epochs", "memory_warmup_epochs", "bf16"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "eval_strategy", "eval_steps"),
    *("save_strategy", "save_steps", "save_total_limit", "logging_steps"),
)


def help_content(types: Iterable[type], description: str | None, everything: bool) -> dict:
    """
    A command's description, and the arguments of its classes under headings, each with its default; for [`render`].
    Unless `everything` is shown, classes with common arguments show only these.
    """
    types = list(types)
    names = {one.name for kind in types for one in fields(kind)}
    trains, chosen = "method" in names, CHOSEN if "preset" in names else ()
    sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in ("start with", "options") if trains}
    hidden = False
    for kind in types:
        has_common = any(facts_of(one).common for one in fields(kind))
        for owner, one in _fields_by_class(kind):
            if everything or facts_of(one).common or not has_common:
                heading = "start with" if trains and one.name in FIRST else _heading(owner, one, everything)
                sections.setdefault(heading, []).append((f"--{one.name}", _text(one, one.name in chosen)))
            else:
                hidden = True
    if trains:
        sections["start with"].sort(key=lambda entry: FIRST.index(entry[0].removeprefix("--")))
    order = sorted(filter(sections.get, sections), key=lambda heading: ORDER.index(heading.split(",")[0]))
    return {
        "description": (description or "").strip(),
        "sections": {heading: sections[heading] for heading in order},
        "hidden": hidden,
    }


def _fields_by_class(kind: type) -> list[tuple[type, Field]]:
    """The fields, each with the class that declares it; those of `kind` itself come first."""
    waiting = {one.name: one for one in fields(kind) if one.init}
    declared = [(base, name) for base in kind.__mro__ for name in inspect.get_annotations(base)]
    return [(base, waiting.pop(name)) for base, name in declared if name in waiting]


def _heading(owner: type, one: Field, everything: bool) -> str:
    if any(owner in declared.__mro__ for declared in arguments_classes()) and issubclass(owner, MethodArguments):
        titles = [method.title for method in METHODS.values() if issubclass(method.arguments_class, owner)]
        others = [method.title for method in METHODS.values() if method.title not in titles]
        listed = ", ".join(titles) if len(titles) <= len(others) else f"all but {', '.join(others)}"
        return f"method, {listed}" if everything and others else "method"
    return facts_of(one).group or HEADINGS.get(owner.__name__, "options")


def _text(one: Field, is_chosen: bool) -> str:
    text = one.metadata.get("help", "").replace("%%", "%")  # argparse needs two
    default = default_of(one)
    if default is True:
        return f"{text} (default: True; --no_{one.name})"
    if default is MISSING:
        return f"{text} (needed)"
    known = [] if default is None or default == [] else [default]
    if known and isinstance(default, list):
        known = [" ".join(map(str, default))]
    if facts_of(one).by_encoder:
        known = [f"{default} for a Mix Transformer; else by the encoder, and printed at the start"]
    if is_chosen:
        known = ["chosen by --preset auto", *(f"with --preset none {value}" for value in known)]
    return f"{text} (default: {'; '.join(map(str, known))})" if known else text
