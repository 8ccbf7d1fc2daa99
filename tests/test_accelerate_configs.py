"""scripts/accelerate: accelerate reads every file, and what would go wrong in silence is refused with a sentence."""

import os
from argparse import Namespace
from functools import partial
from types import SimpleNamespace

import accelerate.utils.launch as launching
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from conftest import tiny_model
from run_training import make_trainer
from test_backbone import tiny_backbone_model
from test_distributed import CONFIG, environment_of, read_as_launch
from test_training_args import arguments

from allspark_hf.training.processes import check_sharding, synchronize_batchnorm


FOLDER = CONFIG.parent
NAMES = ["ddp", "ddp_cpu", "deepspeed_zero2", "fsdp", "two_machines"]


def test_every_file_is_known():
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == NAMES
    readme = (FOLDER / "README.md").read_text()
    assert all(f"{name}.yaml" in readme for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_knows_every_entry(name):
    """It raises for keys that it does not know, but not below fsdp_config and deepspeed_config."""
    entries = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    machines = 2 if name == "two_machines" else 1
    assert load_config_from_file(str(FOLDER / f"{name}.yaml")).to_dict()["num_machines"] == machines
    options = vars(launch_command_parser().parse_args(["scripts/train.py"]))
    for nested in ("fsdp_config", "deepspeed_config"):
        assert set(entries.get(nested, ())) <= set(options), nested


def test_the_number_of_gpus_must_be_given():
    for name in ("ddp", "fsdp", "deepspeed_zero2", "two_machines"):
        with pytest.raises(ValueError, match="--num_processes"):
            read_as_launch(name)
        assert read_as_launch(name, "--num_processes", "4").num_processes == 4
    assert read_as_launch("ddp_cpu").num_processes == 2


def test_launch_takes_the_right_way():
    assert read_as_launch("ddp_cpu").multi_gpu and read_as_launch("ddp", "--num_processes", "4").multi_gpu
    assert read_as_launch("fsdp", "--num_processes", "4").use_fsdp
    assert read_as_launch("deepspeed_zero2", "--num_processes", "4").use_deepspeed


@pytest.fixture
def environment(monkeypatch):
    """What accelerate's launcher would set, for one test."""

    def set_from(env: dict[str, str]):
        for name, value in environment_of(env).items():
            if os.environ.get(name) != value:
                monkeypatch.setenv(name, value)

    return set_from


def test_fsdp_file_gives_the_plugin_that_is_tested(environment):
    environment(launching.prepare_multi_gpu_env(read_as_launch("fsdp", "--num_processes", "2")))
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert str(plugin.state_dict_type).endswith("FULL_STATE_DICT")
    assert not plugin.cpu_ram_efficient_loading and not plugin.activation_checkpointing
    check_sharding(accelerator_with(DistributedType.FSDP, fsdp_plugin=plugin))


@pytest.mark.parametrize(
    "make, expected",
    [(tiny_model, {"SegformerStage"}), (partial(tiny_backbone_model, "dinov2"), {"Dinov2Embeddings", "Dinov2Layer"})],
    ids=["segformer", "dinov2"],
)
def test_fsdp_file_gathers_parts_of_any_encoder(environment, make, expected):
    environment(launching.prepare_multi_gpu_env(read_as_launch("fsdp", "--num_processes", "2")))
    plugin = FullyShardedDataParallelPlugin()
    plugin.set_auto_wrap_policy(model := make())
    wrapped = {type(one).__name__ for one in model.modules() if plugin.auto_wrap_policy(one, False, 0)}
    assert wrapped == expected


def test_deepspeed_file_gives_zero_2_with_our_arguments(environment):
    """As far as it goes without DeepSpeed: the configuration that it would get."""
    _, env = launching.prepare_deepspeed_cmd_env(
        Namespace(
            **vars(read_as_launch("deepspeed_zero2", "--num_processes", "2", "--main_process_port", "0")),
            deepspeed_fields_from_accelerate_config="",
        )
    )
    environment(env)
    plugin = DeepSpeedPlugin()
    check_sharding(accelerator_with(DistributedType.DEEPSPEED, deepspeed_plugin=plugin))
    config = plugin.hf_ds_config.config
    assert config["zero_optimization"]["stage"] == 2
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "none"
    # "auto" is what transformers fills in from the training arguments.
    for name in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"):
        assert config[name] == "auto", name


def accelerator_with(distributed_type, **plugins) -> SimpleNamespace:
    return SimpleNamespace(
        distributed_type=distributed_type,
        state=SimpleNamespace(**plugins),
        device=torch.device("cpu"),
        num_processes=2,
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"fsdp_version": 1}, "fsdp_version=1 hides the weights from the pseudo-label pass"),
        ({"state_dict_type": "SHARDED_STATE_DICT"}, "fsdp_state_dict_type=SHARDED_STATE_DICT would save no model"),
        ({"cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading=True cannot load buffers"),
    ],
)
def test_ways_of_sharding_that_go_wrong_are_refused(monkeypatch, settings, sentence):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    settings = {"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT", **settings}
    plugin = FullyShardedDataParallelPlugin(**settings)
    with pytest.raises(ValueError, match=sentence):
        check_sharding(accelerator_with(DistributedType.FSDP, fsdp_plugin=plugin))


