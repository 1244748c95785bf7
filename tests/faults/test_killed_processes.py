"""A real job on a real head, whose control plane and then whose cluster are killed under it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.cli.instance import read_instance
from service.orchestrator import embedded_ray
from workers.teachers.tiny import END_ID, MASK_ID, VOCAB_SIZE, write_tiny_teacher

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

STEPS = 600
STUDENT = {
    "model_type": "qwen3",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
    "mask_token_id": MASK_ID,
    "eos_token_id": END_ID,
}


class Service:
    """`tide up` of one folder, killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDE_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "service.cli.main", "up", "--data-dir", str(self.folder), "--port", "0"],
            stdout=subprocess.DEVNULL,
            env=environment,
        )
        process = self._process
        await_true(lambda: self._is_ready(process.pid), "the service is ready")

    def kill(self) -> None:
        """As the kernel does when memory runs out."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """In order."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(40)

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.url}{path}", timeout=20).raise_for_status().json()

    def _is_ready(self, pid: int) -> bool:
        instance = read_instance(self.folder)
        if instance is None or instance.pid != pid:
            return False
        self.url = instance.url
        try:
            return httpx.get(f"{self.url}/readyz", timeout=10).status_code == 200
        except httpx.HTTPError:
            return False


def await_true(condition: Any, what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.2)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path / "data")
    made.start()
    yield made
    made.end()
    record = embedded_ray.read_record(made.folder)
    assert record is None, "ending in order forgets the head"


def job_spec(folder: Path) -> dict[str, Any]:
    teacher = write_tiny_teacher(folder / "teacher", "wedlm")
    rows = [{"prompt": f"Say {number}", "response": f"It is {number}."} for number in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "teacher": {"model": str(teacher)},
        "student": {"config": STUDENT, "tokenizer": str(teacher), "block_size": 16},
        "objective": "tide_shared",
        "data": {"sources": [{"location": str(folder / "rows.jsonl")}], "student_length": 64},
        "hyperparameters": {"max_steps": STEPS, "global_batch_size": 4, "micro_batch_size": 4},
        "checkpoints": {"every_steps": 20},
        "evaluation": {"enabled": False},
    }


def test_a_job_survives_the_control_plane_and_then_the_cluster(service: Service, tmp_path: Path) -> None:
    answer = httpx.post(f"{service.url}/v1/jobs", json=job_spec(tmp_path), timeout=20)
    assert answer.status_code == 201, answer.text
    job_id = answer.json()["id"]
    path = f"/v1/jobs/{job_id}"

    def steps_done() -> int:
        series = service.get(f"{path}/metrics?name=loss")["data"]
        return max(series[0]["steps"], default=0) if series else 0

    await_true(lambda: steps_done() >= 1, "training has begun")
    service.kill()
    time.sleep(1.0)  # the trainer goes on alone and keeps its reports
    service.start()
    seen = steps_done()
    await_true(lambda: steps_done() > seen, "the same attempt goes on")
    job = service.get(path)
    assert (job["status"], job["attempt"]) == ("running", 1)

    await_true(lambda: service.get(f"{path}/checkpoints")["data"], "there is a checkpoint")
    record = embedded_ray.read_record(service.folder)
    assert record is not None
    assert service.get(path)["status"] == "running", "the job is too short for this test"
    for process in embedded_ray.members(record):
        process.kill()
    await_true(lambda: service.get(path)["finished_at"] is not None, "the job has ended", 240)

    job = service.get(path)
    assert (job["status"], job["attempt"]) == ("succeeded", 2), job["error"]
    (loss,) = service.get(f"{path}/metrics?name=loss&max_points={STEPS}")["data"]
    steps = loss["steps"]
    assert steps == sorted(set(steps)), "what both attempts did is stored once"
    assert steps[-1] - steps[0] == STEPS - 1
    # What a killed trainer had not sent yet is gone; with both killed in turn that is a few seconds' worth.
    assert len(steps) > STEPS // 2
    assert Path(job["model"]["location"], "model.safetensors").is_file()
    kinds = [event["type"] for event in service.get(f"{path}/events?limit=100")["data"]]
    assert kinds.count("job.succeeded") == 1
    assert kinds.count("attempt.started") == 1
