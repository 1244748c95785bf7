"""A control plane that commands reach over HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from service.app import create_app
from service.observability.logging import configure_logging
from service.orchestrator.embedded_ray import free_port
from service.orchestrator.fake_compute import FakeCompute
from service.settings import Settings


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A control plane over HTTP, with a cluster in memory."""
    configure_logging("ERROR")
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), port=free_port(), events_poll_seconds=0.05)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings, FakeCompute()),
            port=settings.port,
            log_config=None,
            timeout_graceful_shutdown=1,
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{settings.port}"
    server.should_exit = True
    thread.join(10)
