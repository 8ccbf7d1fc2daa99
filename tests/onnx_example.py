"""The example of allspark_hf/export/README.md: an exported folder with onnxruntime, numpy and Pillow alone."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


folder, image_file, mask_file = map(Path, sys.argv[1:])
# README from here
settings = json.loads((folder / "preprocessor_config.json").read_text())
sys.path.insert(0, str(folder / "onnx"))
pixels = importlib.import_module("pixels")  # pixels.py beside the model: upright, transparent on white, 16 bits scaled
config = json.loads((folder / "config.json").read_text())
reading = pixels.Reading(config.get("image_range"), config.get("tiff_page"))
image = resized = pixels.to_rgb(pixels.open_image(image_file), reading)
if settings["do_resize"]:  # to a long side, as --image_long_side does in training
    scale = max(settings["size"].values()) / max(image.size)
    resized = image.resize([int(side * scale) for side in image.size], Image.Resampling.BILINEAR)
inputs = (np.asarray(resized) * settings["rescale_factor"] - settings["image_mean"]) / settings["image_std"]
session = onnxruntime.InferenceSession(folder / "onnx/model.onnx")
(logits,) = session.run(None, {"pixel_values": inputs.transpose(2, 0, 1)[None].astype(np.float32)})
maps = [Image.fromarray(each).resize(image.size, Image.Resampling.BILINEAR) for each in logits[0]]
mask = np.argmax([np.asarray(each) for each in maps], axis=0)  # class of each pixel; names: id2label in config.json
# to here
Image.fromarray(mask.astype(np.uint8)).save(mask_file)
assert "torch" not in sys.modules
