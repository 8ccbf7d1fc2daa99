"""Uploads one commit to the Hub, tries again if that may help, and raises one sentence if it does not."""

import json
import logging
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .card import CARD_FILE
from .record import TOKEN
from .remote import has_card_of_a_person, outdated_on_hub


logger = logging.getLogger(__name__)

TRIES = 4
FIRST_WAIT = 1.0  # seconds; doubles from try to try
TRANSIENT = (408, 429, 500, 502, 503, 504)
# Errors that huggingface_hub raises: its own, of its HTTP client, of hf_xet and LFS (RuntimeError), of bad answers.
HUB_ERRORS = (HTTPError, OSError, RuntimeError, ValueError)
Result = TypeVar("Result")


class PushError(OSError):
    """A push that failed: one sentence, without any token."""


def prepare_repository(
    repo_id: str, token: str | None = None, private: bool | None = None, revision: str | None = None
) -> str:
    """
    Makes sure, before anything is computed, that a repository and the branch `revision` exist and can be written to.

    Args:
        repo_id (`str`): `user/name`, or `name` for a repository of the logged-in user.
        token (`str`, *optional*): token that may write; defaults to the one that this machine is logged in with.
        private (`bool`, *optional*): whether a new repository is private; with True, a public one is refused.
        revision (`str`, *optional*): a branch, made if it does not exist; defaults to "main".

    Returns:
        `str`: `user/name`.

    Raises:
        PushError: if that fails, with the reason: no token or a wrong one, no right to write, offline, a wrong name.
    """
    api = HfApi()

    def prepare() -> str:
        full_name = api.create_repo(repo_id, token=token, private=private, exist_ok=True).repo_id
        _make_branch(api, full_name, token, revision)
        # Asking how to send a small file needs the right to write, and sends nothing.
        probe = CommitOperationAdd("config.json", b"{}")
        api.preupload_lfs_files(full_name, [probe], token=token, revision=revision)
        return full_name

    if token is None and get_token() is None:
        raise PushError(
            f"Nothing can be pushed to {repo_id} without a token: log in with `hf auth login`, or set HF_TOKEN to a "
            f"token that may write, from {constants.ENDPOINT}/settings/tokens."
        )
    try:
        full_name = _patiently(prepare, token)
        is_public = private and not api.model_info(full_name, token=token).private
    except HUB_ERRORS as error:
        raise PushError(f"Nothing can be pushed to {repo_id}: {_reason(error, token)}") from None
    if is_public:
        raise PushError(
            f"{full_name} exists and is public, but private was asked for: make it private in its settings, or choose "
            "another name."
        )
    return full_name


def upload(
    staging: str | Path,
    repo_id: str,
    commit_message: str,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_description: str | None = None,
) -> CommitInfo:
    """
    Sends all files of a staged folder as one commit, which also deletes the files of [`outdated_on_hub`]. A card that
    a person wrote or changed on the Hub is kept, with a warning. huggingface_hub tries each large file again by
    itself; all else is tried up to TRIES times here. Files that arrived are not sent again, and a commit whose answer
    got lost is found and not repeated.

    Args:
        staging (`str` or `Path`): a folder from [`stage`].
        repo_id (`str`): `user/name`, of a repository that exists.
        commit_message, commit_description (`str`): texts of the commit.
        token (`str`, *optional*): see [`prepare_repository`].
        revision (`str`, *optional*): a branch, made if it does not exist; defaults to "main".
        create_pr (`bool`, *optional*): whether to open a pull request instead of a commit on the branch.

    Raises:
        PushError: if that fails, with the reason.
    """
    staging, api = Path(staging), HfApi()
    files = sorted(path for path in staging.rglob("*") if path.is_file())

    def commit() -> CommitInfo:
        _make_branch(api, repo_id, token, revision)
        sent = files
        if has_card_of_a_person(repo_id, staging, token, revision):
            logger.warning("The card of %s was written or changed there, and is kept: edit it there.", repo_id)
            sent = [path for path in files if path != staging / CARD_FILE]
        # With new operations in each try, huggingface_hub looks again which files have arrived.
        operations = [CommitOperationAdd(path.relative_to(staging).as_posix(), path) for path in sent]
        operations += [CommitOperationDelete(path) for path in outdated_on_hub(api, repo_id, staging, token, revision)]
        return api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message,
            commit_description=commit_description,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )

    try:
        return _patiently(commit, token)
    except HUB_ERRORS as error:
        raise PushError(f"Pushing to {repo_id} failed: {_reason(error, token)}") from None


