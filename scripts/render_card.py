"""Renders model cards: of a trained model from the records in its folder, or of one of the paper's from its recipes.

    python scripts/render_card.py --model OUT --repo_id user/name --example_images photos/street.jpg
    python scripts/render_card.py scripts/recipes/paper/coco/*_allspark_b5.yaml --model_name NAME --output_file CARD.md
    python scripts/render_card.py --committed     # the cards in model_cards/, all of them anew
    python scripts/render_card.py --check         # whether they are as they would be rendered now

The first writes OUT/README.md. Nothing is measured: what was not recorded is said to be missing.
"""

import argparse
import os
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
CARDS = ROOT / "model_cards"


def committed_cards() -> dict[str, str]:
    """Name -> text of every card in model_cards/, as rendered now."""
    import yaml

    from allspark_hf.publishing.card import render_card
    from allspark_hf.publishing.card_records import read_records
    from allspark_hf.publishing.paper_card import render_paper_card

    texts = {}
    for name, source in yaml.safe_load((CARDS / "cards.yaml").read_text(encoding="utf-8")).items():
        if "records" in source:
            texts[name] = render_card(read_records(CARDS / source["records"]), model_name=name)
        else:
            recipes = [path for pattern in source["recipes"] for path in by_labels(ROOT.glob(pattern))]
            recipes = [os.path.relpath(path) for path in recipes]
            texts[name] = render_paper_card(recipes, name, source["examples"])
    return texts


def by_labels(paths) -> list[Path]:
    """Recipes called `<labels>_<model>.yaml` by their number of labels."""
    return sorted(paths, key=lambda path: int(path.name.partition("_")[0]))


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    from allspark_hf.publishing.card import write_card, write_model_card
    from allspark_hf.publishing.paper_card import render_paper_card

    if arguments.model:
        print(write_model_card(arguments.model, arguments.repo_id, arguments.model_name, arguments.example_images))
        return 0
    if arguments.recipes:
        name = arguments.model_name or Path(arguments.output_file).stem
        text = render_paper_card(arguments.recipes, name, arguments.example_images)
        print(write_card(Path(arguments.output_file), text))
        return 0
    os.chdir(ROOT)  # so that recipes are named as they are called from there
    texts = committed_cards()
    if arguments.committed:
        for name, text in texts.items():
            print(write_card(CARDS / f"{name}.md", text))
        return 0
    files = {name: CARDS / f"{name}.md" for name in texts}
    old = [name for name, path in files.items() if not path.is_file() or path.read_text("utf-8") != texts[name]]
    for name in old:
        print(f"{files[name].relative_to(ROOT)} is not as rendered now: run scripts/render_card.py --committed.")
    print(f"{len(texts) - len(old)} of {len(texts)} cards are as rendered now")
    return 1 if old else 0


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("recipes", nargs="*", help="recipes of scripts/recipes/paper, for a card of the paper's model")
    parser.add_argument("--model", help="output folder of a training; its README.md is written")
    parser.add_argument("--repo_id", help="user/name of the repository it is to be published in")
    parser.add_argument("--model_name", help="title; default: the name in repo_id, else the folder's or file's")
    parser.add_argument(
        "--example_images", nargs="+", default=[], help="images or https addresses for the Hub's widget"
    )
    parser.add_argument("--output_file", help="card to write, with recipes")
    parser.add_argument("--committed", action="store_true", help="render the cards in model_cards/ anew")
    parser.add_argument(
        "--check", action="store_true", help="exit code 1 if a card in model_cards/ is not as rendered"
    )
    arguments = parser.parse_args(argv)
    chosen = [bool(arguments.model), bool(arguments.recipes), arguments.committed, arguments.check]
    if sum(chosen) != 1:
        raise ValueError("Give one of --model OUT, recipes, --committed and --check; --help explains them.")
    if bool(arguments.recipes) != bool(arguments.output_file):
        raise ValueError("Recipes need --output_file CARD.md, and only they: give both, or neither.")
    if arguments.repo_id and not arguments.model:
        raise ValueError("--repo_id belongs to --model: leave it out.")
    return arguments


def main():
    try:
        sys.exit(run(parse()))
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
