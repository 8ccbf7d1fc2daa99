"""What the trainer and `allspark train` write about a run: run_record.json, and the lists of the images."""

import logging
from pathlib import Path

from transformers import TrainerCallback

from ..data import SegmentationData, find_layout, list_path, write_id_lists
from ..evaluation.arguments import EvaluationArguments
from ..methods import arguments_of_others
from ..models.weights import DIGEST, weights_digest
from ..publishing.licenses import base_weights_of, weights_name
from ..publishing.record import RECORD_FILE, checkout, environment, public, public_command
from ..utils.arguments import recorded, shown
from ..utils.files import read_json_object, write_json


logger = logging.getLogger(__name__)


# ---- What `allspark train` knows ----


def run_source(arguments: list[str], data_arguments, model_arguments, report) -> dict:
    """
    What `allspark train` knows about a run but the trainer does not, for `AllSparkTrainer.run_source`.

    Args:
        arguments (`list[str]`): the command line, `sys.argv`.
        data_arguments ([`DataArguments`]): arguments of the data.
        model_arguments ([`ModelArguments`]): arguments of the model.
        report ([`CheckReport`]): the checked data.
    """
    recipe = arguments[1] if len(arguments) > 1 and not arguments[1].startswith("--") else None
    return {
        "command": public_command(arguments),
        "recipe": public(recipe),
        "arguments": public(recorded(data_arguments) | recorded(model_arguments)),
        "data": _data_source(data_arguments, report),
    }


def _data_source(arguments, report) -> dict:
    chosen = ("labeled_count", "labeled_fraction", "labeled_list", "unlabeled_list", "validation_list")
    selection = {name: getattr(arguments, name) for name in chosen if getattr(arguments, name) is not None}
    data = {"selection": selection | {"split_seed": arguments.split_seed}}
    if arguments.data_dir is not None:
        layout = find_layout(arguments.data_dir, arguments.data_format, arguments.voc_masks)
        data |= {"source": weights_name(Path(arguments.data_dir).absolute()), "on_hub": False}
        data["layout"] = type(layout).__name__.removesuffix("Layout").lower()
    else:
        data |= {"source": weights_name(arguments.dataset_name), "layout": "datasets"}
        data["on_hub"] = not Path(arguments.dataset_name).exists()
        splits = ("dataset_config_name", "train_split_name", "validation_split_name")
        data |= {name: getattr(arguments, name) for name in splits}
    if arguments.unlabeled_dir is not None:
        data["unlabeled_folder"] = weights_name(Path(arguments.unlabeled_dir).absolute())
    if arguments.unlabeled_dataset_name is not None:
        data["unlabeled_dataset"] = weights_name(arguments.unlabeled_dataset_name)
        data["unlabeled_dataset_on_hub"] = not Path(arguments.unlabeled_dataset_name).exists()
    hidden, left_out = len(report.data.hidden_ids), len(report.left_out)
    return public(data) | {"hidden_masks": hidden, "files_left_out": left_out}


# ---- What the trainer knows ----


def describe_training(trainer, resumed: bool, git: dict | None, derived: dict) -> dict:
    """
    The content of run_record.json at the end of a training, without the digest of its weights.

    Args:
        trainer ([`AllSparkTrainer`]): after training.
        resumed (`bool`): whether the training went on from a checkpoint.
        git (`dict`, *optional*): what [`checkout`] said before the training.
        derived (`dict`): what [`Method.derived`] said before the training.
    """
    args, config, source = trainer.args, trainer.model.config, trainer.run_source
    runtimes = [entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry]
    batches = args.gradient_accumulation_steps * args.world_size
    training = {
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "seconds": runtimes[-1] if runtimes else None,
        "resumed": resumed,
        "labeled_images_per_update": args.train_batch_size * batches,
        "unlabeled_images_per_update": args.per_device_unlabeled_batch_size * batches,
        "load_best_model_at_end": args.load_best_model_at_end,
        "metric_for_best_model": args.metric_for_best_model,
    }
    of_others = arguments_of_others(args.method)
    settings = {name: value for name, value in shown(args).items() if name not in of_others}
    method = {name: getattr(trainer.method, name, None) for name in ("title", "description")}
    return {
        "format": 2,
        "command": source.get("command"),
        "recipe": source.get("recipe"),
        "arguments": source.get("arguments", {}) | public(recorded(args)),
        "settings": public(settings | derived),
        "evaluation": {name: getattr(args, name) for name in EvaluationArguments.__dataclass_fields__},
        "method": {"name": args.method, **method},
        "model": {
            "base_weights": base_weights_of(config),
            "started_from": weights_name(getattr(config, "_name_or_path", None)),
            "parameters": _published_parameters(trainer),
        },
        "data": source.get("data", {}) | _counts(trainer) | {"classes": config.num_labels},
        "training": training,
        "git": git,
        **environment(args.world_size),
    }


