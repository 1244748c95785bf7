"""Pools that run go on through an upgrade: what the cluster is asked for stays the same, byte by byte."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.orchestrator import pools
from service.orchestrator.pools import LeasedReplicas, PoolRules, PoolSnapshot
from service.orchestrator.ray_compute import serve_config
from tide_core.contracts.job import TeacherSpec
from tide_core.contracts.placement import Purpose, labels_for
from tide_core.contracts.teacher import TeacherPool

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RULES = PoolRules(
    storage="s3://bucket/tide",
    linger=timedelta(minutes=5),
    queue_delay_seconds=0.5,
    grow_after_seconds=30.0,
    shrink_after_seconds=300.0,
    node_labels=labels_for(Purpose.TEACHER),
)
TEACHERS = {
    "plain": TeacherSpec(model="/models/teacher"),
    "set": TeacherSpec(
        model="org/teacher", revision="abc", dtype="bfloat16", quantisation="int8", compile=True
    ),
}
BEFORE: dict[str, object] = json.loads(Path(__file__).with_name("running_pools.json").read_text())
"""What commit e1ae842 asked the cluster for. A change here restarts the replicas of every pool that runs."""


@pytest.mark.parametrize("name", TEACHERS)
def test_a_running_pool_is_asked_for_with_the_very_same_configuration(name: str) -> None:
    pool = TeacherPool(teacher=TEACHERS[name], replicas=2, gpus_per_replica=0.5, cpus_per_replica=2.0)
    known = [PoolSnapshot(pool, (LeasedReplicas(2, 4),), NOW)]
    (application,) = pools.choose_applications(known, {}, now=NOW, rules=RULES)
    assert json.dumps(serve_config(application)) == json.dumps(BEFORE[name])
