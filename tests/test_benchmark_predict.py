"""`allspark benchmark --cases predict`: all roads write the same masks, and what is measured is what is there."""

from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from allspark_hf.benchmarks import predicting
from allspark_hf.benchmarks.cases import Case
from allspark_hf.benchmarks.report import report
from allspark_hf.benchmarks.results import Results


CPU = torch.device("cpu")


def test_prediction_of_files(tmp_path, monkeypatch, capsys):
    def lacking():
        raise ImportError("Install onnx.")

    case, options = Case("tiny", 64, 3, 1, "fp32", 2), SimpleNamespace(seed=0, repeats=2, num_images=4)
    monkeypatch.setattr(predicting, "require_onnx", lacking)
    monkeypatch.setattr(predicting, "make_memory_exact", lambda: None)  # it is for a process of its own
    found, results = predicting.predict_times(case, CPU, options), Results({}, {})
    assert list(found) == ["plain_loop", "predict"] and "predict_onnx is left out. Install" in capsys.readouterr().out
    for name, entry in found.items():
        assert len(entry["seconds"]["all"]) == len(entry["cpu_seconds"]["all"]) == 2
        results.add("predict", case, name, entry)
    memory = predicting.predict_memory(case, CPU, options, "predict")
    assert 0 <= memory["extra_bytes_of_quarter"] < memory["peak_bytes"]
    results.add("predict", case, "predict", {**memory, "extra_bytes_of_quarter": 11e6, "extra_bytes": 12e6})
    text = report(results)
    assert "allspark predict / plain loop" in text and "11, 12" in text

    with predicting.predictors(case, CPU, options, list(found), num_workers=0) as (files, predictors):
        masks = []
        for name, predict_files in predictors.items():
            (tmp_path / name).mkdir()
            predict_files(files=files, output_dir=tmp_path / name)
            masks.append([np.asarray(Image.open(tmp_path / name / f"{file.stem}_mask.png")) for file in files])
    np.testing.assert_array_equal(*masks)
    assert masks[0][0].shape == (64, 64) and len(np.unique(masks[0])) == 3
