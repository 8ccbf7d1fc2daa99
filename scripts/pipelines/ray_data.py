"""
Segments a folder of images with Ray Data, on this machine or a cluster: masks and the share of each class, as Parquet.

    pip install "ray[data]"
    python scripts/pipelines/ray_data.py out photos segmented 4

Model and photos must lie where every machine finds them. With Ray 2.60 on two CPUs and five photos it printed, and the
masks were those of `predict_mask`:

    path    string
    mask    ArrowVariableShapedTensorType(ndim=2, dtype=uint8)
    shares  list<element: double>
"""

import sys
from pathlib import Path

import ray

from allspark_hf import BatchSegmenter


model, photos, output = (str(Path(given).resolve()) for given in sys.argv[1:4])
options = {"model": model, "image_column": "bytes", "keep": ["path"]}
# Each worker loads the model once. Fewer than CPUs, of which reading needs one; num_gpus=1 gives each a GPU.
workers = ray.data.ActorPoolStrategy(size=int(sys.argv[4]))
files = ray.data.read_binary_files(photos, include_paths=True)
segmented = files.map_batches(BatchSegmenter, fn_constructor_kwargs=options, compute=workers, batch_size=8)
segmented.write_parquet(output)
print(ray.data.read_parquet(output).schema())
