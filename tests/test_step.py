"""The training step around the model: the pseudo-label pass, precision, memory format, optimizers, compilation."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TWO_STAGES, tiny_model
from parity import predict_full_size
from run_training import make_trainer, result_of
from test_backbone import tiny_backbone_model
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from allspark_hf import AllSparkConfig, AllSparkTrainingArguments
from allspark_hf.data.device_photometry import finish_on_device, pack_photometry
from allspark_hf.data.photometry import draw_photometry
from allspark_hf.methods import METHODS, MixedBatch, PixelCounts
from allspark_hf.methods.contrast.augment import draw_strong, draw_weak
from allspark_hf.methods.pseudo_labels import pseudo_label_pass
from allspark_hf.models import upsampling
from allspark_hf.models.bottleneck_allspark import group_channels
from allspark_hf.training.processes import UNLABELED_PREFIX


PLAIN = AllSparkConfig.plain_segformer_switches()
PUBLISHED = [name for name in METHODS if name != "sample"]  # which tests/sample_method.py registers


def images(number, size, seed=0):
    return torch.randn(number, 3, *size, generator=torch.Generator().manual_seed(seed))


def stacked_draws(draw, size, num_labels, seed=0):
    """What a view's `draw` gives of two images."""
    both = [draw(size, num_labels, np.random.default_rng(seed + number)) for number in (0, 1)]
    return {name: torch.from_numpy(np.stack([one[name] for one in both])) for name in both[0]}


def make_batch(num_labels=3, size=(64, 64)):
    labels = torch.randint(num_labels, (2, *size), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, *size, dtype=torch.bool)
    mask[0, 40:] = False
    strong = {f"unlabeled_pixel_values_strong_{view}": images(2, size, 3 + view) for view in (1, 2)}
    boxes = {f"unlabeled_cutmix_box_strong_{view}": torch.tensor([[0, 0, 0, 0], [3, 5, 40, 60]]) for view in (1, 2)}
    drawn = stacked_draws(draw_weak, size, num_labels)
    for view in (1, 2):
        of_view = stacked_draws(draw_strong, size, num_labels, seed=2 * view)
        drawn |= {f"unlabeled_{name}_strong_{view}": value for name, value in of_view.items()}
    return MixedBatch(
        pixel_values=images(2, size, 2),
        labels=labels,
        unlabeled_pixel_values=images(2, size, 3),
        unlabeled_pixel_mask=mask,
        unlabeled_channel_bits_strong_2=torch.randint(256, (2, 512)).byte(),
        **strong,
        **boxes,
        **drawn,
    )


def make_method(name, folder, model, **kwargs):
    settings = {"output_dir": str(folder), "use_cpu": True, "eval_strategy": "no", "memory_warmup_epochs": 0}
    method = METHODS[name](AllSparkTrainingArguments(method=name, **settings, **kwargs), 255)
    method.attach(model, torch.device("cpu"))
    method.num_updates = 9
    return method


