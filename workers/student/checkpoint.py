"""Training states: weights and optimiser moments in safetensors, counters in JSON, never a pickle.

A state is a folder ``step-00000100`` that appears whole: locally it is renamed into place, elsewhere
``state.json``, which lists the other files with their sizes, is uploaded last. Everything random is a
function of counters, so the step number is all that resuming needs beside the tensors.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import structlog
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tide_core.contracts.errors import CheckpointError
from tide_core.contracts.job_folder import STATE_FOLDER, state_name
from tide_core.schedules.adaptive import AdaptiveProgress
from tide_core.training.sharding import gather_whole, place_like
from workers.storage import local_path, publish_folder, read_bytes

log = structlog.get_logger(__name__)

STATE, MODEL, OPTIMIZER = "state.json", "model.safetensors", "optimizer.safetensors"
FORMAT = 1
STALE_SECONDS = 3600.0


@dataclass(frozen=True)
class TrainingState:
    """Where training stands after `step` optimiser steps.

    Attributes:
        step: optimiser steps done.
        total_steps: of the whole run.
        spec_digest: of the resolved spec and the prepared data; another job's state is refused.
        adaptive: TAID's progress, when a term uses it.
    """

    step: int
    total_steps: int
    spec_digest: str
    adaptive: AdaptiveProgress = field(default_factory=AdaptiveProgress)


@dataclass(frozen=True)
class SavedState:
    """A complete state in storage."""

    step: int
    location: str
    bytes: int = 0


class CheckpointStore:
    """The training states of one job under `root` (a folder or an fsspec URL)."""

    def __init__(self, root: str, keep: int) -> None:
        self.root = root.rstrip("/")
        self._keep = keep

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainingState) -> SavedState:
        """Write a state; an existing one of the same step is replaced.

        A model in parts is written whole: the other trainers call :func:`assist` meanwhile.
        """
        location = f"{self.root}/{state_name(state.step)}"
        target = local_path(location)
        if target is None:
            with tempfile.TemporaryDirectory(prefix="tide-state-") as draft:
                size = _write(Path(draft), model, optimizer, state)
                # Files go up in the order of their names, state.json last.
                publish_folder(Path(draft), location)
        else:
            with _draft_beside(target) as draft_folder:
                size = _write(draft_folder, model, optimizer, state)
        return SavedState(state.step, location, size)

    def list_states(self) -> list[SavedState]:
        """Complete states, oldest first."""
        states = []
        for name in self._names():
            match = STATE_FOLDER.match(name)
            location = f"{self.root}/{name}"
            if match and self.is_complete(location):
                states.append(SavedState(int(match[1]), location))
        return sorted(states, key=lambda state: state.step)

    def prune(self) -> list[SavedState]:
        """Delete all but the newest `keep` states; gives what was deleted."""
        surplus = self.list_states()[: -self._keep]
        for state in surplus:
            self._remove(state.location)
        return surplus

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, spec_digest: str
    ) -> TrainingState | None:
        """Load the newest state that is whole; None when there is none.

        A damaged state is passed over for the one before.

        Raises:
            CheckpointError: the newest state belongs to another spec, or does not fit the model.
        """
        for saved in reversed(self.list_states()):
            content = json.loads(read_bytes(f"{saved.location}/{STATE}"))
            if content["state"]["spec_digest"] != spec_digest:
                raise CheckpointError(
                    f"{saved.location} was written for another spec or other data: give this job its own "
                    "folder, or delete that one.",
                    code="foreign_checkpoint",
                    param="checkpoints",
                )
            try:
                with _local_copy(saved.location) as folder:
                    _load_model(folder / MODEL, model)
                    _load_optimizer(folder / OPTIMIZER, model, optimizer)
            except (SafetensorError, OSError) as error:
                log.warning("checkpoint.damaged", location=saved.location, reason=str(error))
                continue
            fields: dict[str, Any] = content["state"]
            return TrainingState(**(fields | {"adaptive": AdaptiveProgress(**fields["adaptive"])}))
        return None

    def _names(self) -> list[str]:
        path = local_path(self.root)
        if path is not None:
            return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
        import fsspec

        filesystem, root = fsspec.core.url_to_fs(self.root)
        if not filesystem.exists(root):
            return []
        return sorted(Path(entry).name for entry in filesystem.ls(root, detail=False))

    def is_complete(self, location: str) -> bool:
        """Whether a state's folder holds all that its ``state.json`` lists."""
        path = local_path(location)
        if path is None:
            import fsspec

            filesystem, root = fsspec.core.url_to_fs(location)
            return bool(filesystem.exists(f"{root}/{STATE}"))
        if not (path / STATE).is_file():
            return False
        sizes: dict[str, int] = json.loads((path / STATE).read_text())["files"]
        return all((path / n).is_file() and (path / n).stat().st_size == size for n, size in sizes.items())

    def _remove(self, location: str) -> None:
        path = local_path(location)
        if path is not None:
            (path / STATE).unlink(missing_ok=True)  # never a folder that looks whole and is not
            shutil.rmtree(path, ignore_errors=True)
            return
        import fsspec

        filesystem, root = fsspec.core.url_to_fs(location)
        filesystem.rm(root, recursive=True)


