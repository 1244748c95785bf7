"""A student's folder as the engines that serve SDAR load it: sglang and lmdeploy.

In: a student of Qwen3's shape on Qwen3's tokenizer, with the mask id that these engines have written into
their code. Out: the same weights under SDAR's names in ``config.json``, a file with the block size for
sglang, and the commands that serve the folder in its model card.

The engines choose by ``architectures`` and ``model_type``. sglang reads ``rope_theta`` at the top level of
``config.json`` and takes 10,000 where it is not there, whatever ``rope_parameters`` says.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tide_core.checkpoints.headers import CONFIG_NAME, read_json
from tide_core.checkpoints.mask_addition import token_ids
from tide_core.checkpoints.tokenizer_folder import TOKENIZER_FILE
from tide_core.contracts.errors import CheckpointError, InvalidInputError, TokenizerError
from tide_core.contracts.families import QWEN3, SDAR
from tide_core.models.dense import DenseConfig
from tide_core.models.export import CARD_NAME

MASK_TOKEN_ID = 151669
"""The engines know no other."""
QWEN3_TOKENS = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
"""Tokens by which Qwen3's tokenizer is told from others."""
ALGORITHM_FILE = "dllm_algorithm.yaml"


def check_student(config: DenseConfig, folder: str | os.PathLike[str]) -> None:
    """See that the engines can serve a student.

    Args:
        config: of the student.
        folder: with its tokenizer.

    Raises:
        CheckpointError: it is of another shape than SDAR's.
        TokenizerError: its tokenizer is not Qwen3's, or its mask token has another id.
        InvalidInputError: its block size is not known.
    """
    if config.family is not QWEN3:
        raise CheckpointError(
            f"The engines serve SDAR's shape, which is {QWEN3.title}'s; this student is of the family "
            f"{config.family.title}.",
            code="layout_mismatch",
            param="layout",
        )
    ids = dict(token_ids(read_json(Path(folder) / TOKENIZER_FILE)))
    if any(ids.get(text) != token_id for text, token_id in QWEN3_TOKENS.items()):
        raise TokenizerError(
            f"The engines expect {QWEN3.title}'s tokenizer for SDAR: this one gives other ids to "
            f"{', '.join(QWEN3_TOKENS)}.",
            code="layout_mismatch",
            param="tokenizer",
        )
    if config.mask_token_id != MASK_TOKEN_ID:
        raise TokenizerError(
            f"The engines take {MASK_TOKEN_ID} for the mask token; this student was trained with "
            f"{config.mask_token_id}, so that they would sample from an untrained token.",
            code="mask_token_mismatch",
            param="mask_token",
        )
    if config.block_size is None:
        raise InvalidInputError(
            "The engines need the block size that the student was trained with: give --block-size.",
            param="block_size",
        )


def rewrite_folder(folder: str | os.PathLike[str], config: DenseConfig) -> None:
    """Give a written student folder SDAR's names, and tell how it is served. The weights stay as they are."""
    path = Path(folder)
    fields = read_json(path / CONFIG_NAME) | {
        "model_type": SDAR.model_type,
        "architectures": [SDAR.architecture],
        "rope_theta": config.rotary.theta,
        "mask_token_id": MASK_TOKEN_ID,
        SDAR.block_size_field: config.block_size,
    }
    (path / CONFIG_NAME).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (path / ALGORITHM_FILE).write_text(
        f"block_size: {config.block_size}\nthreshold: 0.95\n", encoding="utf-8"
    )
    with (path / CARD_NAME).open("a", encoding="utf-8") as card:
        card.write(_SERVING.format(block_size=config.block_size, algorithm=ALGORITHM_FILE))


_SERVING = """
## Serve

`config.json` names this model as SDAR, whose shape it has, so that engines which serve SDAR load it. Blocks
are of {block_size} tokens. `FOLDER` is where this file lies.

```sh
python -m sglang.launch_server --model-path FOLDER --dllm-algorithm LowConfidence \\
    --dllm-algorithm-config FOLDER/{algorithm}
lmdeploy serve api_server FOLDER --dllm-block-length {block_size}
```

`tide convert` makes it a student in Tide's own layout again.
"""
