"""Evaluates a trained model on images that have masks, of a folder or of a data set of the Hub.

    allspark evaluate --model OUT --data_dir DATA
    allspark evaluate --model OUT --data_dir DATA --eval_mode sliding_window --eval_scales 0.75 1 --eval_flip
    accelerate launch -m allspark_hf evaluate ...    # several processes, every image once

Prints a table; --output_file FILE also writes settings, numbers and the confusion matrix as JSON.
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from allspark_hf.cli.arguments import parse_arguments
from allspark_hf.cli.ending import fail, leave
from allspark_hf.cli.importing import use_import
from allspark_hf.data import DataArguments
from allspark_hf.evaluation.arguments import ONE_PIECE, EvaluationArguments, eval_crop
from allspark_hf.evaluation.evaluator import Evaluation, OtherProcessError
from allspark_hf.evaluation.selection import EVALUATION_SPLITS, fit_to_model, select_split
from allspark_hf.inference.loading import load_trained, long_side_of
from allspark_hf.models.weights import DIGEST, weights_digest
from allspark_hf.publishing.record import environment
from allspark_hf.training.arguments import AllSparkTrainingArguments
from allspark_hf.training.trainer import AllSparkTrainer
from allspark_hf.utils.arguments import argument, check_values
from allspark_hf.utils.files import write_json
from allspark_hf.utils.text import text_table


@dataclass
class ScriptArguments:
    model: str = argument(help="Folder or Hub id of a trained model.")
    split: str = argument(
        "validation",
        "validation; labeled: training images with a mask, those of the model's labeled_ids.txt if its "
        "folder has one and no --labeled_count or the like is given; unlabeled: training images whose mask is "
        "hidden so; all: these three; test: the test split of a folder or of the Hub, which "
        "training does not read.",
        choices=EVALUATION_SPLITS,
    )
    image_column_name: str = argument("image", "Column of dataset_name with the images.")
    label_column_name: str = argument("label", "Column of dataset_name with the masks.")
    batch_size: int = argument(1, "Images per device; those of one size run together.", interval="[1, inf)")
    output_file: str | None = argument(None, "JSON file for settings and results.")
    overwrite: bool = argument(False, "Replace an existing output_file.")
    use_cpu: bool = argument(False, "Run on the CPU even if there is a GPU.")

    def __post_init__(self):
        check_values(self)
        if self.output_file and Path(self.output_file).exists() and not self.overwrite:
            raise ValueError(f"{self.output_file} exists: pass --overwrite, or choose another --output_file.")
        if self.output_file and not Path(self.output_file).absolute().parent.is_dir():
            raise ValueError(f"There is no folder for {self.output_file}: make it, or choose another --output_file.")


def build_trainer(
    arguments: ScriptArguments,
    evaluation_arguments: EvaluationArguments,
    data_arguments: DataArguments,
    unused_dir: str,
) -> AllSparkTrainer:
    """A trainer that only evaluates."""
    model, image_processor = load_trained(arguments.model, "cpu")  # the Trainer moves it
    use_import(data_arguments)
    data_arguments = fit_to_model(data_arguments, model.config, long_side_of(image_processor))
    args = AllSparkTrainingArguments(
        output_dir=unused_dir,
        method="supervised",
        per_device_eval_batch_size=arguments.batch_size,
        report_to="none",
        use_cpu=arguments.use_cpu,
        **asdict(evaluation_arguments),
    )
    columns = arguments.image_column_name, arguments.label_column_name
    dataset = select_split(arguments.split, data_arguments, model.config, arguments.model, *columns)
    return AllSparkTrainer(model, args, image_processor, eval_dataset=dataset)


def table(evaluation: Evaluation) -> str:
    """Percent: a row for each class, then the means."""
    means = evaluation.metrics()
    columns = {"iou": "IoU", "accuracy": "accuracy", "boundary_iou": "boundary IoU", "pixel_share": "pixels"}
    rows = evaluation.per_class()
    columns = {name: title for name, title in columns.items() if name in rows[0]}
    rows.append({"name": "mean", **{name: means.get(f"mean_{name}") for name in columns}, "pixel_share": 1.0})
    cells = [
        [row["name"], *("-" if row[name] is None else f"{100 * row[name]:.2f}" for name in columns)] for row in rows
    ]
    text = text_table(["", *columns.values()], cells)
    return f"{text}\noverall accuracy {100 * means['overall_accuracy']:.2f}, loss {means['loss']:.4f}"


def results(trainer, arguments, data_arguments, seconds: float) -> dict:
    """The content of the JSON file; metrics are in [0, 1]."""
    evaluation, config = trainer.evaluation, trainer.model.config
    settings = {name: getattr(trainer.args, name) for name in EvaluationArguments.__dataclass_fields__}
    if settings["eval_mode"] not in ONE_PIECE:
        settings["eval_crop_size"] = list(eval_crop(trainer.args, config))
    means = ("loss", "mean_iou", "mean_accuracy", "mean_boundary_iou", "overall_accuracy")
    return {
        "model": arguments.model,
        DIGEST: weights_digest(arguments.model) or weights_digest(trainer.model),  # a Hub id is no folder
        "data": asdict(data_arguments) | {"split": arguments.split},
        "settings": settings,
        "num_images": evaluation.num_images,
        "num_pixels": evaluation.num_pixels,
        "metrics": {name: value for name, value in evaluation.metrics().items() if name in means},
        "per_class": evaluation.per_class(),
        "confusion_matrix": evaluation.confusion.counts.tolist(),  # [true class][predicted class]
        "seconds": seconds,
        "processes": trainer.args.world_size,
        "versions": environment(trainer.args.world_size)["versions"],
    }


def main():
    failure = None
    with tempfile.TemporaryDirectory() as unused_dir:
        try:
            arguments, *others = parse_arguments((ScriptArguments, EvaluationArguments, DataArguments))
            trainer = build_trainer(arguments, *others, unused_dir)
            metrics = trainer.evaluate()
        except (OSError, ValueError) as error:
            failure = f"{type(error).__name__}: {error}"
        except OtherProcessError as error:
            failure = str(error)
    if failure:  # only here, where the temporary folder is deleted
        fail(failure)
    if trainer.args.should_save:
        print(f"{trainer.evaluation.num_images} images, percent")
        print(table(trainer.evaluation))
        print(f"{metrics['eval_samples_per_second']:.1f} images per second")
        if arguments.output_file:
            write_json(arguments.output_file, results(trainer, arguments, others[1], metrics["eval_runtime"]))
    leave(trainer.accelerator)
