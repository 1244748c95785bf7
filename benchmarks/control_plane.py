"""How fast the control plane answers: posts and reads over real HTTP.

Run: ``python benchmarks/control_plane.py [--posts 200] [--database-url URL]``. Prints one JSON object with
medians and 95th percentiles in milliseconds. The server is a process of its own, with SQLite unless told
otherwise.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

_SERVER = """\
import sys, uvicorn
from service.app import create_app
from service.settings import Settings
uvicorn.run(create_app(Settings()), port=int(sys.argv[1]), log_level="warning")
"""
_VOCABULARY = 20_000


def write_model(folder: Path, model_type: str, offset: int) -> None:
    """A model folder as far as the control plane looks at it, with a tokenizer of a genuine size."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = alphabet + [f"{a}{b}" for a in alphabet[:150] for b in alphabet[:150]]
    words = words[offset:] + words[:offset]
    vocabulary = {word: number for number, word in enumerate(words[:_VOCABULARY])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<|end|>", "<|mask|>")])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"eos_token": "<|end|>", "mask_token": "<|mask|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "model.safetensors").write_bytes(b"weights")


@contextmanager
def serve(folder: Path, database_url: str | None) -> Iterator[str]:
    """A control plane without a cluster, in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"TIDE_DATA_DIR": str(folder / "data"), "TIDE_LOG_LEVEL": "WARNING"}
    if database_url is not None:
        environment["TIDE_DATABASE_URL"] = database_url
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(port)], env=environment, stdout=log, stderr=log
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_alive(url, process)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=10)


def _wait_until_alive(url: str, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up and process.poll() is None:
        try:
            httpx.get(f"{url}/healthz")
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit("the control plane did not start")


def measure(action: Callable[[], httpx.Response], times: int) -> dict[str, float]:
    """Milliseconds of an action repeated so often."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        action().raise_for_status()
        taken.append(1000 * (time.perf_counter() - started))
    return {
        "median": round(statistics.median(taken), 2),
        "p95": round(statistics.quantiles(taken, n=20)[-1], 2),
    }


def run(posts: int, database_url: str | None) -> dict[str, Any]:
    """Post, read and list jobs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "student", "a2d-qwen3", 0)
        write_model(folder / "teacher", "llada2_moe", 7)
        (folder / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 1000)
        body = {
            "teacher": {"model": str(folder / "teacher")},
            "student": {"model": str(folder / "student")},
            "objective": "tide_cross",
            "data": {"sources": [{"location": str(folder / "rows.jsonl")}]},
        }
        with serve(folder, database_url) as url, httpx.Client(base_url=url, timeout=30) as client:
            started = time.perf_counter()
            job = client.post("/v1/jobs", json=body).raise_for_status().json()
            first = round(1000 * (time.perf_counter() - started), 2)
            return {
                "post_first": first,
                "post": measure(lambda: client.post("/v1/jobs", json=body), posts),
                "get": measure(lambda: client.get(f"/v1/jobs/{job['id']}"), posts),
                "list_20": measure(lambda: client.get("/v1/jobs"), posts),
                "events": measure(lambda: client.get(f"/v1/jobs/{job['id']}/events"), posts),
            }


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posts", type=int, default=200)
    parser.add_argument("--database-url")
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.posts, arguments.database_url), indent=2))


if __name__ == "__main__":
    main()
