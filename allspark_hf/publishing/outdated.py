"""Finds files in an output folder that are about other weights than the folder holds."""

from pathlib import Path

import numpy as np
from transformers.trainer import TRAINER_STATE_NAME

from ..models.weights import DIGEST, weights_digest
from ..utils.files import read_json_object
from .record import RECORD_FILE


# Other records of a run, which are of the same weights as run_record.json.
OF_THE_RUN = (TRAINER_STATE_NAME, "train_results.json", "eval_results.json", "all_results.json")
CURVES = ("figures/curves_light.png", "figures/curves_dark.png")


def outdated_files(folder: str | Path) -> dict[str, str]:
    """
    Records in a folder that are of an earlier training or another model, and must not be published with this one.

    Every record of this package has an entry `weights_sha256`, the digest of the weights that it is about. A record is
    outdated if this entry is null, or is not the digest of the weights in the folder; a picture in `figures/`, if that
    digest is none of those in its `.npz`. A file without the entry, of an earlier version, counts as current, and so
    do all files if the folder has no `model.safetensors`.

    Args:
        folder (`str` or `Path`): an output folder.

    Returns:
        `dict[str, str]`: path in the folder (`"onnx"` for an export) -> what is wrong, and what to do.
    """
    folder = Path(folder)
    told = {path.name: read_json_object(path) for path in sorted(folder.glob("*.json"))}
    told["onnx"] = read_json_object(folder / "onnx" / "export.json")
    told = {name: [content[DIGEST]] for name, content in told.items() if DIGEST in content}
    told |= (figures := _digests_of_figures(folder))
    own = weights_digest(folder) if told else None
    remedies = {
        RECORD_FILE: "save the model it tells of again, or remove it",
        "onnx": "run `allspark export` again",
        **dict.fromkeys(figures, "run `allspark figures` again"),
    }
    found = {
        name: f"it is not of the weights in {folder}: {remedies.get(name, 'run `allspark evaluate` again')}"
        for name, digests in told.items()
        if own is not None and own not in digests
    }
    if RECORD_FILE in found:
        found |= {
            name: f"{RECORD_FILE} is not of the weights in {folder}"
            for name in (*OF_THE_RUN, *CURVES)
            if (folder / name).exists()
        }
    return found


def _digests_of_figures(folder: Path) -> dict[str, list[str]]:
    """Pictures of `allspark figures` -> the digests of the models in them, as far as their arrays tell."""
    found = {}
    for path in sorted(folder.glob("figures/*.npz")):
        try:
            with np.load(path) as arrays:
                digests = arrays[DIGEST].tolist()
        except Exception:  # without digests, or damaged, for which NumPy raises nearly anything
            continue
        pictures = (path.with_name(f"{path.stem}_{background}.png") for background in ("light", "dark"))
        found |= {f"figures/{picture.name}": digests for picture in pictures if picture.exists()}
    return found
