"""What a teacher's answers lose in 8 and 4 bits, on the trained teachers that ship.

Run: ``python benchmarks/quantised_teachers.py [--rows 64]``. Held-out tasks of the demo, half of the answer's
tokens masked; the quantised teacher in float32 against the whole one in float32. Prints Markdown table rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from tide_core.contracts.job import Quantisation
from tide_core.losses.kl import forward_kl
from tide_core.masks.block_attention import bidirectional_mask, block_causal_mask
from tide_core.models.decoder import Decoder
from tide_core.models.quantisation import memory_bytes, parameter_count
from tide_core.models.teachers.adapter import load_teacher
from workers.demo.assets import TEACHER_DENSE, TEACHER_MOE
from workers.demo.conversations import RowCounts, draw_rows
from workers.demo.pretraining_data import Batch, RowEncoder, collate
from workers.demo.sizes import BLOCK_SIZE, MAX_LENGTH
from workers.demo.vocabularies import DENSE_TEACHER, MOE_TEACHER, VocabularyPlan

TEACHERS = {"mixture of experts": (TEACHER_MOE, MOE_TEACHER), "dense": (TEACHER_DENSE, DENSE_TEACHER)}


def held_out(folder: Path, plan: VocabularyPlan, rows: int) -> Batch:
    """Tasks that no shipped teacher was trained on, in the teacher's own tokens."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder = RowEncoder(tokenizer, plan, block_size=BLOCK_SIZE, max_length=MAX_LENGTH)
    drawn = draw_rows([], "validation", RowCounts(documentation=0, tasks=rows), seed=0)
    encoded = [encoder.encode(row, is_open=False) for row in drawn]
    return collate([item for item in encoded if item is not None])


@torch.inference_mode()
def masked_logits(model: Decoder, batch: Batch, is_masked: Tensor) -> Tensor:
    """Logits [masked, vocab] at the masked tokens, under the pattern that the teacher is asked with."""
    ids, lengths = torch.from_numpy(batch.ids), torch.from_numpy(batch.lengths)
    seq = ids.shape[1]
    is_sparse = model.config.model_type == "llada2_moe"
    mask = bidirectional_mask(lengths, seq) if is_sparse else block_causal_mask(lengths, seq, BLOCK_SIZE)
    hidden = model.hidden_states(ids.masked_fill(is_masked, model.mask_token_id), mask)
    return model.lm_head(hidden[is_masked])  # type: ignore[no-any-return]


def table_row(
    name: str, kind: Quantisation, model: Decoder, logits: Tensor, exact: Tensor, truth: Tensor
) -> str:
    """One line of the table."""
    error = (logits - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    divergence = forward_kl(logits, exact, temperature=1.0).mean()
    agreement = (logits.argmax(-1) == exact.argmax(-1)).float().mean()
    log_probs = [z.log_softmax(-1).gather(1, truth[:, None])[:, 0] for z in (logits, exact)]
    shift = (log_probs[0] - log_probs[1]).abs().mean()
    accuracy = (logits.argmax(-1) == truth).float().mean()
    bits = 8 * memory_bytes(model) / parameter_count(model)
    cells = (
        name, kind, f"{bits:.1f}", f"{error:.1%}", f"{divergence:.4f}", f"{shift:.3f}", f"{agreement:.1%}",
        f"{accuracy:.1%}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=64, help="held-out conversations")
    rows = parser.parse_args().rows
    for name, (folder, plan) in TEACHERS.items():
        batch = held_out(folder, plan, rows)
        draws = np.random.default_rng(0).random(batch.ids.shape)
        is_masked = torch.from_numpy(batch.is_response & (draws < 0.5))
        truth = torch.from_numpy(batch.ids)[is_masked]
        exact = masked_logits(load_teacher(folder, dtype=torch.float32), batch, is_masked)
        for kind in get_args(Quantisation):
            model = load_teacher(folder, dtype=torch.float32, quantisation=kind)
            logits = masked_logits(model, batch, is_masked)
            print(table_row(name, kind, model, logits, exact, truth), flush=True)


if __name__ == "__main__":
    main()
