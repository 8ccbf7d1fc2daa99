"""Renders the model card of a trained model from the records in its folder.

    python scripts/render_card.py --model OUT --repo_id user/name --example_images photos/street.jpg
    python scripts/render_card.py --committed     # model_cards/allspark-demo.md anew, from model_cards/records
    python scripts/render_card.py --check         # whether it is as it would be rendered now

The first writes OUT/README.md. Nothing is measured: what was not recorded is said to be missing. The other cards in
model_cards/, of the paper's models, are text: nobody has trained those models here, so that there are no records.
"""

import argparse
import sys
from pathlib import Path


CARDS = Path(__file__).resolve().parents[1] / "model_cards"
DEMO = "allspark-demo"


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    from allspark_hf.publishing.card import render_card, write_card, write_model_card
    from allspark_hf.publishing.records import read_records

    if arguments.model:
        print(write_model_card(arguments.model, arguments.repo_id, arguments.model_name, arguments.example_images))
        return 0
    path, text = CARDS / f"{DEMO}.md", render_card(read_records(CARDS / "records" / DEMO), model_name=DEMO)
    if arguments.committed:
        print(write_card(path, text))
        return 0
    current = path.is_file() and path.read_text(encoding="utf-8") == text
    print(f"{path} {'is as' if current else 'is not as'} rendered now")
    return 0 if current else 1


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
    parser.add_argument("--committed", action="store_true", help="render model_cards/allspark-demo.md anew")
    parser.add_argument("--check", action="store_true", help="exit code 1 if that card is not as rendered now")
    arguments = parser.parse_args(argv)
    if sum([bool(arguments.model), arguments.committed, arguments.check]) != 1:
        raise ValueError("Give one of --model OUT, --committed and --check; --help explains them.")
    if (arguments.repo_id or arguments.model_name or arguments.example_images) and not arguments.model:
        raise ValueError("--repo_id, --model_name and --example_images belong to --model: leave them out.")
    return arguments


def main():
    try:
        sys.exit(run(parse()))
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
