"""Read the columns of a row as a conversation or as plain text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tide_core.contracts.job import DataSource
from tide_core.data.samples import RejectionReason

ASSISTANT: Final = "assistant"
_ROLES: Final = {"human": "user", "gpt": ASSISTANT, "bot": ASSISTANT}


@dataclass(frozen=True)
class Message:
    """One turn: who speaks, and the text."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Turns in order, the last one an assistant's."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class PlainText:
    """Text without turns; all of it is trained."""

    text: str


class UnusableRowError(Exception):
    """Internal to preparation: this row is rejected, for a reason that is counted."""

    def __init__(self, reason: RejectionReason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def read_row(fields: Mapping[str, Any], source: DataSource) -> Conversation | PlainText:
    """Read one row in the form its source names, or in the first form whose columns are there.

    Raises:
        UnusableRowError: columns missing, content that is not text, no answer, an empty answer.
    """
    match source.rows if source.rows != "auto" else _form(fields, source):
        case "messages":
            row: Conversation | PlainText = _conversation(_field(fields, source.messages_field))
        case "prompt_response":
            prompt = _text(_field(fields, source.prompt_field))
            response = _text(_field(fields, source.response_field))
            row = Conversation((Message("user", prompt), Message(ASSISTANT, response)))
        case _:
            row = PlainText(_text(_field(fields, source.text_field)))
    _refuse_empty_or_invalid(row)
    return row


def _form(fields: Mapping[str, Any], source: DataSource) -> str:
    if fields.get(source.messages_field) is not None:
        return "messages"
    if fields.get(source.prompt_field) is not None and fields.get(source.response_field) is not None:
        return "prompt_response"
    return "text"


def _field(fields: Mapping[str, Any], name: str) -> Any:
    value = fields.get(name)
    if value is None:
        raise UnusableRowError(RejectionReason.MISSING_FIELD, f"no {name!r} among {sorted(fields)}")
    return value


def _conversation(entries: Any) -> Conversation:
    """Messages up to the last answer; what a user says after it has no answer to learn."""
    if not isinstance(entries, (list, tuple)):
        raise UnusableRowError(RejectionReason.UNSUPPORTED_CONTENT, "messages are not a list")
    messages = [_message(entry) for entry in entries]
    while messages and messages[-1].role != ASSISTANT:
        messages.pop()
    if not messages:
        raise UnusableRowError(RejectionReason.NO_ASSISTANT_MESSAGE)
    return Conversation(tuple(messages))


def _message(entry: Any) -> Message:
    """One message in the OpenAI form (role, content) or the ShareGPT form (from, value)."""
    if not isinstance(entry, Mapping):
        raise UnusableRowError(RejectionReason.UNSUPPORTED_CONTENT, "a message is not an object")
    role = entry.get("role") or entry.get("from")
    content = entry.get("content") if entry.get("content") is not None else entry.get("value")
    if not isinstance(role, str):
        raise UnusableRowError(RejectionReason.UNSUPPORTED_CONTENT, "a message has no role")
    return Message(_ROLES.get(role, role), _text(content))


def _text(content: Any) -> str:
    """Text, or the text parts of a list of parts."""
    if isinstance(content, str):
        return content
    is_parts = isinstance(content, (list, tuple)) and all(isinstance(part, Mapping) for part in content)
    if is_parts and all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in content):
        return "".join(part["text"] for part in content)
    raise UnusableRowError(RejectionReason.UNSUPPORTED_CONTENT, f"content of type {type(content).__name__}")


def _refuse_empty_or_invalid(row: Conversation | PlainText) -> None:
    texts = [row.text] if isinstance(row, PlainText) else [message.content for message in row.messages]
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnusableRowError(RejectionReason.INVALID_UNICODE, str(error)) from error
    if not texts[-1].strip():
        raise UnusableRowError(RejectionReason.EMPTY_RESPONSE)
