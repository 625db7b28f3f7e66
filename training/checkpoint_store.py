"""What makes a checkpoint count, for both stages; what is in one is the stage's own business.

A save writes into a temporary folder. Once every rank has written and all files are flushed to
disk, the main process lists them with sizes and digests in `marker.json`, renames the folder to its
final name and replaces `latest`. A folder without a marker that agrees with its files does not
count.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.durable_files import flush_to_disk, write_atomically
from training.checkpoint_marker import (
    ASIDE,
    MARKER,
    DamagedCheckpoint,
    FileFacts,
    flush_all,
    step_of,
    verify_checkpoint,
    write_marker,
)

logger = logging.getLogger(__name__)

LATEST = "latest"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        step: Updates made when it was saved.
        folder: Where its files are.
        metadata: What the stage put into the marker.
    """

    step: int
    folder: Path
    metadata: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run.

    All ranks may hold one; the main process alone calls `begin`, `complete` and `newest_complete`.
    The others write into `temporary_folder(step)`, which has the same name everywhere. The caller
    puts a barrier after `begin` and another before `complete`.

    Args:
        folder: The run folder's `checkpoints`.
        keep: Newest complete checkpoints kept.
        milestone_every_steps: Checkpoints at multiples of this are kept for good; None keeps none.
    """

    def __init__(
        self, folder: Path, *, keep: int = 2, milestone_every_steps: int | None = None
    ) -> None:
        """See the class."""
        self.folder = folder
        self.keep = max(1, keep)
        self.milestone_every_steps = milestone_every_steps
        self._damaged: set[str] = set()

    def final_folder(self, step: int) -> Path:
        """Where the checkpoint of this step lies once it is complete."""
        return self.folder / f"step-{step:08d}"

    def temporary_folder(self, step: int) -> Path:
        """Where the ranks write the checkpoint of this step; the same on every rank."""
        return self.folder / f"tmp-step-{step:08d}"

    def begin(self, step: int) -> Path:
        """Clear what a crashed save left behind and make this step's temporary folder.

        Returns:
            `temporary_folder(step)`, existing and empty.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in sorted(self.folder.glob("tmp-*")):
            logger.warning("removing %s, left behind by an interrupted save", leftover)
            shutil.rmtree(leftover)
        for leftover in self.folder.glob(f".{LATEST}.*"):
            leftover.unlink()
        temporary = self.temporary_folder(step)
        temporary.mkdir()
        return temporary

    def complete(
        self,
        temporary: Path,
        step: int,
        metadata: dict[str, Any],
        *,
        expected_files: Iterable[str] = (),
        facts: Mapping[str, FileFacts] | None = None,
    ) -> Checkpoint:
        """Make a checkpoint of the temporary folder, then drop those no longer kept.

        Args:
            temporary: The folder that `begin` gave, with every rank's files in it.
            step: The step given to `begin`.
            metadata: JSON-able facts the stage wants back; stored in the marker.
            expected_files: Paths relative to the folder that must be there.
            facts: What `flushed` gave for every file, where the ranks have called it themselves;
                None flushes and digests all files of the folder here.

        Raises:
            RuntimeError: An expected file is missing; the folder stays temporary.
        """
        expected_files = expected_files if facts is None else facts
        missing = [name for name in expected_files if not (temporary / name).is_file()]
        if missing:
            raise RuntimeError(
                f"checkpoint of step {step} is incomplete: {', '.join(missing)} missing in "
                f"{temporary}; is the run folder on a file system that all ranks share?"
            )
        write_marker(temporary, step, metadata, facts or flush_all(temporary))
        final = self.final_folder(step)
        if final.exists():  # a damaged one that was passed over on resume
            self._remove(final)
        os.rename(temporary, final)
        flush_to_disk(self.folder)
        write_atomically(self.folder / LATEST, final.name + "\n")
        flush_to_disk(self.folder)
        self._damaged.discard(final.name)
        self._drop_old(step)
        return Checkpoint(step, final, metadata)

    def newest_complete(self, up_to_step: int | None = None) -> Checkpoint | None:
        """The newest checkpoint whose files are all there with the right sizes and digests.

        Each newer one that is passed over is reported as a warning, with what is wrong with it.

        With `up_to_step` only checkpoints of that step and before are looked at.
        """
        for folder in reversed(self._folders()):
            if up_to_step is not None and step_of(folder) > up_to_step:
                continue
            try:
                marker = verify_checkpoint(folder)
            except DamagedCheckpoint as damage:
                logger.warning("passing over checkpoint %s: %s", folder, damage)
                self._damaged.add(folder.name)
                continue
            return Checkpoint(marker["step"], folder, marker["metadata"])
        return None

    def set_aside_after(self, step: int) -> None:
        """Let later checkpoints no longer count; each goes once a later one is complete."""
        for folder in self._folders():
            if step_of(folder) > step:
                aside = folder.with_name(ASIDE + folder.name)
                if aside.exists():
                    shutil.rmtree(aside)
                os.rename(folder, aside)
                logger.warning("set %s aside as %s", folder, aside.name)
        flush_to_disk(self.folder)

    def _folders(self) -> list[Path]:
        """Everything under a checkpoint's name, complete or not, oldest first."""
        return sorted((f for f in self.folder.glob("step-*") if step_of(f) >= 0), key=step_of)

    def _drop_old(self, newest_step: int) -> None:
        """Remove damaged folders up to the newest complete one, and complete ones beyond `keep`."""
        folders = [f for f in self._folders() if step_of(f) <= newest_step]
        complete = [f for f in folders if f.name not in self._damaged and (f / MARKER).is_file()]
        kept = set(complete[-self.keep :])
        for folder in folders:
            is_milestone = folder in complete and self._is_milestone(step_of(folder))
            if folder not in kept and not is_milestone:
                self._remove(folder)
        for aside in self.folder.glob(f"{ASIDE}step-*"):
            if step_of(aside) <= newest_step:
                self._remove(aside)

    def _is_milestone(self, step: int) -> bool:
        return bool(self.milestone_every_steps) and step % (self.milestone_every_steps or 1) == 0

    def _remove(self, folder: Path) -> None:
        # Renamed first: a removal cut short must not leave half a folder under a checkpoint's name.
        doomed = folder.with_name(f"tmp-removing-{folder.name}")
        os.rename(folder, doomed)
        shutil.rmtree(doomed)
        self._damaged.discard(folder.name)
