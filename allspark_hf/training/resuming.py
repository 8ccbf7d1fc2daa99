"""What a checkpoint was made with, and which changes of a run are refused, or told, when it is resumed."""

import hashlib
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import datasets

from ..data.overlap import undecoded
from ..data.pixels import Reading
from ..evaluation.arguments import EvaluationArguments
from ..utils.arguments import default_of, names, plain
from ..utils.files import read_json_object
from . import storage


logger = logging.getLogger(__name__)

FORMAT = 2
OPTIMIZER_FILE = "optimizer.pt"  # transformers' name
# Files of a checkpoint that a resume needs beside the model's.
STATE_PATTERNS = ("*.pt", "*.pth", storage.STUDENT_FILE, storage.RUN_FILE)
# Fields of a configuration: how masks are read, and what changes a training but no weight's shape.
MASK_FIELDS = ("mask_values", "ignored_mask_values", "semantic_loss_ignore_index")
FREE_FIELDS = ("grouping_similarity", "grouping_source", "mix_images_in_eval", "drop_path_rate", "hidden_dropout_prob")
FREE_FIELDS += ("attention_probs_dropout_prob", "classifier_dropout_prob", "channel_attention_dropout")
# Arguments that must stay the same for the evaluations of a run to compare.
EVALUATED = (*names(EvaluationArguments, shown=True), "metric_for_best_model")
SHOWN = 5


def describe_run(trainer) -> dict:
    """
    What a run is made with, for `allspark_run.json` in its checkpoints: settings, numbers and hashes, but no name of a
    file or folder.

    Args:
        trainer ([`AllSparkTrainer`]): a trainer with a training set.
    """
    args, config, sampler = trainer.args, trainer.model.config, trainer.sampler
    batches = args.gradient_accumulation_steps * args.world_size
    compared = [name for rule in ("refused", "kept", "changed", "cut") for name in names(args, resume=rule)]
    described = {
        "format": FORMAT,
        "model": {name: getattr(config, name) for name in config.shape_fields},
        "fields": {name: getattr(config, name) for name in FREE_FIELDS if hasattr(config, name)},
        "classes": [config.id2label[index] for index in range(config.num_labels)],
        "crop": list(config.crop_height_width),
        "reading": _describe_reading(trainer),
        "arguments": {name: plain(getattr(args, name)) for name in (*compared, *EVALUATED)},
        "processes": args.world_size,
        "images_per_update": [sampler.labeled_batch_size * batches, sampler.unlabeled_batch_size * batches],
        "updates_per_epoch": math.ceil(len(sampler) / batches),
        "data": {name: _describe_set(images) for name, images in names_of_images(trainer).items()},
        "stream": None if trainer.stream is None else trainer.stream.described(),
    }
    return json.loads(json.dumps(described))  # with lists for tuples, as in a file


def _describe_reading(trainer) -> dict:
    """How files become the pixels and labels that the model is trained on."""
    config, processor = trainer.model.config, trainer.processing_class
    masks = {name: getattr(config, name, None) for name in MASK_FIELDS}
    pixels = {"image_mean": processor.image_mean, "image_std": processor.image_std}
    return Reading.of(config)._asdict() | masks | pixels | {"image_long_side": trainer.long_side}


def _describe_set(images: list[str]) -> dict:
    return {"count": len(images), "sha256": hashlib.sha256("\n".join(images).encode()).hexdigest()}


def names_of_images(trainer) -> dict[str, list[str]]:
    """
    The names of a run's images in their order, for each set; a stream has none. An image is named by its `id`, or else
    by its file's name and, if the data set holds its bytes, their number. Computed once.
    """
    if trainer.__dict__.get("_names_of_images") is None:
        evaluated = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"": trainer.eval_dataset}
        sets = {"labeled": [trainer.train_dataset], "unlabeled": [], "validation": list(evaluated.values())}
        if trainer.method.uses_unlabeled:
            sets["unlabeled"] = [trainer.unlabeled_dataset]
        column = trainer.args.image_column_name
        trainer._names_of_images = {
            name: [image for part in parts if isinstance(part, datasets.Dataset) for image in names_of(part, column)]
            for name, parts in sets.items()
        }
    return trainer._names_of_images


