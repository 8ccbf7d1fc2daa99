"""The method `memory_contrastive` piece by piece, against the authors' code."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from parity import Reference, assert_near
from torch import nn
from torch.nn import functional as F

from allspark_hf import AllSparkTrainingArguments
from allspark_hf.methods import PixelCounts
from allspark_hf.methods.contrast import heads as pixel_heads
from allspark_hf.methods.contrast import pixel_contrast
from allspark_hf.methods.contrast.heads import ROWS_PER_BLOCK, ClassMLP
from allspark_hf.methods.contrast.loss import contrastive_loss
from allspark_hf.methods.contrast.memory import PixelMemory, rows_per_image
from allspark_hf.methods.memory_contrastive import MemoryContrastive


TOLERANCE = 1e-12
SELECTOR = "contrastive_class_selector_"
MEMORY_SELECTOR = "contrastive_class_selector_memory"
# Names in the authors' state dict, and ours, in which the first axis is the class.
NAMES = {
    "0.weight": "hidden_weight",
    "0.bias": "hidden_bias",
    "1.weight": "norm_weight",
    "1.bias": "norm_bias",
    "1.running_mean": "running_mean",
    "1.running_var": "running_var",
    "1.num_batches_tracked": "num_batches_tracked",
    "3.weight": "output_weight",
    "3.bias": "output_bias",
}


def of_class(mlp: ClassMLP, prefix: str, index: int) -> dict[str, torch.Tensor]:
    """Views of one class's weights and buffers, by the authors' names."""
    state = mlp.state_dict(keep_vars=True)
    return {f"{prefix}{theirs}": state[ours].data[index] for theirs, ours in NAMES.items()}


def gradients_of_class(mlp: ClassMLP, prefix: str, index: int) -> dict[str, torch.Tensor]:
    parameters = dict(mlp.named_parameters())
    return {f"{prefix}{theirs}": parameters[ours].grad[index] for theirs, ours in NAMES.items() if ours in parameters}


def load_selectors(stored, family: str) -> ClassMLP:
    prefix = f"sel_init.{family}"
    number = next(index for index in itertools.count() if f"{prefix}{index}.0.bias" not in stored)
    width = stored[f"{prefix}0.0.bias"].shape[0]
    selectors = ClassMLP(number, width, width, 1, slope=0.2).double()
    for index in range(number):
        for name, value in of_class(selectors, f"{prefix}{index}.", index).items():
            value.copy_(stored[name])
    return selectors


def load_memory(stored, prefix: str, num_classes: int, size: int, quota: int, width: int) -> PixelMemory:
    memory = PixelMemory(num_classes, size, quota, width).double()
    for index in range(num_classes):
        rows = stored.get(f"{prefix}.class{index}", torch.zeros(0, width))
        memory.rows[index, : len(rows)], memory.fill[index] = rows, len(rows)
    return memory


def check_memory(memory: PixelMemory, stored, prefix: str):
    for index, fill in enumerate(memory.fill.tolist()):
        name = f"{prefix}.class{index}"
        assert (fill > 0) == (name in stored), name
        if fill:
            assert_near(memory.rows[index, :fill], stored[name], TOLERANCE, name)


@pytest.fixture(scope="module")
def reference(parity_root):
    return Reference(parity_root / "memory_contrastive")


@pytest.fixture(scope="module")
def description(reference):
    return reference.description


@pytest.fixture(scope="module")
def load(reference):
    return reference.load


# ---- a, a2 ----


def test_rows_per_image(description):
    for row in description["per_image_table_memory256"]:
        inflow = 21 / 3 if row["dataset"] == "pascal_voc" else 1
        assert rows_per_image(256, row["labeled"], inflow) == row["per_image"], row


@pytest.fixture(params=[ROWS_PER_BLOCK, 3])
def rows_per_block(request, monkeypatch):
    """A class of more rows than a block has several."""
    monkeypatch.setattr(pixel_heads, "ROWS_PER_BLOCK", request.param)


@pytest.mark.parametrize("name", ["a_memory_update", "a2_first_insert_not_truncated"])
def test_memory_update(load, description, rows_per_block, name):
    stored, sizes = load(name), description[name]
    selectors = load_selectors(stored, SELECTOR)
    width = stored["step0.features"].shape[1]
    memory = PixelMemory(selectors.num_classes, sizes["memory_per_class"], sizes["elements_per_class"], width).double()
    passes = []
    selectors.register_forward_hook(lambda module, given, scores: passes.append((*given[1:], scores.squeeze(-1))))
    for step in range(sum(name.endswith(".features") for name in stored)):
        memory.update(stored[f"step{step}.features"], stored[f"step{step}.labels"].long(), selectors)
        check_memory(memory, stored, f"step{step}.memory")
        ranked, classes, scores = passes.pop()
        for index in range(selectors.num_classes if name == "a_memory_update" else 0):
            found, key = scores[(classes == index)[:, None] & ranked], f"step{step}.selector_logit.class{index}"
            assert (len(found) > 0) == (key in stored), key
            if key in stored:
                assert_near(found, stored[key].flatten(), TOLERANCE, key)
    for index in range(selectors.num_classes):
        for key, value in of_class(selectors, f"sel_final.{SELECTOR}{index}.", index).items():
            if key in stored:
                assert_near(value, stored[key], TOLERANCE, key)


# ---- b ----


@pytest.mark.parametrize("tag", ["partial", "full"])
@pytest.mark.parametrize("scored", [False, True], ids=["published", "scored_memory"])
def test_contrastive_loss(load, rows_per_block, tag, scored):
    stored = load("b_contrastive_loss")
    selectors, memory_selectors = load_selectors(stored, SELECTOR), load_selectors(stored, MEMORY_SELECTOR)
    num_classes, width = selectors.num_classes, stored["features"].shape[1]
    size = max(len(value) for name, value in stored.items() if name.startswith(f"memory_{tag}."))
    memory = load_memory(stored, f"memory_{tag}", num_classes, size, 1, width)
    features = stored["features"].clone().requires_grad_()
    loss = contrastive_loss(features, stored["labels"].long(), memory, selectors, memory_selectors if scored else None)
    loss.backward()
    families = {SELECTOR: selectors}
    if scored:
        families[MEMORY_SELECTOR] = memory_selectors  # their statistics are those of the authors' pass
        assert_near(loss, stored[f"{tag}.loss_memory_weights_as_intended_OWN"], TOLERANCE, "loss")
    else:
        assert_near(loss, stored[f"{tag}.loss"], TOLERANCE, "loss")
        assert_near(features.grad, stored[f"{tag}.grad_features"], TOLERANCE, "gradient of the features")
        for index in range(num_classes):
            for name, gradient in gradients_of_class(selectors, f"{tag}.grad.{SELECTOR}{index}.", index).items():
                assert_near(gradient, stored.get(name, torch.zeros_like(gradient)), TOLERANCE, name)
    for family, mlp in families.items():
        for index in range(num_classes):
            for name, value in of_class(mlp, f"{tag}.after.{family}{index}.", index).items():
                if name in stored:
                    assert_near(value, stored[name], TOLERANCE, name)


# ---- c1 ----


class StandIn(nn.Module):
    """The tiny network of the fixture; its logits have the size of the images, as those of a DPT model."""

    def __init__(self, weights: dict[str, torch.Tensor], ignore_index: int):
        super().__init__()
        hidden, features, num_labels = (len(weights[f"{name}.weight"]) for name in ("conv1", "conv2", "classifier"))
        self.conv1 = nn.Conv2d(3, hidden, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, features, kernel_size=3, stride=2, padding=1)
        self.classifier = nn.Conv2d(features, num_labels, kernel_size=1)
        self.config = SimpleNamespace(
            num_labels=num_labels, decoder_hidden_size=features, semantic_loss_ignore_index=ignore_index
        )
        self.dtype = torch.float64
        self.double()

    def forward(self, pixel_values, output_decoder_features):
        features = F.relu(self.conv2(F.relu(self.bn1(self.conv1(pixel_values)))))
        size = pixel_values.shape[2:]
        logits = F.interpolate(self.classifier(features), size=size, mode="bilinear", align_corners=True)
        return SimpleNamespace(logits=logits, decoder_features=features)


def heads_by_name(heads: nn.ModuleDict) -> dict[str, tuple[ClassMLP, int]]:
    """The authors' prefix of each head, and where it is here."""
    found = {"projection_head.": (heads["projection"], 0), "prediction_head.": (heads["prediction"], 0)}
    selectors = heads["selectors"]
    return found | {f"{SELECTOR}{index}.": (selectors, index) for index in range(selectors.num_classes)}


