"""`tide up`, `tide serve`, `tide down`: the control plane as a process.

`up` is the embedded default: a Ray head of its own, the control plane and the page. `serve` is the control
plane alone, beside a Ray cluster that runs already.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TextIO

import structlog
import typer
import uvicorn
from pydantic import SecretStr

from service.app import create_app
from service.commands.instance import InstanceLock, forget, is_held
from service.observability.logging import configure_logging
from service.orchestrator import embedded_ray
from service.orchestrator.embedded_ray import HeadOptions, HeadRecord
from service.orchestrator.ray_compute import RayCompute
from service.settings import Settings
from tide.instance import Instance, read_instance
from tide_core.contracts.errors import InvalidInputError, TideError

_LOG = "control-plane.log"
_HEAD_CHECK_SECONDS = 1.0
_DOWN_SECONDS = 30.0
_PR_SET_CHILD_SUBREAPER = 36

log = structlog.get_logger(__name__)


class _Terminated(BaseException):
    """SIGTERM before the server listens: unwind like Ctrl-C."""


def up(settings: Settings) -> None:
    """Run the embedded default until Ctrl-C or SIGTERM, then end everything that it started."""
    folder = settings.data_dir
    lock = InstanceLock(folder)
    lock.acquire()
    with _unwind_on_termination(), (folder / _LOG).open("a") as stream:
        try:
            configure_logging(settings.log_level, stream)
            _become_parent_of_orphans()
            _run_embedded(settings, lock, stream)
        except (KeyboardInterrupt, _Terminated):
            typer.echo("Interrupted.", err=True)
        finally:
            lock.release()


def serve(settings: Settings) -> None:
    """Run the control plane alone, logging to stderr, until Ctrl-C or SIGTERM."""
    configure_logging(settings.log_level)
    with _listen(settings) as (listener, bound):
        asyncio.run(_serve(bound, listener, None))


def down(folder: Path) -> None:
    """End the `tide up` of a folder and whatever a killed one left behind."""
    instance = read_instance(folder)
    found = False
    if is_held(folder):
        found = True
        if instance is None:
            raise TideError("Tide is just starting; try again in a moment.", code="starting")
        _end_process(instance, folder)
    record = embedded_ray.read_record(folder)
    if record is not None:
        count = embedded_ray.stop(record, folder)
        if count:
            found = True
            typer.echo(f"Ended {count} processes of a Ray head that was left behind.")
    forget(folder)
    typer.echo("Tide is down." if found else f"Nothing runs in {folder.resolve()}.")


def _run_embedded(settings: Settings, lock: InstanceLock, stream: TextIO) -> None:
    with _listen(settings) as (listener, bound):
        head = None if "ray_address" in settings.model_fields_set else _Head(bound)
        try:
            if head is not None:
                typer.echo("Starting Ray on this machine ...")
                bound = head.start()
            _announce(bound, lock, head)
            asyncio.run(_serve(bound, listener, head))
        finally:
            with _ignore_interrupts():
                typer.echo("Ending Tide ...")
                if head is not None:
                    head.stop()
                    _reap_children()
    typer.echo("Tide has ended.")


class _Head:
    """The embedded Ray head for as long as the control plane runs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._record: HeadRecord | None = None

    def start(self) -> Settings:
        """Find or start the head; returns the settings that lead to it."""
        folder = self._settings.data_dir.resolve()
        self._record, is_new = embedded_ray.find_or_start(self._options(folder, dashboard_port=None))
        if not is_new:
            typer.echo("A Ray head was left running here: its jobs go on.")
        token = embedded_ray.read_token(folder)
        changes = {"ray_address": self._record.dashboard_url, "ray_auth_token": SecretStr(token)}
        return self._settings.model_copy(update=changes)

    async def keep(self) -> None:
        """Start the head again, at the same address, whenever it dies."""
        while True:
            await asyncio.sleep(_HEAD_CHECK_SECONDS)
            record = self._record
            assert record is not None, "kept only once it was started"
            if embedded_ray.is_alive(record):
                continue
            log.error("ray_head.died", pid=record.pid)
            options = self._options(self._settings.data_dir.resolve(), record.dashboard_port)
            try:
                self._record, _ = await asyncio.to_thread(embedded_ray.find_or_start, options)
                log.info("ray_head.restarted")
            except TideError as error:
                log.error("ray_head.restart_failed", reason=error.message)

    def stop(self) -> None:
        """End the head with everything it started."""
        # The record on disk too: a start that was interrupted may not have reached this object.
        record = self._record or embedded_ray.read_record(self._settings.data_dir)
        if record is not None:
            embedded_ray.stop(record, self._settings.data_dir)

    def _options(self, folder: Path, dashboard_port: int | None) -> HeadOptions:
        settings = self._settings
        return HeadOptions(
            python=settings.worker_python,
            folder=folder,
            num_cpus=settings.ray_num_cpus,
            num_gpus=settings.ray_num_gpus,
            object_store_bytes=settings.ray_object_store_bytes,
            dashboard_port=dashboard_port or settings.ray_dashboard_port,
            temp_dir=settings.ray_temp_dir,
        )


