"""Evaluates a trained model on images that have masks, of a folder or of a data set of the Hub.

    python scripts/evaluate.py --model OUT --data_dir DATA
    python scripts/evaluate.py --model OUT --data_dir DATA --eval_mode sliding_window --eval_scales 0.75 1 --eval_flip
    accelerate launch scripts/evaluate.py ...    # several processes, every image once

Prints a table; --output_file FILE also writes settings, numbers and the confusion matrix as JSON.
"""

import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path


SPLITS = ("labeled", "unlabeled", "validation", "all")


@dataclass
class ScriptArguments:
    model: str = field(metadata={"help": "Folder or Hub id of a trained model."})
    split: str = field(
        default="validation",
        metadata={
            "help": "validation; labeled: training images with a mask, those of the model's labeled_ids.txt if its "
            "folder has one and no --labeled_count or the like is given; unlabeled: training images whose mask is "
            "hidden so; all: every image with a mask.",
            "choices": list(SPLITS),
        },
    )
    image_column_name: str = field(default="image", metadata={"help": "Column of dataset_name with the images."})
    label_column_name: str = field(default="label", metadata={"help": "Column of dataset_name with the masks."})
    batch_size: int = field(default=1, metadata={"help": "Images per device; those of one size run together."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for settings and results."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing output_file."})
    use_cpu: bool = field(default=False, metadata={"help": "Run on the CPU even if there is a GPU."})

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: set at least 1 image.")
        if self.output_file and Path(self.output_file).exists() and not self.overwrite:
            raise ValueError(f"{self.output_file} exists: pass --overwrite, or choose another --output_file.")
        if self.output_file and not Path(self.output_file).absolute().parent.is_dir():
            raise ValueError(f"There is no folder for {self.output_file}: make it, or choose another --output_file.")


def build_trainer(arguments, evaluation_arguments, data_arguments, unused_dir: str):
    """A trainer that only evaluates."""
    from allspark_hf import AllSparkTrainer, AllSparkTrainingArguments
    from allspark_hf.evaluation.selection import fit_to_model, select_split
    from allspark_hf.inference.loading import load_trained, long_side_of

    model, image_processor = load_trained(arguments.model, "cpu")  # the Trainer moves it
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


def table(evaluation) -> str:
    """Percent: a row for each class, then the means."""
    means = evaluation.metrics()
    columns = {"iou": "IoU", "accuracy": "accuracy", "boundary_iou": "boundary IoU", "pixel_share": "pixels"}
    rows = evaluation.per_class()
    columns = {name: title for name, title in columns.items() if name in rows[0]}
    rows.append({"name": "mean", **{name: means.get(f"mean_{name}") for name in columns}, "pixel_share": 1.0})
    width = max(len(row["name"]) for row in rows) + 2

    def cell(name: str, value: float | None) -> str:
        return ("-" if value is None else f"{100 * value:.2f}").rjust(len(columns[name]) + 6)

    lines = ["".ljust(width) + "".join(title.rjust(len(title) + 6) for title in columns.values())]
    lines += [row["name"].ljust(width) + "".join(cell(name, row[name]) for name in columns) for row in rows]
    lines.append(f"overall accuracy {100 * means['overall_accuracy']:.2f}, loss {means['loss']:.4f}")
    return "\n".join(lines)


def results(trainer, arguments, data_arguments, seconds: float) -> dict:
    """What goes into the JSON file; metrics in [0, 1]."""
    import torch
    import transformers

    import allspark_hf
    from allspark_hf.evaluation.arguments import EvaluationArguments, eval_crop
    from allspark_hf.models.weights import DIGEST, weights_digest

    evaluation, config = trainer.evaluation, trainer.model.config
    settings = {name: getattr(trainer.args, name) for name in EvaluationArguments.__dataclass_fields__}
    if settings["eval_mode"] != "whole":
        settings["eval_crop_size"] = list(eval_crop(trainer.args, config))
    per_class = evaluation.per_class()
    means = ("loss", "mean_iou", "mean_accuracy", "mean_boundary_iou", "overall_accuracy")
    return {
        "model": arguments.model,
        DIGEST: weights_digest(arguments.model),  # None of a Hub id
        "data": asdict(data_arguments) | {"split": arguments.split},
        "settings": settings,
        "num_images": evaluation.num_images,
        "num_pixels": evaluation.num_pixels,
        "metrics": {name: value for name, value in evaluation.metrics().items() if name in means},
        "per_class": per_class,
        "confusion_matrix": evaluation.confusion.counts.tolist(),  # [true class][predicted class]
        "seconds": seconds,
        "processes": trainer.args.world_size,
        "versions": {
            "allspark_hf": allspark_hf.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def main():
    import tempfile

    from allspark_hf.cli.arguments import fail, leave, parse_arguments
    from allspark_hf.data import DataArguments
    from allspark_hf.evaluation.arguments import EvaluationArguments
    from allspark_hf.evaluation.evaluator import OtherProcessError

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
    if failure:  # only now that the folder is gone
        fail(failure)
    if trainer.args.should_save:
        print(f"{trainer.evaluation.num_images} images, percent")
        print(table(trainer.evaluation))
        print(f"{metrics['eval_samples_per_second']:.1f} images per second")
        if arguments.output_file:
            content = results(trainer, arguments, others[1], metrics["eval_runtime"])
            Path(arguments.output_file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    leave(trainer.accelerator)


if __name__ == "__main__":
    main()
