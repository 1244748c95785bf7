"""The connections that carry out the steps: one blocks, one awaits. Nothing else in `tide` does I/O.

In: steps, listings and feeds. Out: results, items and messages. Both keep a pool of HTTP connections, which a
copy with another token shares.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Self, TypeVar

import httpx

from tide.errors import ApiError
from tide.transport.answers import error_of, unreachable_error
from tide.transport.call import Call
from tide.transport.feed import JobFeed
from tide.transport.patience import Patience
from tide.transport.steps import Pause, Steps, send
from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.event import Event
from tide_core.contracts.resources import Item, JobProgress, Page

Result = TypeVar("Result")
Listing = Callable[[str | int | None], Call[Page[Item]]]
"""Makes the call for the page after an entry; None asks for the first page."""

CONNECT_SECONDS = 5.0
STREAM_SILENCE_SECONDS = 60.0
"""A stream that is silent for so long is broken: the server sends a heartbeat more often."""


class _Pool:
    """What both connections have: an address, a token, a pool of HTTP connections, patience."""

    _http: httpx.Client | httpx.AsyncClient

    def __init__(self, url: str, token: str | None, patience: Patience) -> None:
        self._token = token
        self._owns_pool = True
        self.url = url
        self.patience = patience

    def with_token(self, token: str | None) -> Self:
        """A copy that sends another token over the same pool; closing the copy leaves the pool open."""
        copy = type(self).__new__(type(self))
        copy.__dict__.update(self.__dict__, _token=check_token(token), _owns_pool=False)
        return copy

    def request_for(self, call: Call[Any], timeout: httpx.Timeout | None = None) -> httpx.Request:
        """A call as a request of HTTP."""
        headers = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        return self._http.build_request(
            call.method,
            call.path,
            params=call.given_query,
            headers={**headers, **call.all_headers},
            content=call.content,
            timeout=self._http.timeout if timeout is None else timeout,
        )

    def steps_of(self, call: Call[Result], patience: Patience | None = None) -> Steps[Result]:
        """The steps that send a call."""
        return send(call, self.url, patience or self.patience)

    def _stream_request(self, feed: JobFeed) -> httpx.Request:
        return self.request_for(feed.open(), httpx.Timeout(STREAM_SILENCE_SECONDS, connect=CONNECT_SECONDS))


class Connection(_Pool):
    """Carries steps out and blocks meanwhile.

    Args:
        url: address of the server.
        token: sent as a bearer token; None sends none.
        timeout: seconds of silence after which a request has failed; or httpx's own limits.
        patience: how failed requests are tried again.
        transport: for tests, instead of the network.
    """

    _http: httpx.Client

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout: float | httpx.Timeout = 30.0,
        patience: Patience = Patience(),
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(check_url(url), check_token(token), patience)
        self._http = httpx.Client(
            base_url=self.url, timeout=_limits(timeout), trust_env=False, transport=transport
        )

    def close(self) -> None:
        """Close the pool, unless this connection is a copy."""
        if self._owns_pool:
            self._http.close()

    def run(self, steps: Steps[Result], sleep: Callable[[float], None] | None = None) -> Result:
        """Carry out steps to their end; ``sleep`` keeps the pauses."""
        try:
            step = next(steps)
            while True:
                if isinstance(step, Pause):
                    (sleep or time.sleep)(step.seconds)
                    step = steps.send(None)
                    continue
                try:
                    response = self._http.send(self.request_for(step))
                except httpx.RequestError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(response)
        except StopIteration as end:
            result: Result = end.value
            return result

    def call(self, call: Call[Result], patience: Patience | None = None) -> Result:
        """Send a call and read its answer."""
        return self.run(self.steps_of(call, patience))

    def list_items(self, listing: Listing[Item]) -> Iterator[Item]:
        """The entries of a list; each page is fetched when it is needed."""
        after: str | int | None = None
        while True:
            page = self.call(listing(after))
            yield from page.data
            if not page.has_more:
                return
            after = page.last_id

    def follow(self, feed: JobFeed) -> Iterator[Event | JobProgress]:
        """The messages of a feed, over as many connections as it takes."""
        while not feed.is_over:
            failure: ApiError | None = None
            try:
                response = self._http.send(self._stream_request(feed), stream=True)
                try:
                    if not response.is_success:
                        response.read()
                        raise error_of(response)
                    for line in response.iter_lines():
                        message = feed.read(line)
                        if message is not None:
                            yield message
                finally:
                    response.close()
            except httpx.RequestError as error:
                failure = unreachable_error(self.url, error)
            except ApiError as error:
                failure = error
            if not feed.is_over:
                time.sleep(feed.pause_after(failure))


class AsyncConnection(_Pool):
    """Carries steps out on the running event loop; arguments as of `Connection`."""

    _http: httpx.AsyncClient

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout: float | httpx.Timeout = 30.0,
        patience: Patience = Patience(),
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(check_url(url), check_token(token), patience)
        self._http = httpx.AsyncClient(
            base_url=self.url, timeout=_limits(timeout), trust_env=False, transport=transport
        )

    async def close(self) -> None:
        """Close the pool, unless this connection is a copy."""
        if self._owns_pool:
            await self._http.aclose()

    async def run(self, steps: Steps[Result]) -> Result:
        """Carry out steps to their end."""
        try:
            step = next(steps)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = steps.send(None)
                    continue
                try:
                    response = await self._http.send(self.request_for(step))
                except httpx.RequestError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(response)
        except StopIteration as end:
            result: Result = end.value
            return result

    async def call(self, call: Call[Result], patience: Patience | None = None) -> Result:
        """Send a call and read its answer."""
        return await self.run(self.steps_of(call, patience))

    async def list_items(self, listing: Listing[Item]) -> AsyncIterator[Item]:
        """The entries of a list; each page is fetched when it is needed."""
        after: str | int | None = None
        while True:
            page = await self.call(listing(after))
            for item in page.data:
                yield item
            if not page.has_more:
                return
            after = page.last_id

    async def follow(self, feed: JobFeed) -> AsyncIterator[Event | JobProgress]:
        """The messages of a feed, over as many connections as it takes."""
        while not feed.is_over:
            failure: ApiError | None = None
            try:
                response = await self._http.send(self._stream_request(feed), stream=True)
                try:
                    if not response.is_success:
                        await response.aread()
                        raise error_of(response)
                    async for line in response.aiter_lines():
                        message = feed.read(line)
                        if message is not None:
                            yield message
                finally:
                    await response.aclose()
            except httpx.RequestError as error:
                failure = unreachable_error(self.url, error)
            except ApiError as error:
                failure = error
            if not feed.is_over:
                await asyncio.sleep(feed.pause_after(failure))


def check_url(url: str) -> str:
    """An address without a slash at its end.

    Raises:
        InvalidInputError: ``bad_url``.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidInputError(f"{url!r} is no address: {error}.", code="bad_url", param="url") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidInputError(
            f"{url!r} is no address: one begins with http:// or https://.", code="bad_url", param="url"
        )
    return url.rstrip("/")


def check_token(token: str | None) -> str | None:
    """A token as it may stand in a header.

    Raises:
        InvalidInputError: ``bad_token``.
    """
    if token is None:
        return None
    if not token.isascii() or not token or any(letter.isspace() for letter in token):
        raise InvalidInputError(
            "This is no token: one begins with 'tide_' and has letters, digits, _ and - alone.",
            code="bad_token",
            param="token",
        )
    return token


def _limits(timeout: float | httpx.Timeout) -> httpx.Timeout:
    if isinstance(timeout, httpx.Timeout):
        return timeout
    return httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS))
