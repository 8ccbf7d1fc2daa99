"""Export to ONNX: a graph for images of any size or of one, its comparison with PyTorch, and its 8-bit variant."""

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from ..models.configuration_allspark import AllSparkFields
from ..models.modeling_allspark import SemiSupervisedSegmenter


logger = logging.getLogger(__name__)

OPSET = 18  # the exporter's own, so that nothing is converted afterwards
TOLERANCE = 1e-4
INT8_OPERATORS = ("MatMul",)  # convolutions in 8 bits are smaller still, but took 1.4 times as long
MAX_BYTES = 2 * 1024**3  # of one protobuf file
# Encoders of transformers whose graph holds the size that it was traced with, or cannot be traced without one.
FIXED_SIZE_ENCODERS = ("beit", "dinov2_with_registers", "swinv2")


@dataclass
class Difference:
    """The input size of one comparison of ONNX with PyTorch, and the largest difference of a logit."""

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


def check_exportable(model: SemiSupervisedSegmenter, fixed_size: tuple[int, int] | None = None):
    """
    Raises ValueError for a model whose predictions depend on their batch, that does not fit into one file, or whose
    encoder cannot be exported for images of any size; and for a size that it does not take.

    Args:
        model ([`PreTrainedModel`]): to export.
        fixed_size (`tuple[int, int]`, *optional*): (height, width) of all images; None for any size.
    """
    config = model.config
    encoder = getattr(getattr(config, "backbone_config", None), "model_type", None)
    if fixed_size is None and encoder in FIXED_SIZE_ENCODERS:
        height, width = config.crop_height_width
        raise ValueError(
            f"The encoder {encoder!r} cannot be exported for images of any size: choose one, such as that of the "
            f"training crops (--fixed_size {height} {width})."
        )
    if fixed_size is not None and min(fixed_size) < config.smallest_side:
        raise ValueError(
            f"fixed_size={tuple(fixed_size)} is too small for the model: choose at least {config.smallest_side} "
            "pixels a side."
        )
    if config.mix_images_in_eval:
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

    def __init__(self, model: SemiSupervisedSegmenter):
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values).logits


@torch.no_grad()
def export_graph(model: SemiSupervisedSegmenter, path: str | Path, fixed_size: tuple[int, int] | None = None):
    """
    Writes a model as one ONNX file: float32 `pixel_values` (batch, 3, height, width) to float32 `logits` (batch,
    num_labels, logits height, logits width), which have the size that the model gives them: a quarter of the image's,
    rounded up, for SegFormer, and the image's own for any other encoder. The memory is not part of it.

    Args:
        model ([`PreTrainedModel`]): float32, on the CPU, in eval mode.
        path (`str` or `Path`): the file.
        fixed_size (`tuple[int, int]`, *optional*):
            (height, width) in pixels of all images that the graph takes; None for any size. The batch is always free.

    Raises:
        ImportError: if onnx or what belongs to it is missing.
        ValueError: if [`check_exportable`] refuses the model, or PyTorch cannot export it.
    """
    require_onnx()
    check_exportable(model, fixed_size)
    import onnx

    size, free = fixed_size, {0: "batch"}
    if fixed_size is None:
        size, free = _example_size(model.config), {**free, 2: "height", 3: "width"}
    with _quiet():
        try:
            program = torch.onnx.export(
                _Logits(model),
                (torch.zeros(2, 3, *size),),  # a batch of 1 would be taken for a fixed one
                dynamo=True,
                input_names=["pixel_values"],
                output_names=["logits"],
                dynamic_shapes={"pixel_values": free},
                opset_version=OPSET,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            other = "other versions of torch and onnxscript"
            if fixed_size is None:
                other = f"one size for all images (fixed_size), or {other}"
            raise ValueError(f"PyTorch cannot export this model to ONNX: try {other}.") from error
    graph = _without_notes(program.model_proto)
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, str(path))


