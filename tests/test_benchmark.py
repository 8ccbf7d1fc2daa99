"""`allspark benchmark`: the textbook form is the same mathematics, and what is measured is what is there."""

import copy
import json
import os
import runpy
import signal
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import NO_DROPOUT, tiny_config, tiny_model

from allspark_hf.benchmarks import serving
from allspark_hf.benchmarks.cases import Case, make_cases, make_model, memory_grid
from allspark_hf.benchmarks.children import in_fresh_process
from allspark_hf.benchmarks.peak import make_memory_exact, measure_peak
from allspark_hf.benchmarks.plot import Curve, memory_curves
from allspark_hf.benchmarks.results import Results
from allspark_hf.benchmarks.targets import check_targets
from allspark_hf.benchmarks.textbook import TextbookBottleneck
from allspark_hf.benchmarks.timing import take_turns
from allspark_hf.benchmarks.training import TrainingStep
from allspark_hf.models.bottleneck_allspark import AllSparkBottleneck


ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
CASE = Case("b5", 513, 21, 1, "bf16", 2)


# ---- The textbook form ----


def both(seed: int = 0, **fields) -> tuple[AllSparkBottleneck, TextbookBottleneck]:
    """Ours and the textbook's with the same weights, float64."""
    ours = tiny_model(seed, **NO_DROPOUT, **fields).bottleneck.double().train()
    return ours, TextbookBottleneck.like(ours)


def batch(config, labeled: int, unlabeled: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (labeled + unlabeled images) and logits of the unlabeled ones, float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (labeled + unlabeled, config.hidden_sizes[-1], *config.token_grid)
    features = torch.randn(*shape, generator=generator, dtype=torch.float64)
    logits = torch.randn(unlabeled, config.num_labels, 20, 24, generator=generator, dtype=torch.float64)
    return features, logits


@pytest.mark.parametrize(
    ("fields", "labeled", "unlabeled"),
    [
        ({}, 2, 2),
        ({"num_labels": 7, "memory_size": 0.5, "crop_size": [64, 96]}, 1, 3),
        ({"num_labels": 2, "memory_size": 2, "channel_attention_heads": 3}, 3, 1),
        ({"memory_size": 4}, 2, 2),
    ],
)
def test_textbook_gives_our_outputs_gradients_and_memory_over_several_updates(fields, labeled, unlabeled):
    ours, textbook = both(**fields)
    config = ours.config
    assert ours.state_dict().keys() == textbook.state_dict().keys()
    start = ours.memory.channels.clone()
    for update in range(6):
        features, logits = batch(config, labeled, unlabeled, seed=update)
        results = []
        for bottleneck in (ours, textbook):
            bottleneck.zero_grad()
            given = features.clone().requires_grad_()
            output = bottleneck(given, unlabeled, logits, read_memory=update > 0)
            (output * torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output)).sum().backward()
            gradients = {name: parameter.grad for name, parameter in bottleneck.named_parameters()}
            results.append({"output": output, "features": given.grad, **gradients, **dict(bottleneck.named_buffers())})
        for name, expected in results[0].items():
            largest = (results[1][name] - expected).abs().max()
            assert largest <= 1e-9 + 1e-8 * expected.abs().max(), f"{name} in update {update}"
    assert not torch.equal(ours.memory.channels, start)
    if config.memory_size <= 1:  # some slot has been filled and written again from its start
        assert textbook.memory.num_enqueued.max() > textbook.memory.channels.shape[1]


def test_textbook_memory_wraps_and_skips_as_ours():
    ours, textbook = both()
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randn(3, 4, 32, generator=generator, dtype=torch.float64)
        slots = torch.randint(-1, 2, (3, 32), generator=generator)
        for bottleneck in (ours, textbook):
            bottleneck.memory.enqueue(tokens, slots)
    assert torch.equal(ours.memory.channels, textbook.memory.channels)
    assert ours.memory.num_enqueued.tolist() == textbook.memory.num_enqueued.tolist()
    assert textbook.memory.num_enqueued.max() > 2 * textbook.memory.channels.shape[1]


def test_textbook_predicts_as_ours():
    ours, textbook = both()
    features = batch(ours.config, 3, 0, seed=1)[0][..., :1]  # of another size than the training crop
    torch.testing.assert_close(textbook.eval()(features), ours.eval()(features), rtol=1e-9, atol=1e-9)


def test_textbook_is_the_full_method_only():
    with pytest.raises(ValueError, match="with its defaults"):
        TextbookBottleneck(tiny_config(use_grouping=False), 32)


