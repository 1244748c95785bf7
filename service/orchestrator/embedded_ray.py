"""A Ray head on this machine for `tide up`: started on loopback, found again, ended without leftovers.

The head and what it starts form one session of processes (`setsid`), and the drivers that leave it carry a
marker in their environment. Both outlive the process that started them, so the next one can find and end
them. Verified against Ray 2.60.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tide_core.contracts.environment import ENV_CACHE, ENV_SCORE_CACHE_BYTES
from tide_core.contracts.errors import TideError

MARKER = "TIDE_EMBEDDED_RAY"
_RECORD, _TOKEN, _LOG = "ray.json", "ray-token", "ray.log"
_LONGEST_TEMP_DIR = 40
"""Unix sockets allow 107 bytes, and Ray's own part of the path takes up to 66."""
_KEPT_SESSIONS = 3
_GRACE_SECONDS = 3.0
_GIB = 1 << 30


class EmbeddedRayError(TideError):
    """The local Ray head did not start."""

    code = "ray_head_failed"


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """How the head is started; None lets us or Ray choose.

    Attributes:
        python: interpreter that has Ray.
        folder: where record, token and log are kept.
    """

    python: str
    folder: Path
    num_cpus: int | None = None
    num_gpus: int | None = None
    object_store_bytes: int | None = None
    dashboard_port: int = 0
    temp_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class HeadRecord:
    """A head that was started, as it is written down for the next process.

    Attributes:
        pid: of `ray start`, which is also the id of the processes' session.
        created_at: when that process was born, so that a reused pid is not mistaken for it.
        marker: value of the environment variable `MARKER` in all its processes.
    """

    pid: int
    created_at: float
    marker: str
    dashboard_url: str
    metrics_port: int
    temp_dir: str

    @property
    def dashboard_port(self) -> int:
        """Port of the dashboard."""
        return int(self.dashboard_url.rsplit(":", 1)[1])


def read_token(folder: Path) -> str:
    """The token of heads in this folder, made on first use and readable by its owner alone."""
    path = folder / _TOKEN
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    return path.read_text().strip()


