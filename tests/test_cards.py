"""Model cards: valid metadata, every number from a record, nothing for a record that is missing."""

import copy
import json
import re
from pathlib import Path

import pytest
from card_folders import CLASSES, config_of, evaluation_of, rows_of, run_of, valid, write, write_records
from huggingface_hub import ModelCard
from PIL import Image

from allspark_hf.publishing.card import write_card, write_model_card
from allspark_hf.publishing.markdown import code, code_block, duration, escape, number, table
from allspark_hf.publishing.records import evaluation_mode


ODD_NAMES = [
    *("a|b", 'he said "no"', "über: straße", "- item", "[link](x)", "<b>bold</b>", "*stars* `tick`", "x\\y"),
    "{{ 7 * 7 }}",
]


@pytest.fixture
def make_folder(tmp_path):
    def make(*arguments, **kwargs) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        return write_records(folder, *arguments, **kwargs)

    return make


# ---- Numbers are the records' ----


WINDOW = {"eval_mode": "sliding_window", "eval_crop_size": [64], "eval_stride": 0.5, "eval_flip": True}
MODE = "sliding windows of 64 x 64 pixels, stride 0.5 of the window, with the mirrored image"


@pytest.fixture
def text(make_folder):
    """The card of a whole run, with two later evaluations."""
    folder = make_folder(run=run_of())
    write(folder, "eval_train.json", evaluation_of(CLASSES, "labeled", 0.7107))
    write(folder, "eval_window.json", evaluation_of(CLASSES, "validation", 0.4509, **WINDOW))
    return write_model_card(folder, "jane/street-model").read_text()


def test_metadata_of_a_run(text):
    card = valid(text)
    assert "/home/jane" not in text
    assert card.data.license == "apache-2.0" and card.data.get("base_model") is None and card.data.datasets is None
    assert card.data.model_name == "street-model" and card.data.metrics == ["mean_iou"]
    found = {
        (result.dataset_split, result.metric_type, result.metric_name): result for result in card.data.eval_results
    }
    values = {name: result.metric_value for name, result in found.items()}
    assert values["validation", "mean_iou", "Mean IoU"] == 0.4203
    assert values["validation", "overall_accuracy", "Overall accuracy"] == 0.6209
    assert values["labeled", "mean_iou", "Mean IoU"] == 0.7107
    assert values["validation", "mean_iou", f"Mean IoU ({MODE})"] == 0.4509 and len(values) == 9
    assert {(result.dataset_type, result.dataset_name) for result in found.values()} == {("street", "street")}


def test_tables_of_a_run(text):
    assert rows_of(text, "set") == [
        ["labeled training images", "31"],
        ["unlabeled training images", "1,234"],
        ["validation images", "41"],
    ]
    assert rows_of(text, "evaluation") == [["last", "4", "42.03"], ["best", "2", "51.01"]]
    assert rows_of(text, "split") == [
        ["validation", "`street`", "41", "whole images", "42.03", "52.07", "62.09"],
        ["labeled", "`street`", "61", "whole images", "71.07", "81.07", "91.07"],
        ["validation", "`street`", "61", MODE, "45.09", "55.09", "65.09"],
    ]
    assert rows_of(text, "class") == [["sky", "13.01"], ["road", "23.01"], ["sign symbol", "33.01"]]
    assert rows_of(text, "up to epoch") == [
        ["1", "11.23", "31.07", "81.09", "-", "sign symbol", "61.01", "21.03"],
        ["2", "21.23", "32.14", "82.18", "88.01", "sign symbol", "62.02", "22.06"],
        ["3", "31.23", "33.21", "83.27", "88.01", "sign symbol", "63.03", "23.09"],
        ["4", "41.23", "34.28", "84.36", "88.01", "sign symbol", "64.04", "24.12"],
    ]
    assert rows_of(text, "index") == [[str(i), name, f"`#0{i}0{2 * i}ff`"] for i, name in enumerate(CLASSES)]
    assert rows_of(text, "setting") == [
        ["method", "AllSpark: with a memory"],
        ["starting weights", "none, trained from scratch"],
        ["training crop", "64 x 96 pixels"],
        ["length", "43 epochs, 4,321 updates"],
        ["labeled images of an update", "6"],
        ["unlabeled images of an update", "12"],
        ["training time", "1 h 2 min"],
        ["`learning_rate`", "`0.00125`"],
        ["`warmup_steps`", "`11`"],
        ["`optim`", "`sgd`"],
    ]
    assert dict(rows_of(text, "argument"))["`lr_scheduler_kwargs`"] == '`{"power": 0.5}`'


