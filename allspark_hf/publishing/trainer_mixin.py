"""[`PublishingMixin`]: the Hub side of [`AllSparkTrainer`], with transformers' arguments and methods."""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils.hub import PushInProgress

from ..models.weights import holds_weights
from .card import card_to_publish, write_model_card
from .figures import write_run_figures
from .record import RECORD_FILE
from .repository import stage, stage_checkpoint
from .upload import PushError, prepare_repository, push_again, scrub, upload


logger = logging.getLogger(__name__)


class PublishingMixin:
    """
    Overrides what [`~transformers.Trainer`] does with the Hub; to be named before it among the base classes. What is
    published is the list of [`stage`], as one commit, with the card of [`write_model_card`]. The arguments
    `push_to_hub`, `hub_model_id`, `hub_token`, `hub_private_repo`, `hub_revision`, `hub_strategy` and
    `hub_always_push` keep their meaning, except that `hub_revision` is made if it does not exist.
    """

    _uploads: ThreadPoolExecutor | None = None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None):
        """
        Makes sure that the repository can be pushed to; the Trainer calls it at construction with `push_to_hub`.

        Raises:
            PushError: if it cannot, with the reason in one sentence.
        """
        if not self.is_world_process_zero():
            return
        self.hub_model_id = prepare_repository(
            self.args.hub_model_id or Path(self.args.output_dir).absolute().name,
            token if token is not None else self.args.hub_token,
            private if private is not None else self.args.hub_private_repo,
            self.args.hub_revision,
        )
        self.push_in_progress = None

    def create_model_card(self, language=None, license=None, tags=None, model_name: str | None = None, **kwargs):
        """
        Writes the card into the output folder from the run's records, and its figures.

        Args:
            model_name (`str`, *optional*): the heading.
            language, license, tags, kwargs: of transformers' card; not used, since the records say it.
        """
        if not self.is_world_process_zero():
            return
        given = {"language": language, "license": license, "tags": tags, **kwargs}
        unused = [name for name, value in given.items() if value is not None]
        if unused:
            logger.warning("The card is made from the run's records, without %s as given.", ", ".join(unused))
        write_run_figures(self.args.output_dir)
        card_to_publish(self.args.output_dir, repo_id=self.hub_model_id, model_name=model_name)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future | None:
        """
        Saves the model into the output folder and publishes that, see [`stage`] for what of it.

        Args:
            commit_message (`str`, *optional*): of the commit.
            blocking (`bool`, *optional*): whether to wait until everything has arrived.
            token (`str`, *optional*): defaults to `args.hub_token`, or the one that this machine is logged in with.
            revision (`str`, *optional*): a branch; defaults to `args.hub_revision`, or "main".
            private (`bool`, *optional*): of a new repository; defaults to `args.hub_private_repo`.
            kwargs: of `create_model_card`.

        Returns:
            [`~huggingface_hub.CommitInfo`]; a `Future` of it unless `blocking`; None on processes other than the main.

        Raises:
            PushError: if the folder's records are of other weights, or if it failed, with the reason and how to push
                again; nothing in the output folder is lost. Not `blocking`, the `Future` raises the latter.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self._check_records()
        self.save_model(_internal_call=True)  # on all processes, as in transformers
        if not self.is_world_process_zero():
            return None
        revision = revision if revision is not None else self.args.hub_revision
        if self.state.log_history:
            self.save_state()
        self._finish_current_push()
        try:
            self.create_model_card(**kwargs)
            staging = _staged(lambda folder: stage(self.args.output_dir, folder))
        except (OSError, ValueError) as error:
            failed = PushError(f"Nothing was pushed to {self.hub_model_id}: {scrub(str(error), token)}")
            raise push_again(failed, self.args.output_dir, self.hub_model_id, revision) from None
        arguments = (staging, self.hub_model_id, commit_message or "End of training", token, revision)
        return self._upload(*arguments) if blocking else self._in_background(self._upload, *arguments)

    def _check_records(self):
        """Raises PushError where the output folder's records are of a training of other weights."""
        folder, trained = Path(self.args.output_dir), self.state.global_step > 0
        if trained or not (folder / RECORD_FILE).is_file():
            return
        if not holds_weights(folder, self.accelerator.unwrap_model(self.model)):
            raise PushError(
                f"Nothing was pushed to {self.hub_model_id}: {folder} holds the records of a training, and this model "
                "is not the one it gave: train, choose another output_dir, or use model.push_to_hub."
            )

    def _upload(self, staging: TemporaryDirectory, repo_id: str, message: str, token, revision) -> CommitInfo:
        with staging:
            try:
                return upload(staging.name, repo_id, message, token, revision)
            except PushError as error:
                raise push_again(error, self.args.output_dir, repo_id, revision) from None

    def _in_background(self, function, *arguments) -> Future:
        """One upload after the other, in a thread."""
        if self._uploads is None:
            self._uploads = ThreadPoolExecutor(max_workers=1)
        return self._uploads.submit(function, *arguments)

    def _push_from_checkpoint(self, checkpoint_folder: str):
        """Publishes the model of a checkpoint while training goes on; a failure is a warning, and training goes on."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        pushing = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if pushing and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        by_steps = self.args.save_strategy == SaveStrategy.STEPS
        done = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch)}"
        try:
            # A copy, since training may remove the checkpoint before it has arrived.
            staging = _staged(lambda folder: self._stage_checkpoint(Path(checkpoint_folder), Path(folder)))
        except Exception as error:  # whatever it is, days of training must not end by it
            logger.warning("%s is not pushed: %s", checkpoint_folder, scrub(str(error), self.args.hub_token))
            return
        arguments = (f"Training in progress, {done}", self.args.hub_token, self.args.hub_revision)
        job = self._in_background(self._try_upload, staging, self.hub_model_id, *arguments)
        if pushing:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])

    def _stage_checkpoint(self, checkpoint: Path, staging: Path):
        stage(checkpoint, staging)
        names = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        if self.args.hub_strategy in names:
            stage_checkpoint(checkpoint, staging / names[self.args.hub_strategy])
        write_model_card(staging, repo_id=self.hub_model_id)

    def _try_upload(self, staging: TemporaryDirectory, repo_id: str, message: str, token, revision):
        with staging:
            try:
                upload(staging.name, repo_id, message, token, revision)
            except PushError as error:
                logger.warning("%s Training goes on, and everything is pushed when it ends.", error)


def _staged(fill: Callable[[str], None]) -> TemporaryDirectory:
    """A temporary folder with what `fill` puts there."""
    staging = TemporaryDirectory(prefix="allspark-push-")
    try:
        fill(staging.name)
    except BaseException:
        staging.cleanup()
        raise
    return staging


__all__ = ["PublishingMixin"]
