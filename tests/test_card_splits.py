"""Which split the card names for an evaluation whose images were chosen by an option."""

import pytest
from card_folders import CLASSES, evaluation_of, rows_of, run_of, valid, write, write_records

from allspark_hf.publishing.card import write_model_card


TEST, VAL, OTHER = "test", "val", "in another folder"


@pytest.mark.parametrize(
    ("chosen", "trained", "split"),
    [
        ({"validation_split_name": TEST}, {}, TEST),
        ({"validation_split_name": TEST}, {"validation_split_name": VAL}, TEST),
        ({"validation_split_name": TEST}, {"validation_split_name": TEST}, "validation"),
        ({"validation_split_name": VAL}, {"validation_split_name": None}, "validation"),
        ({"validation_split_name": VAL}, {"validation_split_name": TEST}, VAL),
        ({"validation_split_name": TEST}, {"validation_split_name": TEST, "source": "elsewhere"}, TEST),
        ({"validation_list": "/home/jane/my_test.txt"}, {}, "list my_test.txt"),
        ({"validation_list": "lists/my_test.txt"}, {"selection": {"validation_list": "val.txt"}}, "list my_test.txt"),
        ({"validation_list": "/home/jane/val.txt"}, {"selection": {"validation_list": "val.txt"}}, "validation"),
        ({"validation_list": OTHER}, {"selection": {"validation_list": OTHER}, "validation": 60}, f"list {OTHER}"),
        ({"validation_list": "a", "validation_split_name": TEST}, {"selection": {"validation_list": "a"}}, "list a"),
        ({"validation_list": "a", "validation_split_name": TEST}, {"validation_split_name": TEST}, "list a"),
        ({"validation_list": "a", "split": "labeled"}, {}, "labeled"),
    ],
)
def test_images_that_an_evaluation_chose(tmp_path, chosen, trained, split):
    """They are the training's validation images only if the training chose the same."""
    folder = write_records(tmp_path, run=run_of(data={"validation": 61} | trained))
    content = evaluation_of(CLASSES, "validation", 0.2507)
    content["data"] |= {"validation_split_name": None, "validation_list": None} | chosen
    write(folder, "chosen.json", content)
    text = write_model_card(folder).read_text()
    card = valid(text)
    assert "/home" not in text
    result = next(one for one in card.data.eval_results if one.metric_value == 0.2507)
    assert result.dataset_split == split
    assert rows_of(text, "split")[1][0] == split
    own = split == "validation"
    assert rows_of(text, "class")[0] == (["sky", "15.07", "30.11"] if own else ["sky", "13.01"])
    assert "By class (validation images, whole images)" in text
