"""Scores a model trained with AllSpark three times: each image rebuilt from itself, as in inference; from the memory,
as labeled images are in training; and with zeros for what the bottleneck rebuilds, which shows what it matters at all.

    python scripts/memory_at_inference.py --run OUT --data_dir DATA

OUT is the output folder of a training whose last checkpoint is still there: only checkpoints hold the memory. Prints
mIoU on the labeled training images and on the validation images.
"""

import argparse
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from safetensors.torch import load_file

from allspark_hf.cli.ending import run_script
from allspark_hf.cli.evaluate import ScriptArguments, build_trainer
from allspark_hf.data import DataArguments
from allspark_hf.evaluation.arguments import EvaluationArguments
from allspark_hf.models.bottleneck_allspark import MEMORY_KEYS, AllSparkBottleneck, resize_tokens
from allspark_hf.training.storage import STUDENT_FILE, last_complete_checkpoint


def fill(bottleneck: AllSparkBottleneck | None, run: str):
    """Puts the memory of the run's last checkpoint into the model's bottleneck."""
    checkpoint = last_complete_checkpoint(run)
    files = [] if checkpoint is None else [Path(checkpoint) / name for name in (STUDENT_FILE, "model.safetensors")]
    stored = next((load_file(file) for file in files if file.is_file()), {})
    if bottleneck is None or bottleneck.memory is None or MEMORY_KEYS[0] not in stored:
        raise ValueError(f"{run} has no checkpoint with a memory: give the output folder of a training with allspark.")
    bottleneck.memory.channels.copy_(stored[MEMORY_KEYS[0]])
    bottleneck.memory.num_enqueued.copy_(stored[MEMORY_KEYS[1]])


def read_memory(bottleneck: AllSparkBottleneck, stack: ExitStack):
    """Until the stack closes, labeled attention reads the memory instead of the image itself."""
    grid = []

    def note_grid(module, inputs):
        grid[:] = inputs[0].shape[2:]

    def attend_to_memory(module, inputs):
        tokens = inputs[0]
        remembered = bottleneck.memory.sources(tokens.shape[2]).to(tokens)
        return tokens, resize_tokens(remembered, bottleneck.memory_grid, tuple(grid)).unsqueeze(0)

    stack.callback(bottleneck.register_forward_pre_hook(note_grid).remove)
    stack.callback(bottleneck.labeled_attention.register_forward_pre_hook(attend_to_memory).remove)


def score(trainer, change: Callable[[AllSparkBottleneck, ExitStack], None]) -> float:
    """mIoU with a changed bottleneck."""
    with ExitStack() as stack:
        change(trainer.model.bottleneck, stack)
        return trainer.evaluate()["eval_mean_iou"]


def give_zeros(bottleneck: AllSparkBottleneck, stack: ExitStack):
    """Until the stack closes, the bottleneck's output is zero."""
    stack.callback(bottleneck.register_forward_hook(lambda module, inputs, output: 0 * output).remove)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="Output folder of a training with a memory.")
    parser.add_argument("--data_dir", required=True, help="Folder of its images and masks.")
    options = parser.parse_args()
    run, data = options.run, DataArguments(data_dir=options.data_dir)
    for split in ("labeled", "validation"):
        with tempfile.TemporaryDirectory() as folder:
            trainer = build_trainer(ScriptArguments(model=run, split=split), EvaluationArguments(), data, folder)
            fill(trainer.model.bottleneck, run)
            ways = {"from the image itself": lambda *_: None, "from the memory": read_memory, "from zeros": give_zeros}
            scores = [f"{100 * score(trainer, change):.1f} {way}" for way, change in ways.items()]
        print(f"{split}: mIoU {', '.join(scores)}", flush=True)


if __name__ == "__main__":
    run_script(main)
