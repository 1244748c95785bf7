"""Which of a job's locations this machine can look at, and where they lie."""

from __future__ import annotations

from pathlib import Path

from tide_core.checkpoints.hub_names import is_hub_name
from tide_core.contracts.errors import InvalidInputError


def local_path(location: str, param: str) -> Path | None:
    """The absolute path behind a location, or None when it is a URL or a hub name.

    A relative path is one that exists below the server's working folder. What does not exist is taken for a
    hub name only if it can be one and its first part is no folder here.

    Args:
        location: folder, file, URL or hub name.
        param: path of the field, for the error.

    Raises:
        InvalidInputError: ``path_not_found``.
    """
    text = location.removeprefix("file://")
    if "://" in text:
        return None
    path = Path(text).expanduser()
    if path.exists():
        return path.resolve()
    is_plain_name = not path.is_absolute() and is_hub_name(text)
    if is_plain_name and not (len(path.parts) > 1 and Path(path.parts[0]).is_dir()):
        return None
    raise InvalidInputError(
        f"There is nothing at {location!r} on the server (working folder: {Path.cwd()}). Give an absolute "
        "path that the server can read, a URL, or a hub name.",
        code="path_not_found",
        param=param,
    )
