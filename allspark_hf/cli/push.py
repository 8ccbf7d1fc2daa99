"""Publishes the output folder of a training on the Hub, with its card: what --push_to_hub does, at any later time.

    allspark push --model OUT --repo_id user/name
    allspark push --model OUT --repo_id user/name --private --example_images street.jpg park.jpg

It sends the weights without the memory, configuration, image processor, code, card, the run's records and figures, and
an exported onnx/ folder; nothing else that lies in OUT. The token is that of `hf auth login` or HF_TOKEN.
"""

import logging
import sys
from dataclasses import dataclass, field


@dataclass
class PushArguments:
    model: str = field(metadata={"help": "Output folder of a training."})
    repo_id: str = field(metadata={"help": "Where to: user/name."})
    private: bool = field(default=False, metadata={"help": "A new repository is for your eyes only."})
    revision: str | None = field(default=None, metadata={"help": "A branch, made if need be. Default main."})
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request on a repository that exists."})
    commit_message: str = field(default="Upload model", metadata={"help": "Of the commit."})
    example_images: list[str] | None = field(
        default=None, metadata={"help": "Images for the card's widget, published without EXIF: JPEG, PNG or WebP."}
    )

    def __post_init__(self):
        if self.create_pr and self.revision is not None:
            raise ValueError("A pull request goes to main: leave out --revision or --create_pr.")
        if self.create_pr and self.private:
            raise ValueError("A pull request makes no repository: leave out --private or --create_pr.")


def main():
    from allspark_hf.cli.arguments import parse_arguments
    from allspark_hf.publishing.publish import publish_folder

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
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
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"Pushed to {commit.pr_url or commit.repo_url}")