def push_again(
    error: PushError, folder: str | Path, repo_id: str, revision: str | None = None, *flags: str
) -> PushError:
    """Adds to the error of a push where everything is, and the command, with `flags`, that pushes again."""
    command = ["allspark", "push", "--model", str(folder), "--repo_id", repo_id]
    command += [] if revision is None else ["--revision", revision]
    return PushError(f"{error} Everything is still in {folder}; push it again with: {shlex.join([*command, *flags])}")


def scrub(text: str, token: str | None = None) -> str:
    """A text on one line, with `***` for tokens."""
    for secret in {token, get_token()} - {None, ""}:
        text = text.replace(secret, "***")
    return " ".join(TOKEN.sub("***", text).split())


def _make_branch(api: HfApi, repo_id: str, token: str | None, revision: str | None):
    if revision not in (None, constants.DEFAULT_REVISION) and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, token=token, exist_ok=True)


def _patiently(action: Callable[[], Result], token: str | None) -> Result:
    for attempt in range(TRIES - 1):
        try:
            return action()
        except HUB_ERRORS as error:
            if not _is_transient(error):
                raise
            wait = FIRST_WAIT * 2**attempt
            logger.warning("%s Trying again in %g seconds.", _reason(error, token), wait)
            time.sleep(wait)
    return action()


def _is_transient(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TRANSIENT
    # A proxy's page of HTML instead of JSON, or no answer at all.
    return isinstance(error, HTTPError | json.JSONDecodeError)


def _reason(error: Exception, token: str | None) -> str:
    """Why the Hub could not be used, and what to do, as the end of a sentence."""
    cause = error
    while isinstance(cause, RuntimeError) and cause.__cause__ is not None:
        cause = cause.__cause__  # that of "Error while uploading ..." is the reason
    told = scrub(str(cause), token)
    if isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to push."
    if isinstance(cause, HFValidationError):
        return f"that is no name of a repository ({told}): use letters, digits, '-', '_' and '.', as in user/name."
    if isinstance(cause, HfHubHTTPError):
        return _refusal(cause, told, token)
    if isinstance(cause, HTTPError):
        return f"the connection to {constants.ENDPOINT} broke or could not be made ({told or type(cause).__name__})."
    if isinstance(cause, json.JSONDecodeError):
        return f"{constants.ENDPOINT} answered something other than JSON, as it does when it is overloaded."
    return f"{told or type(cause).__name__}."


def _refusal(error: HfHubHTTPError, told: str, token: str | None) -> str:
    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision: name a branch."
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return "there is no such repository, or it is private and this token may not see it: correct the name."
    if status == 401:
        return (
            f"the Hub does not accept {_token_source(token)}: make one that may write at "
            f"{constants.ENDPOINT}/settings/tokens."
        )
    if status == 403:
        return (
            f"{_token_source(token)} may not write there: use a token with the right to write, of an account that the "
            "repository belongs to."
        )
    if status in TRANSIENT:
        return f"{constants.ENDPOINT} answered {status}; it may be overloaded or down."
    return f"{told.rstrip('.')}."


def _token_source(token: str | None) -> str:
    if token is not None:
        return "the token given (hub_token)"
    if os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return "the token in HF_TOKEN"
    return "the token stored by `hf auth login`"
