"""Inference: from an image to its segmentation, to a picture of it, and to an answer of an Inference Endpoint."""
