"""How to evaluate: what [`AllSparkTrainingArguments`] and scripts/evaluate.py have in common."""

from dataclasses import dataclass, field


EVAL_MODES = ("whole", "center_crop", "sliding_window")


@dataclass
class EvaluationArguments:
    """
    How images are predicted for evaluation, and what is measured.

    Args:
        eval_mode (`str`, *optional*, defaults to `"whole"`):
            `"whole"` predicts each image in one piece; `"sliding_window"` sums the softmax maps of overlapping
            windows (the paper's for Cityscapes); `"center_crop"` predicts and scores the middle of each image only.
        eval_crop_size (`list[int]`, *optional*): window or crop, one side or height and width; `config.crop_size`.
        eval_stride (`float`, *optional*, defaults to 2/3): step between windows as a share of `eval_crop_size`.
        eval_windows_per_batch (`int`, *optional*, defaults to 1): windows of one size that run together.
        eval_scales (`list[float]`, *optional*): scales whose probabilities are averaged; only 1.
        eval_flip (`bool`, *optional*, defaults to `False`): average with the prediction of the mirrored image.
        eval_boundary_iou (`bool`, *optional*, defaults to `False`): also measure boundary IoU.
        eval_boundary_ratio (`float`, *optional*, defaults to 0.02): width of a boundary as a share of the diagonal.
        count_absent_classes (`bool`, *optional*, defaults to `False`): mean IoU over all classes, absent ones as 0.

    Raises:
        ValueError: if a value is out of range.
    """

    eval_mode: str = field(
        default="whole",
        metadata={
            "help": "How to predict for evaluation: whole image, sliding_window (softmax summed over overlapping "
            "windows), or center_crop (the middle only is predicted and scored).",
            "choices": list(EVAL_MODES),
        },
    )
    eval_crop_size: list[int] | None = field(
        default=None,
        metadata={
            "help": "Window of sliding_window, crop of center_crop: pixels of one side, or height and width. Default: "
            "the model's training crop."
        },
    )
    eval_stride: float = field(
        default=2 / 3, metadata={"help": "Step from window to window, as a share of the window: above 0, at most 1."}
    )
    eval_windows_per_batch: int = field(
        default=1, metadata={"help": "Windows of one size that run together, for each image of a batch."}
    )
    eval_scales: list[float] | None = field(
        default=None, metadata={"help": "Scales at which to predict and average, e.g. 0.75 1 1.25. Default: 1."}
    )
    eval_flip: bool = field(default=False, metadata={"help": "Average with the prediction of the mirrored image."})
    eval_boundary_iou: bool = field(
        default=False, metadata={"help": "Also measure boundary IoU (Cheng et al., CVPR 2021)."}
    )
    eval_boundary_ratio: float = field(
        default=0.02, metadata={"help": "Width of a boundary, as a share of the image's diagonal."}
    )
    count_absent_classes: bool = field(
        default=False,
        metadata={
            "help": "Count a class that occurs in neither masks nor predictions as IoU 0, as the authors do, instead "
            "of leaving it out of the mean."
        },
    )

    def __post_init__(self):
        self._check_windows()
        for scale in self.eval_scales or []:
            if not 0 < scale <= 10:
                raise ValueError(f"eval_scales has {scale:g}: set scales above 0 and up to 10.")
        if not 0 < self.eval_boundary_ratio < 1:
            raise ValueError(
                f"eval_boundary_ratio={self.eval_boundary_ratio:g} is no share of the diagonal: set it above 0 and "
                "below 1."
            )

    def _check_windows(self):
        if self.eval_mode not in EVAL_MODES:
            raise ValueError(f"eval_mode={self.eval_mode!r} is unknown: choose one of {', '.join(EVAL_MODES)}.")
        if self.eval_crop_size is not None:
            if len(self.eval_crop_size) not in (1, 2) or min(self.eval_crop_size) < 1:
                raise ValueError(
                    f"eval_crop_size={self.eval_crop_size} is neither a positive side nor two of them: set one number "
                    "for a square, or height and width."
                )
            if self.eval_mode == "whole":
                raise ValueError(
                    "eval_crop_size is given, but eval_mode='whole' does not crop: set eval_mode to sliding_window "
                    "or center_crop, or leave eval_crop_size out."
                )
        if not 0 < self.eval_stride <= 1:
            raise ValueError(f"eval_stride={self.eval_stride:g} is no share of the window: set it in (0, 1].")
        if self.eval_windows_per_batch < 1:
            raise ValueError(f"eval_windows_per_batch={self.eval_windows_per_batch}: set at least 1 window.")


def eval_crop(args: EvaluationArguments, config) -> tuple[int, int]:
    """(height, width) of windows and of the centre crop: `eval_crop_size`, else the model's training crop."""
    if args.eval_crop_size is None:
        return config.crop_height_width
    return args.eval_crop_size[0], args.eval_crop_size[-1]


__all__ = ["EVAL_MODES", "EvaluationArguments", "eval_crop"]
