"""Fixtures: tiny random models from a configuration, in-memory datasets, and the data that may lie beside us.

What takes long to import is imported where it is used: the process that hands out tests to workers starts them sooner.
"""

import functools
import gc
import logging
import os
from pathlib import Path

import forking
import pytest


pytest.register_assert_rewrite("segmenter_tester")

# Tiny models are not quicker with two threads, and two workers of pytest-xdist would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Files that take longest come first, so that two workers end at about the same time.
LONGEST = ("backbone", "distributed", "export_onnx", "kill_and_resume", "faults", "space_browser", "make_figures")
LONGEST += ("study", "segformer", "step", "streaming", "attention", "publish_end_to_end", "compare_runs", "benchmark")
LONGEST += ("evaluate_script", "trainer")

SHARED = Path(__file__).resolve().parents[2] / "shared"
TINY = {
    "hidden_sizes": [8, 16, 24, 32],
    "num_attention_heads": [1, 2, 3, 4],
    "depths": [1, 1, 1, 1],
    "decoder_hidden_size": 16,
    "crop_size": 64,
    "num_labels": 3,
}
# Half the stages, for what takes its time for every layer: a stage that reduces its keys, and one that does not.
TWO_STAGES = {"num_encoder_blocks": 2, "hidden_sizes": [8, 16], "num_attention_heads": [1, 2], "depths": [1, 1]}
TWO_STAGES |= {"strides": [4, 8], "patch_sizes": [7, 9], "sr_ratios": [8, 1], "mlp_ratios": [4, 4]}
# The least, for what takes its time for every weight.
ONE_STAGE = {"num_encoder_blocks": 1, "hidden_sizes": [8], "num_attention_heads": [1], "depths": [1]}
ONE_STAGE |= {"strides": [4], "patch_sizes": [7], "sr_ratios": [8], "mlp_ratios": [4]}
NO_DROPOUT = {"drop_path_rate": 0.0, "classifier_dropout_prob": 0.0, "channel_attention_dropout": 0.0}


def prepare():
    """Imports what nearly all tests need, as they need it."""
    import datasets
    import torch

    from allspark_hf import AllSparkTrainer, segment  # noqa: F401

    torch.set_num_threads(1)
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # 5 s at the end of each pass over a stream


def tiny_config(**kwargs):
    from allspark_hf import AllSparkConfig

    return AllSparkConfig(**{**TINY, **kwargs})


def tiny_model(seed: int = 0, **kwargs):
    """A small SegFormer with weights large enough that mistakes show."""
    import torch

    from allspark_hf import SegformerForSemiSupervisedSegmentation

    torch.manual_seed(seed)
    return enlarge_weights(SegformerForSemiSupervisedSegmentation(tiny_config(**kwargs)))


def small_model(seed: int = 0, **kwargs):
    """[`tiny_model`] with half the stages, for tests that train and do not look at the encoder."""
    return tiny_model(seed, **TWO_STAGES | kwargs)


def enlarge_weights(model):
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=max(1, parameter[0].numel()) ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@functools.cache
def make_dataset(num_rows: int, num_labels: int = 3, seed: int = 0, size=(72, 96), masks: bool = True):
    """Noise images whose mask follows their brightness; in memory, (height, width) = `size`."""
    import datasets
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    images, labels = [], []
    for _ in range(num_rows):
        label = rng.integers(num_labels, size=(size[0] // 24, size[1] // 24)).repeat(24, 0).repeat(24, 1)
        noise = rng.integers(40, size=(*label.shape, 3))
        images.append(Image.fromarray((label[..., None] * (200 // num_labels) + noise).astype(np.uint8)))
        label[:2] = 255
        labels.append(Image.fromarray(label.astype(np.uint8)))
    columns = {"image": images, "label": labels} if masks else {"image": images}
    dataset = datasets.Dataset.from_dict(columns)
    for name in columns:
        dataset = dataset.cast_column(name, datasets.Image())
    return dataset


class Collect(logging.Handler):
    """Messages of a logger at WARNING or above."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def pytest_sessionstart(session: pytest.Session):
    if session.config.getoption("dist", "no") == "no":  # otherwise this process only hands out tests
        prepare()
        forking.begin()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]):
    left_out = [item for item in items if getattr(item.cls, "leaves_out", lambda name: False)(item.name)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_collection_finish():
    """Each `Trainer.train` collects garbage: half a second among all that is imported, none without it."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def what_earlier_files_imported_is_frozen():
    """As above: what the exporter and the compiler leave took a tenth and more of each short training."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def transformers_warnings():
    """Messages that transformers logs as warnings, even if it has logged them before."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.warning_once.cache_clear()
    handler, logger = Collect(), logging.getLogger("transformers")
    logger.addHandler(handler)
    yield handler.messages
    logger.removeHandler(handler)


@pytest.fixture
def poisoned_memory():
    """Memory that nobody initializes is NaN, or the largest integer, instead of accidental zeros."""
    import torch

    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk():
    """Files need not survive a power cut here. Tests that kill a process start one, which waits as always."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def own_remote_code(tmp_path_factory):
    """Two workers must not write code of models into one folder, nor into the user's."""
    from transformers import dynamic_module_utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture(autouse=True, scope="session")
def card_template_compiled_once():
    """Which takes most of the time of a card, and hundreds are rendered."""
    from allspark_hf.publishing import card
    from allspark_hf.publishing.markdown import environment

    template_environment = environment()
    template_environment.from_string = functools.cache(template_environment.from_string)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card, "environment", lambda: template_environment)
        yield


@pytest.fixture(autouse=True, scope="session")
def commit_and_versions_asked_once():
    """Each training starts git four times and reads the files of five packages; neither changes."""
    from allspark_hf.publishing import record

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_git", "version"):
            patch.setattr(record, name, functools.cache(getattr(record, name)))
        yield


@pytest.fixture(autouse=True)
def same_threads():
    """A test that changes their number must not change the last bits of the next one's sums."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def image_processor():
    from allspark_hf.inference.loading import make_image_processor

    return make_image_processor()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """The demo's images, small and few: two labeled, three unlabeled, two for validation."""
    from allspark_hf.demo.data import write_demo_data

    folder = tmp_path_factory.mktemp("data") / "garden"
    return write_demo_data(folder, num_train=5, num_labeled=2, num_validation=2, size=(64, 96))


@pytest.fixture(scope="session")
def parity_root() -> Path:
    """The folder with the numbers of the authors' codes, of this machine or another one's."""
    folder = Path(os.environ.get("ALLSPARK_PARITY_DIR", SHARED / "parity"))
    if not folder.is_dir():
        pytest.skip(f"the authors' numbers are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def parity_dir(parity_root) -> Path:
    return parity_root / "tiny_a"
