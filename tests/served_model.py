"""A published repository's handler.py as Hugging Face's server uses it, for the tests of the handler."""

import base64
import contextlib
import importlib.util
import io
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch
from conftest import tiny_model
from PIL import Image
from torch.nn import functional as F

from allspark_hf.demo.data import generate_demo_image


NAMES = ["ground", "été", "sky", "a/b", "道路"]


def balanced_model(num_labels: int, **kwargs):
    """A random model in eval mode, each of whose classes wins somewhere, or nearly."""
    model = tiny_model(num_labels=num_labels, **kwargs).eval()
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    with torch.no_grad():
        logits = model(pixel_values=torch.randn(4, 3, 64, 96)).logits
        model.decode_head.classifier.bias -= logits.mean(dim=(0, 2, 3))
    return model


def load(folder: Path):
    """As huggingface_inference_toolkit.utils.check_and_register_custom_pipeline_from_directory does it."""
    spec = importlib.util.spec_from_file_location("handler.EndpointHandler", folder / "handler.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module, module.EndpointHandler(str(folder))


def picture(index: int = 0, size=(50, 71)) -> Image.Image:
    return generate_demo_image(index, size=size)[0]


def as_bytes(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def as_base64(image: Image.Image) -> str:
    return base64.b64encode(as_bytes(image)).decode()


def decode(mask: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(mask, validate=True))) as opened:
        assert (opened.format, opened.mode) == ("PNG", "L")
        array = np.asarray(opened)
    assert set(np.unique(array)) <= {0, 255}
    return array == 255


def probabilities(model, image_processor, image: Image.Image) -> np.ndarray:
    """Plainly: float64 (num_labels, height, width), the softmax of the logits at image size."""
    with torch.no_grad():
        logits = model(**image_processor(images=image, return_tensors="pt")).logits
    logits = F.interpolate(logits.double(), size=image.size[::-1], mode="bilinear", align_corners=False)
    return logits[0].softmax(dim=0).numpy()


def variants() -> dict[str, Image.Image]:
    image = picture()
    transparent = image.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(image.size))
    sixteen_bits = (np.asarray(image.convert("L")).astype(np.uint16) * 257)[:, ::-1]
    indexed = image.convert("P")
    indexed.info["transparency"] = 3
    modes = {mode: image.convert(mode) for mode in ("1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGB")}
    return {
        **modes,
        "RGBA": transparent,
        "LA": transparent.convert("LA"),
        "PA": image.convert("PA"),
        "P transparent": indexed,
        "I;16": Image.fromarray(sixteen_bits),
        "I": Image.fromarray(sixteen_bits.astype(np.int32)),
    }


@contextlib.contextmanager
def endpoint(handler):
    """
    A server on this machine that treats requests as huggingface-inference-toolkit does: image bodies become RGB
    images, JSON is passed on, a result gets status 200 and every exception 400 with its text.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                if self.headers["Content-Type"].startswith("image/"):
                    data = {"inputs": Image.open(io.BytesIO(body)).convert("RGB")}
                else:
                    data = json.loads(body)
                status, answer = 200, handler(data)
            except Exception as error:
                status, answer = 400, {"error": str(error)}
            answer = json.dumps(answer, allow_nan=False).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
