"""What a repository on the Hub still holds of an earlier model."""

import hashlib
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..utils.files import read_json_object
from .card import CARD_FILE, is_as_rendered
from .records import is_evaluation
from .repository import PATTERNS, RECORDS


# Old whole weights beside new shards, or old shards beside new weights, would be loaded instead of the new ones.
OWN = (*PATTERNS, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, "model-*-of-*.safetensors")


def has_weights(api: HfApi, repo_id: str, staging: Path, token: str | None, revision: str | None) -> bool:
    """
    Whether the repository's weights are those of a staged folder, byte by byte.

    Args:
        api (`HfApi`): client of the Hub.
        repo_id (`str`): `user/name`.
        staging (`Path`): folder with `model.safetensors`.
        token (`str`, *optional*): token of an account that may read.
        revision (`str`, *optional*): a branch; defaults to "main".
    """
    found = api.get_paths_info(repo_id, [SAFE_WEIGHTS_NAME], revision=revision, token=token)
    if not found or not (staging / SAFE_WEIGHTS_NAME).is_file():
        return False  # or one of them is in shards
    content = (staging / SAFE_WEIGHTS_NAME).read_bytes()
    if found[0].lfs is not None:
        return found[0].lfs.sha256 == hashlib.sha256(content).hexdigest()
    return found[0].blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def has_card_of_a_person(repo_id: str, staging: Path, token: str | None, revision: str | None) -> bool:
    """
    Whether a person wrote or changed the repository's card, which a staged card would replace. A card of this package
    is as rendered, and transformers' generic card has no license.

    Args:
        repo_id, staging, token, revision: as for [`has_weights`].
    """
    if not (staging / CARD_FILE).exists():
        return False
    try:
        path = hf_hub_download(repo_id, CARD_FILE, revision=revision, token=token)
    except EntryNotFoundError:
        return False
    content = Path(path).read_text(encoding="utf-8", errors="replace")
    card = ModelCard(content, ignore_metadata_errors=True)
    # The card of a repository that was made on the website has metadata but no text.
    is_own = is_as_rendered(content) or content == (staging / CARD_FILE).read_text(encoding="utf-8")
    return bool(card.data.license and card.text.strip()) and not is_own


def outdated_on_hub(api: HfApi, repo_id: str, staging: Path, token: str | None, revision: str | None) -> list[str]:
    """
    Files that an earlier push sent with other weights, and that this push does not replace: records, evaluations,
    figures, ONNX files and weights in other pieces, which would be taken for the new model's. Other files, such as the
    user's and checkpoints, are not among them.

    Args:
        api, repo_id, staging, token, revision: as for [`has_weights`].

    Returns:
        `list[str]`: paths in the repository, whose history keeps them.
    """
    if has_weights(api, repo_id, staging, token, revision):
        return []
    there = api.list_repo_files(repo_id, revision=revision, token=token)
    fetch = partial(hf_hub_download, repo_id, revision=revision, token=token)
    gone = [path for path in there if not (staging / path).exists()]
    records = [path for path in gone if path in RECORDS or any(fnmatchcase(path, pattern) for pattern in OWN)]
    others = [path for path in gone if path.endswith(".json") and "/" not in path and path not in records]
    return records + [path for path in others if is_evaluation(read_json_object(fetch(path)))]