def test_zero_3_is_refused():
    plugin = SimpleNamespace(zero_stage=3)
    with pytest.raises(ValueError, match="zero_stage=3 shards the weights"):
        check_sharding(accelerator_with(DistributedType.DEEPSPEED, deepspeed_plugin=plugin))


def test_fsdp_on_cpus_is_refused(tmp_path, monkeypatch):
    """accelerate leaves it out there and trains on."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert Accelerator(cpu=True).distributed_type == DistributedType.NO
    with pytest.raises(ValueError, match=r"FSDP was asked for, but accelerate has none for cpu with 1 process\(es\)"):
        make_trainer(tiny_model(), output_dir=str(tmp_path))


def test_processes_that_would_not_know_of_each_other_are_refused(monkeypatch):
    args = arguments()
    monkeypatch.setenv("WORLD_SIZE", "2")
    args._check_processes()  # of a cluster's environment, not of a launcher's
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match="2 processes were started, but without a GPU each would train by itself"):
        args._check_processes()
    monkeypatch.setattr(type(args), "world_size", 2)
    args._check_processes()


def test_batchnorm_is_converted_with_its_weights_and_names():
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    synchronize_batchnorm(model, 2, torch.device("cuda"))
    assert type(model.decode_head.batch_norm) is torch.nn.SyncBatchNorm
    assert [name for name, one in model.named_modules() if isinstance(one, torch.nn.SyncBatchNorm)] == [
        "decode_head.batch_norm"
    ]
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    pixel_values = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.eval()(pixel_values).logits, tiny_model().eval()(pixel_values).logits)


def test_batchnorm_is_synchronized_on_gpus_only(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="sync_batchnorm=True needs GPUs, and these 2 processes train on CPUs"):
        synchronize_batchnorm(tiny_model(), 2, torch.device("cpu"))
    model = tiny_model()
    make_trainer(model, output_dir=str(tmp_path), sync_batchnorm=True)  # of one process: nothing to synchronize
    assert type(model.decode_head.batch_norm) is torch.nn.BatchNorm2d


def test_local_memory_reaches_the_bottleneck(tmp_path):
    model = tiny_model()
    make_trainer(model, output_dir=str(tmp_path), local_memory=True)
    assert model.bottleneck.share_memory is False
    other = tiny_model()
    make_trainer(other, output_dir=str(tmp_path))
    assert other.bottleneck.share_memory is True


@pytest.mark.parametrize(("given", "expected"), [(None, False), (False, False), (True, True)])
def test_unused_parameters_are_looked_for_if_asked(given, expected):
    assert arguments(ddp_find_unused_parameters=given).ddp_find_unused_parameters is expected
    assert arguments().ddp_find_unused_parameters is False
