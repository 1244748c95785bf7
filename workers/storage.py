"""Files wherever they lie: model folders made local, results written whole.

A location is a local path, a URL that fsspec understands (``s3://``, ``gs://``, ``memory://`` ...) or, for
models, a Hugging Face hub name. Models are read from a local folder; what is remote is copied once into a
cache folder. A copy appears under its final name only when it is complete, so a crash or two processes at
once never leave half a model behind.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tide_core.checkpoints.hub_names import is_hub_name
from tide_core.contracts.environment import ENV_CACHE
from tide_core.contracts.errors import CheckpointError, DataError, InvalidInputError, TideError

TOKENIZER_PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model")
MODEL_PATTERNS = (*TOKENIZER_PATTERNS, "*.safetensors")
# Pickled weights can run code when opened, and a folder may hold them beside the safetensors.


def cache_folder() -> Path:
    """Where local copies lie: ``$TIDE_CACHE``, else ``~/.cache/tide``."""
    return Path(os.environ.get(ENV_CACHE) or Path.home() / ".cache" / "tide").expanduser()


def materialise_model(location: str, revision: str | None = None, *, cache: Path | None = None) -> Path:
    """A local folder that holds the model at ``location``.

    Args:
        location: local folder, fsspec URL of a folder, or hub name.
        revision: hub revision; refused for anything else.
        cache: folder of local copies; default :func:`cache_folder`.

    Raises:
        InvalidInputError: the location is nothing that exists, or a revision was given for a plain folder.
        CheckpointError: it exists and holds no safetensors weights, or the download failed.
    """
    folder = _materialise(location, revision, MODEL_PATTERNS, cache)
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{location} holds no *.safetensors file. Weights are read from safetensors only: convert other "
            "formats first.",
            code="checkpoint_incomplete",
            param="model",
        )
    return folder


def materialise_tokenizer(location: str, revision: str | None = None, *, cache: Path | None = None) -> Path:
    """A local folder with the tokenizer (and config) at ``location``, without the weights.

    Raises:
        InvalidInputError, CheckpointError: as in :func:`materialise_model`.
    """
    return _materialise(location, revision, TOKENIZER_PATTERNS, cache)


def local_path(location: str) -> Path | None:
    """The path of a location on this machine's file system; None when it is remote."""
    if location.startswith("file://"):
        return Path(location.removeprefix("file://"))
    return None if "://" in location else Path(location).expanduser()


def publish_folder(source: Path, location: str) -> int:
    """Copy a finished local folder to storage, whole or not at all where the storage can rename.

    Returns:
        Bytes copied. An existing folder of that name is replaced.

    Raises:
        DataError: the storage refused.
    """
    files = [path for path in sorted(source.rglob("*")) if path.is_file()]
    target = local_path(location)
    if target is not None:
        with _whole_folder(target) as partial:
            shutil.copytree(source, partial, dirs_exist_ok=True)
    else:
        filesystem, root = _remote(location)
        for path in files:
            filesystem.put_file(str(path), f"{root}/{path.relative_to(source).as_posix()}")
    return sum(path.stat().st_size for path in files)


def write_bytes(location: str, content: bytes) -> None:
    """Write one file; a reader sees the old content or the new, never a part."""
    target = local_path(location)
    if target is None:
        filesystem, path = _remote(location)
        filesystem.pipe_file(path, content)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_bytes(location: str) -> bytes:
    """Read one file.

    Raises:
        DataError: it does not exist.
    """
    target = local_path(location)
    try:
        if target is not None:
            return target.read_bytes()
        filesystem, path = _remote(location)
        return bytes(filesystem.cat_file(path))
    except FileNotFoundError:
        raise DataError(f"{location} does not exist.", code="file_not_found", param=location) from None


def exists(location: str) -> bool:
    """Whether a file or a folder is there."""
    target = local_path(location)
    if target is not None:
        return target.exists()
    filesystem, path = _remote(location)
    return bool(filesystem.exists(path))


def _materialise(location: str, revision: str | None, patterns: tuple[str, ...], cache: Path | None) -> Path:
    path = local_path(location)
    if path is not None and path.is_dir():
        if revision is not None:
            raise InvalidInputError(
                f"revision is for hub names, and {location} is a folder: leave it out.", param="revision"
            )
        return path.resolve()
    root = cache or cache_folder()
    if path is None:
        return _download_folder(location, patterns, root)
    if is_hub_name(location):
        return _download_hub(location, revision, patterns, root)
    raise InvalidInputError(
        f"{location} does not exist: give a folder, an fsspec URL or a Hugging Face name.",
        code="model_not_found",
        param="model",
    )


def _download_folder(url: str, patterns: tuple[str, ...], cache: Path) -> Path:
    filesystem, root = _remote(url)
    try:
        found = filesystem.find(root, detail=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{url} cannot be listed: {error}.", param="model") from error
    wanted = {path: info for path, info in found.items() if any(Path(path).match(each) for each in patterns)}
    if not wanted:
        raise InvalidInputError(f"{url} holds no model files.", code="model_not_found", param="model")
    target = cache / "folders" / _listing_digest(url, wanted)
    if target.is_dir():
        return target
    with _whole_folder(target) as partial:
        for path in sorted(wanted):
            destination = partial / Path(path).relative_to(root)
            destination.parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(path, str(destination))
    return target


def _listing_digest(url: str, listing: dict[str, dict[str, object]]) -> str:
    """Names, sizes and versions of the remote files: changed content gets another local copy."""
    digest = hashlib.blake2b(url.encode(), digest_size=16)
    for path, info in sorted(listing.items()):
        version = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("created") or ""
        digest.update(f"{path}\0{info.get('size')}\0{version}\n".encode())
    return digest.hexdigest()


def _download_hub(name: str, revision: str | None, patterns: tuple[str, ...], cache: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=list(patterns), cache_dir=cache / "hub"
        )
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InvalidInputError(
            f"{name} is neither a folder here nor a model on the Hugging Face hub.",
            code="model_not_found",
            param="model",
        ) from error
    except (OSError, LocalEntryNotFoundError) as error:
        raise CheckpointError(
            f"{name} is not a folder here, and fetching it from the Hugging Face hub failed: {error}",
            code="download_failed",
            param="model",
        ) from error
    return Path(folder)


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill; it takes ``target``'s name at the end, or vanishes on an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield partial
        _swap_in(partial, target)
    except TideError:
        raise
    except OSError as error:
        raise DataError(f"{target} could not be written: {error}.", param=str(target)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap_in(partial: Path, target: Path) -> None:
    partial.chmod(0o755)  # mkdtemp made it private
    while True:
        try:
            partial.rename(target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        # Another process was faster, or an older version is there: the newer copy wins.
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        with suppress(FileNotFoundError):
            target.rename(old / "replaced")
        shutil.rmtree(old, ignore_errors=True)


def _remote(url: str):  # type: ignore[no-untyped-def]
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InvalidInputError(
            f"{url} needs a file system that is not there: {error}.", param=url
        ) from error
    return filesystem, path.rstrip("/")
