"""
Segments a folder of images with Ray Data, on this machine or a cluster: masks and the share of each class, as Parquet.

    pip install "ray[data]"
    python scripts/pipelines/ray_data.py out photos segmented
"""

import sys
from pathlib import Path

import ray

from allspark_hf import BatchSegmenter


model, photos, output = (str(Path(given).resolve()) for given in sys.argv[1:])
options = {"model": model, "image_column": "bytes", "keep": ["path"]}
workers = ray.data.ActorPoolStrategy(min_size=1, max_size=4)
files = ray.data.read_binary_files(photos, include_paths=True)
# One to four workers, each of which loads the model once; num_gpus=1 gives each a GPU.
segmented = files.map_batches(BatchSegmenter, fn_constructor_kwargs=options, compute=workers, batch_size=8)
segmented.write_parquet(output)
print(ray.data.read_parquet(output).schema())