def state_by_name(model: nn.Module, heads: nn.ModuleDict) -> dict[str, torch.Tensor]:
    """Weights and buffers by the authors' names, without copying them."""
    state = {name: value.data for name, value in model.state_dict(keep_vars=True).items() if "method_" not in name}
    for prefix, (head, index) in heads_by_name(heads).items():
        state |= of_class(head, prefix, index)
    return state


def gradients_by_name(model: nn.Module, heads: nn.ModuleDict) -> dict[str, torch.Tensor]:
    """Of what has taken part: a head that has not rests in torch since 2.0, and has a zero gradient here, for DDP."""
    found = {name: value.grad for name, value in model.named_parameters() if "method_" not in name}
    for prefix, (head, index) in heads_by_name(heads).items():
        gradients = gradients_of_class(head, prefix, index)
        found |= gradients if any(gradient.any() for gradient in gradients.values()) else {}
    return found


def check_state(actual: dict[str, torch.Tensor], stored, prefix: str):
    """Memory selectors are left out: the method has none, as nothing but their own weight decay moves them."""
    names = {name.removeprefix(prefix) for name in stored if name.startswith(prefix)}
    names = {name for name in names if not name.startswith(MEMORY_SELECTOR)}
    assert names and names <= actual.keys()
    for name in names:
        assert_near(actual[name], stored[f"{prefix}{name}"], TOLERANCE, f"{prefix}{name}")


