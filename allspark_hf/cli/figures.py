"""
Draws the paper's figures from trained models, as PNG and as arrays (.npz).

    allspark figures --model OUT/allspark --baseline OUT/pseudo_label --data_dir DATA --output_dir FIG

1c: error on labeled, unlabeled and validation images; 5: channels before and after the bottleneck; 6: channels per
class; 7: channels in the memory with their images; b: predictions and where they are wrong; curves: what the runs
logged. Takes the arguments of the data from `allspark train`; which images were labeled is read from the model's
folder.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from allspark_hf import figures
from allspark_hf.cli.arguments import parse_arguments
from allspark_hf.cli.ending import run_script
from allspark_hf.cli.importing import use_import
from allspark_hf.data import DataArguments, list_path, split_of_run
from allspark_hf.data.summary import require_known_values
from allspark_hf.evaluation.selection import check_classes, find_data_of_models
from allspark_hf.inference.loading import load_trained, long_side_of
from allspark_hf.models.weights import DIGEST, weights_digest
from allspark_hf.utils.arguments import argument, check_values


FIGURES = tuple(figures.DRAWERS)
WITH_BASELINES = ("1c", "b", "curves")
FILE_NAMES = {name: f"figure_{name}" for name in FIGURES} | {"curves": "training_curves"}
BACKGROUNDS = tuple(figures.STYLES)


@dataclass
class FigureArguments:
    model: str = argument(help="Folder or Hub id of a trained model.")
    output_dir: str = argument(help="Folder of the figures.")
    baseline: list[str] | None = argument(None, "Models to compare with in 1c, b and curves: folders or Hub ids.")
    figures: list[str] | None = argument(None, f"Some of {' '.join(FIGURES)}; default: all that model and data allow.")
    background: list[str] = argument(default_factory=lambda: list(BACKGROUNDS), help="light, dark or (default) both.")
    num_images: int = argument(4, "Validation images in 5, 6 and b, evenly spread.", interval="[1, inf)")
    images: list[str] | None = argument(
        None, "Ids of the images in 5, 6 and b instead, such as in validation_ids.txt, which is looked up first."
    )
    max_images: int | None = argument(
        None, "Images of a set in 1c, 6 and 7 at most, evenly spread; default: all.", interval="[1, inf)"
    )
    image_column_name: str = argument("image", "Column of dataset_name with the images.")
    label_column_name: str = argument("label", "Column of dataset_name with the masks.")
    device: str | None = argument(None, "Such as cpu or cuda:0; default: the GPU if any.")
    overwrite: bool = argument(False, "Replace existing figures.")

    def __post_init__(self):
        check_values(self)
        for name, given, known in (
            ("figures", self.figures or FIGURES, FIGURES),
            ("background", self.background, BACKGROUNDS),
        ):
            unknown = [value for value in given if value not in known]
            if unknown or not given:
                raise ValueError(f"{name} is {' '.join(given)}, but some of {' '.join(known)} are needed.")


def run_names(folders: list[str]) -> list[str]:
    """Names of runs: the last part in which their paths differ, such as the method in OUT/<method>/seed_0."""
    parts = [Path(folder).absolute().parts for folder in folders]
    while len(folders) > 1 and all(len(path) > 1 for path in parts) and len({path[-1] for path in parts}) == 1:
        parts = [path[:-1] for path in parts]
    names = [path[-1] for path in parts]
    return names if len(set(names)) == len(names) else folders


class Material:
    """What the figures are drawn from: models, and sets of images whose masks hold class indices."""

    def __init__(self, arguments: FigureArguments, data_arguments: DataArguments):
        self.arguments = arguments
        self.folders = [*(arguments.baseline or []), arguments.model]
        self.names = run_names(self.folders)
        self.models = {
            name: load_trained(folder, arguments.device) for name, folder in zip(self.names, self.folders, strict=True)
        }
        self.model, self.image_processor = self.models[self.names[-1]]
        self.digests = [
            weights_digest(folder) or weights_digest(self.models[name][0])  # a Hub id is no folder
            for name, folder in zip(self.names, self.folders, strict=True)
        ]
        use_import(data_arguments)
        columns = arguments.image_column_name, arguments.label_column_name
        of_run = split_of_run(data_arguments, arguments.model)
        models = [(model.config, long_side_of(processor)) for model, processor in self.models.values()]
        data = find_data_of_models(of_run, models, *columns)
        self._check_classes(data.classes, data_arguments.data_dir or data_arguments.dataset_name)
        self.sets = data.sets
        self.hidden_ids = set(data.hidden_ids)
        self.lists_problem = self._lists_problem()

    def _check_classes(self, classes, data_dir: str):
        for name, (model, _) in self.models.items():
            if model.config.num_labels != self.model.config.num_labels:
                raise ValueError(
                    f"{name} has {model.config.num_labels} classes and {self.names[-1]} "
                    f"{self.model.config.num_labels}: compare models of the same classes."
                )
            check_classes(model.config, classes, data_dir)

    def _lists_problem(self) -> str | None:
        """Why it is unknown which images the models were trained on; None if it is known."""
        for folder in self.folders:
            for kind, dataset in self.sets.items():
                path = list_path(folder, kind)
                if not path.is_file():
                    return f"there is no {path}, which says what the model was trained on"
                listed = path.read_text(encoding="utf-8").split("\n")[:-1]
                if sorted(listed) != sorted(dataset["id"]):
                    return (
                        f"the {kind} images are not those of {path}: give data and options of the data as in that "
                        "training, and baselines trained on the same images"
                    )
        return None

    def problem_with(self, figure: str) -> str | None:
        """Why a figure cannot be drawn, None if it can."""
        config = self.model.config
        if figure in ("1c", "7") and self.lists_problem:
            return self.lists_problem
        if figure in ("5", "6", "7") and not config.use_cross_attention:
            return f"{self.arguments.model} is a plain SegFormer (use_cross_attention=False) without a bottleneck"
        if figure == "6" and not config.use_grouping:
            return f"{self.arguments.model} does not group channels (use_grouping=False)"
        if figure == "7" and not config.use_memory:
            return f"{self.arguments.model} has no semantic memory (use_memory=False)"
        if figure == "7" and not len(self.sets["unlabeled"]):
            return "there is no unlabeled image to fill the memory from"
        if figure == "curves":
            missing = [folder for folder in self.folders if not (Path(folder) / "trainer_state.json").is_file()]
            return f"there is no trainer_state.json in {missing[0]}" if missing else None
        return None

    def some(self, dataset, count: int | None):
        """So many rows, evenly spread; all with None."""
        count = len(dataset) if count is None else min(count, len(dataset))
        return dataset.select([index * len(dataset) // count for index in range(count)])

    def chosen(self) -> list[dict]:
        """Rows of the images that are shown one by one, with their masks if they have any."""
        for model, _ in self.models.values():
            require_known_values({"validation": self.sets["validation"]}, model.config)
        if self.arguments.images is None:
            return list(self.some(self.sets["validation"], self.arguments.num_images))
        rows = []
        for wanted in self.arguments.images:  # an id may be that of a validation image and of a training image
            holder = next((dataset for dataset in reversed(self.sets.values()) if wanted in dataset["id"]), None)
            if holder is None:
                raise ValueError(f"There is no image {wanted} in the data: give ids as in validation_ids.txt.")
            rows.append(holder[list(holder["id"]).index(wanted)])
        return rows

    def sets_with_masks(self) -> dict:
        """The images of figure 1c by set; unlabeled ones only if their masks were hidden."""
        unlabeled = self.sets["unlabeled"]
        rows = [row for row, name in enumerate(unlabeled["id"]) if name in self.hidden_ids]
        sets = {"labeled": self.sets["labeled"], "unlabeled": unlabeled.select(rows)}
        sets["validation"] = self.sets["validation"]
        if not rows:
            print("Figure 1c has no error on unlabeled images, because no mask of them was hidden.")
        return {name: self.some(dataset, self.arguments.max_images) for name, dataset in sets.items() if len(dataset)}


def compute(figure: str, material: Material) -> dict:
    """The arrays of one figure."""
    model, image_processor, sets = material.model, material.image_processor, material.sets
    limit = material.arguments.max_images
    if figure == "1c":
        return figures.error_by_set(material.models, material.sets_with_masks())
    if figure == "5":
        return figures.bottleneck_channels(model, image_processor, material.chosen())
    if figure == "6":
        validation = material.some(sets["validation"], limit)
        return figures.channels_per_class(model, image_processor, material.chosen(), validation, "validation")
    if figure == "7":
        return figures.memory_contents(model, image_processor, material.some(sets["unlabeled"], limit))
    if figure == "b":
        return figures.compare_predictions(material.models, material.chosen())
    return figures.read_curves(dict(zip(material.names, material.folders, strict=True)))


def check_existing(arguments: FigureArguments):
    """Raises ValueError if a file that could be written exists, unless it may be replaced."""
    folder = Path(arguments.output_dir)
    names = [FILE_NAMES[figure] for figure in arguments.figures or FIGURES]
    existing = [path for name in names for path in sorted(folder.glob(f"{name}*.*"))]
    if existing and not arguments.overwrite:
        raise ValueError(
            f"{existing[0]} exists: pass --overwrite to replace the figures there, or choose another --output_dir."
        )


def draw():
    figures.require_matplotlib()
    arguments, data_arguments = parse_arguments((FigureArguments, DataArguments))
    check_existing(arguments)
    material = Material(arguments, data_arguments)
    problems = {name: material.problem_with(name) for name in arguments.figures or FIGURES}
    for name, problem in problems.items():
        if problem and arguments.figures:
            raise ValueError(f"Figure {name} cannot be drawn: {problem}.")
        if problem:
            print(f"Left out: figure {name}, because {problem}.")
    for name in (name for name, problem in problems.items() if not problem):
        digests = material.digests if name in WITH_BASELINES else material.digests[-1:]
        arrays = compute(name, material) | {DIGEST: np.array(digests)}
        paths = figures.write_figure(
            arrays, figures.DRAWERS[name], arguments.output_dir, FILE_NAMES[name], arguments.background
        )
        print(*paths, sep="\n")


def main():
    run_script(draw, "Interrupted.")
