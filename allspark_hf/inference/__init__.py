"""Inference: from an image to its segmentation, to a picture of it, and to an answer of an Inference Endpoint."""

from .loading import load_trained, make_image_processor
from .prediction import predict_confidence, predict_mask


__all__ = ["load_trained", "make_image_processor", "predict_confidence", "predict_mask"]