def part_of(stored, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}


@pytest.fixture
def begun(load, description, monkeypatch, tmp_path):
    """Model, method and optimizer as they stood before the first stored step, and that step's number."""
    stored, given = load("c1_full_steps"), description["c1_full_steps"]
    first = min(int(name[4:].partition(".")[0]) for name in stored if name.startswith("step"))
    weights = part_of(stored, f"begin{first}.student.")
    monkeypatch.setattr(pixel_contrast, "WIDTH", len(weights["projection_head.3.bias"]))
    monkeypatch.setattr(pixel_contrast, "MEMORY_ROWS", given["memory_per_class"])
    args = AllSparkTrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        method="memory_contrastive",
        per_device_train_batch_size=given["batch_labeled"],
        per_device_unlabeled_batch_size=given["batch_unlabeled"],
        contrast_start=2000,
        balance_classes=True,
    )
    model, method = StandIn(weights, given["ignore"]), MemoryContrastive(args, given["ignore"])
    method.num_images = given["labeled_images"], given["data_set_images"] - given["labeled_images"]
    method.num_updates, method.updates = given["iterations_total"], first
    method.attach(model, torch.device("cpu"))
    state = state_by_name(model, method.built)
    for network, name in ((state, "student"), (state_by_name(method.teacher.model, method.teacher.heads), "teacher")):
        for key, value in network.items():
            value.copy_(stored[f"begin{first}.{name}.{key}"])
    memory = method.contrast.memory
    assert memory.quota == given["elements_per_class"]
    filled = load_memory(stored, f"begin{first}.memory", *memory.rows.shape[:2], 1, memory.rows.shape[2])
    memory.load_state_dict(filled.state_dict())
    method.balance.labeled.copy_(stored[f"begin{first}.balance.labeled"])
    method.balance.unlabeled.copy_(stored[f"begin{first}.balance.unlabeled"])
    method.balance.seen.fill_(given[f"begin{first}"]["balance_iter"])
    parameters = {name: nn.Parameter(state[name]) for name in [*gradient_names(model), *head_names(method.built)]}
    optimizer = torch.optim.SGD(
        parameters.values(), lr=given["lr0"], momentum=given["momentum"], weight_decay=given["weight_decay"]
    )
    for name, momentum in part_of(stored, f"begin{first}.momentum.").items():
        if name in parameters:
            optimizer.state[parameters[name]]["momentum_buffer"] = momentum.clone()
    return SimpleNamespace(model=model, method=method, parameters=parameters, optimizer=optimizer, first=first)


