"""The private and alpha parts of Ray that `workers.ray_tensors` uses exist, in a version that was tried."""

import inspect
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from workers import ray_tensors


def test_this_version_of_ray_was_tried() -> None:
    installed = ".".join(ray.__version__.split(".")[:2])
    assert installed in ray_tensors.VERIFIED_RAY, (
        f"Ray {installed} was not tried: run tests/workers/scores/test_held_answers_over_ray.py with nixl "
        "installed, look at each part in workers/ray_tensors.py, and add the version to VERIFIED_RAY."
    )


def test_no_other_module_reaches_into_ray() -> None:
    private = re.compile(r"ray\._private|ray\.experimental|_tensor_transport=|__ray_call__")
    product = Path(ray_tensors.__file__).parent
    found = [path.name for path in product.rglob("*.py") if private.search(path.read_text())]
    assert found == ["ray_tensors.py"]


def test_tensors_are_put_and_received_as_ever() -> None:
    from ray.experimental import set_target_for_ref
    from ray.experimental.rdt import util

    assert "_tensor_transport" in inspect.signature(ray.put).parameters
    assert list(inspect.signature(set_target_for_ref).parameters) == ["ref", "target"]
    assert list(inspect.signature(util.get_tensor_transport_manager).parameters) == ["transport_name"]
    assert "__ray_call__" in inspect.getsource(ray.actor)


def test_what_ray_notes_of_a_reference_is_where_it_was() -> None:
    from ray._private.worker import Worker
    from ray.experimental.rdt.rdt_manager import RDTManager

    assert isinstance(Worker.rdt_manager, property)
    manager = RDTManager()
    assert manager._managed_rdt_metadata == {}
    assert isinstance(manager._lock, type(threading.Lock()))


def test_forgetting_removes_one_note_and_takes_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.experimental.rdt.rdt_manager import RDTManager

    manager = RDTManager()
    manager._managed_rdt_metadata |= {"ab": object(), "cd": object()}
    monkeypatch.setattr(ray._private.worker, "global_worker", SimpleNamespace(rdt_manager=manager))
    for _ in range(2):
        ray_tensors.forget_tensor(SimpleNamespace(hex=lambda: "ab"))
    assert list(manager._managed_rdt_metadata) == ["cd"]
