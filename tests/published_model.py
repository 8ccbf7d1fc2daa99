"""A model's folder as a published repository has it: weights, configuration, image processor and its own code."""

import json
import shutil
from pathlib import Path

import allspark_hf
from allspark_hf.inference import make_image_processor


CODE = ("configuration_allspark.py", "modeling_allspark.py")
_MODEL = "modeling_allspark.SegformerForSemiSupervisedSegmentation"
AUTO_MAP = {
    "AutoConfig": "configuration_allspark.AllSparkConfig",
    "AutoModel": _MODEL,
    "AutoModelForSemanticSegmentation": _MODEL,
}


def save_published(model, folder: Path, long_side: int | None = None) -> Path:
    """Save the model into `folder` so that `trust_remote_code=True` loads it where this package is not installed."""
    model.save_pretrained(folder)
    make_image_processor(long_side).save_pretrained(folder)
    for name in CODE:
        shutil.copy(Path(allspark_hf.__file__).with_name(name), folder / name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": AUTO_MAP}))
    return folder
