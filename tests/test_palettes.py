"""The warning about indexed masks whose colors do not agree with their values."""

from dataclasses import replace

import pytest
from layout_folders import load_folder, make_folder, write_mask
from PIL import Image

from allspark_hf.data import Classes, check_data


BLACK, RED, BLUE = [0, 0, 0], [255, 0, 0], [0, 0, 255]


def test_palettes_in_another_order_are_told(tmp_path, caplog):
    """Programs that save few colors begin the palette with any of them; gray and equal palettes are fine."""
    black, red, gray = [0, 0, 0], [255, 0, 0], [value for value in range(256) for _ in range(3)]
    root = make_folder(tmp_path, palette=black + red)
    write_mask(root / "masks/train/t001.png", palette=gray)
    write_mask(root / "masks/train/t002.png", palette=black + black)  # the color tells no value
    write_mask(root / "masks/train/t003.png", values=[0], palette=[*black, 0, 0, 255, *red])  # red does not occur
    check_data(load_folder(root))
    assert not caplog.records
    write_mask(root / "masks/val/v001.png", palette=red + black)
    check_data(load_folder(root))
    (record,) = caplog.records
    assert record.message == (
        f"The palettes of masks differ: the color 255 0 0 is the value 1 in {root / 'masks/train/t000.png'} and 0 in "
        f"{root / 'masks/val/v001.png'}. Values count, not colors: if the colors are right, save the masks in RGB for "
        "`allspark import`."
    )


def checked(root, *colors, **options):
    """Checks the masks in a folder with a list of classes of these colors."""
    classes = Classes([f"class {index}" for index in range(len(colors))], [tuple(color) for color in colors])
    check_data(replace(load_folder(root), classes=classes), **options)


def test_a_palette_that_contradicts_the_list_is_told(tmp_path, caplog):
    """Pillow's quantize gives the colors of a mask values of its own."""
    root = make_folder(tmp_path, palette=BLACK + RED)
    checked(root, BLACK, RED)
    assert caplog.messages == []
    painted = Image.new("RGB", (11, 7), tuple(RED))
    painted.paste(tuple(BLACK), (0, 0, 4, 7))
    for path in sorted(root.glob("masks/*/*.png")):
        painted.quantize().save(path)
    with Image.open(path) as mask:
        assert mask.getpixel((0, 0)) == 1 and mask.getpixel((10, 0)) == 0 and mask.getpalette()[:6] == RED + BLACK
    checked(root, BLACK, RED)
    assert caplog.messages == [
        "The palette of a mask contradicts the colors of the classes: the color 255 0 0 is the value 0, class 'class "
        f"0', in {root / 'masks/train/t000.png'}, but the list of classes gives it to 'class 1'. Values count, not "
        "colors: if the colors are right, save the masks in RGB for `allspark import`."
    ]


@pytest.mark.parametrize(
    ("palette", "colors", "options"),
    [
        (BLACK + RED, (BLUE, [1, 2, 3]), {}),  # none is in the list
        (BLACK + RED, (RED, RED), {}),  # two classes with one color
        (BLACK + RED, (RED, BLACK), {"mask_values": [1, 0]}),
        (BLACK + RED, (RED, BLACK), {"mask_values": [1, 7], "ignored_mask_values": [0]}),
        ([value for value in range(256) for _ in range(3)], ([1, 1, 1], BLACK), {}),  # grays, not colors of classes
        (RED + BLUE, (RED, BLUE, BLACK), {}),
    ],
)
def test_palettes_that_do_not_contradict_the_list(tmp_path, caplog, palette, colors, options):
    checked(make_folder(tmp_path, palette=palette), *colors, **options)
    assert [line for line in caplog.messages if "palette" in line] == []


def test_values_are_compared_as_classes(tmp_path, caplog):
    """The second value is that of the first class, whose color another class has in the list."""
    root = make_folder(tmp_path, palette=BLACK + RED)
    write_mask(root / "masks/val/v001.png", palette=RED + BLUE)  # the palettes differ too, which is not told as well
    checked(root, BLACK, RED, mask_values=[1, 0])
    (line,) = caplog.messages
    assert "the color 0 0 0 is the value 0, class 'class 1', in " in line and "gives it to 'class 0'." in line