def test_classes_are_those_of_the_trainings_images(make_folder):
    folder, others = make_folder(run=run_of()), evaluation_of(CLASSES, "validation", 0.2)
    others["data"]["data_dir"] = "/home/jane/another_city"
    write(folder, "eval_others.json", others)
    text = write_model_card(folder).read_text()
    assert rows_of(text, "split")[1][:2] == ["validation", "`another_city`"]
    assert rows_of(text, "class") == [["sky", "13.01"], ["road", "23.01"], ["sign symbol", "33.01"]]
    assert "1 class of 3 below 20 % IoU, not to be relied on: sky (13.01)." in text


def test_sentences_of_a_run(text):
    for sentence in (
        "one of 3 classes. It is a SegFormer with a Mix Transformer of widths 8, 16, 24, 32 and the bottleneck",
        "7,654,321 parameters. It was trained from 31 labeled and 1,234 unlabeled images. Its mean IoU on validation "
        "images is 42.03 %.",
        "31 were drawn as labeled (seed 37). 23 unlabeled images have a mask that was hidden",
        "Files left out as unusable: 29.",
        "as 2 processes",
        "The weights here are those of the last one.",
        "1 class of 3 below 20 % IoU, not to be relied on: sky (13.01).",
        "47 cores, 53.5 GiB; 2 x H 200; processes: 2, threads of each: 59. Commit `0123456789ab` of the code, with",
        'pipeline("image-segmentation", model="jane/street-model", trust_remote_code=True)',
        'allspark_hf.segment("jane/street-model", "photo.jpg").overlay()',
    ):
        assert sentence in text, sentence


def leaves(value, path=()):
    """Paths to all numbers in a JSON value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield path
    for key, entry in entries:
        yield from leaves(entry, (*path, key))


# What a card does not show: what it is the sum of, or another record says.
NOT_SHOWN = ("format", "step", "eval_loss", "loss", "train_runtime", "index", "classes", "split_seed", "eval_stride")


@pytest.mark.parametrize("name", ["run_record.json", "trainer_state.json", "eval_train.json"])
def test_a_changed_record_changes_the_card(make_folder, name):
    folder = make_folder(run=run_of())
    write(folder, "eval_train.json", evaluation_of(CLASSES, "validation", 0.7107))
    before = write_model_card(folder).read_text()
    content = json.loads((folder / name).read_text())
    checked = 0
    for path in leaves(content):
        if path[-1] in NOT_SHOWN or str(path[-1]).startswith("eval_iou_") or _in_no_row(path, content):
            continue
        changed = copy.deepcopy(content)
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] *= 1.5
        place[path[-1]] += 1
        write(folder, name, changed)
        assert write_model_card(folder).read_text() != before, path
        checked += 1
    write(folder, name, content)
    assert write_model_card(folder).read_text() == before
    assert checked >= 3


def _in_no_row(path, content) -> bool:
    """Numbers of the log that no row shows: accuracies of evaluations, the end, and smaller classes' shares."""
    if path[0] != "log_history":
        return False
    entry = content["log_history"][path[1]]
    return (
        path[2] in ("eval_mean_accuracy", "eval_overall_accuracy")
        or "train_runtime" in entry
        or (path[2].startswith("pseudo_share") and "sign" not in path[2])
    )


# ---- Missing records ----


def test_folder_without_records(make_folder, tmp_path):
    folder = make_folder(config=config_of(CLASSES))
    text = write_model_card(folder).read_text()
    card = valid(text)
    assert card.data.license == "unknown" and card.data.eval_results is None
    for sentence in (
        "How it was trained was not recorded.",
        "Which data the model was trained on was not recorded.",
        "How the model was trained was not recorded.",
        "No evaluation of this model was recorded.",
        "Nothing about the pseudo-labels was recorded.",
        "Versions and machine were not recorded.",
        "Nothing in this folder tells which weights the training started from",
    ):
        assert sentence in text, sentence
    assert not re.search(r"\d\.\d\d\b", text.split("## Citation")[0]), "a number that nothing measured"
    with pytest.raises(ValueError, match=r"holds no config.json"):
        write_model_card(tmp_path)


def test_no_evaluation(make_folder):
    folder = make_folder(run=run_of(), final=False)
    write(folder, "trainer_state.json", {"log_history": []})
    text = write_model_card(folder).read_text()
    assert valid(text).data.eval_results is None and "No evaluation of this model was recorded." in text
    assert "mean IoU on validation" not in text


