"""The way of large hidden states from a replica to a trainer: the object store and NIXL, in turns.

Run: ``python -m benchmarks.held_answers [--quick]``, with the extra ``nixl``. Prints one JSON object.
Both ends are memory of the same host, which is the object store's best case and not NIXL's.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from typing import Any

import numpy as np

from benchmarks.arms import FINGERPRINT
from benchmarks.system import cluster
from tide_core.contracts.scores import Layout, ScoreRequest, ScoreResponse, Want
from tide_core.contracts.teacher import TEACHER_DEPLOYMENT, TeacherLease
from workers.scores.serve_transport import ServeTransport
from workers.teachers import app

WIDTH = 4096
WARM_UP = 5
APPLICATION = "held-answers"


class ReadyEngine:
    """Has every answer ready: what is left is the way. Each is new memory, as an engine's is."""

    def __init__(self, rows: int) -> None:
        self._states = np.random.default_rng(0).integers(0, 2**15, (rows, WIDTH), dtype=np.uint16)

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """The first rows."""
        values = self._states[: request.token_ids.size].copy()
        return ScoreResponse(values, FINGERPRINT, FINGERPRINT)


class ReadyTeacher(app.TeacherReplica):
    """The product's replica around it."""

    def __init__(self, rows: int) -> None:
        self._engine: Any = ReadyEngine(rows)

    async def check_health(self) -> None:
        """Always well."""

    def __del__(self) -> None:
        pass


class Reader:
    """Asks both ways in turns."""

    def run(self, rows: int, repeats: int) -> dict[str, float]:
        """Milliseconds from the question to values that can be read, medians."""
        lease = TeacherLease(application=APPLICATION)
        ways = {"object_store": ServeTransport(lease), "nixl": ServeTransport(lease, held_device="cpu")}
        request = _question(rows)
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(WARM_UP + repeats):
            for way, transport in ways.items():
                start = time.perf_counter()
                transport.submit(request).result()
                if number >= WARM_UP:
                    taken[way].append(1000.0 * (time.perf_counter() - start))
        for transport in ways.values():
            transport.close()
        return {f"{way}_ms": statistics.median(times) for way, times in taken.items()}


def _question(rows: int) -> ScoreRequest:
    return ScoreRequest(
        np.zeros(rows, np.int32),
        np.array([0, rows], np.int64),
        np.ones(rows, np.uint8),
        Layout.BIDIRECTIONAL,
        Want.HIDDEN,
    )


def measure(sizes: tuple[int, ...], repeats: int) -> list[dict[str, float]] | str:
    """Round trips by masked tokens of an answer; a sentence where NIXL is not installed."""
    if importlib.util.find_spec("nixl") is None:
        return "nixl is not installed: pip install 'tide-distill[nixl]'"
    import ray
    from ray import serve

    with cluster():
        deployment = serve.deployment(
            ReadyTeacher, name=TEACHER_DEPLOYMENT, ray_actor_options={"num_cpus": 0.1}
        )
        serve.run(deployment.bind(max(sizes)), name=APPLICATION, route_prefix=None)
        trainer = ray.remote(num_cpus=0.1)(Reader).remote()
        return [
            {
                "masked": rows,
                "megabytes": 2 * rows * WIDTH / 1e6,
                **ray.get(trainer.run.remote(rows, repeats)),
            }
            for rows in sizes
        ]


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    is_quick = parser.parse_args().quick
    print(json.dumps({"round_trip": measure((256, 1024, 4096), 10 if is_quick else 30)}))


if __name__ == "__main__":
    main()
