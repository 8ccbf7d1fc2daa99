"""Images that are too small for the encoder, found before anything is evaluated."""

from collections.abc import Mapping

import datasets
from transformers.image_utils import get_image_size_for_max_height_width

from ..data.summary import file_of, image_sizes
from .arguments import EvaluationArguments


def require_large_enough(
    sets: Mapping[str, datasets.Dataset],
    config,
    args: EvaluationArguments,
    long_side: int | None,
    image_column: str = "image",
):
    """
    Args:
        sets (`Mapping[str, datasets.Dataset]`): name -> images to evaluate on; only their sizes are read.
        config ([`AllSparkFields`]): of the model.
        args ([`EvaluationArguments`]): of the evaluation. Windows and crops are large enough already, so only the size
            of the image is checked.
        long_side (`int`, *optional*): to which the image processor scales.
        image_column (`str`): name of the image column.

    Raises:
        ValueError: if an image, at one of the scales, is too small where the model gets it.
    """
    scale = min(args.eval_scales or [1.0])
    for name, dataset in sets.items():
        found = []
        for row, size in enumerate(image_sizes(dataset, image_column)):
            if size is None:
                continue
            given = get_image_size_for_max_height_width(size, long_side, long_side) if long_side else size
            given = tuple(max(1, round(scale * side)) for side in given)
            if min(given) < config.smallest_side:
                found.append((row, size, given))
        if found:
            (row, (width, height), given), count = found[0], len(found)
            scaled = "" if given == (width, height) else f", {given[0]}x{given[1]} where the model gets it"
            raise ValueError(
                f"{count} of {len(dataset)} {name} images {'is' if count == 1 else 'are'} too small, first "
                f"{file_of(dataset, row, image_column)} with {width}x{height} pixels{scaled}: the encoder needs "
                f"{config.smallest_side} a side: leave out such images, or small eval_scales, or set a larger "
                "image_long_side."
            )