def test_from_python_and_of_another_method(make_folder):
    data = {"source": None, "selection": None, "unlabeled_used": False}
    run = run_of(command=None, data=data, method={"title": "Supervised"}, training={"resumed": True})
    config = config_of(CLASSES, base_weights="none", use_cross_attention=False)
    text = write_model_card(make_folder(run=run, config=config)).read_text()
    valid(text)
    assert "at a quarter of the image's resolution and scaled up.\n" in text and "pseudo-labels are mostly" not in text
    assert "The training was started from Python" in text and "their names were not recorded" in text
    assert "no pseudo-labels" in text and "its mistakes are confirmed" not in text and "31 labeled and no unl" in text
    assert "The run went on from a checkpoint" in text and "drawn as labeled" not in text


def test_best_model_and_absent_classes(make_folder):
    run = run_of(training={"load_best_model_at_end": True}, evaluation={"count_absent_classes": True})
    folder = make_folder(run=run)
    text = write_model_card(folder).read_text()
    assert "The weights here are those of the best one." in text and "counts 0." in text
    # The evaluation after the training is none of the training.
    state = json.loads((folder / "trainer_state.json").read_text())
    state["log_history"].append({"epoch": 4.0, "step": 4, "eval_mean_iou": 0.5101})
    write(folder, "trainer_state.json", state)
    text = write_model_card(folder).read_text()
    assert "during training (2 evaluations)" in text and ["last", "4", "42.03"] in rows_of(text, "evaluation")


def test_collapsed_pseudo_labels(make_folder):
    folder = make_folder(run=run_of())
    state = json.loads((folder / "trainer_state.json").read_text())
    (last,) = (entry for entry in state["log_history"] if entry["epoch"] == 4.0 and "pseudo_mean_iou" in entry)
    for share, collapsed in ((0.81, False), (0.8111, True)):  # the others have a quarter of 75.88 % of the labels
        last["pseudo_share_sign_symbol"] = share
        write(folder, "trainer_state.json", state)
        text = write_model_card(folder).read_text()
        sentence = "collapsed onto sign symbol: 81.11 % of their pixels, 24.12 % of the labels'."
        assert (sentence in text) == collapsed


# ---- License, base model, data of the Hub ----


def test_weights_of_nvidia_and_data_of_the_hub(make_folder):
    data = {"source": "segments/sidewalk-semantic", "on_hub": True, "layout": "datasets"}
    data |= {"validation": {"a": 4, "b": 5}, "unlabeled_dataset": "me/more", "unlabeled_dataset_on_hub": True}
    data |= {"dataset_config_name": "full"}
    run = run_of(data=data, model={"base_weights": "nvidia/mit-b5", "started_from": "jane/first"})
    text = write_model_card(make_folder(run=run, config=config_of(CLASSES, base_weights="nvidia/mit-b5"))).read_text()
    card = valid(text)
    assert (card.data.license, card.data.license_name) == ("other", "nvidia-source-code-license-for-segformer")
    assert card.data.license_link == "https://github.com/NVlabs/SegFormer/blob/master/LICENSE"
    assert (card.data.base_model, card.data["base_model_relation"]) == ("jane/first", "finetune")
    assert card.data.datasets == ["segments/sidewalk-semantic", "me/more"]
    assert {result.dataset_type for result in card.data.eval_results} == {"segments/sidewalk-semantic"}
    assert "non-commercial use only" in text and "trained from scratch" not in text
    assert "a: 4, b: 5" in text and "configuration `full`" in text
    assert "[`nvidia/mit-b5`](https://huggingface.co/nvidia/mit-b5), through [`jane/first`]" in text


# ---- Odd classes and names ----


@pytest.mark.parametrize(
    "names", [["only"], [f"class {index}" for index in range(81)], ODD_NAMES], ids=["one", "81", "odd"]
)
def test_class_names(make_folder, names):
    folder = make_folder(names, run=run_of())
    write(folder, "eval_x.json", evaluation_of(names, "validation", 0.5))
    text = write_model_card(folder, model_name='5: "five" #1 | über').read_text(encoding="utf-8")
    card = valid(text)
    assert card.data.model_name == '5: "five" #1 | über'
    assert [row[1] for row in rows_of(text, "index")] == [" ".join(name.split()) for name in names]
    shown = rows_of(text, "class")
    assert [row[0] for row in shown] == names
    assert [row[1] for row in shown] == [f"{15.07 + 7 * index:.2f}" for index in range(len(names))]
    assert text.count("<details>") == (3 if len(names) == 81 else 1) == text.count("</details>")
    assert ("one of 1 class." in text) == (len(names) == 1)
    assert "49" not in text.split("## Classes")[1].split("## Data")[0] or len(names) == 81  # nothing is evaluated


