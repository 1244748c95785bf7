"""A control plane in memory that speaks real HTTP: the fake that ships, for tests and for trying a phase."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self, TypeVar

from tide_core.contracts.reporting import (
    ENV_ATTEMPT_TOKEN,
    ENV_CONTROL_URL,
    AnyReport,
    AttemptBrief,
    Metrics,
    ReportBatch,
    ReportReceipt,
)

Body = TypeVar("Body")
TOKEN = "fake-attempt-token"


class FakeControlPlane:
    """Serves one attempt's brief on a free loopback port and stores its reports, each number once."""

    def __init__(self, brief: AttemptBrief) -> None:
        self._brief = brief
        self._stored: dict[int, AnyReport] = {}
        self._lock = threading.Lock()
        self.stop_requested = False
        self.is_down = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def environment(self) -> dict[str, str]:
        """What a Ray job needs in its environment to find this control plane."""
        return {
            ENV_CONTROL_URL: f"http://127.0.0.1:{self._server.server_address[1]}",
            ENV_ATTEMPT_TOKEN: TOKEN,
        }

    @property
    def bodies(self) -> list[AnyReport]:
        """All reports stored so far, in the order of their numbers."""
        with self._lock:
            return [self._stored[number] for number in sorted(self._stored)]

    def of_type(self, kind: type[Body]) -> list[Body]:
        """The reports of one class, in order."""
        return [body for body in self.bodies if isinstance(body, kind)]

    def series(self, name: str) -> list[float]:
        """One metric over the steps that reported it."""
        return [body.values[name] for body in self.of_type(Metrics) if name in body.values]

    def assign(self, brief: AttemptBrief) -> None:
        """Give out another brief from now on, and forget the reports."""
        with self._lock:
            self._brief = brief
            self._stored.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()

    def brief_json(self) -> str:
        """The brief with the highest number stored."""
        with self._lock:
            top = max(self._stored, default=self._brief.last_sequence)
            return self._brief.model_copy(update={"last_sequence": top}).model_dump_json()

    def store(self, content: bytes) -> str:
        """Take a batch and answer with a receipt."""
        batch = ReportBatch.model_validate_json(content)
        with self._lock:
            for report in batch.reports:
                self._stored.setdefault(report.sequence, report.body)
            top = max(self._stored, default=self._brief.last_sequence)
        return ReportReceipt(acknowledged=top, stop_requested=self.stop_requested).model_dump_json()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        control = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(control.brief_json)

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                self._answer(lambda: control.store(content))

            def _answer(self, make: Any) -> None:
                if control.is_down:
                    self._send(503, "{}")
                elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    self._send(401, "{}")
                else:
                    try:
                        self._send(200, make())
                    except ValueError as error:
                        self._send(422, json.dumps({"error": str(error)}))

            def _send(self, status: int, text: str) -> None:
                body = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet: a line a request would drown a test's output."""

        return Handler