class _Server(uvicorn.Server):
    """Leaves signals to us: uvicorn raises them once more when it is done, before we have cleaned up."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


async def _serve(settings: Settings, listener: socket.socket, head: _Head | None) -> None:
    token = settings.ray_auth_token
    compute = RayCompute(settings.ray_address, token.get_secret_value() if token else None)
    app = create_app(settings, compute)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=2
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _ask_to_end, server)
    keeper = asyncio.create_task(head.keep()) if head else None
    try:
        await server.serve(sockets=[listener])
        if not server.started:
            raise TideError("The control plane did not start; its log says why.", code="start_failed")
    finally:
        if keeper is not None:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
        await compute.close()


def _ask_to_end(server: uvicorn.Server) -> None:
    server.force_exit = server.should_exit
    server.should_exit = True


@contextmanager
def _listen(settings: Settings) -> Iterator[tuple[socket.socket, Settings]]:
    """A bound socket, and the settings with its real port.

    Raises:
        InvalidInputError: the address is taken or is not this machine's, or needs no token although others
            reach it.
    """
    _check_exposure(settings)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    port = settings.port or _last_port(settings.data_dir)
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, port))
        except OSError as error:
            raise InvalidInputError(
                f"Cannot listen on {settings.host}:{port} ({error.strerror}). Choose another --port "
                "(0 takes a free one) or --host.",
                code="address_unavailable",
                param="port",
            ) from None
        yield listener, settings.model_copy(update={"port": listener.getsockname()[1]})


def _check_exposure(settings: Settings) -> None:
    if not settings.is_exposed:
        return
    if not settings.allow_unauthenticated:
        raise InvalidInputError(
            f"With authentication=off everyone who can connect to {settings.host}:{settings.port} could "
            "post, read and cancel jobs. Set TIDE_AUTHENTICATION=tokens (`tide tokens create` makes one), "
            "listen on 127.0.0.1, or, if a proxy or firewall protects the port, set "
            "TIDE_ALLOW_UNAUTHENTICATED=true.",
            code="authentication_off",
            param="authentication",
        )
    log.warning("authentication.off", host=settings.host)


def _last_port(folder: Path) -> int:
    """The port of a killed `tide up`: workers that still run report there. 0 when there is none."""
    instance = read_instance(folder)
    if instance is None:
        return 0
    port = int(instance.url.rsplit(":", 1)[1])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
    return port


def _announce(settings: Settings, lock: InstanceLock, head: _Head | None) -> None:
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    url = f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
    now = datetime.now(UTC).isoformat()
    lock.publish(Instance(os.getpid(), url, settings.ray_address, now))
    folder = settings.data_dir.resolve()
    typer.echo(f"Tide runs at      {url}")
    typer.echo(f"Data folder       {folder}")
    typer.echo(f"Logs              {folder / _LOG}")
    typer.echo(f"Ray               {settings.ray_address}{'' if head else ' (not ours)'}")
    typer.echo("Ctrl-C ends it.")
    sys.stdout.flush()


def _become_parent_of_orphans() -> None:
    """Adopt orphans of the head: in a container no other process would wait for them."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap_children() -> None:
    """Take note of every dead child, so that none stays as a zombie."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue


@contextmanager
def _unwind_on_termination() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C while nothing else handles it."""

    def unwind(_number: int, _frame: FrameType | None) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _ignore_interrupts() -> Iterator[None]:
    """Finish what must be finished, however often Ctrl-C is pressed."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _end_process(instance: Instance, folder: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(instance.pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + _DOWN_SECONDS
        while time.monotonic() < deadline:
            if not is_held(folder):
                return
            time.sleep(0.1)
