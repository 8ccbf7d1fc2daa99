"""Publishes the output folder of a training on the Hub, with its card: what --push_to_hub does, at any later time.

    allspark push --model OUT --repo_id user/name
    allspark push --model OUT --repo_id user/name --private --example_images street.jpg park.jpg

It sends the weights without the memory, configuration, image processor, code, card, the run's records and figures, and
an exported onnx/ folder; nothing else that lies in OUT. The token is that of `hf auth login` or HF_TOKEN.
"""

import logging
from dataclasses import dataclass

from allspark_hf.cli.arguments import parse_arguments
from allspark_hf.cli.ending import run_script
from allspark_hf.publishing.publish import publish_folder
from allspark_hf.utils.arguments import argument


@dataclass
class PushArguments:
    model: str = argument(help="Output folder of a training.")
    repo_id: str = argument(help="Where to: user/name.")
    private: bool = argument(False, "A new repository is for your eyes only.")
    revision: str | None = argument(None, "A branch, made if need be. Default main.")
    create_pr: bool = argument(False, "Open a pull request on a repository that exists.")
    commit_message: str = argument("Upload model", "Of the commit.")
    example_images: list[str] | None = argument(
        None, "Images for the card's widget, published without EXIF: JPEG, PNG or WebP."
    )

    def __post_init__(self):
        if self.create_pr and self.revision is not None:
            raise ValueError("A pull request goes to main: leave out --revision or --create_pr.")
        if self.create_pr and self.private:
            raise ValueError("A pull request makes no repository: leave out --private or --create_pr.")


def push():
    (arguments,) = parse_arguments((PushArguments,))
    commit = publish_folder(
        arguments.model,
        arguments.repo_id,
        private=arguments.private or None,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
        commit_message=arguments.commit_message,
        example_images=arguments.example_images or [],
    )
    print(f"Pushed to {commit.pr_url or commit.repo_url}")


def main():
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    run_script(push)
