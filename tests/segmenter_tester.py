"""What every segmenter must pass. A new one inherits [`SegmenterTester`] and says how a tiny model of it is made."""

import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from conftest import NO_DROPOUT
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation
from without_package import run_without_package

from allspark_hf.models.registration import SEGMENTERS, code_files


NO_BOTTLENECK = {"use_cross_attention": False, "use_memory": False, "use_grouping": False}
AUTO_CLASSES = [AutoModel, AutoModelForSemanticSegmentation]

# Arguments: a saved model and a folder with `given.pt`, into which the results go.
REMOTE = """
import json, logging, sys
from pathlib import Path
import torch
from transformers import AutoModel, AutoModelForSemanticSegmentation

folder, made = map(Path, sys.argv[1:3])
given, messages, modules, tensors = torch.load(made / "given.pt"), [], [], {}

class Collect(logging.Handler):
    def emit(self, record):
        messages.append(record.getMessage())

logging.getLogger("transformers").addHandler(Collect(logging.WARNING))

def load(auto_class, folder):
    model, info = auto_class.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    modules.extend([type(model).__module__, type(model.config).__module__])
    assert not any(info.values()) and not model.training, info
    return model

for auto_class in (AutoModel, AutoModelForSemanticSegmentation):
    with torch.no_grad():
        tensors[auto_class.__name__] = load(auto_class, folder)(given["step"]["pixel_values"]).logits
model = load(AutoModel, folder)
model.save_pretrained(made / "again")
load(AutoModelForSemanticSegmentation, made / "again").save_pretrained(made / "and again")
model.train().bottleneck.memory.channels.copy_(given["memory"])
loss = model(**given["step"]).loss
loss.backward()
torch.optim.SGD(model.parameters(), lr=0.1).step()
model.save_pretrained(made / "tuned")
torch.save(tensors, made / "tensors.pt")
(made / "report.json").write_text(json.dumps({"messages": messages, "modules": modules, "loss": loss.item()}))
"""


