"""UniMatch V2, FixMatch and their parts, against the numbers of the authors' code."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from parity import Reference, assert_near
from PIL import Image
from torch import nn
from torch.nn import functional as F

from allspark_hf import AllSparkTrainingArguments
from allspark_hf.data.geometry import Geometry, crop_image, crop_label, shown_pixels
from allspark_hf.data.mixed import MixedBatch
from allspark_hf.data.photometry import Photometry, apply_photometry
from allspark_hf.data.views import draw_cutmix_box, inside_boxes
from allspark_hf.evaluation.arguments import EvaluationArguments
from allspark_hf.evaluation.metrics import ConfusionMatrix
from allspark_hf.evaluation.prediction import predict_logits, sliding_window_sum
from allspark_hf.methods import METHODS, PixelCounts
from allspark_hf.methods.losses import ohem_labels, upsampled_cross_entropy_sum
from allspark_hf.methods.strong_views import complementary_dropout, cutmix
from allspark_hf.methods.teacher import update_teacher
from allspark_hf.models.modeling_allspark import SemiSupervisedSegmenterOutput


TOLERANCE = 1e-12
NOISE = 1e-14
BUFFERS = "num_batches_tracked"


@pytest.fixture(scope="module")
def unimatch(parity_root):
    return Reference(parity_root / "unimatch_v2")


def part(stored, prefix):
    return {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}


# ---- Data ----


def test_geometry_and_blur(unimatch):
    stored = unimatch.load("a0_geometry")
    for number, case in enumerate(unimatch.description["a0_geometry"]["cases"]):
        image, mask = Image.fromarray(stored[f"{number}.image"].numpy()), stored[f"{number}.mask"].numpy()
        drawn = [value for _, _, value in case["draws"]]
        assert max(case["resized_wh"]) == drawn[0]
        geometry = Geometry(
            tuple(case["resized_wh"]), int(drawn[1]), int(drawn[2]), (case["crop"],) * 2, drawn[3] < 0.5
        )
        cropped = crop_image(image, geometry)
        assert np.array_equal(np.array(cropped), stored[f"{number}.out_image"])
        padding = unimatch.description["a0_geometry"]["ignore_value"]
        expected = stored[f"{number}.out_mask"].numpy()
        assert np.array_equal(crop_label(mask, geometry, padding), expected)
        assert np.array_equal(shown_pixels(geometry), expected != padding)
        sigma = drawn[5] if len(drawn) > 5 else None
        blurred = apply_photometry(cropped, Photometry((), False, sigma))
        assert np.array_equal(np.array(blurred), stored[f"{number}.out_blur"])


class Recorded:
    """A random generator that returns what the authors' code has drawn."""

    def __init__(self, draws):
        self.draws = iter(draws)

    def _next(self, kind, *arguments):
        name, given, value = next(self.draws)
        assert (name, given) == (kind, pytest.approx(arguments)), (name, given)
        return value

    def random(self):
        return next(self.draws)[2]

    def uniform(self, low, high):
        return self._next("np.uniform", low, high)

    def integers(self, end):
        return self._next("np.randint", 0.0, float(end))


def test_cutmix_boxes(unimatch):
    stored, described = unimatch.load("a_cutmix_boxes"), unimatch.description["a_cutmix_boxes"]
    side = described["img_size"]
    for number, draws in enumerate(described["draws_in_call_order"]):
        rng = Recorded(draws)
        box = torch.tensor([draw_cutmix_box((side, side), rng)])
        assert torch.equal(inside_boxes(box, (side, side))[0], stored[f"box{number}"].bool())
        assert next(rng.draws, None) is None


def boxes_of(maps):
    """int64 (images, 4), from maps that are 1 inside."""
    boxes = []
    for inside in maps:
        rows, columns = torch.nonzero(inside, as_tuple=True)
        sides = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1) if len(rows) else (0, 0, 0, 0)
        boxes.append([int(side) for side in sides])
    return torch.tensor(boxes)


# ---- Parts of a step ----


