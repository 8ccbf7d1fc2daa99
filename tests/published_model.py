"""A model's folder as a published repository has it: weights, configuration, image processor and code."""

from pathlib import Path

from allspark_hf.publishing.repository import add_code


def publish(folder: Path, model, image_processor) -> Path:
    """Saves so that `trust_remote_code=True`, or an Endpoint, loads it where this package is not installed."""
    model.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    add_code(folder)
    return folder
