"""One request of the REST interface as a value, and how its answer is read.

In: a documented operation with its arguments. Out: a `Call`, which both the synchronous and the asynchronous
connection can send.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from tide.errors import UnexpectedAnswerError
from tide_core.contracts.errors import InvalidInputError

Result = TypeVar("Result")
Model = TypeVar("Model", bound=BaseModel)
Query = Mapping[str, str | int | Sequence[str] | None]


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """A request and the way to read its answer.

    Attributes:
        method: HTTP method.
        template: path as the OpenAPI document has it, with `{names}`.
        parse: makes the result out of a good answer.
        arguments: values of the names in the template.
        query: query parameters; None leaves one out.
        headers: headers of this request alone.
        content: body.
        is_repeatable: whether the request may be sent again when its outcome is not known.
        accepted: statuses of 400 or more whose answer ``parse`` reads too.
    """

    method: str
    template: str
    parse: Callable[[httpx.Response], Result]
    arguments: Mapping[str, str] = field(default_factory=dict)
    query: Query = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    is_repeatable: bool = True
    accepted: frozenset[int] = frozenset()

    @property
    def path(self) -> str:
        """The template with its names filled in.

        Raises:
            InvalidInputError: a value cannot be a part of a path.
        """
        filled = self.template
        for name, value in self.arguments.items():
            if value.strip(".") == "":
                raise InvalidInputError(f"{name} is {value!r}: give an id.", param=name)
            filled = filled.replace(f"{{{name}}}", quote(value, safe=""))
        return filled

    @property
    def given_query(self) -> dict[str, str | int | Sequence[str]]:
        """The query parameters that have a value."""
        return {name: value for name, value in self.query.items() if value is not None and value != ()}

    @property
    def all_headers(self) -> dict[str, str]:
        """The call's own headers, and the type of its body when it has one."""
        return {**({} if self.content is None else {"Content-Type": "application/json"}), **self.headers}


def encode_json(body: object) -> bytes:
    """Make a request's body of JSON values or of a model."""
    value = body.model_dump(mode="json") if isinstance(body, BaseModel) else body
    return json.dumps(value, ensure_ascii=False).encode()


def read_as(model: type[Model]) -> Callable[[httpx.Response], Model]:
    """Make a reader of answers that hold one object; it ignores fields that this version does not know."""

    def parse(response: httpx.Response) -> Model:
        try:
            return model.model_validate_json(response.content, extra="ignore")
        except ValidationError as error:
            raise UnexpectedAnswerError(
                f"The server's answer is no {model.__name__} that this version of Tide can read "
                f"({_describe(error)}). If the server is newer, upgrade the client.",
                status=response.status_code,
            ) from error

    return parse


def read_text(response: httpx.Response) -> str:
    """Read an answer that is plain text."""
    return response.text


def _describe(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else str(first["msg"])
