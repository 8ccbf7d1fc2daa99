"""A folder with made-up records of a training run, every number different, and how its card is read and checked."""

import copy
import json
import re
from pathlib import Path

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from allspark_hf.publishing.card import is_as_rendered


CLASSES = ["sky", "road", "sign symbol"]
RUN = {
    "format": 2,
    "command": "python scripts/train.py r.yaml --data_dir street --seed 3",
    "recipe": "r.yaml",
    "arguments": {"data_dir": "street", "crop_size": [64, 96], "lr_scheduler_kwargs": {"power": 0.5}},
    "settings": {"learning_rate": 0.00125, "warmup_steps": 11, "optim": "sgd", "data_seed": None, "eval_scales": None},
    "evaluation": {"eval_mode": "whole", "eval_scales": None, "count_absent_classes": False},
    "method": {"name": "allspark", "title": "AllSpark", "description": "with a memory"},
    "model": {"base_weights": "none", "started_from": "none", "parameters": 7_654_321},
    "data": {
        "source": "street",
        "on_hub": False,
        "layout": "folder",
        "hidden_masks": 23,
        "files_left_out": 29,
        "selection": {"labeled_count": 31, "split_seed": 37},
        "labeled": 31,
        "unlabeled": 1234,
        "unlabeled_stream": False,
        "unlabeled_used": True,
        "validation": 41,
        "classes": 3,
    },
    "training": {
        "steps": 4321,
        "epochs": 43.0,
        "seconds": 3723.4,
        "resumed": False,
        "labeled_images_per_update": 6,
        "unlabeled_images_per_update": 12,
        "load_best_model_at_end": False,
        "metric_for_best_model": "mean_iou",
    },
    "git": {"commit": "0123456789abcdef", "uncommitted_changes": True},
    "versions": {"python": "3.11.7", "allspark_hf": "0.1.0", "torch": "2.13.0"},
    "machine": {"cpu": "A CPU", "cores": 47, "memory_gib": 53.5, "gpus": ["H 200", "H 200"], "processes": 2}
    | {"threads_per_process": 59},
}


def write(folder: Path, name: str, content: dict):
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def config_of(names: list[str], **fields) -> dict:
    labels = {str(index): name for index, name in enumerate(names)}
    config = {"model_type": "allspark", "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "crop_size": [64, 96]}
    config |= {"id2label": labels, "semantic_loss_ignore_index": 255, "use_cross_attention": True}
    return config | {"palette": [[index, 2 * index, 255] for index in range(len(names))], **fields}


def run_of(**sections) -> dict:
    run = copy.deepcopy(RUN)
    for name, changes in sections.items():
        run[name] = {**run[name], **changes} if isinstance(changes, dict) else changes
    return run


def history_of(names: list[str]) -> list[dict]:
    history = []
    for epoch in range(1, 5):
        history.append({"epoch": epoch - 0.5, "step": epoch, "pseudo_confidence": 0.1 * epoch + 0.0123})
        shares = {f"pseudo_share_{'_'.join(name.split())}": 0.05 for name in names}
        top = "_".join(names[-1].split())
        shares |= {f"pseudo_share_{top}": 0.6 + 0.0101 * epoch, f"label_share_{top}": 0.2 + 0.0103 * epoch}
        truth = {"pseudo_mean_iou": 0.3 + 0.0107 * epoch, "pseudo_accuracy": 0.8 + 0.0109 * epoch}
        history.append({"epoch": float(epoch), "step": epoch, **truth, **shares})
    history.append({"epoch": 2.0, "step": 2, "holdout_accuracy": 0.8801})
    history.append({"epoch": 2.0, "step": 2, "eval_mean_iou": 0.5101})
    means = {"eval_mean_iou": 0.4203, "eval_mean_accuracy": 0.5207, "eval_overall_accuracy": 0.6209}
    history.append({"epoch": 4.0, "step": 4, **means})
    history.append({"epoch": 4.0, "step": 4, "train_runtime": 1.0})
    return history


def evaluation_of(names: list[str], split: str, mean: float, **settings) -> dict:
    settings = {"eval_mode": "whole", "count_absent_classes": False, **settings}
    return {
        "model": "/home/jane/out",
        "data": {"data_dir": "/home/jane/street", "dataset_name": None, "split": split},
        "settings": settings,
        "num_images": 61,
        "metrics": {"mean_iou": mean, "mean_accuracy": mean + 0.1, "overall_accuracy": mean + 0.2, "loss": 1.0},
        "per_class": [
            {"index": index, "name": name, "iou": 0.1507 + 0.07 * index, "accuracy": 0.3011 + 0.01 * index}
            for index, name in enumerate(names)
        ],
    }


def write_records(folder: Path, names=CLASSES, run=None, config=None, final=True) -> Path:
    write(folder, "config.json", config or config_of(names, base_weights="none"))
    if run is not None:
        iou = {f"eval_iou_{'_'.join(name.split())}": 0.1301 + 0.1 * index for index, name in enumerate(names)}
        means = {"eval_mean_iou": 0.4203, "eval_mean_accuracy": 0.5207, "eval_overall_accuracy": 0.6209}
        write(
            folder,
            "run_record.json",
            run | ({"metrics": {"eval": {"eval_loss": 1.0, **means, **iou}}} if final else {}),
        )
        write(folder, "trainer_state.json", {"log_history": history_of(names)})
    return folder


def valid(text: str, rendered: bool = True) -> ModelCard:
    """The card, after the checks that huggingface_hub's classes can make offline, and a few of the Hub's own."""
    card = ModelCard(text)
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert card.data.to_dict() == metadata, "metadata changes on its way through ModelCardData"
    assert ModelCard(str(card)).data.to_dict() == metadata
    assert metadata["pipeline_tag"] == "image-segmentation" and metadata["library_name"] == "transformers"
    assert metadata["license"] in ("apache-2.0", "cc-by-nc-4.0", "other", "unknown")
    assert ("license_name" in metadata) == ("license_link" in metadata) == (metadata["license"] == "other")
    for entry in metadata.get("widget", []):
        assert set(entry) == {"src", "example_title"}
        assert entry["src"].startswith("https://") or re.fullmatch(r"examples/[^/]+", entry["src"])
    for name in metadata.get("datasets", []):
        assert re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)
    if "model-index" in metadata:
        name, results = model_index_to_eval_results(metadata["model-index"])
        assert eval_results_to_model_index(name, results) == metadata["model-index"] and results
        assert all(0 <= result.metric_value <= 1 for result in results)
    assert is_as_rendered(text) == rendered and "{{" not in re.sub(r"\\\{", "", text).replace("{{AllSpark", "")
    assert not re.search(r"\bNone\b(?! of)|\bnan\b", text)
    headings = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    expected = ["How to use", "Classes", "Data", "Training", "Results", "Pseudo-labels", "Figures"]
    expected += ["Limits and known failure modes", "Environment", "License", "Citation"]
    assert [heading for heading in expected if heading in headings or heading != "Figures"] == headings
    assert "\n\n\n" not in text
    return card


def unescape(cell: str) -> str:
    cell = re.sub(r"\\([\\`*_{}\[\]|~$])", r"\1", cell)
    return cell.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def rows_of(text: str, first_header: str) -> list[list[str]]:
    """Cells of the table whose first column is called so, unescaped."""
    lines = text.split("\n")
    start = next(place for place, line in enumerate(lines) if line.startswith(f"| {first_header} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([unescape(cell) for cell in re.split(r"(?<!\\) \| ", line.removeprefix("| ").removesuffix(" |"))])
    return rows
