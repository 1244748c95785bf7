"""Processes that compute get the same environment, whichever side starts them."""

import pytest

from tide_core.contracts.environment import ALLOCATOR_ENVIRONMENT, compute_environment
from workers.cluster import worker_environment

EXPECTED = {
    "OMP_NUM_THREADS": "3",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
}
"""As every version so far has it: replicas of running pools restart when it changes."""


def test_both_sides_give_the_same_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ALLOCATOR_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    assert compute_environment(3) == EXPECTED
    assert worker_environment(3) == {"env_vars": EXPECTED}
    assert compute_environment(0)["OMP_NUM_THREADS"] == "1"


def test_a_setting_of_the_cluster_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    variables = worker_environment(2)["env_vars"]
    assert (variables["MALLOC_TOP_PAD_"], variables["OMP_NUM_THREADS"]) == ("0", "2")
