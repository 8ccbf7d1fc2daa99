"""The license of a model: from which weights it follows, where it is read, and what its card says of it."""

import pytest
from card_folders import valid
from hub_server import HubServer
from test_backbone import ENCODERS, tiny_backbone_model
from transformers import AutoBackbone

from allspark_hf.cli.arguments import ModelArguments
from allspark_hf.cli.models import load_model
from allspark_hf.data import DataArguments, load_data
from allspark_hf.demo.data import write_demo_data
from allspark_hf.models.encoders import load_encoder
from allspark_hf.publishing.card import write_model_card
from allspark_hf.publishing.licenses import base_license_of, base_weights_of, license_of


@pytest.mark.parametrize(
    ("base", "started", "expected"),
    [
        ("none", None, "apache-2.0"),
        ("none", "none", "apache-2.0"),
        ("none", "my_first_run", "apache-2.0"),
        ("none", "someone/model", "unknown"),
        ("nvidia/mit-b5", "nvidia/mit-b5", "other"),
        ("nvidia/segformer-b0-finetuned-ade-512-512", None, "other"),
        ("nvidia/mit-b2", "my_first_run", "other"),
        ("mit-b3", None, "other"),
        ("segformer.b2.512x512.ade.160k", None, "other"),
        ("none", "nvidia/mit-b0", "other"),
        ("someone/segformer-b1-tuned", None, "other"),
        ("someone/model", None, "unknown"),
        ("my_folder", None, "unknown"),
        (None, None, "unknown"),
    ],
)
def test_license(base, started, expected):
    found = license_of(base, started)
    assert found.id == expected
    assert found.origin == (None if expected == "apache-2.0" else base if base != "none" else started)
    assert (found.name is None) == (found.link is None) == (expected != "other")


@pytest.mark.parametrize(
    ("base", "given", "expected"),
    [
        ("facebook/dinov2-small", None, ("apache-2.0", None, "Meta")),
        ("dinov2-with-registers-base", "apache-2.0", ("apache-2.0", None, "Meta")),
        ("dinov2-small", None, ("apache-2.0", None, "Meta")),
        ("mit-b0", "mit", ("mit", None, None)),  # a folder, whose card says more than its name
        ("facebook/dinov2-small", "mit", ("mit", None, None)),
        ("someone/dinov2-small", None, ("unknown", None, None)),
        ("facebook/dinov3-vits16-pretrain-lvd1689m", "apache-2.0", ("other", "dinov3-license", "Meta")),
        ("timm/vit_small_patch16_dinov3.lvd1689m", None, ("other", "dinov3-license", "Meta")),
        ("facebook/convnext-base-224-22k-1k", None, ("apache-2.0", None, "Meta")),
        ("facebook/convnextv2-tiny-22k-224", "apache-2.0", ("cc-by-nc-4.0", None, "Meta")),
        ("my_hiera-small", None, ("unknown", None, None)),
        ("facebook/hiera_small_224.mae_in1k_ft_in1k", None, ("cc-by-nc-4.0", None, "Meta")),
        ("someone/encoder", "strange-1.0", ("other", "strange-1.0", None)),
        ("nvidia/mit-b0", "mit", ("other", "nvidia-source-code-license-for-segformer", "NVIDIA")),
    ],
)
def test_license_of_an_encoder(base, given, expected):
    found = license_of(base, base, given)
    assert (found.id, found.name, found.holder) == expected and found.origin == base
    assert (found.link is None) == (found.name is None)
    # What somebody made of it in between may have other terms, but no freer ones.
    between = license_of(base, "someone/tuned", given)
    stays = found.non_commercial or found.name == "dinov3-license" or found.id == "unknown"
    assert between == found if stays else (between.id, between.origin) == ("unknown", "someone/tuned")


