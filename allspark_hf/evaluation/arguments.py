"""Arguments of prediction and evaluation that training, `allspark evaluate` and `allspark predict` share."""

from dataclasses import dataclass

from ..utils.arguments import argument, check_values, documented


EVAL_MODES = ("whole", "resized", "center_crop", "sliding_window")
ONE_PIECE = ("whole", "resized")
USED_IN = {  # argument -> the modes that read it
    "eval_crop_size": ("sliding_window", "center_crop"),
    "eval_stride": ("sliding_window",),
    "eval_windows_per_batch": ("sliding_window",),
}


@documented
@dataclass
class PredictionArguments:
    """
    How images are predicted.

    Raises:
        ValueError: if a value is out of range, or given but not used by the mode.
    """

    eval_mode: str = argument(
        "whole",
        "How to predict for evaluation: whole (each image in one piece), resized (the same, resized to whole patches "
        "where the model would pad, UniMatch V2's way), sliding_window (softmax summed over overlapping windows, the "
        "paper's way for Cityscapes), or center_crop (the middle only is predicted and scored).",
        choices=EVAL_MODES,
        common=True,
        shown=True,
    )
    eval_crop_size: list[int] | None = argument(
        None,
        "Window of sliding_window, crop of center_crop: pixels of one side, or height and width. Default: the model's "
        "training crop.",
        interval="[1, inf)",
        common=True,
        shown=True,
    )
    eval_stride: float = argument(
        2 / 3, "Step from window to window, as a share of the window.", interval="(0, 1]", shown=True
    )
    eval_windows_per_batch: int = argument(
        1, "Windows of one size that run together, for each image of a batch.", interval="[1, inf)"
    )
    eval_scales: list[float] | None = argument(
        None,
        "Scales at which to predict and average, such as 0.75 1 1.25. Default: 1.",
        interval="(0, 10]",
        shown=True,
    )
    eval_flip: bool = argument(False, "Average with the prediction of the mirrored image.", shown=True)

    def __post_init__(self):
        check_values(self)
        if self.eval_crop_size is not None and len(self.eval_crop_size) not in (1, 2):
            raise ValueError(
                f"eval_crop_size={self.eval_crop_size} is neither one side nor two of them: set one number for a "
                "square, or height and width."
            )
        for name, modes in USED_IN.items():
            value = getattr(self, name)
            if self.eval_mode not in modes and value != getattr(type(self), name):
                raise ValueError(
                    f"{name}={value} changes nothing with eval_mode={self.eval_mode!r}: set eval_mode to "
                    f"{' or '.join(modes)}, or leave {name} out."
                )


@documented
@dataclass
class EvaluationArguments(PredictionArguments):
    """
    How images are predicted for evaluation, see [`PredictionArguments`], and what is measured.

    Raises:
        ValueError: if a value is out of range, or given but not used by the mode.
    """

    eval_boundary_iou: bool = argument(False, "Also measure boundary IoU (Cheng et al., CVPR 2021).")
    eval_boundary_ratio: float = argument(
        0.02, "Width of a boundary, as a share of the image's diagonal.", interval="(0, 1)"
    )
    count_absent_classes: bool = argument(
        False,
        "Count a class that occurs in neither masks nor predictions as IoU 0, as the authors do, instead of leaving "
        "it out of the mean.",
        shown=True,
    )


def eval_crop(args: PredictionArguments, config) -> tuple[int, int]:
    """
    (height, width) of windows and of the center crop: `eval_crop_size`, else the model's training crop; ValueError if
    the encoder needs more.
    """
    given = args.eval_crop_size
    crop = config.crop_height_width if given is None else (given[0], given[-1])
    if min(crop) < config.smallest_side:
        raise ValueError(
            f"Evaluation would crop to {crop[0]}x{crop[1]} pixels (height x width), but the encoder needs "
            f"{config.smallest_side} a side: set a larger eval_crop_size."
        )
    return crop