def test_a_training_step_moves_the_model_and_the_two_forms_move_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    case = Case("tiny", 64, 3, 1, "fp32", 2)
    steps = {name: TrainingStep(case, name, CPU, seed=0) for name in ("allspark", "textbook")}
    assert not list(tmp_path.iterdir())
    before = copy.deepcopy(steps["allspark"].model.state_dict())
    losses = {}
    for name, step in steps.items():
        step.trainer.compute_loss = recorded(step.trainer.compute_loss, losses.setdefault(name, []))
        for module in step.model.modules():
            if hasattr(module, "drop_prob") or isinstance(module, (torch.nn.Dropout, torch.nn.Dropout2d)):
                module.eval().train = lambda mode=True, module=module: module  # no randomness
        step()
        step()
    after = steps["allspark"].model.state_dict()
    names = ("bottleneck.labeled_attention.k_proj.weight", "bottleneck.memory.channels", "decode_head.classifier.bias")
    for name in names:
        assert not torch.equal(before[name], after[name]), name
        torch.testing.assert_close(after[name], steps["textbook"].model.state_dict()[name], rtol=1e-3, atol=1e-5)
    assert losses["allspark"] == pytest.approx(losses["textbook"], rel=1e-4)


def recorded(function, values: list):
    def call(*args, **kwargs):
        loss = function(*args, **kwargs)
        values.append(loss.item())
        return loss

    return call


# ---- Time and memory ----


def known_allocations() -> dict:
    """Run in a process of its own: 300 MB that stay, then 100 MB that are dropped, then small blocks, 60 MB."""
    make_memory_exact()
    kept = torch.ones(75_000_000)

    def large():
        torch.ones(25_000_000)

    def small():
        blocks = [torch.ones(30_000) for _ in range(500)]
        return blocks[0][0].item() + kept[0].item()

    large()
    return {
        "large": measure_peak(large, CPU).extra,
        "small": measure_peak(small, CPU).extra,
        "again": measure_peak(large, CPU).extra,
    }


def takes_too_much() -> dict:
    torch.ones(10**13)
    return {}


def is_killed() -> dict:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def is_wrong() -> dict:
    raise KeyError("no such thing")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_sees_a_known_allocation():
    found = in_fresh_process(CPU, known_allocations)
    assert [found["large"], found["again"]] == pytest.approx([100e6, 100e6], rel=0.02)
    assert 60e6 < found["small"] < 66e6  # whole pages


def test_what_ends_a_process_is_recorded():
    assert in_fresh_process(CPU, takes_too_much) == {"error": "out of memory"}
    assert in_fresh_process(CPU, is_killed)["error"].startswith("out of memory, or killed")
    assert in_fresh_process(CPU, is_wrong) == {"error": "KeyError: 'no such thing'"}


def test_variants_take_turns_and_one_that_has_no_memory_leaves_the_others():
    seen = []

    def work(name: str, last: int):
        def call():
            seen.append(name)
            time.sleep(0.06)  # longer than the shortest turn
            if seen.count(name) > last:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        return call

    times = take_turns({"a": work("a", 9), "b": work("b", 2), "c": work("c", 9)}, CPU, repeats=3)
    counted = [name for index, name in enumerate(seen) if index == 0 or seen[index - 1] != name]
    assert "".join(counted) == "abcabcabcac"
    assert times["b"] == "out of memory" and [len(times[name]) for name in "ac"] == [3, 3]
    assert min(times["a"]) > 0
    calls = []
    assert len(take_turns({"short": lambda: calls.append(0)}, CPU, repeats=2)["short"]) == 2
    assert len(calls) > 1000  # in one turn as often as the clock needs
    with pytest.raises(RuntimeError, match="something else"):
        take_turns({"d": raising("something else")}, CPU, repeats=1)


def raising(text: str):
    def call():
        raise RuntimeError(text)

    return call


# ---- What is measured, and what is made of it ----


