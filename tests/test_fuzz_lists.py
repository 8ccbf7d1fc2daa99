"""Split files, class files and names of any content: a path inside the data folder, or one sentence."""

import json
import os
from pathlib import Path

import pytest
from fuzzing import JSON, TEXT, fuzz, is_one_sentence
from hypothesis import example, given
from hypothesis import strategies as st
from layout_folders import load_folder, make_cityscapes, make_coco, make_voc, write_image, write_mask
from PIL import Image

from allspark_hf.data import DataArguments, Selection, read_classes
from allspark_hf.data.presence import look_for_data
from allspark_hf.data.recognition import find_layout
from allspark_hf.data.sources.classes import Classes, write_classes
from allspark_hf.data.sources.lists import list_text, shared_images
from allspark_hf.data.sources.splits import load_layout, write_id_lists
from allspark_hf.data.sources.unlabeled import read_image_folder


NAMES = ("a", "b c", "sub/d", " e", "f ", "g\u2028h", "i\x85j", "k.l", "ü", "x.png", "m\ufeff")


def make_folder(root: Path) -> Path:
    for split in ("train", "val"):
        for name in NAMES if split == "train" else ("v", "w"):
            write_image(root / "images" / split / f"{name}.png")
            write_mask(root / "masks" / split / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """The four kinds of data, and beside each of them what no list may reach."""
    top = tmp_path_factory.mktemp("data")
    makers = {"folder": make_folder, "voc": make_voc, "cityscapes": make_cityscapes, "coco": make_coco}
    for name, make in makers.items():
        make(top / name)
        (top / name).mkdir(exist_ok=True)
    write_image(top / "secret" / "s.png")
    write_image(top / "secret" / "s.jpg")
    write_mask(top / "secret" / "m.png")
    return {name: find_layout(top / name) for name in makers}


def pieces(layout) -> list[str]:
    """What lines of a list are made of, right and wrong."""
    image, mask = "images/train/a.png", "masks/train/a.png"
    secret = layout.root.parent / "secret"
    own = list(layout.pairs("train").images)[:3]
    files = [path.relative_to(layout.root).as_posix() for path in list(layout.pairs("train").images.values())[:3]]
    outside = ["../secret/s.png", "../secret/s", f"{secret}/s.png", "images/../../secret/s.png", "..\\secret\\s.png"]
    outside += ["images\\..\\..\\secret\\s.png", "../../secret/m.png", "//secret/s.png", "~/s.png"]
    outside += [
        "./../secret/s.jpg",
        "images/train/../../../secret/s",
        "..",
        "/",
        "../secret/s.jpg",
        "C:\\s.png",
        "file:///etc/passwd",
        ".",
    ]
    return [image, mask, " ", "\t", "./", *own, *files, *outside, "\0", "a" * 300, "a" * 9000 + ".png", ".png"]


@pytest.mark.parametrize("name", ["folder", "voc", "cityscapes", "coco"])
def test_lines_never_lead_out(roots, tmp_path, name):
    layout = roots[name]
    inside = layout.root.resolve()
    listed = st.sampled_from(pieces(layout))
    line = st.lists(listed | TEXT, min_size=1, max_size=3).map(" ".join) | listed

    @fuzz(15)
    @given(st.lists(line, max_size=4), st.sampled_from(["\n", "\r\n", "\r", "\u2028", "\n\n"]), st.booleans())
    @example([f"{layout.root}/../secret/s.png"], "\n", False)
    @example(["../secret/s.png ../secret/m.png"], "\n", True)
    def check(lines, end, need_masks):
        path = tmp_path / "list.txt"
        path.write_bytes(end.join(lines).encode("utf-8", "surrogatepass"))
        try:
            pairs = layout.read_list(path, "train", need_masks)
        except (OSError, ValueError) as error:
            assert is_one_sentence(error) and str(path) in str(error), error
            assert len(str(error)) < 2000
            return
        for file in [*pairs.images.values(), *pairs.masks.values()]:
            assert ".." not in file.parts and file.resolve().is_relative_to(inside) and file.is_file()
        assert pairs.masks.keys() == pairs.images.keys() or not need_masks

    check()


@pytest.mark.parametrize("line", ["..\\secret\\s.png", "a\\..\\..\\s.png", "C:\\s.png", "\\s.png", "/s.png", "../s"])
def test_paths_out_of_the_folder_are_told_as_such(roots, tmp_path, line):
    """Those of Windows too, where a list must not mean more than here."""
    for text in (line, f"images/train/a.png {line}"):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(ValueError, match="which is outside"):
            roots["folder"].read_list(tmp_path / "list.txt", "train", need_masks=False)


@fuzz(15)
@given(st.binary(max_size=80))
@example("\ufeffa\n".encode())
@example(b"\xff\xfea\x00")
@example("ü\n".encode("latin-1"))
def test_any_bytes(roots, tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.txt"
    path.write_bytes(content)
    try:
        pairs = roots["folder"].read_list(path, "train", need_masks=False)
        assert all(file.is_file() for file in pairs.images.values())
    except ValueError as error:
        assert is_one_sentence(error) and str(path) in str(error)
    found = look_for_data(DataArguments(data_dir=str(roots["folder"].root), validation_list=str(path), num_labels=2))
    assert all(len(problem.split()) > 3 for problem in found.problems)


@fuzz(15)
@given(st.sets(st.sampled_from(NAMES), min_size=1), st.integers(0, 9), st.integers(1, len(NAMES)))
def test_lists_of_a_run_name_the_same_images(roots, tmp_path_factory, names, seed, count):
    """Whatever the names are: blanks at their ends, Unicode's line ends, what looks like a file."""
    layout, folder = roots["folder"], tmp_path_factory.mktemp("lists")
    data = load_layout(layout, Selection(labeled_count=count, split_seed=seed))
    write_id_lists(data, folder)
    again = layout.read_list(folder / "labeled_ids.txt", "train", need_masks=True)
    assert sorted(again.images) == data.labeled["id"] and len(again.images) == count
    pairs = layout.pairs("train").only(sorted(names))
    (folder / "list.txt").write_text(list_text(pairs, layout.root), encoding="utf-8")
    assert layout.read_list(folder / "list.txt", "train", need_masks=True) == pairs
    assert shared_images(sorted(names), sorted(names)) == [Path(name).as_posix() for name in sorted(names)]


@pytest.mark.parametrize(
    ("load", "name"),
    [
        *((load_folder, name) for name in ("a\nb.png", "a\rb.png", " .png", "\ufeffm.png", b"a\xffb.png")),
        *((read_image_folder, name) for name in ("a\nb.png", b"a\xffb.png")),
    ],
)
def test_names_that_no_list_can_hold(tmp_path, load, name):
    make_folder(tmp_path)
    source = tmp_path / "images" / "train" / "a.png"
    os.rename(source, os.path.join(os.fsencode(source.parent), os.fsencode(name)))
    (tmp_path / "masks" / "train" / "a.png").unlink()
    with pytest.raises(ValueError, match="rename it") as refused:
        load(tmp_path)
    assert is_one_sentence(refused.value)


# ---- Links ----


def test_links_to_files_and_of_whole_folders_are_followed(tmp_path):
    """Whoever makes a link in the data folder chose what it leads to: this is how data on another disk are used."""
    make_folder(tmp_path / "disk")
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for kind in ("images", "masks"):
        (root / kind / "train").symlink_to(tmp_path / "disk" / kind / "train")
        (root / kind / "val").mkdir()
        (root / kind / "val" / "v.png").symlink_to(tmp_path / "disk" / kind / "val" / "v.png")
    data = load_folder(root)
    assert len(data.labeled) == len(NAMES) and data.validation["id"] == ["v"]


def test_a_link_to_a_folder_further_down_is_refused(tmp_path):
    make_folder(tmp_path / "data")
    write_image(tmp_path / "disk" / "y.png")
    link = tmp_path / "data" / "images" / "train" / "city"
    link.symlink_to(tmp_path / "disk")
    with pytest.raises(ValueError, match="city is a link to a folder"):
        load_folder(tmp_path / "data")
    link.unlink()
    link.symlink_to(link)  # in a circle
    assert "y" not in load_folder(tmp_path / "data").labeled["id"]


def test_a_list_does_not_reach_through_a_link_of_its_own_folder(tmp_path):
    """A list may lie anywhere; what is beside it does not count."""
    make_folder(tmp_path / "data")
    (tmp_path / "lists").mkdir()
    write_image(tmp_path / "lists" / "images" / "train" / "z.png")
    (tmp_path / "lists" / "l.txt").write_text("images/train/z.png\n")
    with pytest.raises(ValueError, match="there is no image"):
        load_folder(tmp_path / "data", labeled_list=tmp_path / "lists" / "l.txt")


# ---- Classes ----


COLORS = st.lists(st.integers(-1, 256) | st.floats() | st.booleans(), max_size=4)
ENTRIES = st.fixed_dictionaries({}, optional={"name": JSON | TEXT, "color": COLORS | JSON})
CLASS_FILES = (
    JSON
    | st.lists(TEXT, max_size=4)
    | st.dictionaries(st.sampled_from(["0", "1", "2", "00", "9" * 5000]), TEXT, max_size=3)
    | st.fixed_dictionaries({"names": st.lists(TEXT, max_size=3) | JSON}, optional={"colors": st.lists(COLORS) | JSON})
    | st.lists(ENTRIES, max_size=3)
)


@fuzz(40)
@given(CLASS_FILES)
@example(["a b", "a_b"])
@example(["\ud800"])
def test_any_json_of_classes(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    check_classes(folder, json.dumps(content).encode(), "json")


@fuzz(30)
@given(
    st.sampled_from(["json", "txt"]),
    st.binary(max_size=40) | st.lists(TEXT, max_size=4).map(lambda lines: "\n".join(lines).encode("utf-8", "replace")),
)
@example("json", b"[" * 100_000)
@example("json", b"9" * 5000)
@example("txt", b"a " + b"9" * 5000 + b" 1 1")
@example("txt", "\ufeffa\n".encode("utf-16"))
def test_any_file_of_classes(tmp_path_factory, suffix, content):
    check_classes(tmp_path_factory.getbasetemp(), content, suffix)


def check_classes(folder: Path, content: bytes, suffix: str):
    path = folder / f"names.{suffix}"
    path.write_bytes(content)
    try:
        classes = read_classes(path)
    except ValueError as error:
        assert len(str(error).split()) > 3 and str(error).startswith(str(path))
        return
    metrics = {"_".join(name.split()) for name in classes.names}
    assert len(metrics) == classes.num_labels > 0
    assert all(isinstance(name, str) and name.strip() and name.encode() for name in classes.names)
    for color in classes.colors or []:
        assert len(color) == 3 and all(type(part) is int and 0 <= part <= 255 for part in color)
    write_classes(classes, folder / "again.json")
    assert read_classes(folder / "again.json") == Classes(classes.names, classes.colors)


def test_masks_stay_what_they_were(roots):
    """So that the tests above compare with something: the odd names lead to images that differ."""
    colors = {Image.open(path).getpixel((0, 0)) for path in roots["folder"].pairs("train").images.values()}
    assert len(colors) == len(NAMES)
