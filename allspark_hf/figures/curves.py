"""Training curves: what one or several runs logged."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from transformers.trainer import TRAINER_STATE_NAME

from ..utils.files import read_json


def read_curves(runs: Mapping[str, str | Path]) -> dict:
    """
    Reads every number that some runs logged.

    Args:
        runs (`Mapping[str, str or Path]`): name -> output folder of a training, which holds `trainer_state.json`.

    Returns:
        `dict`: one row per logged number, in the order of the runs and of their logs: `run` and `series` str (rows,),
        `step` int64 (rows,), `epoch` and `value` float64 (rows,). `series` is the name in the log, e.g. `loss_x`.

    Raises:
        ValueError: if a folder has no `trainer_state.json`, or none that can be read.
    """
    rows = []
    for run, folder in runs.items():
        path = Path(folder) / TRAINER_STATE_NAME
        if not path.is_file():
            raise ValueError(f"There is no {path}, which curves are read from: give the output folder of a training.")
        try:
            for entry in read_json(path)["log_history"]:
                place = (int(entry["step"]), float(entry["epoch"]))
                numbers = {name: value for name, value in entry.items() if isinstance(value, int | float)}
                rows += [
                    (run, name, *place, value) for name, value in numbers.items() if name not in ("step", "epoch")
                ]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is no trainer state ({error!r}): give the output folder of a training."
            ) from error
    columns = list(zip(*rows, strict=True)) or [()] * 5
    dtypes = {"run": str, "series": str, "step": np.int64, "epoch": np.float64, "value": np.float64}
    return {name: np.array(column, dtype=dtype) for (name, dtype), column in zip(dtypes.items(), columns, strict=True)}
