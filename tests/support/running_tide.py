"""A real `tide up` in a child process, and a tiny job for it: what end-to-end and fault tests share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tide.client import Client
from tide.errors import ApiError
from tide.instance import read_instance
from workers.teachers.tiny import END_ID, MASK_ID, VOCAB_SIZE, write_tiny_teacher

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


_UP = (sys.executable, "-m", "tide.cli.main", "up")


class Service:
    """`tide up` of one folder, killed and started again; ``flags`` are further options of it."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self._flags = flags
        self._client: Client | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDE_")}
        self._process = subprocess.Popen(
            [*_UP, "--data-dir", str(self.folder), "--port", "0", *self._flags],
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

    @property
    def client(self) -> Client:
        """A client of it; it works on when the server was killed and started again."""
        assert self._client is not None, "started first"
        return self._client

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.client.url

    def _is_ready(self, pid: int) -> bool:
        instance = read_instance(self.folder)
        if instance is None or instance.pid != pid:
            return False
        if self._client is None or self._client.url != instance.url:
            self._client = Client(instance.url)
        try:
            return self._client.ready().status == "ready"
        except ApiError:
            return False


def await_true(condition: Any, what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.2)


def job_spec(folder: Path, *, steps: int, **changes: Any) -> dict[str, Any]:
    """A job with a tiny dense teacher that shares its tokenizer with the student."""
    teacher = write_tiny_teacher(folder / "teacher", "wedlm")
    rows = [{"prompt": f"Say {number}", "response": f"It is {number}."} for number in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "teacher": {"model": str(teacher)},
        "student": {"config": STUDENT, "tokenizer": str(teacher), "block_size": 16},
        "objective": "tide_shared",
        "data": {"sources": [{"location": str(folder / "rows.jsonl")}], "student_length": 64},
        "hyperparameters": {"max_steps": steps, "global_batch_size": 4, "micro_batch_size": 4},
        "checkpoints": {"every_steps": 20},
        "evaluation": {"enabled": False},
    } | changes
