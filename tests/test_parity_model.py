"""The model against the authors' code: inference, one training step, six SGD steps."""

import pytest
import torch
from parity import PRECISIONS, Reference, assert_near, predict_full_size

from allspark_hf import AllSparkTrainingArguments
from allspark_hf.methods import AllSpark, MixedBatch, PixelCounts
from allspark_hf.models.conversion import rename
from allspark_hf.models.upsampling import upsample


@pytest.fixture(scope="module")
def reference(parity_dir):
    return Reference(parity_dir)


@pytest.fixture
def method(tmp_path):
    args = AllSparkTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, eval_strategy="no", train_on_padding=True, memory_warmup_epochs=1
    )
    return AllSpark(args, ignore_index=255)


def make_batch(inputs, dtype, step=None):
    pick = (lambda name: inputs[name]) if step is None else (lambda name: inputs[name][step])
    unlabeled = pick("inputs.images_unlabeled").to(dtype)
    return MixedBatch(
        pixel_values=pick("inputs.images_labeled").to(dtype),
        labels=pick("inputs.labels").long(),
        unlabeled_pixel_values=unlabeled,
        unlabeled_pixel_mask=torch.ones_like(unlabeled[:, 0], dtype=torch.bool),
    )


def count_pixels(batch):
    return PixelCounts((batch["labels"] != 255).sum(), torch.tensor([batch["unlabeled_pixel_mask"].numel()]))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", ["square", "rect"])
def test_eval_logits(reference, precision, shape):
    stored = reference.load("eval")
    model = reference.model(precision)
    images = stored[f"inputs.{shape}"].to(PRECISIONS[precision])
    tolerance = reference.tolerance(precision, "eval logits")
    with torch.no_grad():
        logits = upsample(model(images).logits, images.shape[2:])
        assert_near(logits, stored[f"{precision}.logits.single.{shape}"], tolerance, "one by one, as a batch")
        model.config.mix_images_in_eval = True
        mixed = upsample(model(images).logits, images.shape[2:])
    assert_near(mixed, stored[f"{precision}.logits.batch.{shape}"], tolerance, "mixed as the authors do")
    assert (mixed - logits).abs().max() > 0.1


def test_every_layer_norm_has_the_authors_eps(reference):
    """Float32 cannot tell a wrong eps from rounding, so each one is compared by name."""
    stored = reference.description["config"]["layernorm_eps_by_module"]
    modules = dict(reference.model("f32").named_modules())
    for name, eps in stored.items():
        (renamed,) = rename({f"{name}.weight": torch.zeros(0)})[0]
        assert modules[renamed.removesuffix(".weight")].eps == eps, name


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", ["nomem", "mem", "mem_wrap"])
def test_one_training_step(reference, method, precision, case):
    stored, dtype = reference.load("train_forward"), PRECISIONS[precision]
    model = reference.model(precision)
    model.config.mix_images_in_eval = True  # the authors' pseudo-label pass
    memory = model.bottleneck.memory
    memory.num_enqueued.copy_(stored[f"{case}.queue_ptr_before"])
    batch = make_batch(stored, dtype)

    prediction = predict_full_size(model, batch["unlabeled_pixel_values"])
    tolerance = reference.tolerance(precision, "train prob_map")
    assert_near(prediction, stored[f"{precision}.nomem.prob_map"], tolerance, "prediction of unlabeled images")
    assert torch.equal(prediction.argmax(1), stored["nomem.pseudo_label"].long())

    seen = {}
    model.bottleneck.register_forward_hook(lambda module, args, output: seen.update(features=output))
    model.decode_head.classifier.register_forward_hook(lambda module, args, output: seen.update(logits=output))
    losses = method.step(model, batch, count_pixels(batch), epoch=0 if case == "nomem" else 1)
    losses.loss.backward()
    assert torch.equal(losses.pseudo_labels, stored["nomem.pseudo_label"].long())

    tolerance = reference.tolerance(precision, "train logits_lowres")
    assert_near(seen["logits"], stored[f"{precision}.{case}.logits_lowres"], tolerance, "logits")
    if f"{precision}.{case}.inter.allspark" in stored:
        assert_near(seen["features"], stored[f"{precision}.{case}.inter.allspark"], tolerance, "bottleneck output")
    tolerance = reference.tolerance(precision, "train losses")
    assert_near(losses.loss, stored[f"{precision}.{case}.loss"], tolerance, "loss")
    for name in ("loss_x", "loss_u"):
        assert_near(losses.terms[name], stored[f"{precision}.{case}.{name}"], tolerance, name)

    tolerance = reference.tolerance(precision, "train kv_queue_after")
    assert_near(memory.channels, stored[f"{precision}.{case}.kv_queue_after"], tolerance, "memory")
    assert torch.equal(memory.position, stored[f"{case}.queue_ptr_after"])
    written = torch.stack([torch.bincount(row, minlength=5) for row in stored[f"{case}.channel_cls"]]).sum(0)
    assert torch.equal(memory.num_enqueued - stored[f"{case}.queue_ptr_before"], written)
    tolerance = reference.tolerance(precision, "train bn stats")
    norm = model.decode_head.batch_norm
    assert_near(norm.running_mean, stored[f"{precision}.{case}.bn_running_mean_after"], tolerance, "BatchNorm mean")
    assert_near(norm.running_var, stored[f"{precision}.{case}.bn_running_var_after"], tolerance, "BatchNorm variance")
    check_gradients(reference, model, stored, f"{precision}.{case}.grad.", precision)