def take_step(model, method):
    batch = make_batch()
    pixels = PixelCounts(torch.tensor(batch["labels"].numel()), method.count_unlabeled(batch))
    return method.step(model, batch, pixels, epoch=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_without_a_labeled_pixel_has_loss_0(tmp_path, dtype):
    method = make_method("supervised", tmp_path, tiny_model(**PLAIN))
    logits, labels = images(1, (8, 8)).to(dtype), torch.full((1, 8, 8), 255)
    loss, used = method.labeled_loss(logits, labels, PixelCounts(torch.zeros(()), torch.zeros(0)))
    assert loss == 0 and used == 0


# ---- Pseudo-label pass ----


@pytest.mark.parametrize(("num_labels", "number", "size"), [(2, 3, (65, 101)), (3, 1, (64, 64)), (81, 5, (67, 93))])
@pytest.mark.parametrize("at_a_time", [1, 2, 99])
def test_the_pass_is_that_of_the_whole_full_resolution(monkeypatch, num_labels, number, size, at_a_time):
    monkeypatch.setattr(upsampling, "VALUES_AT_A_TIME", at_a_time * num_labels * size[0] * size[1])
    model, pixel_values = tiny_model(num_labels=num_labels), images(number, size)
    full = predict_full_size(model, pixel_values)
    predicted = pseudo_label_pass(model, pixel_values)
    assert torch.equal(predicted.labels, full.argmax(1)) and predicted.labels.unique().numel() > 1
    confidence = full[:, :, ::4, ::4].softmax(1).amax(1)  # whose last bit depends on how threads cut the batch
    assert (predicted.confidence - confidence).abs().max() < 1e-6
    grid = (-(-size[0] // 32), -(-size[1] // 32))
    assert torch.equal(predicted.logits, F.interpolate(full, size=grid, mode="bilinear", align_corners=False))
    assert model.training


@pytest.mark.parametrize("source", ["logits", "probabilities"])
@pytest.mark.parametrize("similarity", ["cosine", "instance_norm"])
def test_channels_are_grouped_as_from_the_full_resolution(source, similarity):
    model, pixel_values = tiny_model(num_labels=7, grouping_source=source), images(2, (96, 130))
    full, grid = predict_full_size(model, pixel_values), (3, 5)
    tokens = torch.randn(2, 15, 32, generator=torch.Generator().manual_seed(0))
    expected = group_channels(tokens, full, grid, similarity, source)
    assert expected.unique().numel() > 3
    on_grid = pseudo_label_pass(model, pixel_values).logits
    assert on_grid.shape == (2, 7, 3, 5)
    assert torch.equal(group_channels(tokens, on_grid, grid, similarity, source), expected)
    if source == "probabilities":
        probabilities = F.interpolate(full.softmax(1), size=grid, mode="bilinear", align_corners=False)
        assert torch.allclose(on_grid.softmax(1), probabilities, atol=1e-6)


def test_channels_are_grouped_by_the_places_of_their_tokens_where_the_model_pads():
    model, ramp = tiny_backbone_model("swin"), torch.arange(70.0).expand(1, 3, 65, 70)
    model.forward = lambda pixel_values: SimpleNamespace(logits=ramp)
    logits = pseudo_label_pass(model, images(1, (65, 70))).logits
    assert logits[0, 0].tolist() == [[15.5, 47.5, 69]] * 3  # a token spans 32 pixels


@pytest.mark.parametrize("similarity", ["cosine", "instance_norm"])
def test_channels_are_grouped_in_float32_under_autocast(similarity):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 36, 64, generator=generator)
    maps = torch.randn(2, 1, 6, 6, generator=generator) + 0.05 * torch.randn(2, 21, 6, 6, generator=generator)
    expected = group_channels(tokens, maps, (6, 6), similarity)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(group_channels(tokens, maps, (6, 6), similarity), expected)


def test_a_model_that_does_not_group_gets_no_logits():
    for switches in (PLAIN, {"use_grouping": False}, {"use_memory": False, "use_grouping": False}):
        assert pseudo_label_pass(tiny_model(**switches), images(1, (64, 64))).logits is None


@pytest.mark.parametrize("sharded", [False, True])
def test_inference_mode_is_left_with_ordinary_tensors(sharded):
    """What a sharding wrapper gathers in inference mode could not be trained on, so there it is no_grad."""
    model, seen = tiny_model(), []
    if sharded:
        model.__class__ = type("Sharded", (FSDPModule, type(model)), {})
    model.decode_head.register_forward_hook(lambda *_: seen.append(torch.is_inference_mode_enabled()))
    predicted = pseudo_label_pass(model, images(2, (64, 64)))
    assert seen == [not sharded]
    for tensor in (predicted.labels, predicted.confidence, predicted.logits):
        assert not tensor.is_inference() and not tensor.requires_grad


def test_a_cast_of_the_weights_is_not_kept_from_the_pass(tmp_path):
    """An autocast around the whole step keeps casts of the weights: those of inference mode have no gradient."""
    model = tiny_model().train()
    with torch.autocast("cpu", torch.bfloat16):
        step = take_step(model, make_method("allspark", tmp_path, model))
    step.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


class NoSync(TorchDispatchMode):
    """Fails at what makes a host wait for its device: a number read, or a shape that depends on values."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "repeat_interleave", "equal")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.WAITING and not name.startswith("_unique"), name
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        assert not any(index is not None and index.dtype == torch.bool for index in indices), f"{name} by a mask"
        return function(*args, **(kwargs or {}))


class NoFloat64(TorchDispatchMode):
    """Fails at float64, which Apple's GPUs (MPS) do not have."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        assert getattr(result, "dtype", None) != torch.float64, function
        return result


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("labeled_loss", ["cross_entropy", "ohem"])
def test_a_step_neither_waits_for_the_device_nor_needs_float64(tmp_path, name, labeled_loss):
    model = tiny_model(**({} if METHODS[name].needs_bottleneck else PLAIN)).train()
    settings = {"labeled_loss": labeled_loss, "ohem_min_kept": 9, "confidence_threshold": 0.2}
    settings |= {"memory_confidence": 0.2, "memory_weights": "scored", "balance_classes": True}
    method = make_method(name, tmp_path, model, **settings)
    method.updates = 5  # memory_contrastive: its contrast has begun
    with NoSync(), NoFloat64():
        take_step(model, method).loss.backward()
        with torch.no_grad():
            method.after_update(model, 1)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoSync():
        torch.ones(()).item()


@pytest.mark.parametrize("encoder", ["dinov2", "resnet"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_method_trains_a_vit_and_a_cnn(tmp_path, name, encoder):
    model = tiny_backbone_model(encoder, **({} if METHODS[name].needs_bottleneck else PLAIN)).train()
    method = make_method(name, tmp_path, model, confidence_threshold=0.2, memory_confidence=0.2)
    method.updates = 5  # memory_contrastive: its contrast has begun
    step = take_step(model, method)
    step.loss.backward()
    trained = [(one, parameter) for one, parameter in model.named_parameters() if parameter.requires_grad]
    untouched = [one for one, parameter in trained if parameter.grad is None or not parameter.grad.isfinite().all()]
    assert untouched == [one for one, _ in trained if is_unread(one, name)]
    if name.endswith(("match", "_v2")):
        own = step.terms.get("loss_self", step.terms["loss_x"])
        expected = ((step.terms["loss_x"] + own) / 2 + step.terms["loss_u"]) / 2
        assert step.terms["loss_u"] > 0 and step.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_host_never_waits_in_the_augmentation():
    photometry = torch.stack([pack_photometry(draw_photometry(np.random.default_rng(seed))) for seed in range(2)])
    batch = {"pixel_values": torch.randint(256, (2, 3, 9, 7)).byte(), "photometry": photometry}
    with NoSync():
        finish_on_device(batch, (0.5,) * 3, (0.5,) * 3)


# ---- What TrainingArguments offer ----


def is_unread(parameter: str, method: str) -> bool:
    """Whether no step of the method reads this parameter."""
    return parameter.startswith(UNLABELED_PREFIX) and not METHODS[method].trains_unlabeled_branch


def train(folder, method="allspark", model=None, **kwargs):
    model = tiny_model(**({} if METHODS[method].needs_bottleneck else PLAIN)) if model is None else model
    settings = {"max_steps": 2, "memory_warmup_epochs": 0, "seed": 1, **kwargs}
    trainer = make_trainer(model, output_dir=str(folder), method=method, **settings)
    trainer.train(resume_from_checkpoint=kwargs.get("resume_from_checkpoint"))
    return trainer


def step_losses(trainer):
    return [entry["loss"] for entry in result_of(trainer)["losses"]]


OPTIONS = [
    ({"channels_last": True}, 1e-4),
    ({"bf16": True, "channels_last": True, "augment_on_device": True}, 0.02),
]


@pytest.mark.parametrize("method", PUBLISHED)
def test_precision_and_memory_format_train_every_parameter_to_the_same_losses(tmp_path, method):
    expected = step_losses(train(tmp_path, method))
    for options, tolerance in OPTIONS:
        before = tiny_model(**({} if METHODS[method].needs_bottleneck else PLAIN)).state_dict()
        trainer = train(tmp_path, method, **options)
        assert step_losses(trainer) == pytest.approx(expected, rel=tolerance), options
        for name, parameter in trainer.model.named_parameters():
            if name not in before:  # a head of the method's
                continue
            silent = "linear_projections" in name and name.endswith("bias")  # BatchNorm removes these constants
            assert silent or torch.equal(parameter, before[name]) == is_unread(name, method), (options, name)
            assert parameter.dtype == torch.float32 and parameter.isfinite().all()


@pytest.mark.parametrize("method", ["fixmatch", "unimatch_v2", "memory_contrastive", "allspark_unimatch"])
def test_a_teacher_predicts_in_mixed_precision_as_the_student_does(tmp_path, method):
    model = tiny_model(**({} if METHODS[method].needs_bottleneck else PLAIN))
    settings = {"output_dir": str(tmp_path), "method": method, "max_steps": 1, "bf16": True}
    trainer = make_trainer(model, **settings, eval_strategy="steps", eval_steps=1)
    teacher, dtypes = trainer.method.labeling_model(model), {}
    for part in (teacher, model):
        found = dtypes.setdefault(part, set())
        part.decode_head.linear_fuse.register_forward_hook(lambda *given, found=found: found.add(given[2].dtype))
    trainer.train()
    assert dtypes == {teacher: {torch.bfloat16}, model: {torch.bfloat16}} and teacher.dtype == torch.float32


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_fused_optimizers_are_used_and_equal(tmp_path, optim):
    fused = train(tmp_path, optim="adamw_torch_fused" if optim == "adamw_torch" else optim)
    assert all(group["fused"] for group in fused.optimizer.param_groups)
    settings = {"max_steps": 2, "memory_warmup_epochs": 0, "seed": 1, "output_dir": str(tmp_path)}
    plain = make_trainer(tiny_model(), **settings, optim=optim)
    for group in plain.create_optimizer().param_groups:
        group["fused"] = False
    plain.train()
    assert step_losses(plain) == pytest.approx(step_losses(fused), rel=1e-6)
    for name, value in fused.model.named_parameters():
        if optim == "sgd":
            assert torch.equal(plain.model.get_parameter(name), value), name
        elif not name.endswith("bias"):  # some have a gradient of rounding noise alone, which AdamW makes large
            assert torch.allclose(plain.model.get_parameter(name), value, rtol=1e-4, atol=1e-5), name


def test_channels_last_is_saved_and_resumed_to_the_bit(tmp_path):
    settings = {"channels_last": True, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = train(tmp_path, **settings)
    checkpoint = str(tmp_path / "checkpoint-2")
    resumed = train(tmp_path, model=tiny_model(seed=5), **settings, resume_from_checkpoint=checkpoint)
    for trainer in (whole, resumed):
        weight = trainer.model.segformer.stages[1].patch_embeddings.proj.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_images_are_channels_last_where_asked(tmp_path):
    seen = []
    for channels_last in (False, True):
        model = tiny_model()
        model.segformer.register_forward_pre_hook(lambda module, args, kwargs=None: seen.append(args[0]))
        train(tmp_path, model=model, channels_last=channels_last, max_steps=1)
    assert [image.is_contiguous(memory_format=torch.channels_last) for image in seen] == [False] * 2 + [True] * 2


def test_compiled_training_has_the_same_losses(tmp_path, monkeypatch):
    """With the backend that traces and differentiates, but needs no C++ compiler."""
    expected = step_losses(train(tmp_path, model=tiny_model(**TWO_STAGES)))
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")  # what transformers sets is undone afterwards
    trainer = train(tmp_path, model=tiny_model(**TWO_STAGES), torch_compile=True, torch_compile_backend="aot_eager")
    assert step_losses(trainer) == pytest.approx(expected, rel=1e-3)


def test_the_log_has_means_of_the_finite_values_since_the_last_entry(tmp_path):
    """Of this training alone, and with room for no more than a sum and a count."""
    values = [{"own": 7.0}] * 4 + [{"own": 1.0, "other": torch.inf}, {"own": torch.nan}, {"own": 2.0}, {"seldom": 3.0}]
    trainer = make_trainer(tiny_model(**PLAIN), output_dir=str(tmp_path), method="supervised", max_steps=4)
    step, given = trainer.method.step, iter(values)

    def with_terms(*args, **kwargs):
        losses = step(*args, **kwargs)
        losses.terms |= {name: torch.tensor(value) for name, value in next(given).items()}
        return losses

    trainer.method.step = with_terms
    trainer.args.logging_strategy = "no"
    trainer.train()
    assert [len(kept) for kept in trainer._terms.values()] == [2, 2, 2]  # loss_x, used_x, own
    trainer.args.logging_strategy, trainer.args.logging_steps = "steps", 4
    trainer.train()
    (entry,) = (entry for entry in trainer.state.log_history if "loss_x" in entry)
    assert (entry["own"], entry["seldom"]) == (1.5, 3.0) and np.isnan(entry["other"])


def test_tf32_without_such_a_device_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a GPU may have TF32")
    with pytest.raises(ValueError, match="--tf32 requires Ampere"):
        AllSparkTrainingArguments(output_dir=str(tmp_path), use_cpu=True, eval_strategy="no", tf32=True)
