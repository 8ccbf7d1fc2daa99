"""Segmentation as a step of a pipeline, such as `map` of `datasets` or `map_batches` of Ray Data."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from ..data.reading import require_columns
from ..utils.files import HUB_ID
from .segmentation import model_files, segment


class BatchSegmenter:
    """
    Segments the images of a batch. It can be pickled, because it holds only the model's name: each process loads the
    model once, at its first batch.

    ```python
    dataset.map(allspark_hf.BatchSegmenter("out"), batched=True, batch_size=8)
    ray_dataset.map_batches(allspark_hf.BatchSegmenter, fn_constructor_args=("out",), compute=…)
    ```

    `datasets` takes a result from its cache if data set, model and arguments are the same. A folder whose model was
    trained again counts as another model. A Hub id does not: give its `revision`.

    Args:
        model (`str` or `Path`): folder or Hub id of a model trained by this library.
        image_column (`str`, *optional*, defaults to `"image"`): the column of images.
        keep (`Sequence[str]`, *optional*):
            further columns to return, for a pipeline such as Ray that keeps only what is returned; `datasets` keeps
            all columns.
        device, revision (`str`, *optional*): see [`segment`].

    Raises:
        ValueError: if `model` is not a name, or names a folder that does not exist.
    """

    def __init__(
        self,
        model: str | Path,
        image_column: str = "image",
        keep: Sequence[str] = (),
        device: str | None = None,
        revision: str | None = None,
    ):
        if not isinstance(model, (str, Path)):
            raise ValueError(
                f"model is of type {type(model).__name__}, but a folder or Hub id is needed, which each process of a "
                "pipeline can load for itself."
            )
        if not HUB_ID.fullmatch(str(model)) and not Path(model).is_dir():
            raise ValueError(f"There is no folder {model}: give that of a trained model, or a Hub id user/name.")
        # The full path, because other processes may run in another folder.
        self.model = str(Path(model).resolve()) if Path(model).is_dir() else str(model)
        self.image_column, self.keep, self.device, self.revision = image_column, tuple(keep), device, revision
        self._files = model_files(Path(model))  # so that the cache of `datasets` does not confuse two trainings

    def __call__(self, batch: Mapping[str, Sequence]) -> dict[str, Sequence]:
        """
        Args:
            batch (`Mapping[str, Sequence]`):
                column -> values of each row. Images are what [`segment`] takes, or the bytes of a file. Images that
                `datasets` would decode are read as they are stored, as in training.

        Returns:
            `dict[str, Sequence]`: the columns of `keep`, and

            - `mask`: class indices, the size of the upright image: arrays (height, width), uint8 up to 256 classes,
              int32 above, if the images are in an array, as Ray gives them; else PIL images of mode L or I.
            - `shares`: of each class in the image's pixels, in the order of class indices: num_labels floats, 0 to 1.

        Raises:
            ValueError: if a column is missing, `mask` or `shares` exists already, or [`segment`] refuses an image.
        """
        require_columns([self.image_column, *self.keep], batch, "The batch", "name them with image_column and keep")
        taken = [name for name in ("mask", "shares") if name in batch]
        if taken:
            raise ValueError(
                f"The batch has a column {taken[0]!r} already, which the result would replace: rename it first, with "
                f"rename_column({taken[0]!r}, ...), or leave it out."
            )
        images = _as_stored(batch, self.image_column)
        masks, shares = [], []
        files = ({"bytes": image} if isinstance(image, bytes) else image for image in images)
        for result in segment(self.model, files, device=self.device, revision=self.revision):
            masks.append(result.mask if isinstance(images, np.ndarray) else Image.fromarray(result.mask))
            counts = np.bincount(result.mask.ravel(), minlength=len(result.palette))
            shares.append((counts / result.mask.size).tolist())
        return {**{name: batch[name] for name in self.keep}, "mask": masks, "shares": shares}


def _as_stored(batch: Mapping[str, Sequence], column: str) -> Iterable:
    """The images of a batch as they are stored, because `datasets` would decode 16 bits to 8."""
    feature = (getattr(getattr(batch, "formatter", None), "features", None) or {}).get(column)
    if isinstance(feature, datasets.Image) and feature.decode and column in getattr(batch, "keys_to_format", ()):
        stored = batch.pa_table[column].to_pylist()
        if all(image and (image["bytes"] or os.path.isfile(image["path"] or "")) for image in stored):
            return stored
    return batch[column]
