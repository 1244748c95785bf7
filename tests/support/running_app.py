"""The real control plane over HTTP on a free port of this machine, in a thread, with a cluster in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from service.app import create_app
from service.observability.logging import configure_logging
from service.orchestrator.compute import Compute
from service.orchestrator.embedded_ray import find_free_port
from service.orchestrator.fake_compute import FakeCompute
from service.settings import Settings


@contextmanager
def run_app(folder: Path, compute: Compute | None = None, **changes: Any) -> Iterator[str]:
    """Serve the control plane of a data folder; gives its address.

    Args:
        folder: its data folder.
        compute: the cluster; None takes one in memory.
        changes: further settings.
    """
    configure_logging("ERROR")
    settings = Settings(data_dir=folder, port=find_free_port(), events_poll_seconds=0.05, **changes)
    app = create_app(settings, compute or FakeCompute())
    config = uvicorn.Config(app, port=settings.port, log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the control plane did not start"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{settings.port}"
    finally:
        server.should_exit = True
        thread.join(10)