def check_gradients(reference, model, stored, prefix, precision):
    gradients = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
    expected, unmapped = rename(gradients)
    assert not unmapped and len(expected) > 20
    actual = {name: parameter.grad for name, parameter in model.named_parameters()}
    if prefix == "f64.mem.grad.":
        assert set(expected) == set(actual)  # every parameter
    tolerance = reference.tolerance(precision, "train gradients")
    for name, value in expected.items():
        assert_near(actual[name], value, tolerance, f"gradient of {name}")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_six_sgd_steps(reference, method, precision):
    stored, dtype = reference.load("trajectory"), PRECISIONS[precision]
    settings = reference.description["trajectory"]
    model = reference.model(precision).train()
    model.config.mix_images_in_eval = True
    memory, norm = model.bottleneck.memory, model.decode_head.batch_norm
    memory.num_enqueued.copy_(reference.load("reference_state_dict")["decoder.allspark.attn.queue_ptr"])
    encoder = list(model.base_model.parameters())
    head = [parameter for name, parameter in model.named_parameters() if not name.startswith("segformer.")]
    optimizer = torch.optim.SGD(
        [{"params": encoder}, {"params": head}],
        lr=0.1,
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
    )
    for step in range(settings["steps"]):
        for group, rate in zip(optimizer.param_groups, stored["lr_used"][step].tolist(), strict=True):
            group["lr"] = rate
        batch = make_batch(stored, dtype, step)
        prediction = predict_full_size(model, batch["unlabeled_pixel_values"])
        assert torch.equal(prediction.argmax(1), stored["pseudo_label"][step].long())
        losses = method.step(model, batch, count_pixels(batch), epoch=int(stored["using_SMem"][step]))
        assert torch.equal(losses.pseudo_labels, stored["pseudo_label"][step].long())
        optimizer.zero_grad()
        losses.loss.backward()
        optimizer.step()
        tolerance = reference.tolerance(precision, "trajectory losses")
        assert_near(losses.loss, stored[f"{precision}.loss"][step], tolerance, f"loss of step {step}")
        for name in ("loss_x", "loss_u"):
            assert_near(losses.terms[name], stored[f"{precision}.{name}"][step], tolerance, f"{name} of step {step}")
        tolerance = reference.tolerance(precision, "trajectory kv_queue")
        assert_near(memory.channels, stored[f"{precision}.kv_queue"][step], tolerance, f"memory after step {step}")
        assert torch.equal(memory.position, stored["queue_ptr"][step])
        tolerance = reference.tolerance(precision, "trajectory final params+bn (without queue)")
        assert_near(norm.running_mean, stored[f"{precision}.bn_mean"][step], tolerance, f"mean after step {step}")

    final = {
        name[len(precision) + 7 :]: value for name, value in stored.items() if name.startswith(f"{precision}.final.")
    }
    expected, unmapped = rename(final)
    actual = model.state_dict()
    assert not unmapped and len(expected) > 200
    for name, value in expected.items():
        if not name.startswith("bottleneck.memory."):
            assert_near(actual[name], value, tolerance, f"final {name}")