def names_of(dataset: datasets.Dataset, column: str) -> Iterator[str]:
    """The names of a dataset's images, see [`names_of_images`]; `column` is the column of the images."""
    if "id" in dataset.column_names:
        yield from map(str, dataset.with_format(None).select_columns(["id"])["id"])
        return
    for batch in undecoded(dataset, column).with_format("arrow").iter(1000):
        stored = batch.column(column).combine_chunks()
        lengths = stored.field("bytes")
        for path, content in zip(stored.field("path"), lengths, strict=True):
            size = f":{content.as_buffer().size}" if content.is_valid else ""
            yield f"{Path(path.as_py()).name if path.is_valid else ''}{size}"


# ---- At a resume ----


def check_resume(trainer, checkpoint: str | Path) -> dict:
    """
    Compares a checkpoint with a run that is to go on from it, before anything of it is loaded. Changes with which the
    run can go on are warnings, given once.

    Args:
        trainer ([`AllSparkTrainer`]): a trainer with a training set.
        checkpoint (`str` or `Path`): a folder `checkpoint-*`.

    Returns:
        `dict`: the content of its `allspark_run.json`.

    Raises:
        ValueError: if it is no complete checkpoint of this package, or the run has another model, method, optimizer,
            data set, way to read files, number of images per update or, with a memory, crop.
    """
    run = _read_run(trainer, Path(checkpoint))
    now = describe_run(trainer)
    differences = list(_refused(run, now, Path(checkpoint), trainer))
    if differences:
        raise ValueError(
            f"{checkpoint} cannot be continued by this run: {'; '.join(differences)}; put that back, or begin a new "
            f"training from its weights (--model_name_or_path {checkpoint} and another --output_dir)."
        )
    told = trainer.__dict__.setdefault("_told_of_resume", set())
    if trainer.args.should_log and str(checkpoint) not in told:
        for sentence in _warnings(run, now, trainer.args):
            logger.warning("Going on from %s: %s", checkpoint, sentence)
    told.add(str(checkpoint))
    return run


def _read_run(trainer, checkpoint: Path) -> dict:
    if not checkpoint.is_dir():
        raise ValueError(f"There is no checkpoint {checkpoint}: give a folder checkpoint-*, or true for the last one.")
    run = read_json_object(checkpoint / storage.RUN_FILE)
    if run.get("format") != FORMAT:
        raise ValueError(
            f"{checkpoint} has no readable {storage.RUN_FILE} of format {FORMAT}: it was not written to its end, or "
            "by another version of this package or another program; begin a new training "
            f"from its weights (--model_name_or_path {checkpoint} and another --output_dir)."
        )
    if not storage.is_complete(checkpoint):
        raise ValueError(
            f"{checkpoint} is not complete: files are missing or cut short; copy it again, or resume from another one "
            "(--resume_from_checkpoint true takes the last complete one)."
        )
    if not trainer.processes.are_sharded and not (checkpoint / OPTIMIZER_FILE).is_file():
        raise ValueError(
            f"{checkpoint} holds no {OPTIMIZER_FILE} (save_only_model, or a sharded optimizer): begin a new training "
            f"from its weights (--model_name_or_path {checkpoint} and another --output_dir)."
        )
    return run


def _refused(run: dict, now: dict, checkpoint: Path, trainer) -> Iterator[str]:
    for name, value in now["model"].items():
        if run["model"].get(name) != value:
            label = "the number of classes" if name == "num_labels" else name
            yield f"{label} was {run['model'].get(name)} and is {value}"
    classes, known = now["classes"], run["classes"]
    if classes != known and sorted(classes) == sorted(known):
        yield f"the classes were in the order {', '.join(known[:SHOWN])} and are {', '.join(classes[:SHOWN])}"
    # Checkpoints of earlier versions do not say how their files were read.
    for name, value in run.get("reading", {}).items():
        if value != now["reading"][name]:
            yield f"{name} was {value} and is {now['reading'][name]}"
    defaults = {one.name: plain(default_of(one)) for one in fields(trainer.args)}
    for name in names(trainer.args, resume="refused"):
        before = run["arguments"].get(name, defaults[name])  # an argument newer than the checkpoint had its default
        if before != now["arguments"][name]:
            yield f"{name} was {before} and is {now['arguments'][name]}"
    if run["crop"] != now["crop"] and now["model"]["use_memory"] and now["model"]["use_cross_attention"]:
        sizes = f"{_size(run['crop'])} and is {_size(now['crop'])} pixels"
        yield f"the crop was {sizes}, but the memory holds tokens of the first one"
    if run["images_per_update"] != now["images_per_update"]:
        yield _other_update(run, now, trainer.args)
    elif run["updates_per_epoch"] != now["updates_per_epoch"] and run["data"] == now["data"]:
        yield (
            f"an epoch was {run['updates_per_epoch']} updates and is {now['updates_per_epoch']} (epoch_length, "
            "unlabeled_images_per_epoch or dataloader_drop_last)"
        )
    before = read_json_object(checkpoint / storage.IDS_FILE)
    for name in ("labeled", "unlabeled"):
        if run["data"][name] != now["data"][name]:
            yield _other_images(name, run["data"][name]["count"], before.get(name), names_of_images(trainer)[name])


