"""Settings: flags over environment over file over default."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIDE_CONFIG", raising=False)
    monkeypatch.delenv("TIDE_PORT", raising=False)


@pytest.mark.parametrize(("name", "text"), [("tide.toml", "port = 1111\n"), ("tide.yaml", "port: 1111\n")])
def test_each_source_overrides_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    default = Settings().port
    (tmp_path / name).write_text(text)
    monkeypatch.setenv("TIDE_CONFIG", str(tmp_path / name))
    from_file = Settings().port
    monkeypatch.setenv("TIDE_PORT", "2222")
    from_environment = Settings().port
    from_flag = Settings(port=3333).port
    assert [from_flag, from_environment, from_file] == [3333, 2222, 1111]
    assert default not in (1111, 2222, 3333)


def test_an_unknown_key_in_the_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tide.toml").write_text("prot = 1\n")
    monkeypatch.setenv("TIDE_CONFIG", str(tmp_path / "tide.toml"))
    with pytest.raises(ValidationError, match="prot"):
        Settings()


def test_a_missing_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDE_CONFIG", "/nowhere/tide.toml")
    with pytest.raises(FileNotFoundError, match="TIDE_CONFIG"):
        Settings()


def test_defaults_follow_the_data_folder(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, host="127.0.0.1", port=9)
    assert settings.resolved_database_url == f"sqlite+aiosqlite:///{tmp_path}/tide.db"
    assert settings.resolved_storage == f"{tmp_path}/storage"
    assert settings.resolved_control_url == "http://127.0.0.1:9"
    assert Settings(storage="s3://bucket/x").resolved_storage == "s3://bucket/x"