def test_grids():
    lists = (["b0", "b5"], [321, 513], [21, 81], [1, 4], ["fp32"])
    reference = Case("b0", 321, 21, 1, "fp32", 2)
    assert make_cases(*lists, batch_size=2, grid="reference") == [reference]
    star = make_cases(*lists, batch_size=2, grid="star")
    changes = ({}, {"size": "b5"}, {"crop": 513}, {"num_labels": 81}, {"memory_size": 4})
    assert star == [replace(reference, **change) for change in changes]
    assert len(make_cases(*lists, batch_size=2, grid="all")) == 16
    pairs = [(case.num_labels, case.memory_size) for case in memory_grid(star, [21, 81], [1, 4])]
    assert pairs[:4] == [(21, 1), (81, 1), (21, 4), (81, 4)] and len(pairs) == 6  # and two more of K 21, 1 C


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sizes": ["b6"]}, "sizes has b6"),
        ({"crops": [16]}, "crops has 16"),
        ({"num_labels": [1, 3]}, "num_labels has"),
        ({"num_labels": [255, 256]}, "set 2 to 255 classes"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_cases_that_cannot_be(change, sentence):
    lists = {"sizes": ["b0"], "crops": [64], "num_labels": [2], "memory_sizes": [1], "precisions": ["fp32"]}
    with pytest.raises(ValueError, match=sentence):
        make_cases(**{**lists, "batch_size": 2, "grid": "star", **change})


def test_variants_share_their_weights():
    case = replace(CASE, size="tiny", crop=64, num_labels=3)
    ours, textbook, plain = (make_model(case, name, 0) for name in ("allspark", "textbook", "supervised"))
    assert isinstance(textbook.bottleneck, TextbookBottleneck) and plain.bottleneck is None
    theirs = textbook.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.state_dict().items())


