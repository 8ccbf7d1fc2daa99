"""
Segments images with a trained model, one or a hundred thousand.

    allspark predict --model outputs/my-model --input photos --output_dir predictions
    accelerate launch --num_processes 4 -m allspark_hf predict ...    # every image once; --resume goes on

Every image gives `<stem>_mask.png` (values as in the masks of the training, shown in the classes' colors) and
`<stem>_overlay.png`; one above 89 megapixels is predicted in tiles and gives `<stem>_mask.tif`. Every run gives
`legend.png`, and `areas.csv` with the pixels of each class in each image. --format also gives outlines, to be
corrected in a labeling tool. Exit code 0: all done; 1: some images failed, the rest are written; 2: nothing was done.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from allspark_hf.cli.arguments import parse_arguments
from allspark_hf.cli.ending import leave_with
from allspark_hf.data.labeling.annotations import WRITERS
from allspark_hf.data.labeling.polygons import require_outlines
from allspark_hf.data.masks import MaskConvention
from allspark_hf.data.pixels import Reading
from allspark_hf.evaluation.arguments import ONE_PIECE, PredictionArguments, eval_crop
from allspark_hf.export.folder import find_onnx_file
from allspark_hf.export.onnx import OnnxSegmenter
from allspark_hf.inference.annotation_writer import AnnotationWriter, all_files
from allspark_hf.inference.classes import find_classes, read_palette
from allspark_hf.inference.files import find_images, name_results
from allspark_hf.inference.large import find_large, predict_large, require_usable
from allspark_hf.inference.loading import load_config, load_trained
from allspark_hf.inference.many import PreparedBatches, default_workers, plan_batches, predict_many, read_picture
from allspark_hf.inference.prediction import palette_of
from allspark_hf.inference.resume import begin, check_existing, check_output_dir, check_settings, is_done, result_files
from allspark_hf.inference.writers import LARGEST_STORED_VALUE, AreaWriter, Drawing, PictureWriter, ResultWriter
from allspark_hf.models.weights import weights_digest
from allspark_hf.utils.arguments import argument, check_values, plain
from allspark_hf.utils.files import PREDICTIONS
from allspark_hf.utils.text import one_line


BACKENDS = ("torch", "onnx")
LONGEST_WAIT = timedelta(days=7)  # that a process waits for the others


@dataclass
class PredictArguments:
    model: str = argument(help="Folder or Hub id of a trained model with its image processor.")
    input: str = argument(help="Image file, folder (with subfolders) or glob pattern in quotes.")
    output_dir: str = argument(help="Folder of the results; an input folder's subfolders are mirrored.")
    resume: bool = argument(False, "Go on where an earlier run with these settings stopped; without one, begin.")
    overwrite: bool = argument(False, "Remove earlier results of these images and begin.")
    classes: list[str] | None = argument(
        None, "Names of the classes to draw and to count; masks keep all. Default: all."
    )
    alpha: float | None = argument(
        None, "Weight of the colors in the overlay, 0 to 1; default: 0.5, of contours 1.", interval="[0, 1]"
    )
    contours: bool = argument(False, "Draw outlines instead of areas.")
    transparent: bool = argument(False, "Overlays without the image: colors on transparent ground.")
    palette: str | None = argument(None, "File with new colors of classes, a line such as 'road #804080' each.")
    probabilities: bool = argument(
        False, "Also write <stem>_confidence.png: gray, 255 times the probability of each pixel's class."
    )
    format: str | None = argument(
        None, f"Also write outlines for this labeling tool: {', '.join(WRITERS)}.", choices=[*WRITERS]
    )
    tolerance: float = argument(
        1.0, "With --format: pixels that a point left out may lie from its outline.", interval="[0, inf)"
    )
    tiff_page: int | None = argument(
        None,
        "Page of TIFF files to read, 0 for the first, as Pillow and tifffile count; default: the one that the model "
        "was trained on.",
        interval="[0, inf)",
    )
    tile_size: int | None = argument(
        None,
        "Predict each image in overlapping tiles of this side, in little memory, and write <stem>_mask.tif alone. "
        "Default: only images above 89 megapixels, in tiles of the training crop.",
        interval="[1, inf)",
    )
    batch_size: int = argument(
        8, "Images of one size that the model gets together; fewer where they are large.", interval="[1, inf)"
    )
    num_workers: int | None = argument(
        None,
        "Processes that decode, and as many threads that write; 0: no process, one thread. Default: one for each "
        "CPU, or for each four where the model runs on CPUs; at most 8.",
        interval="[0, inf)",
    )
    device: str | None = argument(None, "Such as cpu or cuda:0; default: the GPU if any.")
    bf16: bool = argument(False, "Compute in bfloat16: for a GPU, or a CPU that has instructions for it.")
    backend: str = argument("torch", "onnx: predict with onnxruntime, on the CPU.", choices=BACKENDS)
    onnx: str | None = argument(
        None, "ONNX file, or folder of allspark export; default: the model's own folder. With --backend onnx."
    )

    def __post_init__(self):
        check_values(self)
        if self.resume and self.overwrite:
            raise ValueError("--resume keeps earlier results and --overwrite removes them: give one of them.")
        if self.onnx is not None and self.backend != "onnx":
            raise ValueError("--onnx names a file for --backend onnx, which is not given: give both, or neither.")
        if self.backend == "onnx" and (self.bf16 or self.device not in (None, "cpu")):
            raise ValueError("--backend onnx computes in float32 on the CPU: leave out --bf16 and --device.")


@dataclass
class Job:
    """A run that was checked and can begin: the model, the images and the names of their results, the writers."""

    output_dir: Path
    files: list[Path]
    names: list[Path]
    model: object
    image_processor: object
    how: PredictionArguments
    planned: list[list[int]]
    large: list[int]
    tile_size: int | None
    writers: list[ResultWriter]
    settings: dict


def start_processes(arguments: PredictArguments) -> PartialState:
    """
    The state of this process among those of `accelerate launch`; each has a GPU of its own, unless they run on CPUs.

    Raises:
        ValueError: if one GPU is named for several processes.
    """
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if several and arguments.device not in (None, "cpu"):
        raise ValueError(f"device is {arguments.device}, but each process takes its own GPU: leave --device out.")
    cpu = arguments.backend == "onnx" or arguments.device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=cpu, timeout=LONGEST_WAIT)
    if several and not cpu:
        arguments.device = str(state.device)
    return state


def prepare(arguments: PredictArguments, how: PredictionArguments, state: PartialState) -> Job:
    """
    Finds images, loads the model and checks everything; writes nothing.

    Raises:
        ImportError, OSError, ValueError: if the run cannot begin.
    """
    if how.eval_mode == "center_crop":
        raise ValueError(
            "eval_mode='center_crop' predicts the middle only, so that masks would not fit their images: choose "
            "whole, resized or sliding_window."
        )
    output_dir = Path(arguments.output_dir)
    check_output_dir(output_dir)
    root, files = find_images(arguments.input, output_dir, quiet=not state.is_main_process)
    names = name_results(root, files)
    drawn = find_drawn(arguments, load_config(arguments.model))  # before the weights, which take longer
    model, image_processor, digest = load(arguments)
    tiff_page = model.config.tiff_page
    large = find_large(files, image_processor, tiff_page) if arguments.tile_size is None else list(range(len(files)))
    if large:
        require_usable(model, image_processor, files[large[0]], arguments.tile_size)
    images = dict(zip(names, files, strict=True))
    writers = make_writers(arguments, drawn, root, images, [names[row] for row in large])
    check_existing(output_dir, result_files(writers, names), arguments.resume, arguments.overwrite)
    settings = settings_of(arguments, how, model.config, image_processor, writers[0])
    # A file or a pattern counts as another input, since areas.csv and files of tools list the images of one run.
    source = str(root.resolve()) if Path(arguments.input).is_dir() else os.path.abspath(arguments.input)
    settings = {"input": source, "model": digest} | settings
    if arguments.resume:
        check_settings(output_dir, settings)
    # With mix_images_in_eval, the prediction of an image depends on its batch.
    batch_size = 1 if model.config.mix_images_in_eval else arguments.batch_size
    planned = plan_batches(files, image_processor, batch_size, how, large, tiff_page)
    tiles = large, arguments.tile_size
    return Job(output_dir, files, names, model, image_processor, how, planned, *tiles, writers, settings)


def load(arguments: PredictArguments) -> tuple:
    """The model of PyTorch or an [`OnnxSegmenter`], its image processor, and a digest of the weights or the file."""
    on_cpu = arguments.backend == "onnx"
    model, image_processor = load_trained(arguments.model, "cpu" if on_cpu else arguments.device)
    digest = weights_digest(model)
    if arguments.tiff_page is not None:
        model.config.tiff_page = arguments.tiff_page
    if on_cpu:
        file = find_onnx_file(arguments.onnx or arguments.model, digest)
        return OnnxSegmenter(file, model.config), image_processor, hashlib.sha256(file.read_bytes()).hexdigest()
    return model.bfloat16() if arguments.bf16 else model, image_processor, digest


class Drawn(NamedTuple):
    """Names and colors of the classes, the values of masks that stand for them, and the indices of those to draw."""

    labels: list[str]
    palette: np.ndarray
    mask_values: Sequence[int] | None
    shown: tuple[int, ...]


def find_drawn(arguments: PredictArguments, config) -> Drawn:
    """
    How the classes of a model's configuration are drawn.

    Raises:
        ValueError: if the model's mask values do not fit into a PNG, or `classes` or `palette` name no class.
    """
    labels = [config.id2label[index] for index in range(config.num_labels)]
    mask_values = MaskConvention.of(config).mask_values
    if mask_values is not None and not 0 <= min(mask_values) <= max(mask_values) <= LARGEST_STORED_VALUE:
        raise ValueError(
            f"The model's mask_values go from {min(mask_values)} to {max(mask_values)}, but a PNG holds 0 to "
            f"{LARGEST_STORED_VALUE}: set mask_values in its config.json to null for masks of class indices."
        )
    palette = palette_of(config)
    if arguments.palette is not None:
        palette = read_palette(arguments.palette, labels, palette)
    shown = tuple(range(len(labels))) if arguments.classes is None else find_classes(arguments.classes, labels)
    return Drawn(labels, palette, mask_values, shown)


def make_writers(
    arguments: PredictArguments, drawn: Drawn, root: Path, images: dict[Path, Path], large: list[Path]
) -> list[ResultWriter]:
    """
    The writers of the results, by name of the results -> image file in the folder `root`; `large` names the images
    that are predicted in tiles.

    Raises:
        ImportError: if outlines are asked for and their packages are not installed.
    """
    output_dir, (labels, palette, mask_values, shown) = Path(arguments.output_dir), drawn
    alpha = arguments.alpha if arguments.alpha is not None else 1.0 if arguments.contours else 0.5
    drawing = Drawing(shown, alpha, arguments.contours, arguments.transparent)
    pictures = PictureWriter(output_dir, labels, palette, mask_values, drawing, arguments.probabilities, large)
    relative = {name: file.relative_to(root).as_posix() for name, file in images.items()}
    writers = [pictures, AreaWriter(pictures, relative)]
    if arguments.format is not None:
        require_outlines()
        how = arguments.format, labels, palette, shown, arguments.tolerance
        writers.append(AnnotationWriter(output_dir, *how, relative, root, large))
    return writers


def settings_of(arguments, how: PredictionArguments, config, image_processor, pictures: PictureWriter) -> dict:
    """All that the results depend on besides weights and images, as JSON holds it; a resume needs the same."""
    given = ("backend", "bf16", "probabilities", "tile_size", "tolerance")
    settings = {name: getattr(arguments, name) for name in given} | asdict(how)
    if how.eval_mode not in ONE_PIECE:
        settings["eval_crop_size"] = eval_crop(how, config)
    settings |= asdict(pictures.drawing)
    settings |= {"labels": pictures.labels, "palette": pictures.palette.tolist(), "mask_values": pictures.mask_values}
    return plain(settings | Reading.of(config)._asdict() | {"image_processor": image_processor.to_dict()})


def outdated_files(job: Job) -> list[Path]:
    """Results of earlier runs, including kinds that this run does not write."""
    earlier = [job.writers[0].path(name, kind) for name in job.names for kind in PictureWriter.KINDS]
    earlier = [path.with_suffix(suffix) for path in earlier for suffix in (".png", ".tif")]  # in one piece or in tiles
    return [*result_files(job.writers, job.names), *earlier, *all_files(job.output_dir, job.names)]


def predict(job: Job, state: PartialState, num_workers: int) -> tuple[int, int, str | None]:
    """
    Predicts this process's share of the batches.

    Returns:
        `tuple[int, int, str | None]`: how many images were done before, how many failed, and why the work stopped
        before its end, if it did.
    """
    own, large = (rows[state.process_index :: state.num_processes] for rows in (job.planned, job.large))
    rows = [row for rows in [*own, large] for row in rows]
    settings = job.output_dir / PREDICTIONS
    done, drawn = (
        frozenset(row for row in rows if is_done(writers, job.names[row], job.files[row], settings))
        for writers in (job.writers, job.writers[:1])
    )
    left = [rows for rows in own if not drawn.issuperset(rows)]
    batches = PreparedBatches(job.files, left, job.image_processor, job.model.config, job.how)
    total, failed, stopped = len(rows) - len(done), 0, None
    num_workers = min(num_workers, max(0, len(left) - 1))  # one batch needs no worker
    with tqdm(total=total, unit="image", disable=not state.is_main_process) as bar:
        try:
            from_masks = attempt_each(partial(write_from_mask, job), sorted(drawn - done))
            results = predict_many(job.model, batches, job.names, job.writers, num_workers, drawn)
            tiled = partial(predict_in_tiles, job, state.is_main_process)
            in_tiles = attempt_each(tiled, [row for row in large if row not in done])
            for row, reason in chain(from_masks, results, in_tiles):
                bar.update()
                if reason is not None:
                    failed += 1
                    tqdm.write(f"{job.files[row]}: not predicted, {reason}", file=sys.stderr)
        except KeyboardInterrupt:
            stopped = "Interrupted; the same command with --resume goes on from here."
        except (EOFError, OSError, RuntimeError) as error:  # a worker that died
            stopped = f"{one_line(error)}: go on with --resume, where memory was short with fewer --num_workers."
    return len(done), failed, stopped


def attempt_each(action: Callable[[int], None], rows: list[int]) -> Iterator[tuple[int, str | None]]:
    """Calls `action` with each row; yields the row, and why it failed or None."""
    for row in rows:
        try:
            action(row)
        except (OSError, RuntimeError, ValueError) as error:
            yield row, one_line(error)
        else:
            yield row, None


def write_from_mask(job: Job, row: int):
    """Writes what is made of the mask of an image, where an earlier run has written that."""
    pictures, *others = job.writers
    name = job.names[row]
    mask, picture = pictures.read_mask(name), read_picture(job.files[row], Reading.of(job.model.config))
    for writer in others:
        writer.write(name, picture, mask, None)


def predict_in_tiles(job: Job, progress: bool, row: int):
    """Predicts a large image."""
    pictures = job.writers[0]
    source, target = job.files[row], pictures.path(job.names[row], "mask")
    given = {"tile_size": job.tile_size, "args": job.how, "palette": pictures.palette, "progress": progress}
    predict_large(job.model, job.image_processor, source, target, mask_values=pictures.mask_values, **given)


def first_failure(attempt, *arguments) -> tuple[object, str | None]:
    """Result of a call in this process; and, the same in all, the sentence of the first process where it failed."""
    result = failure = None
    try:
        result = attempt(*arguments)
    except (ImportError, OSError, ValueError) as error:
        failure = one_line(error)
    return result, next(filter(None, gather_object([failure])), None)


def run(arguments: PredictArguments, how: PredictionArguments, state: PartialState) -> tuple[int, str]:
    """The exit code and the last sentence to print, which are the same in all processes."""
    job, failure = first_failure(prepare, arguments, how, state)
    if not failure:
        outdated = outdated_files(job) if arguments.overwrite else []
        _, failure = first_failure(lambda: state.is_main_process and begin(job.output_dir, job.settings, outdated))
    if failure:
        return 2, failure
    workers = arguments.num_workers
    if workers is None:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
        workers = default_workers(processes, job.model.device.type == "cpu")
    share = predict(job, state, workers)
    try:
        shares = gather_object([share])
    except RuntimeError:
        return 1, "Another process has died; the same command with --resume goes on from here."
    stopped = next(filter(None, (reason for _, _, reason in shares)), None)
    if stopped:
        return 1, stopped
    _, failure = first_failure(lambda: state.is_main_process and [writer.finish() for writer in job.writers])
    if failure:
        return 1, f"{failure} The images are predicted; --resume writes what is missing."
    earlier, failed = (sum(share[column] for share in shares) for column in (0, 1))
    there = f", {earlier} of them earlier" if earlier else ""
    count = len(job.files)
    return int(failed > 0), f"{count - failed} of {count} images predicted{there}, results in {job.output_dir}"


def main() -> int:
    try:
        arguments, how = parse_arguments((PredictArguments, PredictionArguments))
        state = start_processes(arguments)
    except (OSError, ValueError) as error:
        print(one_line(error), file=sys.stderr)
        return 2
    code, words = run(arguments, how, state)
    if state.is_main_process:
        print(words, file=sys.stderr if code == 2 else sys.stdout)
    return code if state.num_processes == 1 else leave_with(state, code)
