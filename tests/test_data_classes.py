import json

import pytest

from allspark_hf.data import Classes, read_classes, write_classes


SKY_ROAD = Classes(["sky", "road"], [(70, 130, 180), (128, 64, 128)])


def test_label_maps():
    assert SKY_ROAD.num_labels == 2
    assert SKY_ROAD.id2label == {0: "sky", 1: "road"}
    assert SKY_ROAD.label2id == {"sky": 0, "road": 1}


@pytest.mark.parametrize(
    ("content", "colors"),
    [
        (["sky", "road"], None),
        ({"names": ["sky", "road"]}, None),
        ({"names": ["sky", "road"], "colors": [[70, 130, 180], [128, 64, 128]]}, SKY_ROAD.colors),
        ({"1": "road", "0": "sky"}, None),
        ([{"name": "sky"}, {"name": "road"}], None),
        ([{"name": "sky", "color": [70, 130, 180]}, {"name": "road", "color": [128, 64, 128]}], SKY_ROAD.colors),
    ],
)
def test_json_forms(tmp_path, content, colors):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert read_classes(path) == Classes(["sky", "road"], colors)


def test_text_forms(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("# classes\n\nsky\n  sign symbol \nclass 7\n", encoding="utf-8")
    assert read_classes(path) == Classes(["sky", "sign symbol", "class 7"], None)
    path.write_text("\ufeffsky\t70 130 180\r\nsign symbol 128 64 128\nclass 7 #0aFf00\nb, 1, 2, 3\n", encoding="utf-8")
    classes = read_classes(str(path))
    assert classes.names == ["sky", "sign symbol", "class 7", "b"]
    assert classes.colors == [(70, 130, 180), (128, 64, 128), (10, 255, 0), (1, 2, 3)]


@pytest.mark.parametrize("suffix", ["json", "txt"])
@pytest.mark.parametrize("with_colors", [False, True])
def test_written_classes_read_back(tmp_path, suffix, with_colors):
    colors = [(index, 255 - index, 7) for index in range(81)] if with_colors else None
    classes = Classes([f"größe {index}" for index in range(81)], colors)
    write_classes(classes, tmp_path / f"classes.{suffix}")
    assert read_classes(tmp_path / f"classes.{suffix}") == classes


@pytest.mark.parametrize("name", ["#sky", "a\nb", " sky", "lamp 1 2 3"])
def test_names_that_text_cannot_hold(tmp_path, name):
    with pytest.raises(ValueError, match=r"cannot be told apart in a text file; write a \.json file"):
        write_classes(Classes([name]), tmp_path / "classes.txt")
    write_classes(Classes([name]), tmp_path / "classes.json")
    assert read_classes(tmp_path / "classes.json").names == [name]


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        ("json", "[]", "list of classes is empty"),
        ("json", '["a", "b", "a"]', "classes 0 and 2 are both named 'a'"),
        ("json", '["a", " "]', "Class 1 has the name ' '"),
        ("json", '{"names": "ab"}', '"names" must be a list'),
        ("json", '{"names": ["a", 3]}', "Class 1 has the name 3"),
        ("json", '{"names": ["a", "b"], "colors": [[0, 0, 0]]}', "2 class names but 1 colors"),
        ("json", '{"names": ["a"], "colors": [[0, 0, 256]]}', r"color of class 'a' is \[0, 0, 256\]"),
        ("json", '{"names": ["a"], "colors": [[0, -1, 0]]}', "whole numbers from 0 to 255"),
        ("json", '{"names": ["a"], "colors": [[0, 0]]}', "whole numbers from 0 to 255"),
        ("json", '{"names": ["a"], "colors": [[0.5, 0, 0]]}', "whole numbers from 0 to 255"),
        ("json", '{"names": ["a"], "colors": ["red"]}', "color of class 'a' is 'red'"),
        ("json", '{"0": "a", "2": "b"}', "0 to 1 without gaps, but 1 is missing and 2 is the highest"),
        ("json", '{"1": "a", "2": "b"}', "0 is missing"),
        ("json", '{"0": "a", "0": "b"}', 'key "0" occurs twice'),
        ("json", '{"a": 0}', "it is none of these"),
        ("json", "3", "it is none of these"),
        ("json", '[{"name": "a"}, {"color": [0, 0, 0]}]', 'Class 1 has no "name"'),
        ("json", '[{"name": "a"}, {"name": "b", "color": [0, 0, 0]}]', "Only 1 of the 2 classes have a color"),
        ("json", '["a",]', "not valid JSON"),
        ("txt", "# nothing\n", "list of classes is empty"),
        ("txt", "sky\nsky\n", "classes 0 and 1 are both named 'sky'"),
        ("txt", "sky 0 0 300\n", r"color of class 'sky' is \(0, 0, 300\)"),
        ("txt", "sky 0 0 0\nroad\n", "Only 1 of the 2 classes have a color"),
        ("csv", "sky\n", r"must end in \.json or \.txt"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, suffix, text, message):
    path = tmp_path / f"classes.{suffix}"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        read_classes(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_missing_file_and_other_extension(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"classes\.txt does not exist"):
        read_classes(tmp_path / "classes.txt")
    with pytest.raises(ValueError, match=r"must end in \.json or \.txt"):
        write_classes(SKY_ROAD, tmp_path / "classes.csv")
