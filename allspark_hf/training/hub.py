"""[`HubSide`]: what [`AllSparkTrainer`] does with the Hub, with transformers' arguments and methods."""

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils.hub import PushInProgress

from ..models.weights import weights_digest
from ..publishing.card import card_to_publish, write_model_card
from ..publishing.figures import write_run_figures
from ..publishing.record import RECORD_FILE
from ..publishing.repository import MODEL_FILES, add_code, copy_record, stage
from ..publishing.upload import PushError, prepare_repository, push_again, scrub, upload
from ..utils.files import read_json_object
from .resuming import STATE_PATTERNS
from .storage import RUN_FILE, write_run_file


logger = logging.getLogger(__name__)


class HubSide:
    """
    Publishes what [`stage`] lists as one commit, with the card of [`write_model_card`]. The arguments `push_to_hub`,
    `hub_model_id`, `hub_token`, `hub_private_repo`, `hub_revision`, `hub_strategy` and `hub_always_push` mean what
    they mean in transformers, except that a branch `hub_revision` is made if it does not exist.

    Args:
        trainer ([`AllSparkTrainer`]): the trainer, whose methods for the Hub call these.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self._uploads: ThreadPoolExecutor | None = None

    def prepare_repository(self, token: str | None = None, private: bool | None = None):
        """
        Makes sure that the repository can be pushed to; with `push_to_hub`, the Trainer calls this when it is built.

        Raises:
            PushError: if it cannot, with the reason in one sentence.
        """
        trainer, args = self.trainer, self.trainer.args
        if not trainer.is_world_process_zero():
            return
        trainer.hub_model_id = prepare_repository(
            args.hub_model_id or Path(args.output_dir).absolute().name,
            token if token is not None else args.hub_token,
            private if private is not None else args.hub_private_repo,
            args.hub_revision,
        )
        trainer.push_in_progress = None

    def write_card(self, model_name: str | None = None, **unused):
        """
        Writes the card into the output folder from the run's records, and its figures.

        Args:
            model_name (`str`, *optional*): the heading.
            unused: arguments of transformers' card (`language`, `license`, `tags`, ...); a warning names those given.
        """
        trainer = self.trainer
        if not trainer.is_world_process_zero():
            return
        given = [name for name, value in unused.items() if value is not None]
        if given:
            logger.warning("The card is made from the run's records, without %s as given.", ", ".join(given))
        write_run_figures(trainer.args.output_dir)
        card_to_publish(trainer.args.output_dir, repo_id=trainer.hub_model_id, model_name=model_name)

    def push(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future | None:
        """
        Saves the model into the output folder, and publishes what [`stage`] takes from there.

        Args:
            commit_message (`str`, *optional*): message of the commit.
            blocking (`bool`, *optional*): whether to wait until everything has arrived.
            token (`str`, *optional*): defaults to `args.hub_token`, or the one that this machine is logged in with.
            revision (`str`, *optional*): a branch; defaults to `args.hub_revision`, or "main".
            private (`bool`, *optional*): whether a new repository is private; defaults to `args.hub_private_repo`.
            kwargs: arguments of [`~HubSide.write_card`].

        Returns:
            [`~huggingface_hub.CommitInfo`], or a `Future` of it unless `blocking`; None on all but the main process.

        Raises:
            PushError: if the folder's records are of other weights, or if the push failed, with the reason and how to
                push again; unless `blocking`, the `Future` raises the latter. Nothing in the output folder is lost.
        """
        trainer, args = self.trainer, self.trainer.args
        trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
        token = token if token is not None else args.hub_token
        if trainer.hub_model_id is None:
            self.prepare_repository(token=token, private=private)
        self._refuse_to_replace_a_trained_model()
        trainer.save_model(_internal_call=True)  # on all processes, as in transformers
        if not trainer.is_world_process_zero():
            return None
        revision = revision if revision is not None else args.hub_revision
        if trainer.state.log_history:
            trainer.save_state()
        trainer._finish_current_push()
        try:
            self.write_card(**kwargs)
            staging = _staged(lambda folder: stage(args.output_dir, folder))
        except (OSError, ValueError) as error:
            failed = PushError(f"Nothing was pushed to {trainer.hub_model_id}: {scrub(str(error), token)}")
            raise push_again(failed, args.output_dir, trainer.hub_model_id, revision) from None
        arguments = (staging, trainer.hub_model_id, commit_message or "End of training", token, revision)
        return self._upload(*arguments) if blocking else self._in_background(self._upload, *arguments)

    def push_checkpoint(self, folder: str | Path):
        """
        Publishes the model of a checkpoint while training goes on; a failure is a warning, and training goes on.

        Args:
            folder (`str` or `Path`): the checkpoint.
        """
        trainer, args, state = self.trainer, self.trainer.args, self.trainer.state
        if not trainer.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        pushing = trainer.push_in_progress is not None and not trainer.push_in_progress.is_done()
        if pushing and not args.hub_always_push:
            return
        trainer.callback_handler.on_push_begin(args, state, trainer.control)
        by_steps = args.save_strategy == SaveStrategy.STEPS
        done = f"step {state.global_step}" if by_steps else f"epoch {int(state.epoch)}"
        try:
            # The training may remove the checkpoint before it has arrived, hence a copy.
            staging = _staged(lambda staged: self._stage_training(Path(folder), Path(staged)))
        except Exception as error:  # no error of publishing may end days of training
            logger.warning("%s is not pushed: %s", folder, scrub(str(error), args.hub_token))
            return
        arguments = (f"Training in progress, {done}", args.hub_token, args.hub_revision)
        job = self._in_background(_try_upload, staging, trainer.hub_model_id, *arguments)
        if pushing:
            trainer.push_in_progress.jobs.append(job)
        else:
            trainer.push_in_progress = PushInProgress([job])

    def _refuse_to_replace_a_trained_model(self):
        trainer, folder = self.trainer, Path(self.trainer.args.output_dir)
        if trainer.state.global_step > 0 or not (folder / RECORD_FILE).is_file():
            return
        if weights_digest(folder) != weights_digest(trainer.method.evaluated_model(trainer.processes.model)):
            raise PushError(
                f"Nothing was pushed to {trainer.hub_model_id}: {folder} holds the records of a training, and this "
                "model is not the one it gave: train, choose another output_dir, or use model.push_to_hub."
            )

    def _upload(self, staging: TemporaryDirectory, repo_id: str, message: str, token, revision) -> CommitInfo:
        with staging:
            try:
                return upload(staging.name, repo_id, message, token, revision)
            except PushError as error:
                raise push_again(error, self.trainer.args.output_dir, repo_id, revision) from None

    def _in_background(self, function, *arguments) -> Future:
        """Runs uploads in a thread, one after the other."""
        if self._uploads is None:
            self._uploads = ThreadPoolExecutor(max_workers=1)
        return self._uploads.submit(function, *arguments)

    def _stage_training(self, checkpoint: Path, staging: Path):
        stage(checkpoint, staging)
        names = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        strategy = self.trainer.args.hub_strategy
        if strategy in names:
            stage_checkpoint(checkpoint, staging / names[strategy])
        write_model_card(staging, repo_id=self.trainer.hub_model_id)


def _try_upload(staging: TemporaryDirectory, repo_id: str, message: str, token, revision):
    with staging:
        try:
            upload(staging.name, repo_id, message, token, revision)
        except PushError as error:
            logger.warning("%s Training goes on, and everything is pushed when it ends.", error)


def _staged(fill: Callable[[str], None]) -> TemporaryDirectory:
    """A temporary folder that `fill` has filled."""
    staging = TemporaryDirectory(prefix="allspark-push-")
    try:
        fill(staging.name)
    except BaseException:
        staging.cleanup()
        raise
    return staging


def stage_checkpoint(checkpoint: str | Path, staging: str | Path):
    """
    Copies what resuming from a checkpoint needs, with memory and optimizer, into a new folder.

    Args:
        checkpoint (`str` or `Path`): a folder `checkpoint-*`.
        staging (`str` or `Path`): the folder to make, such as `last-checkpoint` in the folder that is pushed.
    """
    checkpoint, staging = Path(checkpoint), Path(staging)
    staging.mkdir()
    resumable = [path for pattern in STATE_PATTERNS for path in checkpoint.glob(pattern)]
    for path in [*(checkpoint / name for name in MODEL_FILES), *resumable]:
        shutil.copyfile(path, staging / path.name)
    copy_record(checkpoint / TRAINER_STATE_NAME, staging / TRAINER_STATE_NAME)
    add_code(staging)
    write_run_file(staging, read_json_object(checkpoint / RUN_FILE))  # with the sizes of the copied files