def timed(*seconds: float) -> dict:
    return {"seconds": {"median": sorted(seconds)[len(seconds) // 2], "all": list(seconds)}}


def test_targets_on_made_up_figures():
    results = Results({}, {})
    many, large, tiny = (
        replace(CASE, num_labels=81),
        replace(CASE, memory_size=4),
        replace(CASE, size="tiny"),
    )
    results.add("step", CASE, "allspark", timed(1.1, 2.4, 1.2))
    results.add("step", CASE, "pseudo_label", timed(1.0, 2.0, 1.0))  # ratios 1.1, 1.2, 1.2
    results.add("step", CASE, "textbook", timed(2.2, 4.8, 2.4))
    results.add("step", large, "allspark", {**timed(1, 1, 1), "peak_bytes": 18e9, "extra_bytes": 10e9})
    results.add("step", large, "textbook", {"error": "out of memory"})
    results.add("step", tiny, "allspark", timed(9))
    results.add("step", tiny, "pseudo_label", timed(1))
    results.add("bottleneck", CASE, "allspark", {"extra_bytes": 9e9})
    results.add("bottleneck", CASE, "textbook", {"extra_bytes": 10e9})  # K 21: not what the target is about
    results.add("bottleneck", many, "allspark", {"extra_bytes": 1e9})
    results.add("bottleneck", many, "textbook", {"extra_bytes": 8e9})
    results.add("memory_update", CASE, "allspark", timed(0.012))
    results.add("memory_update", CASE, "textbook", timed(0.5))
    found = [
        (row["target"].split(",")[0], row["as_set"], row["value"], row["verdict"]) for row in check_targets(results)
    ]
    assert found == [
        ("training step", True, pytest.approx(1.2), "1.2, missed by 4 % (at most 1.15)"),
        ("training step", True, pytest.approx(0.5), "0.5, met"),
        ("training step", True, None, "no figure: textbook: out of memory"),
        ("extra peak memory of the bottleneck", True, 0.125, "0.125, missed by 25 % (at most 0.1)"),
        ("peak memory of training with a memory of 4 C", True, 18e9, "18.00 GB, met"),
        ("inference", True, None, "not measured on this machine (any of b0 to b5)"),
        ("memory update / training step", True, pytest.approx(0.01), "0.01, met"),
    ]
    elsewhere = Results({}, {})
    elsewhere.add("step", replace(CASE, size="b0"), "allspark", timed(2))
    elsewhere.add("step", replace(CASE, size="b0"), "pseudo_label", timed(1))
    first, second, *_ = check_targets(elsewhere)
    assert (first["as_set"], first["verdict"]) == (False, "2, missed by 74 % (at most 1.15)")
    assert second["as_set"] and second["verdict"].startswith("not measured on this machine (size b5, crop 513")


def test_curves_of_the_plot_are_those_of_one_group():
    results = Results({}, {})
    for k in (81, 2, 21):
        results.add("bottleneck", replace(CASE, num_labels=k), "allspark", {"extra_bytes": k * 10})
    results.add("bottleneck", replace(CASE, num_labels=2), "textbook", {"extra_bytes": 50})
    results.add("bottleneck", CASE, "textbook", {"memory_error": "out of memory"})
    results.add("bottleneck", replace(CASE, crop=801), "allspark", {"extra_bytes": 7})
    example, curves = memory_curves(results)
    assert example.crop == 513 and list(curves) == [("textbook", 1), ("allspark", 1)]
    assert curves["allspark", 1] == Curve([(2, 20), (21, 210), (81, 810)])
    assert curves["textbook", 1] == Curve([(2, 50)], out=[21])


# ---- The script ----


def run_script(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments)])
    return runpy.run_path(str(ROOT / "scripts" / "benchmark.py"), run_name="__main__")


def test_script_from_arguments_to_files(tmp_path, monkeypatch, capfd):
    pytest.importorskip("matplotlib")
    file = tmp_path / "new" / "tiny.json"
    lists = ["--sizes", "tiny", "--crops", 64, "--num_labels", 3, "--memory_sizes", 1, "--repeats", 2]
    chosen = ["--cases", "step", "memory_update", "bottleneck", "--variants", "pseudo_label", "allspark"]
    settings = ["--training_arguments", '{"sgd_momentum": 0.5}']
    run_script(monkeypatch, *lists, *chosen, *settings, "--use_cpu", "--output_file", file)
    written = json.loads(file.read_text(encoding="utf-8"))
    found = {(entry["measure"], entry["variant"]): entry for entry in written["measurements"]}
    both_forms = [(measure, name) for measure in ("memory_update", "bottleneck") for name in ("allspark", "textbook")]
    plain = [("step", "pseudo_label"), ("step", "allspark")]
    assert set(found) == {*both_forms, *plain}
    for (measure, name), entry in found.items():
        assert entry["case"] == asdict(Case("tiny", 64, 3, 1, "fp32", 2))
        assert len(entry["seconds"]["all"]) == 2 and 0 < entry["seconds"]["lowest"] <= entry["seconds"]["median"]
        assert ("extra_bytes" in entry) == (measure in ("step", "bottleneck")), (measure, name)
    step = found["step", "allspark"]
    # Of 0.08 million parameters, and not of a library; a tiny step may find its blocks free on the heap.
    assert 0 <= step["extra_bytes"] <= step["peak_bytes"] and 5e5 < step["peak_bytes"] < 5e7
    assert written["machine"]["device"] == "cpu" and written["settings"]["repeats"] == 2
    assert [row["value"] for row in written["targets"]] == [None] * 6
    assert file.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert "AllSpark, memory 1 C" in svg_text(file.with_suffix(".svg"))
    printed = capfd.readouterr().out
    assert printed.index("Ratios: training step") < printed.index("milliseconds") < printed.index("Targets")


def svg_text(path: Path) -> str:
    """Words in an SVG file; matplotlib draws them as outlines and says them in comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line.strip().removeprefix("<!--").removesuffix("-->").strip() for line in lines if "<!--" in line)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--cases", "steps"], "ValueError: cases has 'steps'"),
        (["--data_dir", "no_such_folder"], "ValueError: There is no folder no_such_folder"),
        (["--output_file", "out.txt"], "ValueError: output_file=out.txt"),
        (["--sizes", "b9"], "ValueError: sizes has b9"),
        (["--training_arguments", "{fp16"], "ValueError: training_arguments={fp16"),
        (["--training_arguments", '{"tf31": true}'], "ValueError: training_arguments has 'tf31'"),
    ],
)
def test_bad_arguments_end_with_a_sentence(monkeypatch, arguments, sentence):
    with pytest.raises(SystemExit) as stopped:
        run_script(monkeypatch, "--use_cpu", "--overwrite", *arguments)
    assert str(stopped.value.code).startswith(sentence)


def test_results_are_not_overwritten_unasked(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(SystemExit) as stopped:
        run_script(monkeypatch, "--use_cpu", "--output_file", tmp_path / "a.json")
    assert "pass --overwrite" in str(stopped.value.code)
    assert (tmp_path / "a.json").read_text() == "{}"


def test_inference_evaluation_and_loader():
    case = Case("tiny", 64, 3, 1, "bf16", 2)
    options = SimpleNamespace(seed=0, repeats=1, data_dir=None, num_images=2, workers=[0])
    predicted = serving.inference_times(case, CPU, options)
    evaluated = serving.evaluation_times(case, CPU, options)
    assert (list(predicted), list(evaluated)) == (["supervised", "allspark", "textbook"], ["supervised", "allspark"])
    # An image of 375 x 500 pixels takes longer than one of 64 x 64, and one image less than two.
    assert predicted["allspark"]["seconds"]["median"] < evaluated["allspark"]["seconds"]["median"]
    (loaded,) = serving.loader_times(case, CPU, options).items()
    assert loaded[0] == "0 workers" and 0 < loaded[1]["seconds"]["median"] < 1
