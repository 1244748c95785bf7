"""The one `tide up` of a data folder: its lock, and what it writes down for the other commands.

The lock is the kernel's (`flock`), so it is free as soon as its holder is gone, however it went.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tide_core.contracts.errors import ConflictError, InvalidInputError

_LOCK, _RECORD = "up.lock", "up.json"
DEFAULT_FOLDER = ".tide"


class AlreadyRunningError(ConflictError):
    """Another `tide up` holds the data folder."""

    code = "already_running"


@dataclass(frozen=True, slots=True)
class Instance:
    """A running `tide up`."""

    pid: int
    url: str
    ray_dashboard: str
    started_at: str


class InstanceLock:
    """Holds a data folder for one `tide up`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            AlreadyRunningError: somebody holds it; the message says who, and how to end it.
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
            raise AlreadyRunningError(_who(self._folder)) from None
        self._file = file

    def publish(self, instance: Instance) -> None:
        """Write down where the control plane listens."""
        draft = self._folder / f"{_RECORD}.new"
        draft.write_text(json.dumps(dataclasses.asdict(instance)))
        draft.replace(self._folder / _RECORD)

    def release(self) -> None:
        """Forget what was written down and free the folder."""
        if self._file is not None:
            (self._folder / _RECORD).unlink(missing_ok=True)
            self._file.close()
            self._file = None


def read_instance(folder: Path) -> Instance | None:
    """What the last `tide up` in a folder wrote down and has not removed; it may be dead."""
    try:
        return Instance(**json.loads((folder / _RECORD).read_text()))
    except (OSError, ValueError, TypeError):
        return None


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
    (folder / _RECORD).unlink(missing_ok=True)


def data_folder() -> Path:
    """The data folder of commands that only look for a running instance."""
    return Path(os.environ.get("TIDE_DATA_DIR", DEFAULT_FOLDER))


def _who(folder: Path) -> str:
    instance = read_instance(folder)
    where = f"at {instance.url} (process {instance.pid})" if instance else "and is just starting"
    return (
        f"Tide is already running {where}, with the data folder {folder.resolve()}. "
        "`tide down` ends it; --data-dir and --port start a second one."
    )