def _example_size(config: AllSparkFields) -> tuple[int, int]:
    """(height, width) to trace with, unlike any that a model may treat in another way: a square, or a side of 1."""
    side = max(config.smallest_side, 2 * config.encoder_stride)
    return 2 * side + 6, 3 * side + 9


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
        dimension = graph.graph.output[0].type.tensor_type.shape.dim[axis]
        if not dimension.dim_value:
            dimension.dim_param = name
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
        config ([`AllSparkFields`]): of the model.
        num_threads (`int`, *optional*): of onnxruntime; as many as PyTorch has.

    Attributes:
        fixed_size (`tuple[int, int]`, *optional*): the only (height, width) of images that it takes; None for any.
    """

    training = False
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, path: str | Path, config: AllSparkFields, num_threads: int | None = None):
        require_onnx()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads or torch.get_num_threads()
        self.config = config
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        size = tuple(self.session.get_inputs()[0].shape[2:])  # a free side is a name
        self.fixed_size = size if all(isinstance(side, int) for side in size) else None

    def __call__(self, pixel_values: torch.Tensor) -> SemanticSegmenterOutput:
        """
        Float (batch, 3, height, width) to float32 `logits` (batch, num_labels, logits height, logits width), of the
        model's size; ValueError for images of another size than `fixed_size`.
        """
        size = tuple(pixel_values.shape[2:])
        if self.fixed_size not in (None, size):
            raise ValueError(
                f"The images are {size} pixels (height, width), but the ONNX file takes {self.fixed_size} only: bring "
                "them to this size, or export with another --fixed_size."
            )
        (logits,) = self.session.run(["logits"], {"pixel_values": pixel_values.float().numpy()})
        return SemanticSegmenterOutput(logits=torch.from_numpy(logits))


def sizes_to_compare(config: AllSparkFields, fixed_size: tuple[int, int] | None = None) -> list[tuple[int, int, int]]:
    """
    (batch, height, width): smallest, odd and not square, twice, and the training crop; none is the example's. With a
    fixed size, one image and three of it.
    """
    if fixed_size is not None:
        return [(1, *fixed_size), (3, *fixed_size)]
    smallest = config.smallest_side
    side = max(smallest, config.encoder_stride)
    crop = [max(length, smallest) for length in config.crop_height_width]
    return [(1, smallest, smallest), (2, 2 * side + 7, 3 * side + 10), (3, 4 * side + 1, side + 3), (1, *crop)]


@torch.no_grad()
def compare_logits(
    model: SemiSupervisedSegmenter, segmenter: OnnxSegmenter, sizes: Iterable[tuple[int, int, int]]
) -> list[Difference]:
    """
    How far ONNX is from PyTorch on standard normal noise.

    Args:
        model ([`PreTrainedModel`]): float32, on the CPU, in eval mode.
        segmenter ([`OnnxSegmenter`]): exported from it.
        sizes (`Iterable[tuple[int, int, int]]`): (batch, height, width) of each comparison.

    Returns:
        `list[Difference]`: in this order; infinite where the logits differ in shape, are not all finite, or cannot be
        computed by onnxruntime, as when the graph holds the size that it was traced with.
    """
    generator = torch.Generator().manual_seed(0)
    differences = []
    for batch, height, width in sizes:
        pixel_values = torch.randn(batch, 3, height, width, generator=generator)
        expected, difference = model(pixel_values=pixel_values).logits, float("inf")
        try:
            got = segmenter(pixel_values).logits
        except Exception as error:  # those of onnxruntime have no common class
            logger.warning("onnxruntime, with %d images of %dx%d: %s", batch, height, width, error)
        else:
            if expected.shape == got.shape:
                difference = (expected - got).abs().max().item()
        differences.append(Difference(batch, height, width, difference if difference == difference else float("inf")))
    return differences


def check_differences(differences: list[Difference]):
    """Raises ValueError if one of them is larger than `TOLERANCE`."""
    worst = max(differences, key=lambda difference: difference.max_difference)
    if worst.max_difference > TOLERANCE:
        several = len({(difference.height, difference.width) for difference in differences}) > 1
        one_size = "one size for all images (--fixed_size HEIGHT WIDTH), or " if several else ""
        raise ValueError(
            f"ONNX and PyTorch differ by {worst.max_difference:.2g} in a logit, with {worst.batch} images of "
            f"{worst.height}x{worst.width} (height x width), where {TOLERANCE:g} is allowed; nothing was written: try "
            f"{one_size}other versions of torch, onnxscript and onnxruntime."
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

    with _quiet():  # onnxruntime recommends a step that the exporter has done
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(INT8_OPERATORS),
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
