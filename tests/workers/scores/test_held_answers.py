"""Hidden states by Ray Direct Transport, as far as it can be told without Ray and NIXL."""

import asyncio
import inspect
import pickle
import sys
import threading
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tide_core.contracts.errors import InvalidInputError, RetryableScoreError, ScoreError, TideError
from tide_core.contracts.scores import Layout, ScoreRequest, ScoreResponse, Want
from tide_core.contracts.teacher import TeacherLease
from tide_core.scoring.transport import check_response
from workers import ray_tensors
from workers.scores import held_answers, serve_transport
from workers.scores.held_answers import read_held_answer
from workers.scores.retrying import RetryPolicy
from workers.scores.serve_transport import ServeTransport
from workers.teachers import app, holding
from workers.teachers.holding import HOLD_SECONDS, AnswerShelf, HeldAnswer

WIDTH = 4
NOTHING = ScoreResponse(np.zeros((0, WIDTH), np.uint16), "weights", "tokenizer", compute_seconds=0.5)
STATES = torch.arange(2 * WIDTH, dtype=torch.bfloat16).reshape(2, WIDTH)


class Reference:
    def hex(self) -> str:
        return "ab"


def request(want: Want = Want.HIDDEN, groups: tuple[int, ...] = (0, 1, 1, 0)) -> ScoreRequest:
    return ScoreRequest(
        np.arange(4, dtype=np.int32),
        np.array([0, 4], np.int64),
        np.array(groups, np.uint8),
        Layout.BIDIRECTIONAL,
        want,
    )


def held(seconds: float = 0.0) -> HeldAnswer:
    return HeldAnswer(NOTHING, (2, WIDTH), [Reference()], "replica", seconds)


def has_states(response: ScoreResponse) -> bool:
    return isinstance(response.values, torch.Tensor) and torch.equal(response.values, STATES)


def test_a_shelf_lets_go_when_told_or_when_no_client_comes() -> None:
    now = [0.0]
    shelf = AnswerShelf(lambda: now[0])
    shelf.hold("first", object(), seconds=10.0)
    now[0] = 5.0
    shelf.hold("second", object(), seconds=10.0)
    shelf.drop("never held")
    assert len(shelf) == 2
    shelf.drop("second")
    assert len(shelf) == 1
    now[0] = 10.5
    shelf.sweep()
    assert len(shelf) == 0
    shelf.hold("third", object(), seconds=10.0)
    now[0] = 30.0
    shelf.hold("fourth", object(), seconds=10.0)
    assert len(shelf) == 1, "holding sweeps"


def test_what_goes_over_the_wire_survives_it() -> None:
    again = pickle.loads(pickle.dumps(held(0.25)))
    assert (again.key, again.shape, again.seconds) == ("ab", (2, WIDTH), 0.25)
    assert again.hold_seconds == HOLD_SECONDS
    assert again.response.compute_seconds == 0.5
    assert again.response.array.shape == (0, WIDTH)


