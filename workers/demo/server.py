"""A service of the demo's own: `tide up` in a child process, ended with the demo."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tide.client import Client
from tide.errors import ApiError
from tide_core.contracts.errors import TideError

_START_SECONDS = 120.0
_STOP_SECONDS = 60.0
_SHOWN_LINES = 15


class DemoServiceError(TideError):
    """The demo's own service did not start, or ended before the demo did."""

    code = "demo_service_failed"


@dataclass(frozen=True)
class Service:
    """A running service.

    Attributes:
        url: where it listens.
        process: None when it was running before the demo.
        log: what it prints, None likewise.
    """

    url: str
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None

    def check(self) -> None:
        """Raise DemoServiceError when the demo's own service has ended."""
        if self.process is not None and self.process.poll() is not None:
            raise DemoServiceError(
                f"`tide up` ended with status {self.process.returncode}. Its last lines:\n{_tail(self.log)}"
            )


@contextmanager
def own_service(data_folder: Path, *, active_jobs: int) -> Iterator[Service]:
    """Start `tide up` on a free loopback port, wait until it is ready, and end it afterwards.

    Args:
        data_folder: its database, storage and logs.
        active_jobs: how many jobs it works on at once.

    Raises:
        DemoServiceError: it did not become ready; its last lines are in the message.
    """
    data_folder.mkdir(parents=True, exist_ok=True)
    log = data_folder / "service.log"
    port = find_free_port()
    command = [
        *find_command(),
        "up",
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--authentication", "off"),  # for this machine alone, whatever the user's settings say
        *("--data-dir", str(data_folder)),
        *("--max-active-jobs", str(active_jobs)),
    ]
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches the demo alone, which then ends the service in order.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    service = Service(f"http://127.0.0.1:{port}", process, log)
    try:
        _await_ready(service)
        yield service
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a service to end, and end it when it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def find_free_port() -> int:
    """A loopback port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await_ready(service: Service) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with Client(service.url, retries=0) as client:
        while not _is_ready(client):
            service.check()
            if time.monotonic() > deadline:
                raise DemoServiceError(
                    f"`tide up` was not ready after {_START_SECONDS:.0f} s. Its last lines:\n"
                    f"{_tail(service.log)}\nRun `tide doctor`."
                )
            time.sleep(0.2)


def _is_ready(client: Client) -> bool:
    try:
        return client.ready().status == "ready"
    except ApiError:
        return False


def find_command() -> list[str]:
    """The command `tide` of this installation."""
    script = Path(sys.executable).with_name("tide")
    if script.is_file():
        return [str(script)]
    return [sys.executable, "-c", "from tide.cli.main import main; main()"]


def _tail(log: Path | None) -> str:
    if log is None or not log.is_file():
        return "(nothing was printed)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:])
