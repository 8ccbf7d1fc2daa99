"""Export: ONNX files that run without PyTorch, and what they cost in accuracy and time."""