def test_replicas_and_trainers_of_two_versions_find_the_same_names() -> None:
    assert (HeldAnswer.__module__, HeldAnswer.__qualname__) == ("workers.teachers.holding", "HeldAnswer")
    assert b"workers.teachers.holding" in pickle.dumps(holding.release, protocol=0)
    assert list(inspect.signature(holding.release).parameters) == ["replica", "key"]


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys that the replica was told to let go of; what Ray notes of them was dropped before."""
    keys: list[str] = []
    forgotten: list[str] = []

    def call(replica: object, function: object, key: str) -> None:
        assert (replica, function, forgotten[-1]) == ("replica", holding.release, key)
        keys.append(key)

    monkeypatch.setattr(held_answers, "forget_tensor", lambda reference: forgotten.append(reference.hex()))
    monkeypatch.setattr(held_answers, "call_on_actor", call)
    return keys


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch, released: list[str]) -> None:
    """Values arrive at once."""
    monkeypatch.setattr(
        held_answers, "read_tensor", lambda reference, buffer, deadline: buffer.copy_(STATES[: len(buffer)])
    )


def test_an_answer_gets_the_values_that_were_read(reading: None, released: list[str]) -> None:
    response = read_held_answer(held(), "cpu", asked_at=time.monotonic(), timeout=1.0)
    assert has_states(response)
    assert (response.fingerprint, response.compute_seconds) == ("weights", 0.5)
    assert released == ["ab"]


def test_values_that_may_have_been_given_up_are_not_used(reading: None, released: list[str]) -> None:
    long_ago = time.monotonic() - HOLD_SECONDS - 5.0
    with pytest.raises(RetryableScoreError, match="too late"):
        read_held_answer(held(seconds=4.0), "cpu", asked_at=long_ago, timeout=1.0)
    assert has_states(read_held_answer(held(seconds=6.0), "cpu", asked_at=long_ago, timeout=1.0))
    assert released == ["ab", "ab"]


def test_a_replica_lets_go_of_what_could_not_be_read(
    monkeypatch: pytest.MonkeyPatch, released: list[str]
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no route")

    monkeypatch.setattr(held_answers, "read_tensor", fails)
    with pytest.raises(RuntimeError, match="no route"):
        read_held_answer(held(), "cpu", asked_at=time.monotonic(), timeout=1.0)
    assert released == ["ab"]


def test_reading_waits_for_its_turn_and_not_longer_than_it_may(
    monkeypatch: pytest.MonkeyPatch, released: list[str]
) -> None:
    is_reading, may_end = threading.Event(), threading.Event()

    def read_slowly(*_: object) -> None:
        is_reading.set()
        may_end.wait(10.0)

    monkeypatch.setattr(held_answers, "read_tensor", read_slowly)
    arguments: dict[str, Any] = {"asked_at": time.monotonic(), "timeout": 10.0}
    first = threading.Thread(target=read_held_answer, args=(held(), "cpu"), kwargs=arguments)
    first.start()
    assert is_reading.wait(10.0)
    with pytest.raises(RetryableScoreError, match="not read in time"):
        read_held_answer(held(), "cpu", asked_at=time.monotonic(), timeout=0.01)
    may_end.set()
    first.join()
    assert released == ["ab", "ab"]


def test_room_has_the_shape_and_type_of_hidden_states() -> None:
    room = held_answers.allocate_values((3, WIDTH), "cpu")
    assert (tuple(room.shape), room.dtype, room.device.type) == ((3, WIDTH), torch.bfloat16, "cpu")


class Sent:
    """A question on its way."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def result(self, timeout_s: float) -> object:
        return self.answer

    def cancel(self) -> None:
        pass


