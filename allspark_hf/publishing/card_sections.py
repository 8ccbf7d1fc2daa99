"""Sections of a model's card, from its records; a record that is missing is said to be missing."""

import json
import re

from ..models.configuration_allspark import MIT_SIZES
from .card_records import Records
from .licences import FROM_SCRATCH, HUB_ID
from .markdown import FOLD_FROM, code, code_block, duration, escape, folded, number, percent, table


DATASET_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
BOTTLENECK = "the bottleneck of [AllSpark](https://arxiv.org/abs/2403.01818)"
METHODS = {
    "allspark": "AllSpark (labeled features rebuilt from unlabeled ones through a semantic memory)",
    "pseudo_label": "pseudo-labels (the model's own labels on unlabeled images, without AllSpark's bottleneck)",
    "supervised": "supervised learning (labeled images only)",
}
LAYOUTS = {
    "folder": "images and masks in folders",
    "voc": "Pascal VOC 2012",
    "cityscapes": "Cityscapes",
    "coco": "COCO 2017",
    "datasets": "a data set that `datasets` reads",
}


def plural(count: int, singular: str, several: str | None = None) -> str:
    """ "1 class", "1,200 classes"."""
    return f"{count:,} {singular if count == 1 else several or singular + 's'}"


# ---- The model ----


def encoder_name(config: dict) -> str:
    """ "MiT-B5", or a description of another Mix Transformer."""
    for size, (hidden_sizes, depths, _) in MIT_SIZES.items():
        if (tuple(config.get("hidden_sizes", ())), tuple(config.get("depths", ()))) == (hidden_sizes, depths):
            return f"MiT-{size.upper()}"
    widths = ", ".join(map(str, config.get("hidden_sizes", ())))
    return f"a Mix Transformer of widths {widths}" if widths else "a Mix Transformer"


def architecture(config: dict) -> str:
    """What the network is, in words."""
    bottleneck = config.get("use_cross_attention", True)
    name = encoder_name(config)
    encoder = name if name.startswith("a ") else f"the encoder {name}"
    return f"a SegFormer with {encoder}" + (f" and {BOTTLENECK}" if bottleneck else "")


def summary(records: Records) -> str:
    """One paragraph: what the model is, what it was trained on, and how well it does."""
    run, count = records.run, len(records.class_names)
    parameters = run.get("model", {}).get("parameters")
    size = f" ({parameters / 1e6:.1f} million parameters)" if parameters else ""
    text = (
        f"This model gives every pixel of an image one of {plural(count, 'class', 'classes')}. It is "
        f"{architecture(records.config)}{size}"
    )
    data = run.get("data", {})
    if not data:
        return f"{text}. How it was trained was not recorded."
    unlabeled = "no" if not data.get("unlabeled_used") else number(data.get("unlabeled"))
    unlabeled = "a stream of" if data.get("unlabeled_stream") and data.get("unlabeled_used") else unlabeled
    text += f", trained from {data['labeled']:,} labeled and {unlabeled} unlabeled images"
    if records.final:
        text += f". Its mean IoU on validation images is {percent(records.final.metrics.get('mean_iou'))} %"
    return text + "."


def classes(records: Records) -> str:
    """Index, name and colour of every class, folded if there are many."""
    names, palette = records.class_names, records.config.get("palette")
    ignored = records.config.get("semantic_loss_ignore_index", 255)
    colors = palette if palette and len(palette) == len(names) else None
    header = ["index", "class"] + (["colour"] if colors else [])
    rows = [[str(index), escape(name)] for index, name in enumerate(names)]
    for row, color in zip(rows, colors or [], strict=False):
        row.append("`#{:02x}{:02x}{:02x}`".format(*color))
    text = table(header, rows, words=header)
    title = plural(len(names), "class", "classes")
    text = folded(title, text) if len(names) >= FOLD_FROM else text
    return f"{text}\n\nIn masks, {ignored} stood for pixels that do not count."


