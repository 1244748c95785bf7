"""The client that commands use."""

from __future__ import annotations

from tide.client import Client


def open_client(url: str | None) -> Client:
    """Open a client that fails at once when no server answers: a person waits for the answer."""
    return Client(url, retries=0)