class Handle:
    """A deployment handle that answers at once and notes how it was asked."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.asked: list[tuple[object, ...]] = []

    @property
    def score(self) -> Any:
        return SimpleNamespace(remote=self.remote)

    def remote(self, *arguments: object) -> Sent:
        self.asked.append(arguments[1:])
        return Sent(self.answer)


def transport_to(
    handle: Handle, monkeypatch: pytest.MonkeyPatch, *, device: str | None = "cpu"
) -> ServeTransport:
    monkeypatch.setattr(serve_transport, "require_nixl", lambda place: None)
    transport = ServeTransport(
        TeacherLease(application="pool"), policy=RetryPolicy(deadline_seconds=0.3), held_device=device
    )
    transport._asker._handle = handle  # type: ignore[attr-defined]
    return transport


def test_only_hidden_states_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    number = ScoreResponse(np.zeros(2, np.float32), "weights", "tokenizer")
    handle = Handle(number)
    transport_to(handle, monkeypatch).submit(request(Want.TARGET_LOG_PROB)).result(5)
    transport_to(handle, monkeypatch, device=None).submit(request(Want.TARGET_LOG_PROB)).result(5)
    assert handle.asked == [(), ()]
    handle.answer = ScoreResponse(np.zeros((2, WIDTH), np.uint16), "weights", "tokenizer")
    transport_to(handle, monkeypatch, device=None).submit(request()).result(5)
    transport_to(handle, monkeypatch).submit(request()).result(5)
    assert handle.asked[2:] == [(), (True,)]


def test_a_held_answer_is_checked_and_counted(monkeypatch: pytest.MonkeyPatch, reading: None) -> None:
    transport = transport_to(Handle(held()), monkeypatch)
    assert has_states(transport.submit(request()).result(5))
    assert transport.statistics().bytes_received == STATES.nbytes == 2 * WIDTH * 2
    with pytest.raises(ScoreError, match="3 masked tokens"):
        transport.submit(request(groups=(1, 1, 1, 0))).result(5)


def test_only_hidden_states_may_be_a_bfloat16_tensor() -> None:
    check_response(request(), ScoreResponse(STATES, "weights", "tokenizer"), "weights")
    for wrong in (STATES.float(), STATES.view(torch.uint16), STATES[:1], STATES[:, 0]):
        with pytest.raises(ScoreError, match="2 masked tokens"):
            check_response(request(), ScoreResponse(wrong, "weights", "tokenizer"), None)
    number = request(Want.TARGET_LOG_PROB)
    with pytest.raises(ScoreError, match="bfloat16"):
        check_response(number, ScoreResponse(STATES[:, 0], "weights", "tokenizer"), None)


def test_what_goes_wrong_in_reading_is_asked_again_where_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import exceptions

    passing: list[Exception] = [
        exceptions.RayDirectTransportError("the source actor may have died"),
        exceptions.GetTimeoutError("timed out"),
        exceptions.OwnerDiedError("ab", b"", ""),
        RetryableScoreError("read too late"),
    ]
    transport = transport_to(Handle(held()), monkeypatch)
    asker = transport._asker
    for error in [*passing, RuntimeError("a bug")]:

        def fails(*_: object, error: Exception = error, **more: object) -> ScoreResponse:
            raise error

        monkeypatch.setattr(serve_transport, "read_held_answer", fails)
        with pytest.raises(TideError) as caught:
            asker.begin(request()).result(0.1)
        assert isinstance(caught.value, RetryableScoreError) == (error in passing), error
    monkeypatch.setattr(serve_transport, "read_held_answer", fails)
    with pytest.raises(ScoreError, match="a bug"):
        transport.submit(request()).result(5)


def test_a_process_without_nixl_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nixl", None)
    with pytest.raises(
        InvalidInputError, match=r"the replica cannot import it.*tide-distill\[nixl\]"
    ) as caught:
        ray_tensors.require_nixl("the replica")
    assert (caught.value.code, caught.value.param) == ("nixl_missing", "resources.tensor_transport")


def test_a_nixl_that_does_not_start_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.experimental.rdt import util

    def broken(name: str) -> Any:
        raise RuntimeError("NIXL_ERR_BACKEND")

    monkeypatch.setitem(sys.modules, "nixl", ModuleType("nixl"))
    monkeypatch.setitem(sys.modules, "nixl._api", ModuleType("nixl._api"))
    monkeypatch.setattr(util, "get_tensor_transport_manager", broken)
    with pytest.raises(InvalidInputError, match="NIXL_ERR_BACKEND") as caught:
        ray_tensors.require_nixl("the trainer")
    assert caught.value.code == "nixl_broken"


class Engine:
    """Answers with hidden states of 1, 2, 3 ... at what is masked."""

    async def score(self, asked: ScoreRequest, *, is_held: bool = False) -> ScoreResponse:
        masked = int(asked.masked_counts.sum())
        if asked.want is not Want.HIDDEN:
            return ScoreResponse(np.zeros(masked, np.float32), "weights", "tokenizer")
        states = torch.arange(masked * WIDTH, dtype=torch.bfloat16).reshape(masked, WIDTH)
        return ScoreResponse(states if is_held else states.view(torch.uint16).numpy(), "weights", "tokenizer")


def test_a_replica_holds_hidden_states_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    held_values: list[torch.Tensor] = []

    async def hold(response: ScoreResponse, values: torch.Tensor, asked_at: float) -> HeldAnswer:
        held_values.append(values)
        return HeldAnswer(response, tuple(values.shape), [Reference()], "replica", 0.0)  # type: ignore[arg-type]

    monkeypatch.setattr(app, "hold_answer", hold)
    monkeypatch.setattr(app, "require_nixl", lambda place: None)
    teacher = object.__new__(app.TeacherReplica)
    teacher._engine = Engine()  # type: ignore[assignment]
    answer = asyncio.run(teacher.score(request(), True))
    assert isinstance(answer, HeldAnswer)
    assert torch.equal(held_values[0], STATES)
    assert answer.response.array.shape == (0, WIDTH)
    for asked, is_held in (
        (request(), False),
        (request(Want.TARGET_LOG_PROB), True),
        (request(groups=(0, 0, 0, 0)), True),
    ):
        assert isinstance(asyncio.run(teacher.score(asked, is_held)), ScoreResponse)
    assert len(held_values) == 1
    del teacher._engine


def test_a_replica_without_nixl_answers_with_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nixl", None)
    teacher = object.__new__(app.TeacherReplica)
    teacher._engine = Engine()  # type: ignore[assignment]
    answer = asyncio.run(teacher.score(request(), True))
    assert isinstance(answer, InvalidInputError)
    assert answer.code == "nixl_missing"
    del teacher._engine


def test_letting_go_is_a_call_by_name() -> None:
    holding.SHELF.hold("cd", object())
    holding.release(object(), "cd")
    assert len(holding.SHELF) == 0


def test_a_replica_holds_the_reference_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    offered: list[torch.Tensor] = []

    def offer(values: torch.Tensor) -> Reference:
        offered.append(values)
        return Reference()

    monkeypatch.setattr(holding, "offer_tensor", offer)
    monkeypatch.setattr(holding, "current_actor", lambda: "replica")
    answer = asyncio.run(holding.hold_answer(NOTHING, STATES, time.monotonic() - 3.0))
    assert offered == [STATES]
    assert (answer.shape, answer.replica, answer.response) == ((2, WIDTH), "replica", NOTHING)
    assert 3.0 <= answer.seconds < 10.0
    assert len(holding.SHELF) == 1
    holding.release(object(), answer.key)
    assert len(holding.SHELF) == 0
