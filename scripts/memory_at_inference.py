"""Scores a model trained with AllSpark twice: each image rebuilt from itself, as in inference, and from the memory, as
labeled images are in training.

    python scripts/memory_at_inference.py --run OUT --data_dir DATA

OUT is the output folder of a training whose last checkpoint is still there: only checkpoints hold the memory. Prints
mIoU on the labeled training images and on the validation images.
"""

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

from safetensors.torch import load_file

from allspark_hf.cli.ending import run_script
from allspark_hf.cli.evaluate import ScriptArguments, build_trainer
from allspark_hf.data import DataArguments
from allspark_hf.evaluation.arguments import EvaluationArguments
from allspark_hf.models.bottleneck_allspark import MEMORY_KEYS, AllSparkBottleneck, resize_tokens
from allspark_hf.training.storage import last_complete_checkpoint


def fill(bottleneck: AllSparkBottleneck | None, run: str):
    """Puts the memory of the run's last checkpoint into the model's bottleneck."""
    checkpoint = last_complete_checkpoint(run)
    stored = {} if checkpoint is None else load_file(Path(checkpoint) / "model.safetensors")
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="Output folder of a training with a memory.")
    parser.add_argument("--data_dir", required=True, help="Folder of its images and masks.")
    options = parser.parse_args()
    run, data = options.run, DataArguments(data_dir=options.data_dir)
    for split in ("labeled", "validation"):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            trainer = build_trainer(ScriptArguments(model=run, split=split), EvaluationArguments(), data, folder)
            fill(trainer.model.bottleneck, run)
            itself = trainer.evaluate()["eval_mean_iou"]
            read_memory(trainer.model.bottleneck, stack)
            memory = trainer.evaluate()["eval_mean_iou"]
        scores = f"{100 * itself:.1f} from the image itself, {100 * memory:.1f} from the memory"
        print(f"{split}: mIoU {scores}", flush=True)


if __name__ == "__main__":
    run_script(main)
