"""Exports a trained model to ONNX, for onnxruntime and, in browsers, transformers.js.

    allspark export --model OUT
    allspark export --model OUT --output_dir OUT_ONNX --quantize_int8 --data_dir DATA

Adds onnx/ to the model's own folder, which then goes with it to the Hub; or, with --output_dir, makes a folder that
transformers.js opens as it is. With data, also measures what the export costs in mIoU, on the validation images.
"""

from dataclasses import dataclass, fields
from pathlib import Path

from torch.utils.data import Subset

from allspark_hf.cli.arguments import parse_arguments
from allspark_hf.cli.ending import run_script
from allspark_hf.cli.importing import use_import
from allspark_hf.data import DataArguments
from allspark_hf.evaluation.evaluator import EvaluationDataset
from allspark_hf.evaluation.selection import fit_to_model, select_split
from allspark_hf.export.cost import cost_table, measure_cost
from allspark_hf.export.folder import FLOAT_FILE, INT8_FILE, ONNX_FOLDER, check_output, export_onnx, write_record
from allspark_hf.export.onnx import OnnxSegmenter, check_exportable, require_onnx
from allspark_hf.inference.loading import load_trained, long_side_of
from allspark_hf.utils.arguments import argument


@dataclass
class ScriptArguments:
    model: str = argument(help="Folder or Hub id of a trained model.")
    output_dir: str | None = argument(None, "Folder to export to; default: the model's own, which gets a folder onnx.")
    fixed_size: list[int] | None = argument(
        None,
        "HEIGHT WIDTH in pixels of all images that the file takes; default: any size. Some encoders need it.",
    )
    quantize_int8: bool = argument(False, "Also write a variant with 8-bit weights, onnx/model_quantized.onnx.")
    image_column_name: str = argument("image", "Column of dataset_name with the images.")
    label_column_name: str = argument("label", "Column of dataset_name with the masks.")
    overwrite: bool = argument(False, "Replace an earlier export.")

    def __post_init__(self):
        if self.output_dir is None and not Path(self.model).is_dir():
            raise ValueError(
                f"There is no folder {self.model}: correct it, or give an --output_dir to export a Hub id."
            )
        if self.fixed_size is not None and (len(self.fixed_size) != 2 or min(self.fixed_size) < 1):
            given = " ".join(map(str, self.fixed_size))
            raise ValueError(f"--fixed_size {given} is no size: give two numbers of pixels, height and width.")

    @property
    def folder(self) -> Path:
        return Path(self.output_dir or self.model)

    @property
    def in_model_folder(self) -> bool:
        return self.folder.resolve() == Path(self.model).resolve()


@dataclass
class OptionalDataArguments(DataArguments):
    """Which data to measure the cost on, if any."""

    @property
    def given(self) -> bool:
        return (self.data_dir, self.dataset_name) != (None, None)

    def __post_init__(self):
        if self.given:
            super().__post_init__()
            return
        changed = [one.name for one in fields(self) if getattr(self, one.name) != one.default]
        if changed:
            raise ValueError(f"--{changed[0]} is about data, and there is none: give --data_dir or --dataset_name.")


def validation_samples(arguments: ScriptArguments, data_arguments, model, image_processor):
    """The images to measure the cost on, with a fixed size those that have it; None without data."""
    if not data_arguments.given:
        return None
    config = model.config
    use_import(data_arguments)
    data_arguments = fit_to_model(data_arguments, config, long_side_of(image_processor))
    columns = arguments.image_column_name, arguments.label_column_name
    dataset = select_split("validation", data_arguments, config, arguments.model, *columns)
    samples = EvaluationDataset.of(dataset, image_processor, config)
    if arguments.fixed_size is None:
        return samples
    sizes = [list(samples[row]["pixel_values"].shape[1:]) for row in range(len(samples))]
    rows = [row for row, size in enumerate(sizes) if size == arguments.fixed_size]
    if not rows:
        raise ValueError(
            f"--fixed_size is {arguments.fixed_size}, but no validation image has these pixels (height, width) when "
            f"the model gets it, and the first has {sizes[0]}: give this size, or leave the data out."
        )
    print(f"{len(rows)} of {len(sizes)} validation images have the fixed size")
    return Subset(samples, rows)


def measured(arguments: ScriptArguments, model, samples) -> dict:
    """What the export costs in mIoU on these images."""
    files = {"ONNX": FLOAT_FILE} | ({"int8": INT8_FILE} if arguments.quantize_int8 else {})
    segmenters = {
        name: OnnxSegmenter(arguments.folder / ONNX_FOLDER / file, model.config) for name, file in files.items()
    }
    return measure_cost({"PyTorch": model, **segmenters}, samples)


def report(record: dict) -> str:
    """Files and differences as text."""
    lines = [f"onnx/{name}  {size / 1e6:.2f} MB" for name, size in record["files"].items()]
    if record["fixed_size"] is not None:
        height, width = record["fixed_size"]
        lines.append(f"for images of {height} x {width} pixels (height x width) only")
    lines.append("batch x height x width: largest difference of a logit from PyTorch's")
    for difference in record["differences"]:
        size = f"{difference['batch']} x {difference['height']} x {difference['width']}"
        lines.append(f"  {size}: {difference['max_difference']:.1e}")
    return "\n".join(lines)


def export():
    arguments, data_arguments = parse_arguments((ScriptArguments, OptionalDataArguments))
    require_onnx()
    check_output(arguments.folder, arguments.in_model_folder, arguments.overwrite)
    model, image_processor = load_trained(arguments.model, "cpu")
    check_exportable(model, arguments.fixed_size)
    samples = validation_samples(arguments, data_arguments, model, image_processor)
    where = arguments.folder, arguments.quantize_int8, arguments.in_model_folder, arguments.overwrite
    record = export_onnx(model, image_processor, *where, arguments.fixed_size)
    print(f"{arguments.folder}\n{report(record)}", flush=True)
    if samples is not None:
        record["cost"] = measured(arguments, model, samples)
        record["cost"]["data"] = Path(data_arguments.data_dir or data_arguments.dataset_name).name
        write_record(arguments.folder, record)
        print(f"{record['cost']['num_images']} validation images\n{cost_table(record['cost'])}")
    elif arguments.quantize_int8:
        print("What 8 bits cost in mIoU was not measured: give --data_dir or --dataset_name to measure it.")


def main():
    run_script(export, "Interrupted.")