def test_odd_data_set(make_folder):
    run = run_of(data={"source": 'a|b: "c" `d` ---'}, command="python t.py '```'")
    text = write_model_card(make_folder(run=run)).read_text()
    card = valid(text)
    assert card.data.eval_results[0].dataset_name == 'a|b: "c" `d` ---'
    assert card.data.eval_results[0].dataset_type == "a-b-c-d"
    assert rows_of(text, "split")[0][1] == '``a|b: "c" `d` ---``' and "````bash\npython t.py '```'\n````" in text


def test_markdown():
    assert escape("a|b_c <i>\n*") == r"a\|b\_c &lt;i&gt; \*"
    assert code("a`b") == "``a`b``" and code("`a") == "`` `a ``" and code("a|b") == r"`a\|b`"
    assert code_block("x") == "```\nx\n```" and code_block("```").startswith("````\n")
    assert table(["a", "b", "c"], [["1", "2", "3"]], ["c"]) == "| a | b | c |\n| --- | ---: | --- |\n| 1 | 2 | 3 |"
    assert [number(value) for value in (1234567, 0.001, 1234.5, 20.0, 1e-5, None, True, float("nan"))] == [
        *("1,234,567", "0.001", "1,234.5", "20", "1e-05", "not recorded", "yes", "not recorded")
    ]
    assert [duration(seconds) for seconds in (5, 65, 3600, 7290.6, None)] == [
        *("5 s", "1 min 5 s", "1 h 0 min", "2 h 1 min", "not recorded")
    ]


def test_evaluation_modes_in_words():
    assert evaluation_mode({}) == "whole images"
    crops = {"eval_mode": "center_crop", "eval_crop_size": [64, 96]}
    assert evaluation_mode(crops) == "center crops of 64 x 96 pixels"
    scales = {"eval_scales": [0.75, 1], "eval_flip": True}
    assert evaluation_mode(scales) == "whole images, scales 0.75, 1, with the mirrored image"


# ---- Files ----


def test_a_card_changed_by_hand_is_kept(make_folder, caplog):
    folder = make_folder(run=run_of())
    path = write_model_card(folder)
    rendered = path.read_text()
    path.write_bytes(rendered.replace("\n", "\r\n").encode())  # as git may check it out
    assert write_model_card(folder) == path and path.read_text() == rendered
    assert not list(folder.glob("README.old*")) and not caplog.text
    for count, kept in enumerate(["README.old.md", "README.old.2.md"]):
        mine = rendered.replace("## Data", f"## Data, said in my words {count}")
        path.write_text(mine)
        write_model_card(folder)
        assert path.read_text() == rendered and (folder / kept).read_text() == mine
        assert f"kept as {kept}" in caplog.text
    path.write_text("# Somebody's card\n")
    write_card(path, "other\n")
    assert (folder / "README.old.3.md").read_text() == "# Somebody's card\n" and path.read_text() == "other\n"
    assert not list(folder.glob("*.part"))


def test_example_images_and_figures(make_folder, tmp_path):
    folder = make_folder(run=run_of())
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        Image.new("RGB", (8, 8), "red" if place == "a" else "blue").save(tmp_path / place / "my street_1.png")
    (folder / "figures").mkdir()
    for name in ("training_curves_light.png", "training_curves_dark.png", "figure 6.png"):
        Image.new("RGB", (4, 4)).save(folder / "figures" / name)
    images = [tmp_path / "a" / "my street_1.png", tmp_path / "b" / "my street_1.png", "https://a.org/x/big%20cat.jpg"]
    card = valid(write_model_card(folder, example_images=images).read_text())
    assert card.data["widget"] == [
        {"src": "examples/my street_1.png", "example_title": "my street 1"},
        {"src": "examples/my street_1_2.png", "example_title": "my street 1 2"},
        {"src": "https://a.org/x/big%20cat.jpg", "example_title": "big cat"},
    ]
    assert (folder / "examples" / "my street_1_2.png").read_bytes() == images[1].read_bytes()
    assert "![training curves light](figures/training_curves_light.png)" in card.text and "_dark" not in card.text
    assert "(figures/figure%206.png)" in card.text
    again = ModelCard(write_model_card(folder, example_images=images[:2]).read_text())
    assert again.data["widget"] == card.data["widget"][:2] and len(list((folder / "examples").iterdir())) == 2

    (tmp_path / "no.png").write_text("no image")
    for wrong in (tmp_path / "no.png", tmp_path / "missing.png", folder / "config.json"):
        with pytest.raises(ValueError, match=re.escape(str(wrong))):
            write_model_card(folder, example_images=[wrong])
