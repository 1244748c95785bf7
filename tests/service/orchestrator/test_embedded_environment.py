"""What the embedded head's processes get from the user's environment."""

from pathlib import Path

import pytest

from service.orchestrator.embedded_ray import make_environment


def test_the_workers_own_variables_are_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDE_SCORE_CACHE_BYTES", "0")
    monkeypatch.setenv("TIDE_CACHE", "/somewhere")
    monkeypatch.setenv("TIDE_DATABASE_URL", "a secret of the control plane")
    monkeypatch.setenv("RAY_ADDRESS", "another cluster")
    found = make_environment(tmp_path, "marker")
    assert (found["TIDE_SCORE_CACHE_BYTES"], found["TIDE_CACHE"]) == ("0", "/somewhere")
    assert not {"TIDE_DATABASE_URL", "RAY_ADDRESS"} & found.keys()


def test_without_them_the_cache_lies_in_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TIDE_CACHE", raising=False)
    monkeypatch.delenv("TIDE_SCORE_CACHE_BYTES", raising=False)
    found = make_environment(tmp_path, "marker")
    assert found["TIDE_CACHE"] == str((tmp_path / "cache").resolve())
    assert "TIDE_SCORE_CACHE_BYTES" not in found
