"""Where everything lies in storage, of one job and what jobs share: every path is spelt here.

In: the root of the storage, a folder or an fsspec URL. Out: locations as strings.
The layout is a promise to earlier versions: a job of the version before resumes from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tide_core.contracts.states import Phase

STATE_FOLDER = re.compile(r"^step-(\d{8,})$")
"""Name of a training state's folder; the group is its step."""


@dataclass(frozen=True, slots=True)
class JobFolder:
    """What belongs to one job.

    Attributes:
        root: the job's folder, without a slash at its end.
    """

    root: str

    @classmethod
    def of(cls, storage: str, job_id: str) -> JobFolder:
        """The folder of a job below the root of the storage."""
        return cls(f"{storage.rstrip('/')}/jobs/{job_id}")

    @property
    def initial(self) -> str:
        """The student before its first step, as a model folder."""
        return f"{self.root}/initial"

    @property
    def checkpoints(self) -> str:
        """Holds one folder for each training state."""
        return f"{self.root}/checkpoints"

    def state(self, step: int) -> str:
        """The training state after a step."""
        return f"{self.checkpoints}/{state_name(step)}"

    @property
    def model(self) -> str:
        """The exported student, as a model folder."""
        return f"{self.root}/model"

    @property
    def manifest(self) -> str:
        """JSON: the resolved spec, versions, hashes and what each phase found out."""
        return f"{self.root}/manifest.json"

    @property
    def report(self) -> str:
        """JSON: the figures of every model that the evaluation measured."""
        return f"{self.root}/report.json"

    @property
    def sequences(self) -> str:
        """NumPy's npz: per-sequence sums, arrays ``<model>/<column>``, for paired comparisons."""
        return f"{self.root}/sequences.npz"

    @property
    def spool(self) -> str:
        """Reports that the control plane has not acknowledged yet, in files named by `spool_name`."""
        return f"{self.root}/spool"


def spool_name(job_id: str, attempt: int, phase: Phase) -> str:
    """Name of the file that keeps the undelivered reports of an attempt's phase."""
    return f"{job_id}-{attempt}-{phase}.jsonl"


def state_name(step: int) -> str:
    """Name of the folder that holds the training state after a step."""
    return f"step-{step:08d}"


def prepared_root(storage: str) -> str:
    """Holds one folder for each prepared data set, named by its content hash and shared by all jobs."""
    return f"{storage.rstrip('/')}/prepared"


def prepared_folder(storage: str, content_hash: str) -> str:
    """The prepared data set with this content hash."""
    return f"{prepared_root(storage)}/{content_hash}"
