"""Cards of the paper's models, rendered from their recipes: what they are and what the paper says of them."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

from ..cli.arguments import resolve_recipe
from ..data.sources.published_classes import CITYSCAPES_CLASSES, COCO_CLASSES, VOC_CLASSES
from . import card_sections
from .card import fill
from .card_limits import MIXING, general
from .card_metadata import TAGS, TASK, licence_fields, widget
from .card_records import Records
from .licences import licence_of
from .markdown import code, code_block, escape, table


CLASSES = {"voc": VOC_CLASSES, "cityscapes": CITYSCAPES_CLASSES, "coco": COCO_CLASSES}
FIRST_LINE = re.compile(
    r"# (?P<data>.+?), (?P<labels>\d+) labeled images, AllSpark, (?P<encoder>MiT-B\d)\. paper: (?P<paper>.+)"
)
NO_NUMBER = "no number at hand"
PAPER = "[the AllSpark paper](https://arxiv.org/abs/2403.01818)"
NOT_TRAINED = "Nothing was trained for this card, so that nothing was measured."
OF_ONE_CELL = ("labeled_list", "unlabeled_list", "output_dir")


def render_paper_card(recipes: Sequence[str | Path], name: str, example_images: Sequence[str] = ()) -> str:
    """
    The text of a card for one model of the paper with several numbers of labels.

    Args:
        recipes (`Sequence[str | Path]`): recipes of scripts/recipes/paper, in the order of the card's rows.
        name (`str`): title.
        example_images (`Sequence[str]`): addresses of images for the Hub's widget.

    Raises:
        ValueError: if a recipe's first line is not that of one of the paper's models, or the recipes differ in more
            than their lists and output folders.
        FileNotFoundError: if a recipe does not exist.
    """
    cells = [_cell(Path(recipe)) for recipe in recipes]
    shared = _shared(cells)
    config = _config(shared)
    base = shared["model_name_or_path"]
    licence = licence_of(base)
    metadata = ModelCardData(
        **licence_fields(licence),
        library_name="transformers",
        pipeline_tag=TASK,
        tags=TAGS,
        base_model=base,
        base_model_relation="finetune",
        widget=widget(list(example_images)),
    )
    records = Records(name, config)
    return fill(
        card_data=metadata.to_yaml(),
        title=escape(name),
        notice=_notice(bool(example_images)),
        model_string=json.dumps(cells[0]["entries"]["output_dir"]),
        summary=_summary(cells, config),
        classes=card_sections.classes(records),
        data=_data(cells, shared),
        training=_training(cells, shared),
        results=_results(cells),
        pseudo_labels=NOT_TRAINED,
        figures=[],
        onnx=None,
        limits=[
            "None of the paper's numbers has been reproduced with these recipes.",
            *([MIXING] if config["mix_images_in_eval"] else []),
            *general(shared["crop_size"], shared["method"]),
        ],
        environment=NOT_TRAINED,
        licence=f"{licence.title}. {licence.sentence}",
    )


def _cell(path: Path) -> dict:
    """A recipe: its entries and what its first line says."""
    entries = resolve_recipe(path)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    found = FIRST_LINE.fullmatch(first)
    if found is None:
        raise ValueError(
            f"The first line of {path} does not say what it is: it must be like '# DATA, 92 labeled images, AllSpark, "
            "MiT-B5. paper: 76.07'."
        )
    paper = None if found["paper"] == NO_NUMBER else f"{float(found['paper']):.2f}"
    return {
        "path": path.as_posix(),
        "entries": entries,
        **found.groupdict(),
        "labels": int(found["labels"]),
        "paper": paper,
    }


def _shared(cells: list[dict]) -> dict:
    """The entries that all recipes have in common; ValueError if another differs."""
    if not cells:
        raise ValueError("No recipe was given: name at least one of scripts/recipes/paper.")
    first = {name: value for name, value in cells[0]["entries"].items() if name not in OF_ONE_CELL}
    for cell in cells[1:]:
        other = {name: value for name, value in cell["entries"].items() if name not in OF_ONE_CELL}
        differ = sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name))
        if differ:
            raise ValueError(
                f"{cell['path']} and {cells[0]['path']} differ in {', '.join(differ)}: render a card for each."
            )
    return first


def _config(shared: dict) -> dict:
    """What config.json will say of the model, as far as the card needs it."""
    from ..models.configuration_allspark import MIT_SIZES

    hidden_sizes, depths, _ = MIT_SIZES[shared["model_name_or_path"].rpartition("-")[2]]
    classes = CLASSES[shared["data_format"]]
    return {
        "hidden_sizes": hidden_sizes,
        "depths": depths,
        "id2label": {str(index): name for index, name in classes.id2label.items()},
        "palette": [list(color) for color in classes.colors] if classes.colors else None,
        "crop_size": shared["crop_size"],
        "mix_images_in_eval": shared.get("mix_images_in_eval", False),
    }


def _notice(has_examples: bool) -> str:
    text = (
        "**No weights come with this card.** It says what the recipes of allspark-hf train. Every score on it is the "
        "paper's, not measured by us."
    )
    if has_examples:
        text += (
            " The widget's example images are public samples that NVIDIA's own SegFormer cards show; they are not of "
            "the training data."
        )
    return text


def _summary(cells: list[dict], config: dict) -> str:
    counts, data = [cell["labels"] for cell in cells], cells[0]["data"].split(",")[0]
    return (
        f"This model gives every pixel of an image one of {len(config['id2label'])} classes. It is "
        f"{card_sections.architecture(config)}, trained as in {PAPER} on {escape(data)} with "
        f"{min(counts):,} to {max(counts):,} labeled images; the other training images are used without their masks."
    )


def _data(cells: list[dict], shared: dict) -> str:
    layout = card_sections.LAYOUTS[shared["data_format"]]
    rows = [
        [_row_name(cell), code(cell["entries"]["labeled_list"]), code(cell["entries"]["unlabeled_list"])]
        for cell in cells
    ]
    header = ["data set, labeled images", "list of labeled images", "list of unlabeled images"]
    return (
        f"{layout}, in the folder {code(shared['data_dir'])}. The lists are those that the field has published; "
        "`scripts/recipes/README.md` of allspark-hf says where to get images, masks and lists. Validation: "
        f"{code(shared['validation_list'])}.\n\n{table(header, rows, words=header)}"
    )


def _row_name(cell: dict) -> str:
    return f"{escape(cell['data'])}, {cell['labels']:,}"


def _training(cells: list[dict], shared: dict) -> str:
    commands = "\n".join(f"accelerate launch --num_processes 4 scripts/train.py {cell['path']}" for cell in cells)
    rows = [[code(name), code(card_sections.plain(value))] for name, value in shared.items()]
    return (
        "From the folder of allspark-hf, on four GPUs as the authors; on fewer, batches are accumulated. `--dry_run` "
        f"takes one step on random pixels and tells what is missing.\n\n{code_block(commands, 'bash')}\n\n"
        f"The recipes have in common:\n\n{table(['argument', 'value'], rows, words=['value'])}"
    )


def _results(cells: list[dict]) -> str:
    rows = [[_row_name(cell), cell["paper"] or NO_NUMBER] for cell in cells]
    known = any(cell["paper"] for cell in cells)
    text = (
        "**The paper's numbers, not measured by us**: mean IoU on the validation images in percent, at the best "
        f"epoch, as {PAPER} publishes it."
        if known
        else "**Nothing was measured by us**, and we have no number of the paper's for this model at hand."
    )
    return f"{text}\n\n{table(['data set, labeled images', 'mean IoU, published'], rows)}" if known else text


__all__ = ["render_paper_card"]
