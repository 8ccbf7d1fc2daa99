"""Evaluates a trained model on the images of a folder, or of a data set of the Hub, that have masks.

    python scripts/evaluate.py --model OUT --data_dir DATA
    accelerate launch scripts/evaluate.py ...    # several processes, every image once

Prints a table; --output_file FILE also writes the numbers as JSON.
"""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path


@dataclass
class EvaluationArguments:
    model: str = field(metadata={"help": "Folder or Hub id of a trained model."})
    split: str = field(
        default="validation",
        metadata={
            "help": "validation: images/val, or what training held out of a flat folder (same --split_seed and "
            "--validation_fraction); all: every image with a mask.",
            "choices": ["validation", "all"],
        },
    )
    image_column_name: str = field(default="image", metadata={"help": "Column of dataset_name with the images."})
    label_column_name: str = field(default="label", metadata={"help": "Column of dataset_name with the masks."})
    batch_size: int = field(default=1, metadata={"help": "Images per device; those of one size run together."})
    count_absent_classes: bool = field(
        default=False, metadata={"help": "Count classes in neither masks nor predictions as IoU 0."}
    )
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the metrics."})
    use_cpu: bool = field(default=False, metadata={"help": "Run on the CPU even if there is a GPU."})


def select_split(arguments, data_arguments, num_labels: int):
    """The images with masks to evaluate on, with class indices as masks."""
    from datasets import concatenate_datasets

    from allspark_hf.data import MaskValueTransform, find_data

    masks_shown = dict.fromkeys(("labeled_fraction", "labeled_count", "labeled_list"))
    no_second_source = {"unlabeled_dir": None, "unlabeled_dataset_name": None, "unlabeled_streaming": False}
    data = find_data(
        replace(data_arguments, **masks_shown, **no_second_source),
        image_column=arguments.image_column_name,
        label_column=arguments.label_column_name,
    )
    if data.classes is not None and data.classes.num_labels != num_labels:
        raise ValueError(
            f"The model has {num_labels} classes, {data_arguments.data_dir or data_arguments.dataset_name} names "
            f"{data.classes.num_labels}: evaluate on data with the model's classes, or correct the names."
        )
    dataset = data.validation
    if arguments.split == "all":
        dataset = concatenate_datasets([data.labeled, data.validation])
    if data_arguments.mask_values:
        values = tuple(data_arguments.mask_values)
        dataset = dataset.with_transform(MaskValueTransform(values, data_arguments.ignore_index))
    return dataset


def print_table(metrics: dict[str, float], num_images: int):
    """Mean values first, then the IoU of each class, in percent."""
    print(f"{num_images} images, percent")
    for name, value in metrics.items():
        if name != "eval_loss":
            print(f"{name.removeprefix('eval_'):<28}{100 * value:7.2f}")


def build_trainer(arguments, data_arguments, unused_dir: str):
    """A trainer that only evaluates."""
    from allspark_hf import AllSparkTrainer, AllSparkTrainingArguments
    from allspark_hf.inference import load_trained

    model, image_processor = load_trained(arguments.model, "cpu")  # the Trainer moves it
    dataset = select_split(arguments, data_arguments, model.config.num_labels)
    args = AllSparkTrainingArguments(
        output_dir=unused_dir,
        method="supervised",
        per_device_eval_batch_size=arguments.batch_size,
        count_absent_classes=arguments.count_absent_classes,
        report_to="none",
        use_cpu=arguments.use_cpu,
    )
    return AllSparkTrainer(model, args, image_processor, eval_dataset=dataset)


def main():
    import tempfile

    from allspark_hf.cli import parse_arguments
    from allspark_hf.data import DataArguments

    with tempfile.TemporaryDirectory() as unused_dir:
        try:
            arguments, data_arguments = parse_arguments((EvaluationArguments, DataArguments))
            trainer = build_trainer(arguments, data_arguments, unused_dir)
        except (OSError, ValueError) as error:
            sys.exit(f"{type(error).__name__}: {error}")
        metrics = trainer.evaluate()
    if not trainer.args.should_save:
        return
    timing = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    scores = {name: value for name, value in metrics.items() if name.startswith("eval_") and name not in timing}
    print_table(scores, len(trainer.eval_dataset))
    print(f"{metrics['eval_samples_per_second']:.1f} images per second")
    if arguments.output_file:
        Path(arguments.output_file).write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
