import json

import pytest

from allspark_hf.data import Classes, read_classes, write_classes
from allspark_hf.data.sources.classes import classes_in


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


COLORS = [(0, 0, 0), (255, 0, 0), (0, 255, 0)]
NAMES = ["background", "car", "road"]
FOREIGN = {
    "Roboflow": ("_classes.csv", "Pixel Value, Class\n0, background\n1, car\n2, road\n", None),
    "Roboflow, renamed": ("classes.txt", "Pixel Value, Class\n0, background\n1, car\n2, road\n", None),
    "columns in another order": ("a.csv", "Class Name,Pixel Value\nbackground,0\nroad,2\ncar,1\n", None),
    "quoted": ("a.csv", '"id","name"\n"0","background"\n"2","road"\n"1","car"\n', None),
    "one column": ("a.csv", "name\nbackground\ncar\nroad\n", None),
    "one column, quoted": ("a.csv", '"background"\n"car"\n"road"\n', None),
    "hexadecimal colors": ("a.csv", 'class,color\nbackground,#000000\n"car",#ff0000\nroad,#00FF00\n', COLORS),
    "hexadecimal colors without a header": ("a.csv", "background,#000000\ncar,#ff0000\nroad,#00ff00\n", COLORS),
    "colors in one column": ("a.tsv", 'rgb\tName\n0 0 0\tbackground\n255 0 0\tcar\n"0,255,0"\troad\n', COLORS),
    "class_dict.csv": ("a.csv", "name,r,g,b\nbackground,0,0,0\ncar,255,0,0\nroad,0,255,0\n", COLORS),
    "tabs": (
        "a.tsv",
        "index\tlabel\tred\tgreen\tblue\n0\tbackground\t0\t0\t0\n2\troad\t0\t255\t0\n1\tcar\t255\t0\t0\n",
        COLORS,
    ),
    "CVAT": (
        "labelmap.txt",
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:255,0,0:wheel,door:\nroad:0,255,0::\n",
        COLORS,
    ),
    "CVAT without colors": ("labelmap.txt", "# label:color_rgb:parts:actions\nbackground:::\ncar:::\nroad:::\n", None),
    "LabelMe": ("labels.txt", "__ignore__\nbackground\ncar\nroad\n", None),
    "labelme2voc": ("class_names.txt", "background\ncar\nroad\n", None),
    "LabelMe, with the index of its masks": ("a.txt", "-1: __ignore__\n0: background\n1: car\n2: road\n", None),
    "index and colon": ("a.txt", "0: background\n1: car\n2: road\n", None),
    "index and blank, out of order": ("a.txt", "2 road\n0 background\n1 car\n", None),
    "index and comma": ("a.txt", "0,background\n1,car\n2,road\n", None),
    "index, tab and color": ("a.txt", "0\tbackground 0 0 0\n1\tcar 255 0 0\n2\troad #00ff00\n", COLORS),
    "CamVid, colors first": ("label_colors.txt", "0 0 0\tbackground\n255 0 0\tcar\n0 255 0\t\troad\n", COLORS),
    "index after the name": ("a.txt", "road: 2\ncar: 1\nbackground: 0\n", None),
    "value of ignored pixels": ("a.txt", "0: background\n1: car\n2: road\n255: void\n", None),
    "comments and blank lines": ("a.txt", "\ufeff# mine\r\n\r\nbackground # 0\r\ncar\r\n  road  \r\n\r\n", None),
    "id2label": ("config.json", '{"id2label": {"2": "road", "0": "background", "1": "car"}, "x": 1}', None),
    "label2id": ("a.json", '{"background": 0, "road": 2, "car": 1}', None),
    "objects with ids": (
        "a.json",
        '[{"id": 2, "name": "road"}, {"id": 0, "name": "background"}, {"id": 1, "name": "car"}]',
        None,
    ),
    "YAML": ("a.yaml", "# mine\n2: road\n0: background\n1: car\n", None),
    "YAML, YOLO": ("data.yaml", "path: x\nnames:\n  0: background\n  1: car\n  2: road\n", None),
    "YAML, a list": ("a.yml", "- background\n- car\n- road\n", None),
}


@pytest.mark.parametrize("form", FOREIGN)
def test_lists_of_other_programs(tmp_path, form):
    name, text, colors = FOREIGN[form]
    (tmp_path / name).write_bytes(text.encode())
    assert read_classes(tmp_path / name) == Classes(NAMES, colors)


def test_names_that_begin_or_end_with_a_number(tmp_path):
    path = tmp_path / "classes.txt"
    for names in (
        ["2 wheeler", "car"],
        ["class 1", "class 0"],
        ["0", "1"],
        ["car-1", "car-0"],
        ["_background_", "a:b"],
    ):
        path.write_text("\n".join(names))
        assert read_classes(path).names == names


