"""Pascal VOC, Cityscapes and COCO from hand-made folders of their exact layouts."""

import logging

import numpy as np
import pytest
from layout_folders import (
    SBD_ONLY,
    VOC_TRAIN,
    VOC_VAL,
    ids,
    make_augmented,
    make_cityscapes,
    make_coco,
    make_folder,
    make_voc,
    voc_mask,
    write_ids,
    write_image,
    write_mask,
)

from allspark_hf.data import BadDataError, DataArguments, check_data, find_data, find_layout, load_data, mask_to_array
from allspark_hf.data.sources.published_classes import (
    CITYSCAPES_CLASSES,
    CITYSCAPES_IGNORED_LABEL_IDS,
    CITYSCAPES_LABEL_IDS,
    COCO_CLASSES,
    VOC_CLASSES,
    voc_colormap,
)


def load(root, **options):
    return find_data(DataArguments(data_dir=str(root), **options))


def first_values(row) -> list[int]:
    return mask_to_array(row["label"])[0, :5].tolist()


def test_classes_of_the_published_data_sets():
    assert [classes.num_labels for classes in (VOC_CLASSES, CITYSCAPES_CLASSES, COCO_CLASSES)] == [21, 19, 81]
    assert [VOC_CLASSES.names[index] for index in (0, 15, 20)] == ["background", "person", "tvmonitor"]
    known = {1: "person", 12: "stop sign", 24: "giraffe", 79: "hair drier", 80: "toothbrush"}
    assert {index: COCO_CLASSES.names[index] for index in known} == known
    assert COCO_CLASSES.colors is None
    # The development kit's colors of aeroplane, person, tvmonitor and the border.
    colormap = voc_colormap()
    known = {0: (0, 0, 0), 1: (128, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {index: colormap[index] for index in known} == known
    assert VOC_CLASSES.colors == colormap[:21] and len(set(colormap)) == 256


def test_every_label_id_of_cityscapes_has_one_meaning():
    assert len(CITYSCAPES_LABEL_IDS) == 19
    assert sorted(CITYSCAPES_LABEL_IDS + CITYSCAPES_IGNORED_LABEL_IDS) == [*range(34), 255]
    train_id = dict(zip(CITYSCAPES_LABEL_IDS, CITYSCAPES_CLASSES.names, strict=True))
    known = {7: "road", 11: "building", 17: "pole", 19: "traffic light", 23: "sky", 24: "person", 26: "car", 28: "bus"}
    known |= {31: "train", 33: "bicycle"}
    assert {value: train_id[value] for value in known} == known


@pytest.mark.parametrize("depth", ["VOCdevkit/VOC2012", "VOCdevkit", "."])
def test_voc_as_unpacked(tmp_path, depth):
    make_voc(tmp_path / "VOCdevkit" / "VOC2012")
    data = load(tmp_path / depth)
    assert ids(data.labeled) == VOC_TRAIN
    assert len(data.unlabeled) == 0
    assert ids(data.validation) == VOC_VAL
    assert data.classes == VOC_CLASSES
    row = data.labeled[2]
    assert row["label"].mode == "P" and first_values(row) == [0, 1, 15, 255, 0]
    assert row["image"].size == (11, 7)
    report = check_data(data)
    assert (report.num_labels, report.values) == (21, [0, 1, 15])


def test_classes_of_ones_own_come_before_those_of_the_layout(tmp_path):
    make_voc(tmp_path)
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    assert load(tmp_path).classes.names == ["sky", "road"]
    own = write_ids(tmp_path / "own.txt", [f"class {index}" for index in range(21)])
    assert load(tmp_path, classes=str(own)).classes.names[20] == "class 20"


@pytest.mark.parametrize("list_name", ["train_aug.txt", "trainaug.txt"])
def test_voc_augmented(tmp_path, list_name):
    make_augmented(make_voc(tmp_path), list_name)
    data = load(tmp_path, voc_masks="augmented")
    assert ids(data.labeled) == VOC_TRAIN + SBD_ONLY
    assert ids(data.validation) == VOC_VAL
    values = [first_values(row) for row in data.labeled]
    assert values == [[0, 1, 15, 255, 0]] * 6 + [[0, 20, 0, 20, 0]] * 4
    assert check_data(data).values == [0, 1, 15, 20]
    assert ids(load(tmp_path).labeled) == VOC_TRAIN
    # As the field has it: all masks in SegmentationClassAug, or all in SegmentationClass. VOC's own come first.
    write_mask(tmp_path / "SegmentationClassAug" / f"{VOC_TRAIN[0]}.png", (0, 20))
    assert [first_values(row) for row in load(tmp_path, voc_masks="augmented").labeled] == values
    for mask in list((tmp_path / "SegmentationClass").iterdir()):
        mask.rename(tmp_path / "SegmentationClassAug" / mask.name)
    (tmp_path / "SegmentationClass").rmdir()
    assert [first_values(row) for row in load(tmp_path, voc_masks="augmented").labeled] == values
    (tmp_path / "SegmentationClassAug").rename(tmp_path / "SegmentationClass")
    assert [first_values(row) for row in load(tmp_path, voc_masks="augmented").labeled] == values


def test_voc_augmented_that_is_not_prepared(tmp_path):
    make_voc(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no list .*train_aug\.txt; make it with scripts/prepare_sbd\.py, or"):
        load(tmp_path, voc_masks="augmented")
    write_ids(tmp_path / "ImageSets" / "Segmentation" / "train_aug.txt", VOC_TRAIN + SBD_ONLY)
    with pytest.raises(ValueError, match=rf"^4 of 10 training images have no mask, first .*{SBD_ONLY[0]}\.jpg"):
        load(tmp_path, voc_masks="augmented")


def test_field_folder_of_voc_needs_lists(tmp_path):
    make_voc(tmp_path / "voc", image_sets=False)
    with pytest.raises(FileNotFoundError, match=r"no list .*val\.txt; name the images with validation_list"):
        load(tmp_path / "voc")
    validation = write_ids(tmp_path / "val.txt", VOC_VAL)
    with pytest.raises(FileNotFoundError, match=r"no list .*train\.txt; name the images with labeled_list and unlab"):
        load(tmp_path / "voc", validation_list=str(validation))


def test_missing_and_corrupt_files_of_voc(tmp_path):
    make_voc(tmp_path)
    mask = tmp_path / "SegmentationClass" / f"{VOC_TRAIN[1]}.png"
    content = mask.read_bytes()
    mask.write_bytes(content[:-30])
    with pytest.raises(BadDataError, match=rf"1 bad file was found.*\n.*{VOC_TRAIN[1]}\.png: The file cannot"):
        load_data(DataArguments(data_dir=str(tmp_path)))
    report = load_data(DataArguments(data_dir=str(tmp_path), skip_bad_files=True))
    assert len(report.data.labeled) == 5 and len(report.left_out) == 1
    mask.unlink()
    with pytest.raises(ValueError, match=rf"^1 of 6 training images have no mask, first .*{VOC_TRAIN[1]}\.jpg"):
        load(tmp_path)
    (tmp_path / "JPEGImages" / f"{VOC_TRAIN[1]}.jpg").unlink()
    with pytest.raises(ValueError, match=rf"Line 2 of .*train\.txt names {VOC_TRAIN[1]}, but there is no image"):
        load(tmp_path)
    (tmp_path / "SegmentationClass" / f"{VOC_VAL[0]}.png").unlink()
    with pytest.raises(ValueError, match=rf"Line 1 of .*val\.txt names {VOC_VAL[0]}, but there is no mask"):
        load(tmp_path)


def test_cityscapes_label_ids_are_mapped(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="allspark_hf"):
        data = load(make_cityscapes(tmp_path))
    assert caplog.records == []
    names = [*(f"aachen_00000{index}_000019" for index in range(3)), *(f"jena_00000{index}_000019" for index in "01")]
    assert ids(data.labeled) == names
    assert ids(data.validation) == ["lindau_000000_000019", "lindau_000001_000019"]
    assert len(data.unlabeled) == 0 and data.classes == CITYSCAPES_CLASSES
    assert first_values(data.labeled[0]) == [0, 7, 33, 14, 29]
    report = check_data(data)
    assert (report.num_labels, report.values) == (19, [0, 18])
    for split in (report.data.labeled, report.data.validation):
        assert {tuple(first_values(row)) for row in split} == {(255, 0, 18, 255, 255)}
    assert report.data.mask_values is None


@pytest.mark.parametrize("kinds", [("labelTrainIds",), ("labelIds", "labelTrainIds")])
def test_cityscapes_train_ids_are_taken_as_they_are(tmp_path, kinds):
    data = load(make_cityscapes(tmp_path, kinds))
    assert data.mask_values == tuple(range(19)) and data.ignored_mask_values is None  # also for a model of label ids
    report = check_data(data)
    assert (report.num_labels, report.values) == (19, [0, 18])
    assert {tuple(first_values(row)) for row in report.data.labeled} == {(255, 0, 18, 255, 255)}


def test_cityscapes_with_unfinished_train_ids_maps_label_ids(tmp_path):
    make_cityscapes(tmp_path, ("labelIds", "labelTrainIds"))
    (tmp_path / "gtFine" / "val" / "lindau" / "lindau_000001_000019_gtFine_labelTrainIds.png").unlink()
    report = load_data(DataArguments(data_dir=str(tmp_path)))
    assert len(report.data.validation) == 2 and len(report.data.labeled) == 5
    assert {tuple(first_values(row)) for row in report.data.labeled} == {(255, 0, 18, 255, 255)}


def test_cityscapes_label_id_mapping_of_every_value(tmp_path):
    make_cityscapes(tmp_path)
    values = [*range(34), 255]
    name = "train/aachen/aachen_000000_000019"
    write_image(tmp_path / "leftImg8bit" / f"{name}_leftImg8bit.png", (35, 3))
    write_mask(tmp_path / "gtFine" / f"{name}_gtFine_labelIds.png", values, (35, 3))
    mapped = mask_to_array(load_data(DataArguments(data_dir=str(tmp_path))).data.labeled[0]["label"])
    expected = np.full(35, 255)
    expected[[7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]] = range(19)
    assert mapped.tolist() == [expected.tolist()] * 3


def test_an_option_wins_over_the_mapping_of_the_layout(tmp_path):
    # Two classes of one's own, flat and not flat, out of labelIds.
    arguments = DataArguments(
        data_dir=str(make_cityscapes(tmp_path)), mask_values=[7, 33], ignored_mask_values=[0, 14, 29], num_labels=2
    )
    with pytest.raises(ValueError, match="2 from num_labels and 2 from the list of mask values and 19 from the list"):
        load_data(arguments)
    (tmp_path / "classes.txt").write_text("flat\nvehicle\n")
    arguments.classes = str(tmp_path / "classes.txt")
    report = load_data(arguments)
    assert first_values(report.data.labeled[0]) == [255, 0, 1, 255, 255]
    assert report.num_labels == 2


def test_missing_and_corrupt_files_of_cityscapes(tmp_path):
    make_cityscapes(tmp_path)
    image = tmp_path / "leftImg8bit" / "train" / "jena" / "jena_000001_000019_leftImg8bit.png"
    mask = tmp_path / "gtFine" / "train" / "jena" / "jena_000001_000019_gtFine_labelIds.png"
    (image.parent / f"._{image.name}").write_text("what some systems leave behind")
    content = image.read_bytes()
    image.write_bytes(content[:30])
    with pytest.raises(BadDataError, match=r"jena_000001_000019_leftImg8bit\.png: The file cannot be read"):
        load_data(DataArguments(data_dir=str(tmp_path)))
    image.unlink()
    with pytest.raises(ValueError, match=r"^1 mask has no image, first .*jena_000001_000019_gtFine_labelIds\.png"):
        load(tmp_path)
    image.write_bytes(content)
    mask.unlink()
    with pytest.raises(ValueError, match=r"^1 of 5 training images have no mask, first .*jena_000001_000019_leftImg8"):
        load(tmp_path)
    for path in (tmp_path / "gtFine" / "val").rglob("*_labelIds.png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"^2 of 2 validation images have no mask, first .*lindau_000000.*labelIds"):
        load(tmp_path)
    (tmp_path / "gtFine").rename(tmp_path / "gtCoarse")
    with pytest.raises(FileNotFoundError, match=r"no folder .*gtFine; cityscapes data must have one"):
        load(tmp_path)


@pytest.mark.parametrize("subfolders", [False, True])
def test_coco(tmp_path, subfolders):
    data = load(make_coco(tmp_path, subfolders))
    assert ids(data.labeled) == ["000000000009", "000000000025", "000000000030", "000000177254"]
    assert ids(data.validation) == ["000000000139", "000000000285"]
    assert len(data.unlabeled) == 0 and data.classes == COCO_CLASSES
    report = check_data(data)
    assert (report.num_labels, report.values) == (81, [0, 80])
    assert first_values(report.data.labeled[3]) == [0, 80, 255, 0, 80]
    half = load(tmp_path, labeled_fraction=0.5)
    assert (len(half.labeled), len(half.unlabeled), len(half.hidden_ids)) == (2, 2, 2)


@pytest.mark.parametrize("subfolders", [False, True])
def test_missing_and_corrupt_files_of_coco(tmp_path, subfolders):
    make_coco(tmp_path, subfolders)
    image = tmp_path / "train2017" / "000000000025.jpg"
    masks = tmp_path / "masks" / "train2017" if subfolders else tmp_path / "masks"
    content = image.read_bytes()
    image.write_bytes(b"")
    with pytest.raises(BadDataError, match=r"000000000025\.jpg: The file cannot be read"):
        load_data(DataArguments(data_dir=str(tmp_path)))
    image.unlink()
    with pytest.raises(ValueError, match=r"^1 mask has no image, first .*000000000025\.png"):
        load(tmp_path)
    image.write_bytes(content)
    (masks / "000000000030.png").unlink()
    with pytest.raises(ValueError, match=r"^1 of 4 training images have no mask, first .*000000000030\.jpg"):
        load(tmp_path)
    for path in (tmp_path / "val2017").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"val2017 holds no image of the form \*\.jpg; unpack the images there"):
        load(tmp_path)


def test_forms_are_recognized(tmp_path):
    made = {"voc": make_voc, "cityscapes": make_cityscapes, "coco": make_coco}
    for name, make in made.items():
        assert find_layout(make(tmp_path / name)).name == name
    make_folder(tmp_path / "folder")
    assert find_layout(tmp_path / "folder").name == "folder"
    assert find_layout(tmp_path / "folder", "folder").name == "folder"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds neither images/ and masks/ .* nor JPEGImages/ .*\(COCO\)"):
        find_layout(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; data_dir must name one"):
        find_layout(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no folder .*folder.JPEGImages; voc data must have one"):
        find_layout(tmp_path / "folder", "voc")
    with pytest.raises(ValueError, match=r"voc_masks is 'augmented', but .*folder is read as folder; leave it out"):
        find_layout(tmp_path / "folder", voc_masks="augmented")
    make_coco(tmp_path / "folder")
    with pytest.raises(ValueError, match=r"folder may be read as folder or coco; choose one with --data_format"):
        find_layout(tmp_path / "folder")
    assert find_layout(tmp_path / "folder", "coco").name == "coco"


def test_one_voc_mask_with_a_value_that_is_no_class(tmp_path):
    make_voc(tmp_path)
    voc_mask(tmp_path / "SegmentationClass" / f"{VOC_TRAIN[0]}.png", (0, 21))
    with pytest.raises(BadDataError, match=r"holds the value 21, but only 0 to 20 (.|\n)*--ignored_mask_values"):
        load_data(DataArguments(data_dir=str(tmp_path)))
