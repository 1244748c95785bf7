"""The one `tide up` of a data folder: its lock, and what it writes down for the other commands.

The lock is the kernel's (`flock`), so it is free as soon as its holder is gone, however it went.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
from pathlib import Path
from typing import IO

from tide.instance import RECORD, Instance, read_instance
from tide_core.contracts.errors import ConflictError, InvalidInputError

_LOCK = "up.lock"


class AlreadyRunningError(ConflictError):
    """Another `tide up` holds the data folder."""

    code = "already_running"


class InstanceLock:
    """Holds a data folder for one `tide up`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            AlreadyRunningError: another `tide up` holds it; the message says which, and how to end it.
            InvalidInputError: the folder cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = (self._folder / _LOCK).open("a")
        except OSError as error:
            raise InvalidInputError(
                f"Cannot write to {self._folder}: {error.strerror}. Choose another --data-dir.",
                code="data_dir_unusable",
                param="data_dir",
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise AlreadyRunningError(_describe_holder(self._folder)) from None
        self._file = file

    def publish(self, instance: Instance) -> None:
        """Write down where the control plane listens."""
        draft = self._folder / f"{RECORD}.new"
        draft.write_text(json.dumps(dataclasses.asdict(instance)))
        draft.replace(self._folder / RECORD)

    def release(self) -> None:
        """Forget what was written down and free the folder."""
        if self._file is not None:
            (self._folder / RECORD).unlink(missing_ok=True)
            self._file.close()
            self._file = None


def is_held(folder: Path) -> bool:
    """Whether a `tide up` runs in a folder."""
    path = folder / _LOCK
    if not path.exists():
        return False
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def forget(folder: Path) -> None:
    """Remove what a `tide up` that was killed left written down."""
    (folder / RECORD).unlink(missing_ok=True)


def _describe_holder(folder: Path) -> str:
    instance = read_instance(folder)
    where = f"at {instance.url} (process {instance.pid})" if instance else "and is just starting"
    return (
        f"Tide is already running {where}, with the data folder {folder.resolve()}. "
        "`tide down` ends it; --data-dir and --port start a second one."
    )