def test_complementary_dropout(unimatch):
    stored = unimatch.load("d_complementary_dropout")
    for number, case in enumerate(unimatch.description["d_complementary_dropout"]["cases"]):
        mine = part(stored, f"case{number}.")
        levels = sorted(name for name in mine if name.startswith("in"))
        kept = torch.zeros(case["unlabeled_batch"], dtype=torch.bool)
        kept[mine["randperm"][: case["unlabeled_batch"] // 2]] = True
        assert kept.sum() == case["kept"]
        maps = tuple(mine[level].transpose(1, 2)[..., None] for level in levels)
        dropped = complementary_dropout(maps, mine["binomial_draw"].bool(), kept)
        for level, result in zip(levels, dropped, strict=True):
            assert torch.equal(result[..., 0].transpose(1, 2), mine[f"out{level.removeprefix('in')}"])


def test_teacher(unimatch):
    stored = unimatch.load("c_ema_5_steps")
    student, teacher = StandIn(), StandIn()
    teacher.load_state_dict(part(stored, "init.teacher."))
    for step in unimatch.description["c_ema_5_steps"]["steps"]:
        student.load_state_dict(part(stored, f"step{step['iters']}.student."))
        update_teacher(teacher, student, step["ema_ratio"])
        for name, value in part(stored, f"step{step['iters']}.teacher.").items():
            assert_near(teacher.state_dict()[name], value, 0 if BUFFERS in name else TOLERANCE, name)


def test_decay_by_updates(unimatch, tmp_path):
    method = make_method("unimatch_v2", tmp_path, 0.95, num_updates=10_000)
    for iteration, ratio in unimatch.description["c_ema_5_steps"]["schedule"].items():
        assert min(1 - 1 / (int(iteration) + 1), method.decay) == pytest.approx(ratio, abs=1e-15)
    for updates, decay in ((1500, 0.996), (300, 0.98), (5, 0)):
        method.num_updates = updates
        assert method.decay == pytest.approx(decay)


def make_method(name, folder, threshold, num_updates):
    args = AllSparkTrainingArguments(
        method=name, output_dir=str(folder), use_cpu=True, eval_strategy="no", confidence_threshold=threshold
    )
    method = METHODS[name](args, 255)
    method.num_updates = num_updates
    return method


class Logits(nn.Module):
    """A model of given logits: those of labeled images, then those of strong views."""

    config = type("Config", (), {"use_cross_attention": False})

    def __init__(self, *logits):
        super().__init__()
        self.logits = iter(logits)

    def forward(self, **_):
        return SemiSupervisedSegmenterOutput(logits=next(self.logits))


def test_loss_of_a_step(unimatch, tmp_path):
    stored, described = unimatch.load("b_unlabeled_loss"), unimatch.description["b_unlabeled_loss"]
    method = make_method("unimatch_v2", tmp_path, described["conf_thresh"], 1)
    method.teacher = Logits(stored["logits_weak_teacher"])
    labeled, strong = (stored[f"logits_{name}"].requires_grad_() for name in ("labeled", "strong_1then2"))
    batch = make_batch(stored, stored["logits_labeled"], stored["mask_x"])
    names = ("mask_u_w", "conf_u_w", "ignore_mask")
    for view in (1, 2):
        mixed = cutmix(batch, f"strong_{view}", *(stored[name] for name in names))
        for name, value in zip(names, mixed, strict=True):
            assert torch.equal(value, stored[f"{name}_cutmixed{view}"])
    pixels = count(method, batch)
    assert pixels.unlabeled.tolist() == [described["valid1"], described["valid2"]]
    step = method.step(Logits(labeled, strong), batch, pixels, epoch=0)
    step.loss.backward()
    check_losses(step, stored, loss_u="loss_u_s")
    assert_near(labeled.grad, stored["grad_logits_labeled_of_total"], TOLERANCE, "gradient of labeled logits")
    assert_near(strong.grad, stored["grad_logits_strong_of_total"], TOLERANCE, "gradient of strong logits")


def make_batch(stored, pixel_values, labels):
    images = stored.get("img_u_w", stored.get("logits_weak_teacher")).double()
    width = len(stored["drop.binomial_draw"][0]) if "drop.binomial_draw" in stored else 8
    batch = {
        "pixel_values": pixel_values.double(),
        "labels": labels.long(),
        "unlabeled_pixel_values": images,
        "unlabeled_pixel_mask": stored["ignore_mask"] != 255,
        "unlabeled_channel_bits_strong_2": torch.zeros(len(images), -(-width // 8), dtype=torch.uint8),
    }
    for view in (1, 2):
        batch[f"unlabeled_pixel_values_strong_{view}"] = stored.get(f"img_u_s{view}", images).double()
        batch[f"unlabeled_cutmix_box_strong_{view}"] = boxes_of(stored[f"cutmix_box{view}"])
    return MixedBatch(batch)


def count(method, batch):
    return PixelCounts((batch["labels"] != 255).sum(), method.count_unlabeled(batch))


def check_losses(step, stored, loss_u):
    assert_near(step.loss, stored["loss"], TOLERANCE, "loss")
    assert_near(step.terms["loss_x"], stored["loss_x"], TOLERANCE, "loss_x")
    expected = stored[loss_u] if loss_u in stored else (stored["loss_u_s1"] + stored["loss_u_s2"]) / 2
    assert_near(step.terms["loss_u"], expected, TOLERANCE, "loss_u")
    assert_near(step.terms["used_u"], stored["mask_ratio"], 1e-7, "mask_ratio")  # ours is a float32


def test_ohem(unimatch):
    stored, described = unimatch.load("g_ohem"), unimatch.description["g_ohem"]
    for name, min_kept, loss in described["cases"]:
        logits = stored["logits"].clone().requires_grad_()
        # More than there are valid pixels means all, also where ours would count the ignored ones too.
        labels = ohem_labels(logits, stored["labels"], described["thresh"], min_kept)
        mean = upsampled_cross_entropy_sum(logits, labels) / (labels != 255).sum()
        mean.backward()
        assert_near(mean, stored[f"{name}.loss"], TOLERANCE, name)
        assert mean.item() == pytest.approx(loss, abs=TOLERANCE)
        assert_near(logits.grad, stored[f"{name}.grad"], TOLERANCE, name)


# ---- Evaluation ----


class Convolutions:
    """conv, ReLU, conv, times 3."""

    dtype = torch.float64

    def __init__(self, weights, **fields):
        self.weights, self.config, self.sizes = weights, SimpleNamespace(**fields), []

    def __call__(self, pixel_values):
        weights = self.weights
        self.sizes.append(list(pixel_values.shape[2:]))
        hidden = F.conv2d(pixel_values, weights["a.weight"], weights["a.bias"], padding=1).relu()
        logits = 3 * F.conv2d(hidden, weights["b.weight"], weights["b.bias"], padding=1)
        return SemiSupervisedSegmenterOutput(logits=logits)


def check_iou(predictions, masks, expected, mean):
    """In percent. The authors divide counts in float32."""
    confusion = ConfusionMatrix(len(expected))
    confusion.update(predictions, masks)
    iou = 100 * confusion.iou().nan_to_num(0)
    assert_near(iou, expected, 1e-5, "IoU")
    assert iou.mean().item() == pytest.approx(mean, abs=1e-5)


def test_sliding_windows(unimatch):
    stored, described = unimatch.load("i_evaluation"), unimatch.description["i_evaluation"]["slide"]
    crop = described["crop"]
    model = Convolutions(part(stored, "model19."), smallest_side=crop)  # its windows are all whole
    sums = [
        sliding_window_sum(model, image, (crop, crop), described["stride"] / crop)[0]
        for image in stored["slide.images"]
    ]
    masks = stored["slide.masks"].flatten(0, 1)
    check_iou(torch.cat(sums).argmax(1), masks, stored["slide.iou"], described["miou"])


def test_images_resized_to_whole_patches(unimatch):
    stored, described = unimatch.load("i_evaluation"), unimatch.description["i_evaluation"]["orig"]
    model = Convolutions(part(stored, "model4."), smallest_side=14, padded_multiple=14)
    image, mask = stored["orig.image"], stored["orig.mask"]
    logits = predict_logits(model, image, mask.shape[1:], EvaluationArguments(eval_mode="resized"))
    assert model.sizes == [described["resized_to"]]
    check_iou(logits.argmax(1), mask, stored["orig.iou"], described["miou"])


# ---- Trajectories ----


class StandIn(nn.Module):
    """The small segmenter of the fixtures: see `stand_in` in their description.json."""

    config, bottleneck = type("Config", (), {"use_cross_attention": False}), None
    dtype = torch.float64

    def __init__(self, width=6, hidden=5, classes=4):
        super().__init__()
        self.backbone = nn.ModuleDict(
            {
                "patch": nn.Conv2d(3, width, kernel_size=14, stride=14),
                "mix": nn.Conv2d(width, width, kernel_size=3, padding=1),
                "norm": nn.LayerNorm(width, eps=1e-6),
            }
        )
        self.head = nn.ModuleDict(
            {
                "projects": nn.ModuleList(nn.Conv2d(width, hidden, kernel_size=1) for _ in range(4)),
                "bn": nn.BatchNorm2d(hidden),
                "out": nn.Conv2d(hidden, classes, kernel_size=3, padding=1),
            }
        )
        self.double()

    def forward(self, pixel_values, unlabeled_pixel_values=None, perturb=None):
        number = len(pixel_values)
        if unlabeled_pixel_values is not None:
            pixel_values = torch.cat([pixel_values, unlabeled_pixel_values])
        first = self.backbone["patch"](pixel_values)
        second = first + torch.tanh(self.backbone["mix"](first))
        maps = (first, second, first - second, first * second)
        maps = tuple(self.backbone["norm"](one.movedim(1, 3)).movedim(3, 1) for one in maps)
        if perturb is not None:
            maps = perturb(maps)
        hidden = sum(project(one) for project, one in zip(self.head["projects"], maps, strict=True))
        logits = self.head["out"](self.head["bn"](hidden).relu())
        logits = F.interpolate(logits, size=pixel_values.shape[2:], mode="bilinear", align_corners=True)
        return SemiSupervisedSegmenterOutput(logits=logits[:number], unlabeled_logits=logits[number:])


@pytest.fixture
def as_drawn(monkeypatch):
    """Makes UniMatch V2 drop the channels that the authors' code has drawn."""

    def use(binomial, permutation):
        kept = torch.zeros(len(permutation), dtype=torch.bool)
        kept[permutation[: len(permutation) // 2]] = True
        monkeypatch.setattr(
            "allspark_hf.methods.unimatch_v2.unpack_channel_bits", lambda packed: (binomial.bool(), kept)
        )

    return use


@pytest.mark.parametrize("name", ["unimatch_v2", "fixmatch", "supervised"])
def test_trajectory(unimatch, tmp_path, as_drawn, name):
    views, files = unimatch.load("e_trajectory_unimatch_v2"), {"fixmatch": "j_fixmatch", "supervised": "j_supervised"}
    expected = unimatch.load(files.get(name, "e_trajectory_unimatch_v2"))
    described = unimatch.description[files.get(name, "e_trajectory_unimatch_v2")]
    config, total = described["cfg"], unimatch.description["e_total_iters"]
    method = make_method(name, tmp_path, config["conf_thresh"], 10_000)
    begin = part(views, "begin.student.")
    model = StandIn(*(len(begin[f"{key}.bias"]) for key in ("backbone.patch", "head.projects.0", "head.out")))
    model.load_state_dict(begin)
    method.build(model)
    if name != "supervised":
        method.teacher.double().load_state_dict(part(views, "begin.teacher."))
    groups = [{"params": model.backbone.parameters()}]
    groups += [{"params": model.head.parameters(), "lr": config["lr"] * config["lr_multi"]}]
    optimizer = torch.optim.AdamW(groups, lr=config["lr"], weight_decay=0.01)
    model.train()
    for step in range(len(described["steps"])):
        mine = part(views, f"step{step}.") | part(expected, f"step{step}.")
        if name == "supervised":
            batch = MixedBatch(pixel_values=mine["img"].double(), labels=mine["mask"].long())
            pixels = PixelCounts((batch["labels"] != 255).sum(), None)
        else:
            batch = make_batch(mine, mine["img_x"], mine["mask_x"])
            pixels = count(method, batch)
            as_drawn(mine["drop.binomial_draw"], mine["drop.randperm"])
        result = method.step(model, batch, pixels, epoch=0)
        optimizer.zero_grad()
        result.loss.backward()
        if name == "supervised":
            assert_near(result.loss, mine["loss"], TOLERANCE, "loss")
        else:
            check_losses(result, mine, "loss_u_s" if name == "fixmatch" else "")
        for key, value in part(expected, f"step{step}.grad.").items():
            assert_near(model.get_parameter(key).grad, value, TOLERANCE, f"gradient of {key} in step {step}")
        optimizer.step()
        for group, rate in zip(optimizer.param_groups, (1, config["lr_multi"]), strict=True):
            group["lr"] = rate * config["lr"] * (1 - step / total) ** 0.9
        with torch.no_grad():
            method.after_update(model, step + 1)
        # BatchNorm removes constants before it: AdamW makes steps of the rounding noise that is their gradient.
        noise = {key for key, value in model.named_parameters() if value.grad.abs().max() < NOISE}
        noise.add("head.bn.running_mean")
        for who, module in {"student": model, "teacher": getattr(method, "teacher", None)}.items():
            for key, value in part(expected, f"step{step}.{who}_after.").items():
                tolerance = 0 if BUFFERS in key else 1e-9 if key in noise else TOLERANCE
                assert_near(module.state_dict()[key], value, tolerance, f"{who}'s {key} after step {step}")
