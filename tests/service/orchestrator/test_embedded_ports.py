"""Ports of the embedded head differ, even where the system hands a port out again the moment it is free."""

from types import TracebackType
from typing import Self

import pytest

from service.orchestrator import embedded_ray


class EagerSocket:
    """Takes the lowest port that is not held, as a kernel may: a port that was let go comes back at once."""

    held: set[int] = set()

    def __enter__(self) -> Self:
        self.port = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.held.discard(self.port)

    def bind(self, address: tuple[str, int]) -> None:
        self.port = next(port for port in range(40_000, 50_000) if port not in self.held)
        self.held.add(self.port)

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", self.port


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_ray.socket, "socket", EagerSocket)


def test_ports_drawn_together_differ_and_are_let_go() -> None:
    assert embedded_ray.find_free_ports(4, taken=(40_001,)) == [40_000, 40_002, 40_003, 40_004]
    assert EagerSocket.held == set()
    assert embedded_ray.find_free_port() == embedded_ray.find_free_port(), (
        "one at a time they need not differ"
    )


@pytest.mark.parametrize("dashboard", [0, 40_002])
def test_every_part_of_the_head_has_a_port_of_its_own(dashboard: int) -> None:
    ports = embedded_ray._ports(dashboard)
    assert len(set(ports.values())) == len(ports) == 5
    assert min(ports.values()) > 0, "a port that Ray chooses itself would be unknown to us"
    assert ports["dashboard-port"] == dashboard or not dashboard
