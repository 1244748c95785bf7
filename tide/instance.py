"""Where a running `tide up` can be found: what it writes into its data folder, and commands and clients read.

In: the data folder. Out: the address of its control plane, or none.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

RECORD = "up.json"
"""File in the data folder that describes the running instance."""
ENV_DATA_DIR = "TIDE_DATA_DIR"
DEFAULT_FOLDER = ".tide"


@dataclass(frozen=True, slots=True)
class Instance:
    """A running `tide up`."""

    pid: int
    url: str
    ray_dashboard: str
    started_at: str


def read_instance(folder: Path) -> Instance | None:
    """Read what the last `tide up` of a folder wrote and has not removed; it may be dead."""
    try:
        return Instance(**json.loads((folder / RECORD).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def data_folder() -> Path:
    """The data folder of programs that only look for a running instance."""
    return Path(os.environ.get(ENV_DATA_DIR, DEFAULT_FOLDER))