def gradient_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters() if "method_" not in name]


def head_names(heads: nn.ModuleDict) -> list[str]:
    weights = [theirs for theirs, ours in NAMES.items() if ours.endswith(("weight", "bias"))]
    return [f"{prefix}{name}" for prefix in heads_by_name(heads) for name in weights]


def test_full_steps(load, description, begun):
    stored, given = load("c1_full_steps"), description["c1_full_steps"]
    model, method, steps = begun.model, begun.method, given["iterations_total"]
    mean = torch.tensor([73.15835921, 82.90891754, 72.39239876], dtype=torch.float64)[:, None, None]
    update = begun.first
    while f"step{update}.images" in stored:
        step = part_of(stored, f"step{update}.")
        predicted = method.teacher.predict((step["unlabeled_images"].double() - mean) / 255)
        assert torch.equal(predicted.labels, step["pseudo_label"].long())
        assert_near(predicted.confidence, step["max_probs"], TOLERANCE, f"confidence of step {update}")
        weights = method.batch_weights(step["labels"].long(), predicted.labels)
        expected = step["class_weights"]
        assert_near(torch.ones_like(expected) if weights is None else weights, expected, TOLERANCE, "class weights")
        labels, strong_labels = step["labels_aug"].long(), step["joined_pseudolabels"].long()
        labeled = (step["images_aug"] - mean) / 255, labels
        strong = (step["joined_unlabeled"] - mean) / 255, strong_labels, step["joined_maxprobs"]
        pixels = PixelCounts((labels != given["ignore"]).sum().double(), torch.tensor([strong_labels.numel() / 2]))
        loss, terms = method.losses(model, labeled, strong, weights, pixels, 0)
        names = {"loss_x": "labeled_loss", "loss_u": "loss_ce_unlabeled", "loss_entropy": "entropy"}
        names |= {"loss_contrast_x": "loss_contr_labeled", "loss_contrast_u": "loss_contr_unlabeled"}
        for ours, theirs in names.items():
            assert (ours in terms) == (f"loss.{theirs}" in step)
            if ours in terms:
                assert_near(terms[ours], step[f"loss.{theirs}"], TOLERANCE, f"{ours} of step {update}")
        assert_near(loss, step["loss.loss"], TOLERANCE, f"loss of step {update}")
        check_memory(method.contrast.memory, stored, f"step{update}.memory_after")

        model.zero_grad()
        loss.backward()
        gradients = gradients_by_name(model, method.built)
        check_state(gradients, stored, f"step{update}.grad.")
        for name, parameter in begun.parameters.items():
            parameter.grad = gradients.get(name)
        for group in begun.optimizer.param_groups:
            group["lr"] = given["lr0"] * (1 - update / steps) ** 0.9
        begun.optimizer.step()
        update += 1
        method.updates = update
        method.after_update(model, update)
        check_state(state_by_name(model, method.built), stored, f"step{update - 1}.student_after.")
        teacher = state_by_name(method.teacher.model, method.teacher.heads)
        check_state(teacher, stored, f"step{update - 1}.teacher_after.")
    assert update > begun.first + 1
