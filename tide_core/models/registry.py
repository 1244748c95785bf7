"""The class that loads each architecture, as the table of families names it."""

from __future__ import annotations

from importlib import import_module

from tide_core.contracts.errors import CheckpointError
from tide_core.contracts.families import class_path, find_family, teacher_types
from tide_core.models.decoder import Decoder


def model_class(model_type: str) -> type[Decoder]:
    """The class of a ``model_type``.

    Raises:
        CheckpointError: ``unknown_architecture``.
    """
    if find_family(model_type) is None:
        raise CheckpointError(
            f"model_type {model_type!r} is not known here; known are {', '.join(teacher_types())}.",
            code="unknown_architecture",
            param="model_type",
        )
    module, _, name = class_path(model_type).partition(":")
    found: type[Decoder] = getattr(import_module(module), name)
    return found
