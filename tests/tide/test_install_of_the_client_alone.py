"""A wheel of the project in a fresh environment, without extras: what a user of the client has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from service.orchestrator.embedded_ray import find_free_port

ROOT = Path(__file__).parents[2]
PACKED = ("tide", "tide_core", "service", "workers", "pyproject.toml", "README.md", "LICENSE")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(*words: str | Path, **changes: str) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("TIDE_", "PYTHON"))
    }
    return subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, env=environment | changes, cwd="/"
    )


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that holds the client alone."""
    folder = tmp_path_factory.mktemp("client")
    tree = folder / "tree"
    tree.mkdir()
    left_out = shutil.ignore_patterns("__pycache__", "*.safetensors")
    for name in PACKED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=left_out)
        elif source.exists():
            shutil.copy(source, tree / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    built = run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, tree)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    place = folder / "env" / "bin"
    installed = run(*pip, "--python", place / "python", "install", "--quiet", wheel)
    assert installed.returncode == 0, installed.stderr
    return place


def test_nothing_heavy_is_installed(programs: Path) -> None:
    packages = next((programs.parent / "lib").glob("python*/site-packages"))
    present = {path.name.lower() for path in packages.iterdir()}
    assert not {"torch", "ray", "fastapi", "sqlalchemy", "transformers", "pyarrow", "tokenizers"} & present


def test_the_client_is_there(programs: Path) -> None:
    code = "import tide; print(tide.Client().url, tide.AsyncClient.__name__, tide.JobSpec.__name__)"
    done = run(programs / "python", "-c", code)
    assert done.stdout.split() == ["http://127.0.0.1:8700", "AsyncClient", "JobSpec"], done.stderr


def test_help_lists_everything_and_what_it_needs(programs: Path) -> None:
    done = run(programs / "tide", "--help", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    for name in ("up", "serve", "down", "doctor", "tokens"):
        assert f"  {name} " in done.stdout
    assert done.stdout.count("(needs tide-distill[service])") == 5
    assert done.stdout.count("(needs tide-distill[workers])") == 4
    assert "List teacher pools" in done.stdout


@pytest.mark.parametrize(
    ("words", "extra"),
    [(("up", "--port", "0"), "service"), (("tokens", "list"), "service"), (("sample", "x", "y"), "workers")],
)
def test_what_is_not_installed_says_what_to_install(
    programs: Path, words: tuple[str, ...], extra: str
) -> None:
    done = run(programs / "tide", *words)
    assert done.returncode == 1
    assert f"pip install 'tide-distill[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_jobs_without_a_server_is_one_clear_line(programs: Path) -> None:
    done = run(programs / "tide", "jobs", "list", TIDE_URL=f"http://127.0.0.1:{find_free_port()}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: No server answers at http://127.0.0.1:")
    assert done.stderr.count("\n") == 1