def test_the_list_in_a_folder(tmp_path):
    assert classes_in(tmp_path) is None
    (tmp_path / "labels.txt").write_text("__ignore__\nother\n")
    assert classes_in(tmp_path).names == ["other"]
    (tmp_path / "_classes.csv").write_text("id,name\n0,a\n")
    with pytest.raises(ValueError, match=r"_classes\.csv and .*labels\.txt both exist; keep one"):
        classes_in(tmp_path)
    (tmp_path / "classes.txt").write_text("own\n")
    assert classes_in(tmp_path).names == ["own"]


@pytest.mark.parametrize("suffix", ["json", "txt"])
@pytest.mark.parametrize("with_colors", [False, True])
def test_written_classes_read_back(tmp_path, suffix, with_colors):
    colors = [(index, 255 - index, 7) for index in range(81)] if with_colors else None
    classes = Classes([f"größe {index}" for index in range(81)], colors)
    write_classes(classes, tmp_path / f"classes.{suffix}")
    assert read_classes(tmp_path / f"classes.{suffix}") == classes


@pytest.mark.parametrize("name", ["#sky", "a\nb", " sky", "lamp 1 2 3", "0 sky", "sky # day", "sky,0"])
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
        ("json", '{"names": ["a", 3]}', "Class 1 has the name 3, which is no text; put it into quotes."),
        ("json", '{"names": ["a", "b"], "colors": [[0, 0, 0]]}', "2 class names but 1 colors"),
        ("json", '{"names": ["a"], "colors": [[0, 0, 256]]}', r"color of class 'a' is \[0, 0, 256\]"),
        ("json", '{"names": ["a"], "colors": [[0, -1, 0]]}', "whole numbers from 0 to 255"),
        ("json", '{"names": ["a"], "colors": [[0, 0]]}', "whole numbers from 0 to 255"),
        ("json", '{"names": ["a"], "colors": [[0.5, 0, 0]]}', "whole numbers from 0 to 255"),
        ("json", '{"names": ["a"], "colors": ["red"]}', "color of class 'a' is 'red'"),
        ("json", '{"0": "a", "2": "b"}', "0 to 1 without gaps, but 1 is missing and 2 is the highest"),
        ("json", '{"1": "a", "2": "b"}', "0 is missing"),
        ("json", '{"0": "a", "0": "b"}', 'key "0" occurs twice'),
        ("json", '{"a": "b"}', "it is none of these"),
        ("json", '[["a"]]', "it is none of these"),
        ("json", "3", "it is none of these"),
        ("json", '[{"name": "a"}, {"color": [0, 0, 0]}]', 'Class 1 has no "name"'),
        ("json", '[{"name": "a"}, {"name": "b", "color": [0, 0, 0]}]', "Only 1 of the 2 classes have a color"),
        ("json", '["a",]', "not valid JSON"),
        ("txt", "# nothing\n", "list of classes is empty"),
        ("txt", "sky\nsky\n", "classes 0 and 1 are both named 'sky'"),
        ("txt", "sky 0 0 300\n", r"color of class 'sky' is \(0, 0, 300\)"),
        ("txt", "sky 0 0 0\nroad\n", "Only 1 of the 2 classes have a color"),
        (
            "txt",
            "1: car\n2: road\n",
            r"0 is missing and 2 is the highest; .* names alone and give --mask_values 1 2\.$",
        ),
        ("txt", "0 sky\n7 road\n", r"1 is missing and 7 is .* give --mask_values 0 7\.$"),
        ("txt", "\n".join(f"{i} n{i}" for i in range(1, 151)), r"0 is missing .* --mask_values \$\(seq 1 150\)\.$"),
        ("txt", "0: a\n1: b\n0: c\n", "'a' and 'c' have the index 0; give every class its own"),
        ("txt", "0: sky\nroad\n2: car\n", r"Line 1 \(0: sky\) has an index and line 2 \(road\) has none"),
        ("txt", "sky\n__ignore__\n", "__ignore__ is entry 2 of the list, but it must be the first one"),
        ("txt", "0: __ignore__\n1: car\n", r"--mask_values 1 --ignored_mask_values 0\.$"),
        ("csv", "Pixel Value,Class\n0,sky,blue\n", r"Line 2 \(0,sky,blue\) has 3 cells, but the first line names 2"),
        ("csv", "Pixel Value,Class\nx,sky\n", r"has 'x' where a whole number \(index\) is needed"),
        ("csv", "Pixel Value,Class\n", "list of classes is empty"),
        ("json", '[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]', r"0 is missing and 2 .* --mask_values 1 2\.$"),
        ("json", '[{"id": 0, "name": "a"}, {"name": "b"}]', "Only 1 of the 2 classes have an index"),
        ("yaml", "0: a\n0: b\n", 'key "0" occurs twice'),
        ("yaml", "a: [\n", "not valid YAML"),
        ("yaml", "0: sky\n1: no\n", "Class 1 has the name False, which is no text; put it into quotes."),
        ("xml", "sky\n", r"must end in \.json, \.yaml, .*; rename it"),
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
