"""Batches for pretraining the demo's models: rendered, tokenised, bucketed by length.

Pretraining sees every training-split document and a stream of fresh training-split tasks without end; a job
of the demo sees a small fixed set of rows. That gap is what the teacher knows and the student does not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import jinja2.sandbox
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from workers.demo.conversations import CorpusRow, documentation_rows, task_rows
from workers.demo.corpus import DocumentedFunction
from workers.demo.vocabularies import VocabularyPlan

_POOL_BATCHES = 16


@dataclass(frozen=True)
class Encoded:
    """One conversation in one tokenisation.

    Attributes:
        ids: int64 [seq].
        is_response: bool [seq], what may be masked.
    """

    ids: npt.NDArray[np.int64]
    is_response: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Batch:
    """Conversations of similar length, padded at the right.

    Attributes:
        ids: int64 [batch, seq]; padding holds id 0 and is never attended to.
        is_response: bool [batch, seq].
        lengths: int64 [batch].
    """

    ids: npt.NDArray[np.int64]
    is_response: npt.NDArray[np.bool_]
    lengths: npt.NDArray[np.int64]


class RowEncoder:
    """Renders and tokenises rows for one tokeniser.

    Args:
        tokenizer: of the model that is trained.
        plan: its template and special tokens.
        block_size: lengths become multiples of it.
        max_length: longer conversations are left out (`encode` returns None).
    """

    def __init__(
        self, tokenizer: Tokenizer, plan: VocabularyPlan, *, block_size: int, max_length: int
    ) -> None:
        self._tokenizer = tokenizer
        self._template = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(plan.template)
        eos = tokenizer.token_to_id(plan.eos)
        assert eos is not None, "the plan names its own special token"
        self._eos = eos
        self._block_size = block_size
        self._max_length = max_length

    def encode(self, row: CorpusRow, *, is_open: bool) -> Encoded | None:
        """Tokenise one row, or None when it is longer than the maximum.

        Args:
            row: a conversation.
            is_open: an open answer is followed by EOS up to a whole block, and all of it may be masked, as a
                sampler needs it. A closed one ends with its template, and only its content may be masked:
                so a job asks its teacher.
        """
        messages = row["messages"]
        prompt = self._template.render(messages=messages[:-1], add_generation_prompt=True)
        text = self._template.render(messages=messages, add_generation_prompt=False)
        content = messages[-1]["content"]
        parts = [self._ids(prompt), self._ids(content), self._ids(text[len(prompt) + len(content) :])]
        used = sum(map(len, parts))
        parts.append([self._eos] * (-used % self._block_size if is_open else 0))
        ids = np.asarray([token for part in parts for token in part], dtype=np.int64)
        if ids.size > self._max_length:
            return None
        stop = ids.size if is_open else len(parts[0]) + len(parts[1])
        positions = np.arange(ids.size)
        return Encoded(ids, (positions >= len(parts[0])) & (positions < stop))

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def endless_rows(
    functions: Sequence[DocumentedFunction], *, task_share: float, seed: int
) -> Iterator[CorpusRow]:
    """Training rows without end: all documents in a fresh order each pass, tasks never twice on purpose."""
    draw = random.Random(f"pretraining/{seed}")
    documents = documentation_rows(functions, "train")
    tasks = task_rows("train", seed)
    while True:
        draw.shuffle(documents)
        for row in documents:
            while draw.random() < task_share:
                yield next(tasks)
            yield row


def batches(rows: Iterator[CorpusRow], encoder: RowEncoder, *, batch_size: int, seed: int) -> Iterator[Batch]:
    """Batches of similar lengths in random order; half the conversations open, half closed."""
    draw = random.Random(f"batches/{seed}")
    drawn = (encoder.encode(row, is_open=draw.random() < 0.5) for row in rows)
    encoded = (item for item in drawn if item is not None)
    while pool := list(islice(encoded, batch_size * _POOL_BATCHES)):
        pool.sort(key=lambda item: item.ids.size)
        groups = [pool[start : start + batch_size] for start in range(0, len(pool), batch_size)]
        draw.shuffle(groups)
        yield from map(collate, groups)


def collate(items: Sequence[Encoded]) -> Batch:
    """Pad a group of conversations to the longest of them."""
    lengths = np.asarray([item.ids.size for item in items], dtype=np.int64)
    ids = np.zeros((len(items), int(lengths.max())), dtype=np.int64)
    is_response = np.zeros(ids.shape, dtype=np.bool_)
    for row, item in enumerate(items):
        ids[row, : item.ids.size] = item.ids
        is_response[row, : item.ids.size] = item.is_response
    return Batch(ids, is_response, lengths)