def read_record(folder: Path) -> HeadRecord | None:
    """The head that was last started here, alive or not."""
    try:
        return HeadRecord(**json.loads((folder / _RECORD).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def is_alive(record: HeadRecord) -> bool:
    """Whether the head's first process still runs."""
    try:
        process = psutil.Process(record.pid)
        return abs(process.create_time() - record.created_at) < 1.0 and (
            process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.Error:
        return False


def answers(record: HeadRecord, token: str, *, timeout: float = 3.0) -> bool:
    """Whether the head's dashboard answers with our token."""
    try:
        answer = httpx.get(
            f"{record.dashboard_url}/api/version",
            headers={"Authorization": f"Bearer {token}"},
            timeout=timeout,
            trust_env=False,
        )
    except httpx.HTTPError:
        return False
    return answer.is_success


def find_or_start(options: HeadOptions, *, timeout: float = 60.0) -> tuple[HeadRecord, bool]:
    """The head that runs here already (left by a control plane that was killed), else a new one.

    Returns:
        The head, and whether it is new.

    Raises:
        EmbeddedRayError: it does not start; the last lines of its log are in the message.
    """
    record = read_record(options.folder)
    if record is not None:
        if is_alive(record) and answers(record, read_token(options.folder), timeout=10.0):
            return record, False
        stop(record, options.folder)
        if options.dashboard_port == 0 and is_port_free(record.dashboard_port):
            options = dataclasses.replace(options, dashboard_port=record.dashboard_port)
    return _start(options, timeout), True


def stop(record: HeadRecord, folder: Path) -> int:
    """End a head and everything it started, and forget it.

    Returns:
        How many processes were ended.
    """
    victims = {process.pid: process for process in find_members(record)}
    if is_alive(record):
        # Ray's own way out takes half a minute with serving actors: it gets a few seconds of it.
        _signal(victims.get(record.pid), signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        while is_alive(record) and time.monotonic() < deadline:
            time.sleep(0.05)
    for _ in range(20):
        left = find_members(record)
        victims |= {process.pid: process for process in left}
        if not left:
            break
        for process in left:
            _signal(process, signal.SIGKILL)
        psutil.wait_procs(left, timeout=1.0)
    (folder / _RECORD).unlink(missing_ok=True)
    return len(victims)


def find_members(record: HeadRecord) -> list[psutil.Process]:
    """The living processes of a head: its session, those with its marker, and all their descendants."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        if process.pid not in found and _belongs(process, record):
            found[process.pid] = process
            try:
                found |= {child.pid: child for child in process.children(recursive=True)}
            except psutil.Error:
                continue
    found.pop(os.getpid(), None)
    return [process for process in found.values() if _runs(process)]


def object_store_bytes() -> int:
    """Default size of the object store: a fifth of the memory, at most 1 GiB."""
    return min(_GIB, psutil.virtual_memory().total // 5)


def temp_dir(folder: Path) -> Path:
    """Default session folder: in the data folder, or in the system's where that path would be too long."""
    own = folder.resolve() / "ray"
    if len(str(own)) <= _LONGEST_TEMP_DIR:
        return own
    digest = hashlib.blake2b(str(folder.resolve()).encode(), digest_size=6).hexdigest()
    return Path(tempfile.gettempdir()) / f"tide-{digest}"


def find_free_port() -> int:
    """A loopback port that no process listens on at the moment."""
    (port,) = find_free_ports(1)
    return port


def find_free_ports(count: int, *, taken: Container[int] = ()) -> list[int]:
    """Different loopback ports that no process listens on at the moment, none of them in ``taken``.

    All are held until the last is found: a port that was let go may be handed out again at once.
    """
    with contextlib.ExitStack() as held:
        found: list[int] = []
        while len(found) < count:
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            if port not in taken:
                found.append(port)
        return found


def _start(options: HeadOptions, timeout: float) -> HeadRecord:
    options.folder.mkdir(parents=True, exist_ok=True)
    sessions = options.temp_dir or temp_dir(options.folder)
    sessions.mkdir(parents=True, exist_ok=True, mode=0o700)
    _remove_old_sessions(sessions)
    token, marker = read_token(options.folder), secrets.token_hex(16)
    ports = _ports(options.dashboard_port)
    log = options.folder / _LOG
    with log.open("wb") as output:
        process = subprocess.Popen(
            _command(options, sessions, ports),
            env=make_environment(options.folder, marker),
            cwd=options.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    record = HeadRecord(
        pid=process.pid,
        created_at=psutil.Process(process.pid).create_time(),
        marker=marker,
        dashboard_url=f"http://127.0.0.1:{ports['dashboard-port']}",
        metrics_port=ports["metrics-export-port"],
        temp_dir=str(sessions),
    )
    _write_record(options.folder, record)
    try:
        _await_answer(process, record, token, timeout, log)
    except BaseException:  # also Ctrl-C while waiting: nothing may be left behind
        stop(record, options.folder)
        raise
    return record


def _await_answer(
    process: subprocess.Popen[bytes], record: HeadRecord, token: str, timeout: float, log: Path
) -> None:
    deadline = time.monotonic() + timeout
    while not answers(record, token, timeout=1.0):
        if process.poll() is not None:
            raise EmbeddedRayError(f"Ray ended with status {process.returncode}. {_tail(log)}")
        if time.monotonic() > deadline:
            raise EmbeddedRayError(f"Ray did not answer within {timeout:.0f} s. {_tail(log)}")
        time.sleep(0.1)


def _ports(dashboard_port: int) -> dict[str, int]:
    """A port for each part of the head that needs one of its own, by its flag; 0 is any."""
    names = ("port", "dashboard-agent-listen-port", "ray-client-server-port", "metrics-export-port")
    fixed = (dashboard_port,) if dashboard_port else ()
    found = find_free_ports(len(names) + 1 - len(fixed), taken=fixed)
    return dict(zip((*names, "dashboard-port"), (*found, *fixed), strict=True))


def _command(options: HeadOptions, sessions: Path, ports: Mapping[str, int]) -> list[str]:
    cpus = options.num_cpus or max(os.cpu_count() or 1, 4)
    flags = {
        **ports,
        "node-ip-address": "127.0.0.1",
        "dashboard-host": "127.0.0.1",
        "num-cpus": cpus,
        "object-store-memory": options.object_store_bytes or object_store_bytes(),
        "temp-dir": sessions,
        "include-dashboard": "true",
        "include-log-monitor": "false",
        "log-color": "false",
    }
    if options.num_gpus is not None:
        flags["num-gpus"] = options.num_gpus
    command = [options.python, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    return [*command, "--disable-usage-stats", *(f"--{name}={value}" for name, value in flags.items())]


_WORKERS_OWN = (ENV_CACHE, ENV_SCORE_CACHE_BYTES)
"""Variables that workers read themselves; the head passes the user's values on."""


def make_environment(folder: Path, marker: str) -> dict[str, str]:
    inherited: Mapping[str, str] = {
        name: value
        for name, value in os.environ.items()
        if name in _WORKERS_OWN or not name.startswith(("RAY_", "TIDE_"))
    }
    return (
        {ENV_CACHE: str((folder / "cache").resolve())}
        | dict(inherited)
        | {
            MARKER: marker,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str((folder / _TOKEN).resolve()),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Ray's switch for laptops: without clustering, every process listens on 127.0.0.1 alone.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "PYTHONUNBUFFERED": "1",
        }
    )


def _write_record(folder: Path, record: HeadRecord) -> None:
    path = folder / _RECORD
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(dataclasses.asdict(record)))
    draft.replace(path)


def _belongs(process: psutil.Process, record: HeadRecord) -> bool:
    try:
        if process.create_time() < record.created_at - 1.0:
            return False
        if os.getsid(process.pid) == record.pid:
            return True
        return process.environ().get(MARKER) == record.marker
    except (psutil.Error, OSError):
        return False


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _signal(process: psutil.Process | None, number: signal.Signals) -> None:
    if process is None:
        return
    try:
        process.send_signal(number)
    except psutil.Error:
        return  # it ended by itself


def is_port_free(port: int) -> bool:
    """Whether no process listens on a loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _remove_old_sessions(sessions: Path) -> None:
    found = sorted(path for path in sessions.glob("session_*") if path.is_dir() and not path.is_symlink())
    for path in found[:-_KEPT_SESSIONS]:
        shutil.rmtree(path, ignore_errors=True)


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"The last lines of {log}:\n" + "\n".join(lines[-8:])
