"""Renders the model card of a trained model from the records in its folder.

    python scripts/render_card.py --model OUT --repo_id user/name --example_images photos/street.jpg
    python scripts/render_card.py --committed     # the cards of model_cards/records anew
    python scripts/render_card.py --check         # whether they are as they would be rendered now

The first writes OUT/README.md. Nothing is measured: what was not recorded is said to be missing. In a folder of
model_cards/records, `note.md` is what people say of the run: it follows the card's first paragraph. The other cards in
model_cards/, of the paper's models, are text: nobody has trained those models here, so that there are no records.
"""

import argparse
import sys
from pathlib import Path

from allspark_hf.cli.ending import run_script


CARDS = Path(__file__).resolve().parents[1] / "model_cards"
NOTE = "note.md"


def committed(folder: Path) -> str:
    """The card of a folder of records, for the folder above `records`."""
    from allspark_hf.publishing.card import mark, render_card
    from allspark_hf.publishing.records import read_records

    records = read_records(folder)
    records.figures = [f"{folder.parent.name}/{folder.name}/{path}" for path in records.figures]
    text, note = render_card(records, model_name=folder.name), folder / NOTE
    if not note.is_file():
        return text
    before, heading, after = text.partition("## How to use")
    return mark(f"{before}{note.read_text(encoding='utf-8').strip()}\n\n{heading}{after}")


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    from allspark_hf.publishing.card import write_card, write_model_card

    if arguments.model:
        print(write_model_card(arguments.model, arguments.repo_id, arguments.model_name, arguments.example_images))
        return 0
    outdated = False
    for folder in sorted((CARDS / "records").iterdir()):
        path, text = CARDS / f"{folder.name}.md", committed(folder)
        if arguments.committed:
            print(write_card(path, text))
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"{path} is not as rendered now")
            outdated = True
    return int(outdated)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("--model", help="output folder of a training; its README.md is written")
    parser.add_argument("--repo_id", help="user/name of the repository it is to be published in")
    parser.add_argument("--model_name", help="title; default: the name in repo_id, else the folder's")
    parser.add_argument(
        "--example_images", nargs="+", default=[], help="images or https addresses for the Hub's widget"
    )
    parser.add_argument("--committed", action="store_true", help="render the cards of model_cards/records anew")
    parser.add_argument("--check", action="store_true", help="exit code 1 if one of them is not as rendered now")
    arguments = parser.parse_args(argv)
    if sum([bool(arguments.model), arguments.committed, arguments.check]) != 1:
        raise ValueError("Give one of --model OUT, --committed and --check; --help explains them.")
    if (arguments.repo_id or arguments.model_name or arguments.example_images) and not arguments.model:
        raise ValueError("--repo_id, --model_name and --example_images belong to --model: leave them out.")
    return arguments


def main():
    sys.exit(run(parse()))


if __name__ == "__main__":
    run_script(main, "Interrupted.")