# ---- Data ----


def data(records: Records) -> str:
    """Source, counts, and how the labeled images were chosen."""
    data = records.run.get("data")
    if not data:
        return "Which data the model was trained on was not recorded."
    lines = [_source(data)]
    validation = data.get("validation")
    if isinstance(validation, dict):
        validation = ", ".join(f"{escape(name)}: {count:,}" for name, count in validation.items())
    unlabeled = "a stream, not counted" if data.get("unlabeled_stream") else number(data.get("unlabeled"))
    unused = "" if data.get("unlabeled_used") else " (not used by this method)"
    rows = [
        ["labeled training images", number(data["labeled"])],
        ["unlabeled training images", unlabeled + unused],
        ["validation images", validation if isinstance(validation, str) else number(validation)],
    ]
    lines.append(table(["set", "images"], rows))
    notes = _choice(data)
    return "\n\n".join([*lines, " ".join(notes)] if notes else lines)


def _source(data: dict) -> str:
    source = data.get("source")
    if source is None:
        return "The data were given as datasets in Python; their names were not recorded."
    layout = LAYOUTS.get(data.get("layout")) or escape(data.get("layout"))
    if data.get("on_hub") and DATASET_ID.fullmatch(source):
        text = f"[{escape(source)}](https://huggingface.co/datasets/{source})"
        config = data.get("dataset_config_name")
        text += f", configuration {code(config)}" if config else ""
        text = f"Data set of the Hub: {text}."
    else:
        text = f"A local data set, folder {code(source)} ({layout})."
    if data.get("unlabeled_folder"):
        text += f" More unlabeled images: the folder {code(data['unlabeled_folder'])}."
    if data.get("unlabeled_dataset"):
        text += f" More unlabeled images: the data set {code(data['unlabeled_dataset'])}."
    return text


def _choice(data: dict) -> list[str]:
    """Sentences on how labels were chosen and what was left out; none if nothing was recorded of it."""
    selection = data.get("selection")
    if selection is None:
        return []
    seed = selection.get("split_seed")
    notes = []
    if "labeled_count" in selection or "labeled_fraction" in selection:
        share = selection.get("labeled_fraction")
        asked = f"{selection['labeled_count']:,}" if share is None else f"a share of {share:g}"
        notes.append(f"Of the training images with a mask, {asked} were drawn as labeled (seed {seed}).")
    elif "labeled_list" in selection:
        notes.append(f"Which images are labeled is what the list {code(selection['labeled_list'])} says.")
    else:
        notes.append("Every training image that had a mask was used as labeled.")
    if data.get("hidden_masks"):
        notes.append(
            f"{plural(data['hidden_masks'], 'unlabeled image has', 'unlabeled images have')} a mask that was hidden: "
            "it served to measure pseudo-labels and was never trained on."
        )
    left_out = data.get("files_left_out")
    notes.append(f"Files left out as unusable: {left_out}." if left_out else "No file was left out.")
    return notes


# ---- Training ----


def training(records: Records) -> str:
    """The command, the settings, and all arguments that were not left at their defaults."""
    run = records.run
    if not run:
        return "How the model was trained was not recorded."
    parts = []
    processes = run.get("machine", {}).get("processes", 1)
    if run.get("command"):
        recipe = run.get("recipe")
        lead = f"With the recipe {code(recipe)}, from" if recipe else "From"
        together = f", as {processes} processes" if processes > 1 else ""
        parts.append(f"{lead} the folder of allspark-hf{together}:")
        parts.append(code_block(run["command"], "bash"))
    else:
        parts.append("The training was started from Python, so that there is no command to repeat.")
    if run.get("training", {}).get("resumed"):
        parts.append("The run went on from a checkpoint; the time below is that of its last part.")
    parts.append(table(["setting", "value"], _settings(records), words=["value"]))
    given = [[code(name), code(plain(value))] for name, value in run.get("arguments", {}).items()]
    if given:
        text = table(["argument", "value"], given, words=["value"])
        parts.append(folded("All arguments that differ from their defaults", text))
    return "\n\n".join(parts)