def test_license_is_read_where_the_encoder_lies(monkeypatch, tmp_path):
    with HubServer() as hub:
        hub.use_here(monkeypatch)
        for name, text in (
            ("a/free", "license: mit"),
            ("a/named", "license: other\nlicense_name: strange-1.0\nlicense_link: LICENSE.md"),
            ("a/list", "license: [apache-2.0]"),
            ("a/odd", "license: 'two words'"),
            ("a/unnamed", "license: other"),
            ("facebook/dinov2-small", "license: cc-by-nc-4.0"),
            ("facebook/convnextv2-tiny-22k-224", "license: apache-2.0"),
        ):
            hub.add(name, {"README.md": f"---\n{text}\n---\n# A card\n".encode()})
        hub.add("a/none", {"config.json": b"{}"})
        names = ("a/free", "a/named", "a/list", "a/odd", "a/unnamed", "a/none", "a/missing", "facebook/dinov2-small")
        found = [base_license_of(name) for name in (*names, "facebook/convnextv2-tiny-22k-224")]
        assert found == [*("mit", "strange-1.0", "apache-2.0", None, None, None, None), "cc-by-nc-4.0", "cc-by-nc-4.0"]
        for how in ("cut", 503):
            hub.fail_next("GET", "/api/models/", times=2, how=how)
            assert [base_license_of(name) for name in ("a/free", "facebook/dinov2-small")] == [None, "apache-2.0"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert [base_license_of(name) for name in ("a/free", "facebook/dinov2-small")] == [None, "apache-2.0"]
    (tmp_path / "mine").mkdir()
    assert base_license_of(str(tmp_path / "mine")) is None
    for kind, expected in (("dinov3_vit", "dinov3-license"), ("hiera", "cc-by-nc-4.0"), ("dinov2", None)):
        (tmp_path / "mine" / "config.json").write_text(f'{{"model_type": "{kind}"}}')
        assert base_license_of(str(tmp_path / "mine")) == expected, kind
    for text, expected in (("license: mit", "mit"), ("license: [", None), ("- a", None), ("license: unknown", None)):
        (tmp_path / "mine" / "README.md").write_text(f"---\n{text}\n---\n")
        for name in ("mine", "mit-b0", "dinov2-small"):  # what a folder is called counts where no card says more
            (tmp_path / "mine").rename(tmp_path / name)
            named = "apache-2.0" if name == "dinov2-small" else None
            assert base_license_of(str(tmp_path / name)) == (expected or named), text
            (tmp_path / name).rename(tmp_path / "mine")


def test_license_stays_with_a_model_that_is_trained_further(tmp_path):
    write_demo_data(tmp_path / "data", num_train=2, num_labeled=1, num_validation=1, size=(64, 96))
    report = load_data(DataArguments(data_dir=str(tmp_path / "data")))
    AutoBackbone.from_config(ENCODERS["dinov2"]).save_pretrained(tmp_path / "encoder")
    (tmp_path / "encoder" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")

    def load(**source):
        return load_model(ModelArguments(**source, crop_size=[56]), report, 255, False)

    first = load(encoder=str(tmp_path / "encoder"))
    assert (first.config.base_weights, first.config.base_license) == ("encoder", "cc-by-nc-4.0")
    assert base_weights_of(load_encoder(str(tmp_path / "encoder"), crop_size=56).config) == "encoder"  # from Python
    first.save_pretrained(tmp_path / "first")
    assert str(tmp_path) not in (tmp_path / "first" / "config.json").read_text()
    second = load(model_name_or_path=str(tmp_path / "first"))
    assert (second.config.base_weights, second.config.base_license) == ("encoder", "cc-by-nc-4.0")
    report.num_labels, report.data.classes = 4, None
    other = load(model_name_or_path=str(tmp_path / "first"))  # whose classifiers start anew
    assert other.config.base_license == "cc-by-nc-4.0" and other.classifier.out_channels == 4
    scratch = load(encoder="pvt_v2")
    assert (scratch.config.base_weights, scratch.config.base_license) == ("none", None)


@pytest.mark.parametrize(
    ("encoder", "fields", "sentence"),
    [
        ("dinov2", {"base_weights": "facebook/dinov2-small"}, "which Meta licenses under Apache-2.0. So"),
        (
            *("swin", {"base_weights": "a/b", "base_license": "cc-by-nc-4.0", "head": "all_mlp"}),
            "CC-BY-NC-4.0, non-commercial use only. The weights are derived from [`a/b`](https://huggingface.co/a/b), "
            "which by its model card or model type is licensed for non-commercial use only under CC-BY-NC-4.0. So are "
            "these.",
        ),
        (
            "dinov3_vit",
            {"base_weights": "facebook/dinov3-vits16"},
            "which Meta licenses under the [DINOv3 License](ht",
        ),
        ("resnet", {"base_weights": "a/b"}, "The training goes back to `a/b`, whose license is not known here: check"),
    ],
)
def test_card_states_the_license_and_the_parts(tmp_path, encoder, fields, sentence):
    tiny_backbone_model(encoder, **fields).config.save_pretrained(tmp_path)
    text = write_model_card(tmp_path, "jane/street").read_text(encoding="utf-8")
    card = valid(text)
    assert sentence in text and card.data.base_model == fields["base_weights"]
    assert encoder in card.data.tags and "segformer" not in card.data.tags
    parts = {
        "dinov2": "It is made of the encoder DINOv2 (43,728 parameters) with a DPT head and the bottleneck of [",
        "swin": "It is made of the encoder Swin (79,257 parameters) with SegFormer's all-MLP head and the bottleneck",
    }
    assert parts.get(encoder, "It is made of the encoder ") in text
    keys = ["wang2024allspark"] + (
        ["xie2021segformer"] if "head" in fields else ["ranftl2021dpt", "yang2025unimatchv2"]
    )
    keys += {"dinov2": ["oquab2024dinov2"], "dinov3_vit": ["simeoni2025dinov3"]}.get(encoder, [])
    cited = text.split("## Citation")[1]
    assert [line.split("{")[1].rstrip(",") for line in cited.splitlines() if line.startswith("@")] == keys
    assert ("SegFormer" in text) == ("head" in fields)
    assert ("And the encoder's own paper." in cited) == (encoder in ("swin", "resnet"))