def _size(crop: list[int]) -> str:
    return f"{crop[0]}x{crop[1]}"


def _other_update(run: dict, now: dict, args) -> str:
    labeled, unlabeled = run["images_per_update"]
    step = now["processes"] * args.per_device_train_batch_size
    advice = f" (--total_train_batch_size {labeled} keeps it)" if labeled and labeled % step == 0 else ""
    return (
        f"an update had {labeled} labeled and {unlabeled} unlabeled images and has {now['images_per_update'][0]} and "
        f"{now['images_per_update'][1]} ({now['processes']} processes x {args.per_device_train_batch_size} "
        f"per_device_train_batch_size x {args.gradient_accumulation_steps} gradient_accumulation_steps), so that the "
        f"place in the epoch would be another{advice}"
    )


def _other_images(name: str, count: int, before: list[str] | None, now: list[str]) -> str:
    sentence = f"the {name} set had {count} images and has {len(now)}"
    if before is None:
        return sentence if count != len(now) else f"{sentence}, but not the same"
    known, found = set(before), set(now)
    for what, images in (("gone", [i for i in before if i not in found]), ("new", [i for i in now if i not in known])):
        if images:
            shown = ", ".join(images[:SHOWN]) + (", ..." if len(images) > SHOWN else "")
            sentence += f", {len(images)} {'is' if len(images) == 1 else 'are'} {what} ({shown})"
    return f"{sentence}, in another order" if known == found else sentence


def _other_lanes(run: dict, now: dict) -> str:
    changed = ", ".join(
        f"{name} {run.get(name, 'unknown')} -> {now[name]}" for name in now if run.get(name) != now[name]
    )
    return (
        f"the stream of unlabeled images is shared out in another way ({changed}), so it goes on with a new pass: of "
        "the interrupted one some images come again and others not at all, and no single run gives the same."
    )


def _warnings(run: dict, now: dict, args) -> Iterator[str]:
    old, new = (one | one["arguments"] | one.get("fields", {}) for one in (run, now))
    differing = {name for name in new if name in old and old[name] != new[name]}
    for name in names(args, resume="kept"):
        if name in differing:
            yield f"{name} stays {old[name]}, which its optimizer carries, although {new[name]} is given."
    for name in (*names(args, resume="changed"), *now["fields"]):
        if name in differing:
            yield f"{name} was {old[name]} and is {new[name]} from here on; no single run gives the same."
    cut = [name for name in ("processes", *names(args, resume="cut")) if name in differing]
    if cut:
        changed = ", ".join(f"{name} {old[name]} -> {new[name]}" for name in cut)
        same = "images" if now["stream"] is None else "labeled images"
        yield (
            f"{changed}. An update has the same {same} as before, and so has an epoch but for its last update; batch "
            "statistics, dropout and the memory's order are others, so the result is close and not bit-identical."
        )
    if now["stream"] is not None and run.get("stream") != now["stream"]:
        yield _other_lanes(run.get("stream") or {}, now["stream"])
    if run["crop"] != now["crop"]:
        yield f"the crop was {_size(run['crop'])} and is {_size(now['crop'])} pixels from here on."
    if run["classes"] != now["classes"]:
        changed = [f"{old} -> {new}" for old, new in zip(run["classes"], now["classes"], strict=True) if old != new]
        yield f"classes have other names ({', '.join(changed[:SHOWN])}); their weights are taken over as they are."
    evaluated = [f"{name} was {old[name]} and is {new[name]}" for name in EVALUATED if name in differing]
    if run["data"]["validation"] != now["data"]["validation"]:
        evaluated.append("the validation images are others")
    if evaluated:
        yield f"{'; '.join(evaluated)}, so earlier evaluations, the best one included, do not compare."
