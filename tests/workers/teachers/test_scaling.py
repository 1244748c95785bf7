"""The load that a replica measures, and how many replicas it makes the policy want."""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from tide_core.contracts.serving import TEACHERS
from workers.teachers.scaling import BUSY, QUEUE_DELAY, LoadMeter, QueueDelayPolicy, decide_replicas


@dataclass
class Counted:
    """Counters as an engine has them."""

    requests: int = 0
    queue_seconds: float = 0.0
    busy_seconds: float = 0.0
    uptime_seconds: float = 0.0
    queued_tokens: int = 0


class TestLoadMeter:
    def test_it_reads_what_happened_since_the_last_time(self) -> None:
        meter = LoadMeter()
        assert meter.read(Counted(10, 5.0, 3.0, 10.0)) == {QUEUE_DELAY: 0.5, BUSY: 0.3}
        assert meter.read(Counted(14, 9.0, 4.0, 12.0)) == {QUEUE_DELAY: 1.0, BUSY: 0.5}

    def test_a_queue_that_is_not_served_grows_older(self) -> None:
        meter = LoadMeter()
        meter.read(Counted(4, 2.0, 1.0, 4.0, queued_tokens=100))
        assert meter.read(Counted(4, 2.0, 1.0, 6.0, queued_tokens=100))[QUEUE_DELAY] == 2.5
        assert meter.read(Counted(4, 2.0, 1.0, 8.0, queued_tokens=100))[QUEUE_DELAY] == 4.5

    def test_nothing_to_do_is_no_delay(self) -> None:
        meter = LoadMeter()
        meter.read(Counted(4, 8.0, 4.0, 4.0))
        assert meter.read(Counted(4, 8.0, 4.0, 6.0)) == {QUEUE_DELAY: 0.0, BUSY: 0.0}

    def test_two_looks_in_the_same_moment_divide_by_nothing(self) -> None:
        meter = LoadMeter()
        meter.read(Counted(1, 1.0, 1.0, 1.0))
        assert meter.read(Counted(1, 1.0, 1.0, 1.0))[BUSY] == 0.0


@pytest.mark.parametrize(
    ("running", "asked", "delay", "busy", "wanted"),
    [
        pytest.param(2, 2, 0.4, 2.0, 2, id="busy, and no request waits too long"),
        pytest.param(2, 2, 0.6, 2.0, 3, id="a little too long: one more"),
        pytest.param(4, 4, 0.6, 4.0, 5, id="in proportion"),
        pytest.param(4, 4, 60.0, 4.0, 8, id="doubled at most"),
        pytest.param(4, 8, 60.0, 4.0, 8, id="those that start are counted"),
        pytest.param(4, 9, 0.6, 4.0, 9, id="and not taken back while requests wait"),
        pytest.param(4, 4, 0.0, 1.0, 2, id="work for one and a half"),
        pytest.param(2, 2, 0.0, 1.4, 2, id="the other one would be too busy"),
        pytest.param(2, 2, 0.0, 1.39, 2, id="just fits on two"),
        pytest.param(2, 2, 0.0, 0.7, 1, id="just fits on one"),
        pytest.param(3, 3, 0.0, 0.0, 1, id="idle pools keep one"),
        pytest.param(1, 2, 0.1, 0.2, 1, id="one that starts is superfluous by now"),
        pytest.param(2, 1, 0.0, 2.0, 1, id="one that stops is not called back without need"),
    ],
)
def test_how_many_are_wanted(running: int, asked: int, delay: float, busy: float, wanted: int) -> None:
    assert (
        decide_replicas(running, asked, delay_seconds=delay, busy_replicas=busy, target_seconds=0.5) == wanted
    )


def context(running: int, asked: int, delays: list[float], busy: list[float]) -> Any:
    metrics = {QUEUE_DELAY: dict(enumerate(delays)), BUSY: dict(enumerate(busy))}
    return SimpleNamespace(
        current_num_replicas=running, target_num_replicas=asked, aggregated_metrics=metrics
    )


class TestPolicy:
    def test_the_mean_delay_and_the_sum_of_the_work_decide(self) -> None:
        policy = QueueDelayPolicy(target_seconds=0.5)
        assert policy(context(2, 2, [0.1, 1.9], [1.0, 1.0])) == (4, {})
        assert policy(context(2, 2, [0.1, 0.3], [0.3, 0.3])) == (1, {})

    def test_it_waits_for_the_whole_picture(self) -> None:
        policy = QueueDelayPolicy(target_seconds=0.5)
        assert policy(context(2, 2, [9.0], [1.0])) == (2, {})
        assert policy(context(0, 1, [], [])) == (1, {})
        nothing = SimpleNamespace(current_num_replicas=1, target_num_replicas=1, aggregated_metrics=None)
        assert policy(nothing) == (1, {})

    def test_it_travels_to_a_process_without_tide(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Serve's controller may run in an environment of its own."""
        from ray.serve.config import AutoscalingPolicy

        arguments = {"target_seconds": 0.5}
        sent = AutoscalingPolicy(policy_function=TEACHERS.scaling_policy, policy_kwargs=arguments)
        packed = sent.get_serialized_policy_def()
        for name in [name for name in sys.modules if name.partition(".")[0] in ("workers", "tide_core")]:
            monkeypatch.setitem(sys.modules, name, None)
        policy = pickle.loads(packed)(**sent.policy_kwargs)
        assert policy(context(1, 1, [5.0], [1.0])) == (2, {})
