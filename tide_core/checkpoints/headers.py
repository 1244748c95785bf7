"""What a model folder holds, read from headers alone: no tensor is loaded, torch is not imported.

The layout is Hugging Face's: ``config.json`` and either ``model.safetensors`` or several shards listed in
``model.safetensors.index.json``. Only safetensors is read; pickled weights can run code when opened.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tide_core.contracts.errors import CheckpointError
from tide_core.contracts.families import read_model_type

CONFIG_NAME = "config.json"
SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
# The format's own limit; a larger length means that the file is not safetensors.
MAX_HEADER_BYTES = 100_000_000

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

BYTES_PER_ELEMENT = {
    "F64": 8, "I64": 8, "U64": 8,
    "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
BYTES_PER_DTYPE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class TensorHeader:
    """One tensor of a checkpoint: its stored dtype (safetensors' name), shape and file."""

    dtype: str
    shape: tuple[int, ...]
    file: Path

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: the file is missing, is not JSON, or holds something other than an object.
    """
    try:
        payload = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist: a model folder needs it.", code="checkpoint_incomplete", param=path.name
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.", param=path.name) from error
    if not isinstance(payload, dict):
        raise CheckpointError(f"{path} holds no JSON object.", param=path.name)
    return payload


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """``config.json`` of a model folder; ``model_type`` is the name by which the table of families knows it.

    Raises:
        CheckpointError: the folder or the file does not exist, or is no JSON object.
    """
    path = Path(folder)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder: give the path of a model folder.", param="folder")
    payload = read_json(path / CONFIG_NAME)
    return payload if "model_type" not in payload else {**payload, "model_type": read_model_type(payload)}


def weight_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The safetensors files of a model folder, sorted by name.

    Raises:
        CheckpointError: ``checkpoint_incomplete`` when there are none or the index names one that is not
            there; ``pickle_weights`` when there are pickles only.
    """
    path = Path(folder)
    if (path / INDEX_NAME).is_file():
        names = sorted(set(_weight_map(path).values()))
        absent = [name for name in names if not (path / name).is_file()]
        if absent:
            raise CheckpointError(
                f"{path / INDEX_NAME} lists files that are not there: {', '.join(absent[:5])}. "
                "Fetch them again.",
                code="checkpoint_incomplete",
            )
        return [path / name for name in names]
    if (path / SINGLE_NAME).is_file():
        return [path / SINGLE_NAME]
    if any(next(path.glob(pattern), None) for pattern in _PICKLES):
        raise CheckpointError(
            f"{path} holds pickled weights only, and opening a pickle runs its code: Tide reads safetensors "
            "only. Save the model again: save_pretrained(..., safe_serialization=True).",
            code="pickle_weights",
        )
    raise CheckpointError(
        f"{path} holds neither {SINGLE_NAME} nor {INDEX_NAME}. Weights are read from safetensors only: "
        "convert other formats first.",
        code="checkpoint_incomplete",
    )


def read_headers(folder: str | os.PathLike[str]) -> dict[str, TensorHeader]:
    """Every tensor of a model folder by its key, from the files' headers.

    Raises:
        CheckpointError: a file is missing or broken, or a key is stored twice or contradicts the index.
    """
    headers: dict[str, TensorHeader] = {}
    for file in weight_files(folder):
        for key, header in _file_headers(file).items():
            if key in headers:
                raise CheckpointError(
                    f"{key} is stored in both {headers[key].file.name} and {file.name}.", param=key
                )
            headers[key] = header
    path = Path(folder)
    if (path / INDEX_NAME).is_file():
        absent = sorted(set(_weight_map(path)) - set(headers))
        if absent:
            raise CheckpointError(
                f"{INDEX_NAME} lists tensors that no file holds: {', '.join(absent[:8])}.", param=absent[0]
            )
    return headers


def weight_bytes(folder: str | os.PathLike[str], dtype: str | None = None) -> int:
    """Bytes that the weights take in memory.

    Args:
        folder: a model folder.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``float64``; without it, as they are stored.

    Raises:
        CheckpointError: the folder is incomplete, or the dtype is none of these.
    """
    if dtype is not None and dtype not in BYTES_PER_DTYPE:
        raise CheckpointError(
            f"Unknown dtype {dtype!r}: use one of {', '.join(BYTES_PER_DTYPE)}.", param="dtype"
        )
    return sum(
        header.elements * (BYTES_PER_DTYPE[dtype] if dtype else BYTES_PER_ELEMENT[header.dtype])
        for header in read_headers(folder).values()
    )


def _weight_map(folder: Path) -> dict[str, str]:
    weight_map = read_json(folder / INDEX_NAME).get("weight_map")
    names = weight_map.values() if isinstance(weight_map, dict) else ()
    if not isinstance(weight_map, dict) or not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{folder / INDEX_NAME} has no weight_map of file names.", param="weight_map")
    outside = [name for name in weight_map.values() if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{INDEX_NAME} points outside its folder: {outside[0]}.", param="weight_map")
    return weight_map


def _file_headers(file: Path) -> dict[str, TensorHeader]:
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > MAX_HEADER_BYTES:
                raise ValueError("its header would be too long")
            entries = json.loads(stream.read(length))
        entries.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if file.stat().st_size < end:
            raise ValueError(f"it is cut off: {file.stat().st_size} of {end} bytes")
        return {
            key: TensorHeader(entry["dtype"], tuple(entry["shape"]), file) for key, entry in entries.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}.", param=file.name) from error