def assist(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give this trainer's part of a model in parts to trainer 0, which saves."""
    for _ in chain(_weights(model), _moments(model, optimizer)):
        pass


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        yield name, gather_whole(parameter.detach())


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"{name}/{key}", gather_whole(torch.as_tensor(value).detach())


def _write(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainingState) -> int:
    _save(_weights(model), folder / MODEL)
    _save(_moments(model, optimizer), folder / OPTIMIZER)
    sizes = {name: (folder / name).stat().st_size for name in (MODEL, OPTIMIZER)}
    content = {"format": FORMAT, "state": asdict(state), "files": sizes}
    (folder / STATE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    return sum(sizes.values()) + (folder / STATE).stat().st_size


def _save(tensors: Iterable[tuple[str, Tensor]], file: Path) -> None:
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors}, file)


def load_state_weights(location: str, model: nn.Module) -> None:
    """Put the weights of one training state into a model of the same shape.

    Args:
        location: a state's folder (``.../step-00000100``) or its URL.

    Raises:
        CheckpointError: there is no whole state at `location`, or it does not fit the model.
    """
    place = location.rstrip("/")
    root, _, name = place.rpartition("/")
    store = CheckpointStore(root, keep=1)
    if not STATE_FOLDER.match(name) or not store.is_complete(place):
        raise CheckpointError(
            f"{location} is no whole training state: give a folder step-... that holds {STATE}.",
            code="checkpoint_incomplete",
            param="state",
        )
    try:
        with _local_copy(place) as folder:
            _load_model(folder / MODEL, model)
    except SafetensorError as error:
        raise CheckpointError(f"{place}/{MODEL} is damaged: {error}.", param=MODEL) from error


def _load_model(file: Path, model: nn.Module) -> None:
    parameters = dict(model.named_parameters())
    with safe_open(file, framework="pt") as stored, torch.no_grad():
        wrong = sorted(set(stored.keys()) ^ set(parameters))
        if wrong:
            raise CheckpointError(f"{file} does not fit the model; keys: {', '.join(wrong)}.", param=wrong[0])
        for name, parameter in parameters.items():
            tensor = stored.get_tensor(name)
            if tensor.shape != parameter.shape:
                raise CheckpointError(
                    f"{file} holds {name} as {list(tensor.shape)}, the model needs {list(parameter.shape)}.",
                    param=name,
                )
            parameter.copy_(place_like(tensor, parameter))


def _load_optimizer(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    parameters = dict(model.named_parameters())
    numbers = {id(p): n for n, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    state: dict[int, dict[str, Tensor]] = {}
    with safe_open(file, framework="pt") as stored:
        for key in stored.keys():  # noqa: SIM118 (not a dict)
            name, entry = key.rsplit("/", 1)
            parameter, tensor = parameters[name], stored.get_tensor(key)
            # The count of steps is one number, whole on every trainer.
            part = place_like(tensor, parameter) if tensor.shape == parameter.shape else tensor
            state.setdefault(numbers[id(parameter)], {})[entry] = part
    # The optimiser itself knows on which device each of its tensors belongs.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


@contextmanager
def _draft_beside(target: Path) -> Iterator[Path]:
    """A folder to fill that takes `target`'s name at the end; an earlier crash's drafts are cleared away."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(".draft-*"):
        if time.time() - stale.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(stale, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=target.parent))
    try:
        yield draft
        draft.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        os.replace(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _local_copy(location: str) -> Iterator[Path]:
    path = local_path(location)
    if path is not None:
        yield path
        return
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(location)
    with tempfile.TemporaryDirectory(prefix="tide-state-") as folder:
        for name in (MODEL, OPTIMIZER):
            filesystem.get_file(f"{root}/{name}", f"{folder}/{name}")
        yield Path(folder)