def plain(value: object) -> str:
    """An argument's value as a recipe has it, a list as on the command line."""
    if isinstance(value, list):
        return " ".join(map(plain, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _settings(records: Records) -> list[list[str]]:
    """Rows of the settings that make the model; only those that were recorded."""
    run, config = records.run, records.config
    settings, training = run.get("settings", {}), run.get("training", {})
    rows = {"method": METHODS.get(records.method) or _escaped(records.method), "starting weights": _weights(records)}
    crop = config.get("crop_size")
    if crop is not None:
        height, width = (crop, crop) if isinstance(crop, int) else crop
        rows["training crop"] = f"{height} x {width} pixels"
    rows["length"] = f"{number(training.get('epochs'))} epochs, {number(training.get('steps'))} updates"
    per_update = training.get("labeled_images_per_update")
    rows["labeled images of an update"] = number(per_update)
    uses_unlabeled = run.get("data", {}).get("unlabeled_used")
    sizes = settings.get("per_device_unlabeled_batch_size"), settings.get("per_device_train_batch_size")
    if uses_unlabeled and per_update and all(sizes):
        ratio = sizes[0] / sizes[1]
        rows["unlabeled images of an update"] = number(round(per_update * ratio))
    rows |= _optimisation(settings)
    if uses_unlabeled:
        rows["weight of the unlabeled loss"] = number(settings.get("unlabeled_loss_weight"))
        rows["epochs before it counts"] = number(settings.get("unlabeled_warmup_epochs"))
    if records.method == "allspark":
        rows["epochs before the memory is read"] = number(settings.get("memory_warmup_epochs"))
    rows["seed"] = number(settings.get("seed"))
    rows["training time"] = duration(training.get("seconds"))
    return [[name, str(value)] for name, value in rows.items() if value is not None]


def _optimisation(settings: dict) -> dict:
    schedule = _escaped(settings.get("lr_scheduler_type"))
    power = (settings.get("lr_scheduler_kwargs") or {}).get("power")
    warmup = settings.get("warmup_steps")
    if schedule and power is not None:
        schedule += f", power {power:g}"
    if schedule and warmup:
        schedule += f", {number(warmup)} warm-up " + ("steps" if warmup >= 1 else "of all steps")
    clip = settings.get("max_grad_norm")
    return {
        "optimizer": _escaped(settings.get("optim")),
        "learning rate of the encoder": number(settings.get("learning_rate")),
        "multiple for bottleneck and head": number(settings.get("head_learning_rate_multiplier")),
        "schedule": schedule,
        "weight decay": number(settings.get("weight_decay")),
        "gradient norm clipped at": number(clip) if clip else None,
        "labeled loss": _escaped(settings.get("labeled_loss")),
    }


def _escaped(text: str | None) -> str | None:
    """A word stays as it is: an underscore between letters has no meaning."""
    return text if text is None or re.fullmatch(r"[A-Za-z0-9][\w.-]*", text) else escape(text)


def _weights(records: Records) -> str:
    base, started = records.base_weights, records.started_from
    if base is None:
        return "not recorded"
    if base == FROM_SCRATCH and (started in (None, FROM_SCRATCH)):
        return "none, trained from scratch"
    text = "weights trained from scratch" if base == FROM_SCRATCH else hub_link(base)
    return f"{text}, through {hub_link(started)}" if started not in (None, base, FROM_SCRATCH) else text


def hub_link(name: str) -> str:
    """A model's name, as a link if it is a Hub id."""
    return f"[{code(name)}](https://huggingface.co/{name})" if HUB_ID.fullmatch(name) else code(name)


__all__ = ["classes", "data", "encoder_name", "hub_link", "plain", "plural", "summary", "training"]