def _published_parameters(trainer) -> int:
    """Parameters of the published model, which lacks what the method trains beside it."""
    model = trainer.method.evaluated_model(trainer.processes.model)
    named = model.named_parameters()
    return sum(value.numel() for name, value in named if not name.startswith("method_modules."))


def _counts(trainer) -> dict:
    """Numbers of images; None for a stream."""
    evaluated = trainer.eval_dataset
    if isinstance(evaluated, dict):
        evaluated = {name: len(dataset) for name, dataset in evaluated.items()}
    elif evaluated is not None:
        evaluated = len(evaluated)
    unlabeled = trainer.unlabeled_dataset
    streams = unlabeled is not None and not hasattr(unlabeled, "__len__")
    return {
        "labeled": len(trainer.train_dataset),
        "unlabeled": None if streams else 0 if unlabeled is None else len(unlabeled),
        "unlabeled_stream": streams,
        "unlabeled_used": trainer.method.uses_unlabeled,
        "validation": evaluated,
    }


class RunRecord(TrainerCallback):
    """
    Writes `run_record.json` into the trainer's `output_dir`, on the main process: at the end of a training, again with
    the digest of the weights when its model is saved, and again when its metrics are saved.

    The record holds the command line, arguments that differ from their defaults, data and counts, base weights,
    machine and versions, that of the code as it was when the training began. It holds no token and no absolute path.
    If the file cannot be written, a warning says so, because an error would cost the model just trained.

    Args:
        trainer ([`AllSparkTrainer`]): the trainer whose runs are recorded.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.resumed, self.git, self.derived = False, None, {}
        self.is_of_earlier_process = False  # whether another process finished the training
        self.content: dict = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.resumed, self.is_of_earlier_process, self.content = state.global_step > 0, False, {}
        self.derived = self.trainer.method.derived()
        if self.derived and state.is_world_process_zero:
            found = ", ".join(f"{name} {value}" for name, value in self.derived.items())
            logger.info("for these images and %d updates: %s", state.max_steps, found)
        self.git = checkout() if state.is_world_process_zero else None

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            found = describe_training(self.trainer, self.resumed, self.git, self.derived)
            self.content = found | {DIGEST: None, "metrics": {}}
            self._write()

    def note_saved(self, folder: str | Path):
        """Adds the digest of the weights after the model was saved, if `folder` is the output folder."""
        self._take_up()
        if self.content and Path(folder) == Path(self.trainer.args.output_dir):
            self.content[DIGEST] = weights_digest(folder)
            self._write()

    def note_metrics(self, split: str, metrics: dict[str, float]):
        """Adds metrics after they were saved: "eval" of the saved model, "train" of its training."""
        if not self.trainer.is_world_process_zero():
            return
        self._take_up()
        if self.content:
            self.content["metrics"] = (self.content.get("metrics") or {}) | {split: metrics}
            self._write()

    def _take_up(self):
        """Takes the record of an earlier process that finished the training; if it wrote none, makes one."""
        folder = Path(self.trainer.args.output_dir)
        digest = weights_digest(folder) if self.is_of_earlier_process and not self.content else None
        if digest is None:
            return
        self.content = read_json_object(folder / RECORD_FILE)
        if self.content.get(DIGEST) != digest:
            derived = self.trainer.method.derived()
            self.content = describe_training(self.trainer, True, checkout(), derived) | {DIGEST: digest}

    def _write(self):
        path = Path(self.trainer.args.output_dir) / RECORD_FILE
        try:
            write_json(path, self.content)
        except OSError as error:
            logger.warning("%s could not be written (%s): the model card will lack its content.", path, error)


class IdLists(TrainerCallback):
    """
    Writes the lists of a run's images into its `output_dir` when the training begins, so that a training that cannot
    start writes none. A resumed training keeps lists that are there.

    Args:
        data ([`SegmentationData`]): the images that were found.
    """

    def __init__(self, data: SegmentationData):
        self.data = data

    def on_train_begin(self, args, state, control, **kwargs):
        resumed = state.global_step > 0
        if args.should_save and not (resumed and list_path(args.output_dir, "labeled").is_file()):
            write_id_lists(self.data, args.output_dir)
