"""Export to ONNX: a graph for images of any size, its comparison with PyTorch, and its 8-bit variant."""

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from ..models.configuration_allspark import AllSparkConfig
from ..models.segmenter import Segmenter


OPSET = 18  # the exporter's own, so that nothing is converted afterwards
TOLERANCE = 1e-4
INT8_OPERATORS = ("MatMul",)  # convolutions in 8 bits are smaller still, but took 1.4 times as long
MAX_BYTES = 2 * 1024**3  # of one protobuf file


@dataclass
class Difference:
    """Of one comparison of ONNX with PyTorch: the input's size, and the largest difference of a logit."""

    batch: int
    height: int
    width: int
    max_difference: float


def require_onnx():
    """Raises ImportError, with the command to install it, if onnx, onnxruntime or onnxscript is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"The export needs {error.name}, which is not installed: pip install 'allspark-hf[onnx]'."
        ) from error


def check_exportable(model: Segmenter):
    """
    Raises ValueError for a model whose predictions depend on their batch, or that does not fit into one file.

    Args:
        model ([`PreTrainedModel`]): to export.
    """
    if model.config.mix_images_in_eval:
        raise ValueError(
            "The model's configuration has mix_images_in_eval=True, by which the prediction of an image depends on "
            "the others of its batch: set it to false in config.json (alone in its batch, an image is predicted the "
            "same)."
        )
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    if size > 0.95 * MAX_BYTES:
        raise ValueError(
            f"The weights have {size / 1e9:.1f} GB as float32, and an ONNX file holds 2 GiB at most: export a smaller "
            "model."
        )


class _Logits(nn.Module):
    """The model with one input and one output."""

    def __init__(self, model: Segmenter):
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values).logits


@torch.no_grad()
def export_graph(model: Segmenter, path: str | Path):
    """
    Writes a model as one ONNX file: float32 `pixel_values` (batch, 3, height, width), all but the 3 of any size, to
    float32 `logits` (batch, num_labels, ceil(height / 4), ceil(width / 4)). The memory is not part of it.

    Args:
        model ([`PreTrainedModel`]): float32, on the CPU, in eval mode.
        path (`str` or `Path`): the file.

    Raises:
        ImportError: if onnx or what belongs to it is missing.
        ValueError: if the model depends on its batch or is too large.
    """
    require_onnx()
    check_exportable(model)
    import onnx

    smallest = model.config.smallest_side
    example = torch.zeros(2, 3, 2 * smallest + 6, 3 * smallest + 9)  # a batch of 1 would be taken for a fixed one
    with _quiet():
        program = torch.onnx.export(
            _Logits(model),
            (example,),
            dynamo=True,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_shapes={"pixel_values": {0: "batch", 2: "height", 3: "width"}},
            opset_version=OPSET,
            verbose=False,
        )
    graph = _without_notes(program.model_proto)
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, str(path))


def _without_notes(graph):
    """Without what the exporter notes down: source lines with this machine's paths, most of a small model's file."""
    for node in graph.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for values in (graph.graph.input, graph.graph.output, graph.graph.initializer):
        for value in values:
            value.ClearField("metadata_props")
            value.ClearField("doc_string")
    for name in ("metadata_props", "value_info"):
        graph.graph.ClearField(name)
    graph.ClearField("metadata_props")
    for axis, name in ((2, "logits_height"), (3, "logits_width")):
        graph.graph.output[0].type.tensor_type.shape.dim[axis].dim_param = name
    return graph


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on other packages and on its own parts."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "root")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class OnnxSegmenter:
    """
    An ONNX file that is called as the model it was exported from, by [`predict_mask`] and [`Evaluation`] for example.

    Args:
        path (`str` or `Path`): the file.
        config ([`AllSparkConfig`]): of the model.
        num_threads (`int`, *optional*): of onnxruntime; as many as PyTorch has.
    """

    training = False
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, path: str | Path, config: AllSparkConfig, num_threads: int | None = None):
        require_onnx()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads or torch.get_num_threads()
        self.config = config
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, pixel_values: torch.Tensor) -> SemanticSegmenterOutput:
        """float (batch, 3, height, width) to float32 `logits` (batch, num_labels, height / 4, width / 4)."""
        (logits,) = self.session.run(["logits"], {"pixel_values": pixel_values.float().numpy()})
        return SemanticSegmenterOutput(logits=torch.from_numpy(logits))


def sizes_to_compare(config: AllSparkConfig) -> list[tuple[int, int, int]]:
    """(batch, height, width): smallest, odd and not square, twice, and the training crop; none is the example's."""
    smallest = config.smallest_side
    crop = [max(side, smallest) for side in config.crop_height_width]
    return [
        (1, smallest, smallest),
        (2, 2 * smallest + 7, 3 * smallest + 10),
        (3, 4 * smallest + 1, smallest + 3),
        (1, *crop),
    ]


@torch.no_grad()
def compare_logits(
    model: Segmenter, segmenter: OnnxSegmenter, sizes: Iterable[tuple[int, int, int]]
) -> list[Difference]:
    """
    How far ONNX is from PyTorch on standard normal noise.

    Args:
        model ([`PreTrainedModel`]): float32, on the CPU, in eval mode.
        segmenter ([`OnnxSegmenter`]): exported from it.
        sizes (`Iterable[tuple[int, int, int]]`): (batch, height, width) of each comparison.

    Returns:
        `list[Difference]`: in this order; infinite where the logits differ in shape, or are not all finite.
    """
    generator = torch.Generator().manual_seed(0)
    differences = []
    for batch, height, width in sizes:
        pixel_values = torch.randn(batch, 3, height, width, generator=generator)
        expected, got = model(pixel_values=pixel_values).logits, segmenter(pixel_values).logits
        difference = (expected - got).abs().max().item() if expected.shape == got.shape else float("inf")
        differences.append(Difference(batch, height, width, difference if difference == difference else float("inf")))
    return differences


def check_differences(differences: list[Difference], tolerance: float = TOLERANCE):
    """Raises ValueError if one of them is larger than the tolerance."""
    worst = max(differences, key=lambda difference: difference.max_difference)
    if worst.max_difference > tolerance:
        raise ValueError(
            f"ONNX and PyTorch differ by {worst.max_difference:.2g} in a logit, with {worst.batch} images of "
            f"{worst.height}x{worst.width} (height x width), where {tolerance:g} is allowed; nothing was written: try "
            "other versions of torch, onnxscript and onnxruntime."
        )


def quantize_int8(source: str | Path, target: str | Path):
    """
    Writes the 8-bit variant of a graph: int8 weights, one scale per output channel, in the matrix products that have
    weights; their inputs are quantized at run time, by their own range. Everything else stays float32. Of the weights'
    8 bits 7 are used: with all of them, processors without VNNI overflow and predict something else.

    Args:
        source (`str` or `Path`): of [`export_graph`].
        target (`str` or `Path`): the file.
    """
    require_onnx()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends a step that the exporter has done
    try:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(INT8_OPERATORS),
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
    finally:
        root.setLevel(level)


__all__ = [
    "Difference",
    "OnnxSegmenter",
    "check_differences",
    "check_exportable",
    "compare_logits",
    "export_graph",
    "quantize_int8",
    "require_onnx",
    "sizes_to_compare",
]
