"""Values that every database can hold."""

from __future__ import annotations

import math
from typing import Any

from tide_core.contracts.errors import InvalidInputError

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def storable(value: Any) -> Any:
    """The same document with null for numbers that JSON cannot write and a mark for NUL characters.

    PostgreSQL takes neither; what a worker reports must not fail for that.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.replace("\0", _REPLACEMENT)
    if isinstance(value, dict):
        return {storable(name): storable(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [storable(entry) for entry in value]
    return value


def check_storable(value: Any, param: str = "") -> None:
    """Refuse what `storable` would have to alter: a request is stored as it is or not at all.

    Raises:
        InvalidInputError: ``invalid_value``, with the path of the field.
    """
    if isinstance(value, dict):
        for name, entry in value.items():
            check_storable(name, param)
            check_storable(entry, f"{param}.{name}" if param else str(name))
    elif isinstance(value, list | tuple):
        for number, entry in enumerate(value):
            check_storable(entry, f"{param}.{number}")
    elif storable(value) != value:
        raise InvalidInputError(
            "NUL characters, NaN and infinities cannot be stored; leave them out.",
            code="invalid_value",
            param=param.replace("\0", _REPLACEMENT) or None,
        )
