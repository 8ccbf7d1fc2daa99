"""The lists of a run's images: what a trained model is evaluated on, and what figures and suggestions are made of."""

from dataclasses import replace

from conftest import make_dataset, tiny_config
from datasets import Dataset, DatasetDict, concatenate_datasets

from allspark_hf.data import DataArguments, find_data, split_of_run, write_id_lists
from allspark_hf.evaluation.selection import select_split


def test_validation_images_of_a_run_are_found_again(tmp_path):
    """A data set with only a training split: another draw would score images that were trained on."""
    rows = make_dataset(6, seed=1)
    no_mask = [{"image": row["image"], "label": None} for row in make_dataset(2, seed=2)]
    rows = concatenate_datasets([rows, Dataset.from_list(no_mask, features=rows.features)])
    saved, lists = str(tmp_path / "saved"), tmp_path / "lists"
    DatasetDict({"train": rows}).save_to_disk(saved)
    arguments = DataArguments(dataset_name=saved)
    trained = find_data(replace(arguments, split_seed=3, validation_fraction=0.4))
    write_id_lists(trained, lists)
    assert trained.validation["id"][:] != find_data(arguments).validation["id"][:]
    config = tiny_config(num_labels=4)
    for options in ({}, {"labeled_count": 1}):
        given = replace(arguments, **options)
        found = find_data(split_of_run(given, str(lists)))
        scored = select_split("validation", given, config, str(lists))
        assert trained.validation["id"][:] == found.validation["id"][:] == scored["id"][:]
        assert len(select_split("all", given, config, str(lists))) == 6
        labeled = select_split("labeled", given, config, str(lists))
        assert set(labeled["id"]) <= set(trained.labeled["id"]) and len(labeled) == len(found.labeled)
    assert len(select_split("validation", replace(arguments, split_seed=5), config, str(lists))) == 1
    DatasetDict({"train": rows, "val": rows.select([0, 3, 4])}).save_to_disk(tmp_path / "other")
    other = replace(arguments, dataset_name=str(tmp_path / "other"))
    assert len(select_split("validation", other, config, str(lists))) == 3
