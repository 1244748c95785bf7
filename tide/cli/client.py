"""The control plane over HTTP, for the commands."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from service.commands.instance import data_folder, read_instance
from tide_core.contracts.errors import InvalidInputError, TideError

ENV_TOKEN = "TIDE_TOKEN"
"""Environment variable with the token that a control plane may want; no flag, since flags show in `ps`."""
DEFAULT_URL = "http://127.0.0.1:8700"
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)


class ControlPlaneError(TideError):
    """The control plane refused the request; code, message and param are its own."""

    code = "refused"


class UnreachableError(TideError):
    """Nobody answers at the address."""

    code = "unreachable"


@dataclass(frozen=True, slots=True)
class StreamMessage:
    """One message of a job's stream: an event of its story, its progress, or the end."""

    kind: str
    data: dict[str, Any]
    event_id: str | None = None


class ControlPlane:
    """A client; use it as a context manager. It shows the token in `TIDE_TOKEN`, where there is one.

    Args:
        url: address; None takes the one that `tide up` wrote into the data folder.
        transport: for tests, instead of the network.
    """

    def __init__(self, url: str | None = None, *, transport: httpx.BaseTransport | None = None) -> None:
        self.url = (url or _found_url()).rstrip("/")
        self._client = httpx.Client(
            base_url=self.url,
            headers=_authorization(),
            timeout=_TIMEOUT,
            trust_env=False,
            transport=transport,
        )

    def __enter__(self) -> ControlPlane:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, **params: str | int | None) -> Any:
        """GET a JSON resource."""
        return self._request("GET", path, params=_given(params)).json()

    def text(self, path: str, **params: str | int | None) -> str:
        """GET a text."""
        return self._request("GET", path, params=_given(params)).text

    def post(self, path: str, body: object = None, *, key: str | None = None) -> Any:
        """POST a JSON document, with an idempotency key when one is given."""
        headers = {"Idempotency-Key": key} if key else {}
        return self._request("POST", path, json=body, headers=headers).json()

    def every(self, path: str, *, limit: int, **params: str | int | None) -> list[Any]:
        """Up to ``limit`` entries of a list, over as many pages as that takes."""
        entries: list[Any] = []
        after: str | None = None
        while len(entries) < limit:
            page = self.get(path, limit=min(100, limit - len(entries)), after=after, **params)
            entries += page["data"]
            if not page["has_more"]:
                break
            after = str(page["last_id"])
        return entries

    def stream(self, path: str, *, last_event_id: str | None = None) -> Iterator[StreamMessage]:
        """The messages of an event stream, until it ends.

        Raises:
            UnreachableError: the connection broke; go on after the last id.
        """
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        try:
            with self._client.stream(
                "GET", path, headers=headers, timeout=httpx.Timeout(60.0, connect=5.0)
            ) as answer:
                if not answer.is_success:
                    answer.read()
                    raise _refusal(answer)
                yield from _messages(answer.iter_lines())
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            answer = self._client.request(method, path, **arguments)
        except httpx.InvalidURL as error:
            raise UnreachableError(f"{self.url} is no address: {error}.") from None
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if not answer.is_success:
            raise _refusal(answer)
        return answer

    def _unreachable(self, error: Exception) -> UnreachableError:
        reason = str(error) or type(error).__name__
        return UnreachableError(
            f"No control plane answers at {self.url} ({reason}). Start one with `tide up`, or give its "
            "address with --url or TIDE_URL."
        )


def _authorization() -> dict[str, str]:
    token = os.environ.get(ENV_TOKEN, "").strip()
    if not token:
        return {}
    if not token.isascii() or any(letter.isspace() for letter in token):
        raise InvalidInputError(
            f"{ENV_TOKEN} holds no token: one begins with 'tide_' and has letters, digits, _ and - alone.",
            param=ENV_TOKEN,
        )
    return {"Authorization": f"Bearer {token}"}


def _found_url() -> str:
    instance = read_instance(data_folder())
    return instance.url if instance else DEFAULT_URL


def _given(params: Mapping[str, str | int | None]) -> dict[str, str | int]:
    return {name: value for name, value in params.items() if value is not None}


def _refusal(answer: httpx.Response) -> TideError:
    try:
        error = answer.json()["error"]
        message = error["message"]
        if answer.status_code == 401:
            message = f"{message} {_what_was_sent()}"
        return ControlPlaneError(message, code=error["code"], param=error.get("param"))
    except (ValueError, KeyError, TypeError):
        return ControlPlaneError(
            f"The server at {answer.url.host} answered {answer.status_code}, not in Tide's form: is it Tide?"
        )


def _what_was_sent() -> str:
    if os.environ.get(ENV_TOKEN, "").strip():
        return f"(The token that was sent is the one in {ENV_TOKEN}.)"
    return f"(Set {ENV_TOKEN} to a token.)"


def _messages(lines: Iterator[str]) -> Iterator[StreamMessage]:
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            if name:  # a comment starts with the colon
                fields[name] = value.removeprefix(" ")
            continue
        if "data" in fields:
            data = json.loads(fields["data"])
            yield StreamMessage(fields.get("event", "message"), data, fields.get("id"))
        fields = {}
