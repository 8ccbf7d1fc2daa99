"""Publishes an output folder, or a model in memory, without a Trainer."""

from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, ModelCard

from ..models.modeling_allspark import SemiSupervisedSegmenter
from .card import CARD_FILE, card_to_publish, mark, write_model_card
from .figures import write_run_figures
from .repository import add_code, check_output_folder, stage
from .upload import PushError, prepare_repository, push_again, upload


def publish_folder(
    folder: str | Path,
    repo_id: str,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload model",
    example_images: list[str] = (),
) -> CommitInfo:
    """
    Publishes the output folder of a training: writes its figures and its card, and sends what [`stage`] lists.

    Args:
        folder (`str` or `Path`): the output folder.
        repo_id (`str`): `user/name`.
        token (`str`, *optional*): defaults to the one that this machine is logged in with.
        private (`bool`, *optional*): whether a new repository is private.
        revision (`str`, *optional*): a branch, made if it does not exist; defaults to "main".
        create_pr (`bool`, *optional*): whether to open a pull request on a repository that exists.
        commit_message (`str`, *optional*): message of the commit.
        example_images (`list[str]`, *optional*):
            images for the card's widget; copied to `folder/examples`, and published without EXIF.

    Raises:
        ValueError: if the folder holds no trained model, or an example is no image.
        PushError: if the Hub could not be reached or refused, with the reason.
    """
    check_output_folder(folder)
    if not create_pr:
        repo_id = prepare_repository(repo_id, token, private, revision)
    write_run_figures(folder)
    card_to_publish(folder, repo_id=repo_id, example_images=example_images)
    with TemporaryDirectory(prefix="allspark-push-") as staging:
        stage(folder, staging)
        try:
            return upload(staging, repo_id, commit_message, token, revision, create_pr)
        except PushError as error:
            flags = [flag for flag, given in (("--create_pr", create_pr), ("--private", private)) if given]
            raise push_again(error, folder, repo_id, revision, *flags) from None


def push_model_to_hub(
    model: SemiSupervisedSegmenter,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str | None = "50GB",
    tags: list[str] | None = None,
) -> CommitInfo:
    """
    `model.push_to_hub` of this package: as [`~transformers.PreTrainedModel.push_to_hub`] and with its arguments, but
    with a card that states license and task, and with the model's code. A card that a person wrote or changed on the
    Hub is kept. The image processor is pushed by its own `push_to_hub`.

    Raises:
        PushError: if the Hub could not be reached or refused, with the reason.
    """
    token = None if token is True else token
    if not create_pr:
        repo_id = prepare_repository(repo_id, token, private, revision)
    with TemporaryDirectory(prefix="allspark-push-") as staging:
        model.save_pretrained(staging, max_shard_size=max_shard_size)
        add_code(staging)
        card = ModelCard.load(write_model_card(staging, repo_id=repo_id))
        card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *(tags or [])]))
        (Path(staging) / CARD_FILE).write_text(mark(str(card)), encoding="utf-8")
        message = commit_message or "Upload model"
        return upload(staging, repo_id, message, token, revision, create_pr, commit_description)
