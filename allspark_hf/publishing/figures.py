"""The figures that a published run carries."""

import importlib.util
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

from .outdated import outdated_files


def write_run_figures(folder: str | Path) -> list[Path]:
    """
    Draws the training curves of an output folder into its `figures/`, if matplotlib is installed.

    Args:
        folder (`str` or `Path`): an output folder of a training.

    Returns:
        `list[Path]`: `curves_light.png` and `curves_dark.png`, and `curves.npz` with their numbers; none without
        matplotlib, without `trainer_state.json`, or if nothing was logged in it or it is of other weights.

    Raises:
        ValueError: if `trainer_state.json` cannot be read.
    """
    from ..figures import draw_curves, read_curves, write_figure
    from ..figures.charts import CURVE_PANELS

    folder = Path(folder)
    if importlib.util.find_spec("matplotlib") is None or not (folder / TRAINER_STATE_NAME).is_file():
        return []
    if TRAINER_STATE_NAME in outdated_files(folder):
        return []
    arrays = read_curves({folder.resolve().name: folder})
    drawn = {line[0] for _, _, lines in CURVE_PANELS for line in lines}
    if not drawn & set(arrays["series"].tolist()):
        return []
    return write_figure(arrays, draw_curves, folder / "figures", "curves")