def images(count, size=(50, 70), seed=0, dtype=torch.float32):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_labels(count, size, num_labels, seed=1):
    """Class indices with about a third of the pixels ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_labels, (count, *size), generator=generator)
    return labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.3, 255)


def difference(first, second):
    assert first.shape == second.shape
    return (first.detach().double() - second.detach().double()).abs().max().item()


def train_inputs(model, labeled=2, unlabeled=2, size=(50, 70), **kwargs):
    num_labels = model.config.num_labels
    logits = torch.randn(unlabeled, num_labels, 9, 11, generator=torch.Generator().manual_seed(2))
    return {
        "pixel_values": images(labeled, size),
        "labels": random_labels(labeled, size, num_labels),
        "unlabeled_pixel_values": images(unlabeled, size, seed=3),
        "unlabeled_logits": logits,
        **kwargs,
    }


def gradients(model, **inputs):
    """Of a loss that both halves take part in."""
    model.zero_grad()
    outputs = model(**inputs)
    (outputs.loss + (outputs.unlabeled_logits**2).mean()).backward()
    return outputs, {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def logits_of(model, pixel_values=None):
    assert not model.training
    return model(images(2) if pixel_values is None else pixel_values).logits


def fields_of(config) -> dict:
    """Of a configuration or its file. That of a loaded model knows the precision of the encoder, others may not."""
    fields = json.loads(config.read_text()) if isinstance(config, Path) else config.to_dict()
    fields.get("backbone_config", {}).pop("dtype", None)
    return fields


def assert_same_model(folder, other):
    assert fields_of(folder / "config.json") == fields_of(other / "config.json")
    assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def assert_complete(folder):
    """A saved folder holds weights, configuration and all the code that loads it, and nothing else."""
    _, model_class = SEGMENTERS[json.loads((folder / "config.json").read_text())["model_type"]]
    names = {path.name for path in code_files(model_class)}
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", *names}
    for path in code_files(model_class):
        assert (folder / path.name).read_bytes() == path.read_bytes()
    for reference in json.loads((folder / "config.json").read_text())["auto_map"].values():
        assert f"{reference.split('.')[0]}.py" in names


class SegmenterTester:
    """
    Attributes:
        logits_stride (`int`): pixels per logit, along each side.
        sizes (`list[tuple[int, int]]`): (height, width) of images, odd and not square ones among them.
        has_gradient_checkpointing (`bool`): whether the encoder has it.
        no_dropout (`dict`): fields of the configuration without which training is random.
        is_traced (`bool`): compiled and exported to ONNX each time; others where the environment asks for it.
        fixed_onnx_size (`tuple[int, int]`, *optional*): the one (height, width) to export for; None for any.
    """

    logits_stride = 4
    sizes = [(64, 64), (50, 71), (33, 90)]
    has_gradient_checkpointing = True
    no_dropout = NO_DROPOUT
    is_traced = True
    fixed_onnx_size = None

    def make_model(self, seed=0, **fields):
        """A tiny model in train mode with a crop of 64 pixels, 3 classes and these fields of the configuration."""
        raise NotImplementedError

    def make_traced(self):  # one with fewer layers, where there are several of a kind: each takes its time
        return self.make_model().eval()

    def skip_unless_traced(self):
        if not self.is_traced and not os.environ.get("ALLSPARK_TEST_ALL_ENCODERS"):
            pytest.skip("takes half a minute: set ALLSPARK_TEST_ALL_ENCODERS=1 to trace this encoder, too")

    # ---- The parts ----

    @pytest.mark.parametrize("size", [(64, 64), (50, 71)])
    def test_parts(self, size):
        model = self.make_model().eval()
        assert model.config.token_grid == model.config.token_grid_of(*model.config.crop_height_width)
        features = model.encode(images(2, size))
        grid = model.config.token_grid_of(*size)
        assert isinstance(features, tuple) and features[-1].shape == (2, model.config.bottleneck_channels, *grid)
        features = (*features[:-1], model.bottleneck(features[-1]))
        outputs = model(images(2, size), output_decoder_features=True)
        assert torch.equal(model.decode(features, images(2, size)), outputs.logits)
        assert torch.equal(model.decode_features(features, images(2, size)), outputs.decoder_features)
        assert model(images(2, size)).decoder_features is None

    def test_encoder_parameters_are_those_before_the_bottleneck(self):
        model = self.make_model().train()
        sum(maps.square().mean() for maps in model.encode(images(2))).backward()
        encoder = {id(parameter) for parameter in model.encoder_parameters()}
        reached = {id(parameter) for parameter in model.parameters() if parameter.grad is not None}
        assert reached and reached == encoder

    def test_perturbed_features_go_to_bottleneck_and_decoder(self):
        model = self.make_model(**self.no_dropout).train()
        seen = []

        def perturb(features):
            seen.append(features)
            return tuple(0 * maps for maps in features)

        inputs = train_inputs(model, 1, 2)
        outputs = model(**inputs, perturb=perturb, output_hidden_states=True, output_decoder_features=True)
        assert all(maps.shape[0] == 3 for maps in seen[0]) and outputs.decoder_features.shape[0] == 3
        assert all(maps.abs().max() > 0 for maps in outputs.hidden_states)  # as the encoder gave them
        assert difference(outputs.unlabeled_logits[0], outputs.unlabeled_logits[1]) <= 1e-6  # all the same
        unchanged = model.eval()(images(2), perturb=lambda features: features).logits
        assert difference(unchanged, logits_of(model)) <= 1e-5

    # ---- Training and inference ----

    @pytest.mark.parametrize("read_memory", [True, False])
    @pytest.mark.parametrize(("num_labels", "labeled", "unlabeled"), [(1, 1, 1), (2, 3, 2), (81, 1, 4)])
    def test_training_step(self, num_labels, labeled, unlabeled, read_memory):
        size = self.sizes[labeled % len(self.sizes)]
        model = self.make_model(num_labels=num_labels).train()
        outputs, grads = gradients(model, **train_inputs(model, labeled, unlabeled, size, read_memory=read_memory))
        height, width = (-(-side // self.logits_stride) for side in size)
        assert outputs.logits.shape == (labeled, num_labels, height, width)
        assert outputs.unlabeled_logits.shape == (unlabeled, num_labels, height, width)
        assert outputs.loss.isfinite()
        for name, grad in grads.items():
            assert grad is not None and grad.isfinite().all(), name
            # biases may cancel (before BatchNorm, of keys), weights may not
            assert grad.ndim == 1 or grad.abs().max() > 0, name
        assert model.bottleneck.memory.num_enqueued.sum() == model.config.bottleneck_channels * unlabeled
        assert model.bottleneck.memory.channels.isfinite().all()

    @pytest.mark.parametrize(
        "switches", [{"use_grouping": False}, {"use_grouping": False, "use_memory": False}, NO_BOTTLENECK], ids=str
    )
    def test_training_step_of_the_ablations(self, switches):
        model = self.make_model(**switches).train()
        _, grads = gradients(model, **train_inputs(model, 2, 3, self.sizes[-1], unlabeled_logits=None))
        assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
        if switches.get("use_cross_attention", True):
            memory, written = model.bottleneck.memory, [3 * model.config.bottleneck_channels]
            assert memory is None if "use_memory" in switches else memory.num_enqueued.tolist() == written
        else:
            assert model.bottleneck is None

    @pytest.mark.parametrize("num_labels", [1, 2, 81])
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
    def test_prediction_of_an_image_is_independent_of_its_batch(self, num_labels, dtype, tolerance):
        model = self.make_model(num_labels=num_labels).to(dtype).eval()
        batch = images(4, self.sizes[1], dtype=dtype)
        alone = torch.cat([logits_of(model, image[None]) for image in batch])
        assert difference(logits_of(model, batch), alone) <= tolerance
        assert difference(logits_of(model, batch[[3, 0]]), alone[[3, 0]]) <= tolerance
        model.config.mix_images_in_eval = True
        assert difference(logits_of(model, batch), alone) > 0.01
        assert difference(logits_of(model, batch[:1]), alone[:1]) <= tolerance

    def test_gradient_checkpointing_changes_nothing(self):
        if not self.has_gradient_checkpointing:
            pytest.skip("the encoder has no gradient checkpointing")
        results = []
        for checkpointing in (False, True):
            model = self.make_model().train()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # newer versions have other names for both
                if checkpointing:
                    model.gradient_checkpointing_enable()
                assert model.is_gradient_checkpointing == checkpointing
            torch.manual_seed(5)  # dropout and stochastic depth are on
            results.append((*gradients(model, **train_inputs(model, 2, 3)), model.bottleneck.memory))
        (plain, grads, memory), (checkpointed, recomputed, same_memory) = results
        assert plain.loss.item() == pytest.approx(checkpointed.loss.item(), abs=1e-7)
        assert all(difference(grads[name], recomputed[name]) <= 1e-6 for name in grads)
        assert memory.num_enqueued.sum() == 3 * model.config.bottleneck_channels  # once, not again in backward
        assert torch.equal(memory.num_enqueued, same_memory.num_enqueued)
        assert difference(memory.channels, same_memory.channels) == 0

    @pytest.mark.parametrize("read_memory", [True, False])
    def test_bfloat16_autocast_is_close(self, read_memory):
        model = self.make_model(**self.no_dropout, use_grouping=False).train()  # no choice that rounding could flip
        inputs = train_inputs(model, 2, 3, read_memory=read_memory, unlabeled_logits=None)
        start = {name: value.clone() for name, value in model.state_dict().items()}
        expected, full = gradients(model, **inputs)
        memory = model.bottleneck.memory.channels.clone()
        model.load_state_dict(start)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs, half = gradients(model, **inputs)
        scale = expected.logits.abs().max().item()
        assert 1e-6 < difference(outputs.logits, expected.logits) / scale < 0.05
        assert outputs.loss.item() == pytest.approx(expected.loss.item(), rel=0.02)
        assert model.bottleneck.memory.channels.dtype == torch.float32
        assert difference(model.bottleneck.memory.channels, memory) < 0.1
        for name, grad in half.items():
            assert difference(grad, full[name]) < 0.1 * max(full[name].norm().item(), 0.05), name

    def test_compiled_inference_in_one_graph(self):
        """`eager` traces like `torch.compile`'s default, without a minute of C++."""
        self.skip_unless_traced()
        model = self.make_traced()
        expected = logits_of(model)  # the first call installs transformers' hooks, which no graph can hold
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert difference(logits_of(compiled), expected) <= 1e-5

    def exported(self, tmp_path_factory):
        """A model and its ONNX file. Tracing takes long: a tester may give what other tests have exported."""
        from allspark_hf.export.onnx import export_graph

        model, path = self.make_traced(), tmp_path_factory.mktemp("onnx") / "model.onnx"
        export_graph(model, path, self.fixed_onnx_size)
        return model, path

    def test_onnx(self, tmp_path_factory):
        for name in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(name)
        self.skip_unless_traced()
        from allspark_hf.export.onnx import OnnxSegmenter, compare_logits, sizes_to_compare

        model, path = self.exported(tmp_path_factory)
        segmenter = OnnxSegmenter(path, model.config)
        assert segmenter.fixed_size == self.fixed_onnx_size
        found = compare_logits(model, segmenter, sizes_to_compare(model.config, self.fixed_onnx_size))
        print(f"\n{type(self).__name__}: {max(one.max_difference for one in found):.1e}")
        assert all(one.max_difference < 1e-4 for one in found), found

    # ---- Saving and loading ----

    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"num_labels": 1},
            {"num_labels": 81, "memory_size": 0.5},
            {"use_grouping": False},
            {"use_grouping": False, "use_memory": False},
            NO_BOTTLENECK,
        ],
        ids=str,
    )
    def test_a_trained_model_is_saved_and_loaded(self, tmp_path, transformers_warnings, fields):
        model = self.make_model(**fields).train()
        gradients(model, **train_inputs(model))
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.save_pretrained(tmp_path / "saved")
            loaded, info = type(model).from_pretrained(tmp_path / "saved", output_loading_info=True)
        assert not transformers_warnings and not [str(warning.message) for warning in caught]
        assert not any(info.values())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:
            names = set(file.keys())
        assert names == {name for name in before if not name.startswith("bottleneck.memory.")}
        assert all(torch.equal(loaded.state_dict()[name], before[name]) for name in names)
        # The bits are the same, but weights from a file lie at odd addresses.
        assert difference(logits_of(loaded), logits_of(model.eval())) <= 1e-5
        if loaded.bottleneck is not None and loaded.bottleneck.memory is not None:
            assert model.bottleneck.memory.num_enqueued.sum() == 2 * model.config.bottleneck_channels
            memory = loaded.bottleneck.memory
            assert not memory.num_enqueued.any() and memory.channels.std().item() == pytest.approx(1, abs=0.15)

    @pytest.mark.parametrize("auto_class", AUTO_CLASSES)
    def test_auto_classes(self, tmp_path, transformers_warnings, auto_class):
        saved = self.make_model().eval()
        saved.save_pretrained(tmp_path / "saved")
        assert_complete(tmp_path / "saved")
        direct = type(saved).from_pretrained(tmp_path / "saved")
        for options in ({}, {"trust_remote_code": True}):  # the installed class, in both cases
            model, info = auto_class.from_pretrained(tmp_path / "saved", output_loading_info=True, **options)
            assert type(model) is type(saved) and not any(info.values())
            assert torch.equal(logits_of(model), logits_of(direct))
            config = AutoConfig.from_pretrained(tmp_path / "saved", **options)
            assert type(config) is type(saved.config) and fields_of(config) == fields_of(direct.config)
        model.save_pretrained(tmp_path / "again")
        assert_complete(tmp_path / "again")
        assert_same_model(tmp_path / "again", tmp_path / "saved")
        assert not transformers_warnings

    def test_from_config(self):
        expected = self.make_model()
        for auto_class in AUTO_CLASSES:
            models = []
            for make in (auto_class.from_config, type(expected)):
                torch.manual_seed(5)
                models.append(make(expected.config).eval())
            assert type(models[0]) is type(expected)
            assert torch.equal(*map(logits_of, models))

    def test_remote_code(self, tmp_path):
        """In a Python without this package, the code in the folder loads, trains and saves as the package does."""
        folder, made = tmp_path / "run_0.5", tmp_path / "made"  # a dot is no part of a module's name
        self.make_model(**self.no_dropout).save_pretrained(folder)
        model = AutoModel.from_pretrained(folder)
        step = train_inputs(model)
        memory = torch.randn(model.bottleneck.memory.channels.shape, generator=torch.Generator().manual_seed(9))
        made.mkdir()
        torch.save({"step": step, "memory": memory}, made / "given.pt")
        run_without_package(tmp_path, REMOTE, folder, made)

        report = json.loads((made / "report.json").read_text())
        assert report["messages"] == []
        assert all(module.startswith("transformers_modules.") for module in report["modules"])
        for logits in torch.load(made / "tensors.pt").values():
            assert torch.equal(logits, logits_of(model, step["pixel_values"]))
        model.train().bottleneck.memory.channels.copy_(memory)
        loss = model(**step).loss
        loss.backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        assert report["loss"] == loss.item()
        after, before = model.state_dict(), load_file(folder / "model.safetensors")
        for name, value in load_file(made / "tuned" / "model.safetensors").items():
            assert torch.equal(value, after[name]), name
        assert sum(not torch.equal(after[name], before[name]) for name in before) > len(before) / 2
        for name in ("again", "and again", "tuned"):
            assert_complete(made / name)
        for name in ("again", "and again"):
            assert_same_model(made / name, folder)
