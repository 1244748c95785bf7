"""Reading and writing weights in the Hugging Face layout, tensor by tensor.

A model offers ``checkpoint_tensors()``: views of its parameters under the checkpoint's genuine keys. Loading
copies each stored tensor straight into its view, converting the dtype on the way, so that memory never holds
the weights twice; saving writes the views in shards.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tide_core.checkpoints.headers import INDEX_NAME, SINGLE_NAME, TensorHeader, read_config, read_headers
from tide_core.contracts.errors import CheckpointError
from tide_core.contracts.families import EMBEDDING_KEY, FAMILIES, HEAD_KEY, find_family

DEFAULT_SHARD_BYTES = 4 * 1024**3
# Older Llama checkpoints store the rotary frequencies, which the configuration already determines.
IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)

_TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def embedding_keys() -> tuple[str, ...]:
    """Names of the embedding in the weights of all families, the usual one first."""
    return tuple(dict.fromkeys((EMBEDDING_KEY, *(family.embedding_key for family in FAMILIES.values()))))


def head_keys() -> tuple[str, ...]:
    """Names of the LM head in the weights of all families, the usual one first."""
    return tuple(dict.fromkeys((HEAD_KEY, *(family.head_key for family in FAMILIES.values()))))


def parse_dtype(name: str) -> torch.dtype:
    """``float32``, ``bfloat16``, ``float16`` or ``float64`` as torch's dtype.

    Raises:
        CheckpointError: any other name.
    """
    dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in _TORCH_DTYPES.values()}
    if name not in dtypes:
        raise CheckpointError(f"Unknown dtype {name!r}: use one of {', '.join(dtypes)}.", param="dtype")
    return dtypes[name]


def stored_dtype(headers: Mapping[str, TensorHeader]) -> torch.dtype:
    """The dtype in which a checkpoint keeps its embedding, taken as that of the model.

    Raises:
        CheckpointError: there is no embedding, or it is stored in a quantised format.
    """
    for key in embedding_keys():
        if key in headers:
            if headers[key].dtype not in _TORCH_DTYPES:
                raise CheckpointError(
                    f"{key} is stored as {headers[key].dtype}: quantised weights are not supported.",
                    param=key,
                )
            return _TORCH_DTYPES[headers[key].dtype]
    raise CheckpointError(f"No embedding among the keys: expected {' or '.join(embedding_keys())}.")


def copy_weights(targets: Mapping[str, Tensor], headers: Mapping[str, TensorHeader]) -> None:
    """Fill ``targets`` (views of parameters by checkpoint key) from the files that the headers name."""
    for file in sorted({headers[key].file for key in targets}):
        with safe_open(file, framework="pt") as stored, torch.no_grad():
            for key in (key for key in targets if headers[key].file == file):
                targets[key].copy_(stored.get_tensor(key))


def check_weights(targets: Mapping[str, Tensor], headers: Mapping[str, TensorHeader]) -> None:
    """See that a checkpoint holds a model's weights, before any of them is read.

    Args:
        targets: the model's tensors by key; their shapes alone count, so they may lie on the meta device.
        headers: what the checkpoint holds.

    Raises:
        CheckpointError: keys are missing, left over or of another shape; all of them are listed.
    """
    is_tied = not any(key in targets for key in head_keys())
    missing = sorted(set(targets) - set(headers))
    extra = sorted(key for key in set(headers) - set(targets) if not _may_be_left(key, is_tied=is_tied))
    wrong = [
        f"{key} is {list(headers[key].shape)}, the configuration asks for {list(target.shape)}"
        + (f" (vocab_size {target.shape[0]})" if key in (*embedding_keys(), *head_keys()) else "")
        for key, target in targets.items()
        if key in headers and headers[key].shape != tuple(target.shape)
    ]
    if missing or extra or wrong:
        parts = [
            f"{title} ({len(keys)}): {_listing(keys)}"
            for title, keys in (
                ("missing", missing),
                ("not of this model", extra),
                ("of another shape", wrong),
            )
            if keys
        ]
        raise CheckpointError(
            "The weights do not fit config.json. " + "; ".join(parts) + ".",
            param=(missing or extra or [wrong[0].split(" ")[0] if wrong else ""])[0],
        )


def check_tied_head(headers: Mapping[str, TensorHeader], embedding_key: str) -> None:
    """See that a head stored beside an embedding that it is tied to holds the same numbers.

    Some tools write the head once more; but where it differs the file is of an untied model, and dropping it
    would change every logit.

    Raises:
        CheckpointError: it differs.
    """
    for key in (key for key in head_keys() if key in headers):
        with (
            safe_open(headers[key].file, framework="pt") as head,
            safe_open(headers[embedding_key].file, framework="pt") as embedding,
        ):
            if not torch.equal(head.get_tensor(key), embedding.get_tensor(embedding_key)):
                raise CheckpointError(
                    f"config.json ties the LM head to the embedding (tie_word_embeddings), but {key} holds "
                    f"other values than {embedding_key}: set it to false, or remove {key}.",
                    param="tie_word_embeddings",
                )


def _may_be_left(key: str, *, is_tied: bool) -> bool:
    return key.endswith(IGNORED_SUFFIXES) or (is_tied and key in head_keys())


def _listing(keys: list[str], shown: int = 40) -> str:
    more = f", and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(keys[:shown]) + more


def save_sharded(
    state: Mapping[str, Tensor],
    folder: str | os.PathLike[str],
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> list[Path]:
    """Write tensors as ``model.safetensors``, or as shards with an index when they are more than one shard's
    bytes.

    Args:
        state: tensors by checkpoint key; views are written as contiguous copies, one shard at a time.
        folder: created when it is not there.
        max_shard_bytes: no shard is larger, unless a single tensor is.

    Returns:
        The files written.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    shards = _shards(state, max_shard_bytes)
    if len(shards) == 1:
        _write(shards[0], state, path / SINGLE_NAME)
        return [path / SINGLE_NAME]
    weight_map: dict[str, str] = {}
    files = []
    for number, keys in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(keys, state, path / name)
        files.append(path / name)
        weight_map.update(dict.fromkeys(keys, name))
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (path / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return files


def _shards(state: Mapping[str, Tensor], max_shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for key, tensor in state.items():
        if shards[-1] and filled + tensor.nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += tensor.nbytes
    return shards


def _write(keys: Iterable[str], state: Mapping[str, Tensor], file: Path) -> None:
    # ``clone`` because two views of one fused parameter share storage, which the format refuses.
    tensors = {key: state[key].detach().cpu().contiguous().clone() for key in keys}
    save_file(tensors, file, metadata={"format": "pt"})


def lm_head_weight(
    folder: str | os.PathLike[str], dtype: torch.dtype | None = None
) -> Float[Tensor, "vocab hidden"]:
    """The LM head alone, the tied embedding where there is none; nothing else is read.

    For a process that receives hidden states and turns them into logits.

    Args:
        folder: a model folder.
        dtype: the result's dtype; without it, as stored.

    Raises:
        CheckpointError: the folder holds neither a head nor an embedding.
    """
    headers, config = read_headers(folder), read_config(folder)
    family = find_family(config.get("model_type"))
    fields = config if family is None else family.standard_fields(config)
    embeddings = embedding_keys() if family is None else (family.embedding_key,)
    head = HEAD_KEY if family is None else family.head_key
    is_tied = bool(fields.get("tie_word_embeddings", False))
    if not is_tied and head not in headers:
        raise CheckpointError(
            f"{head} is missing and config.json does not tie it to the embedding.", param=head
        )
    for key in embeddings if is_tied else (head,):
        if key in headers:
            with safe_open(headers[key].file, framework="pt") as stored:
                weight: Tensor = stored.get_tensor(key)
            return weight if dtype is None else weight.to(dtype)
    raise CheckpointError(f"No LM head among the keys: expected {' or '.join((head, *embeddings))}.")
