"""A teacher in the same process: it answers each question at once, without a queue, for notebooks and tests.

In: a model folder, then score requests. Out: the answers that a replica of a pool would give.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tide_core.alignment.boundaries import begins_pretoken
from tide_core.checkpoints.tokenizer_folder import load_tokenizer
from tide_core.contracts.errors import RetryableScoreError, ScoreError, TideError
from tide_core.contracts.scores import ScoreRequest, ScoreResponse, Values
from tide_core.contracts.teacher import TeacherDescription
from tide_core.contracts.working_sizes import working_sizes
from tide_core.models.decoder import Decoder
from tide_core.models.teachers.adapter import load_teacher
from tide_core.scoring.answers import Slices
from tide_core.scoring.describing import describe_teacher, name_of_dtype
from tide_core.scoring.forward import score_samples
from tide_core.scoring.layouts import forward_input, samples_of
from tide_core.scoring.transport import check_request, check_response


class LocalTeacher:
    """Answers requests with one model, in the thread that asks; a `ScoreTransport` too.

    Args:
        model: the teacher, frozen, on its device.
        description: what it says of itself.
        begins_pretoken: which of its ids do; without it, questions about boundaries are refused.
        fingerprint: of the teacher that must answer; None for any.
    """

    def __init__(
        self,
        model: Decoder,
        description: TeacherDescription,
        begins_pretoken: Bool[np.ndarray, " vocab"] | None = None,
        *,
        fingerprint: str | None = None,
    ) -> None:
        self._model = model
        self._description = description
        self._begins_pretoken = begins_pretoken
        sizes = working_sizes(is_accelerator=model.device.type != "cpu")
        self._slices = Slices(sizes.readout_rows, sizes.readout_vocab)
        self._fingerprint = fingerprint
        self._is_closed = False

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        fingerprint: str | None = None,
    ) -> LocalTeacher:
        """Load a teacher of any known architecture from its model folder.

        Raises:
            CheckpointError: the folder is incomplete, contradictory or of an unknown architecture.
            TokenizerError: its tokenizer is missing or has no mask token.
        """
        model = load_teacher(folder, dtype=dtype, device=device)
        description = describe_teacher(folder, model, dtype=name_of_dtype(dtype), device=device)
        begins = begins_pretoken(load_tokenizer(folder), model.vocab_size)
        return cls(model, description, begins, fingerprint=fingerprint)

    @property
    def head(self) -> Float[Tensor, "teacher_vocab teacher_hidden"]:
        """The frozen LM head, which turns hidden states into logits."""
        return self._model.lm_head.weight.detach()

    def answer(self, request: ScoreRequest) -> ScoreResponse:
        """The teacher's values at the masked tokens of a request.

        Raises:
            FingerprintMismatchError: the request is for another teacher, or another one must answer.
            InvalidInputError: the request asks what this teacher cannot answer.
            ScoreError: the teacher's hidden states are not finite.
        """
        check_request(
            request,
            fingerprint=self._description.fingerprint,
            vocab_size=self._model.vocab_size,
            knows_boundaries=self._begins_pretoken is not None,
        )
        began = time.perf_counter()
        values = self._score(request)
        response = ScoreResponse(
            values,
            self._description.fingerprint,
            self._description.tokenizer_fingerprint,
            compute_seconds=time.perf_counter() - began,
        )
        check_response(request, response, self._fingerprint)
        return response

    def submit(self, request: ScoreRequest) -> Future[ScoreResponse]:
        """`answer` as a future that is done; see :class:`~tide_core.scoring.transport.ScoreTransport`."""
        if self._is_closed:
            raise RetryableScoreError("This teacher is closed.", code="score_cancelled")
        future: Future[ScoreResponse] = Future()
        try:
            future.set_result(self.answer(request))
        except TideError as error:
            future.set_exception(error)
        return future

    def describe(self) -> TeacherDescription:
        """What the teacher says of itself."""
        return self._description

    def close(self) -> None:
        """Answer no more."""
        self._is_closed = True

    def _score(self, request: ScoreRequest) -> Values:
        samples = [sample for sample in samples_of(request) if sample.masked]
        if not samples:
            return request.value_format(self._model.hidden_size).empty()
        inputs = forward_input(samples, self._model.mask_token_id, self._model.device)
        scored = score_samples(self._model, samples, inputs, self._slices, self._begins_pretoken)
        parts = scored.parts([values.cpu() for values in scored.on_host()])
        errors = [part for part in parts if isinstance(part, ScoreError)]
        if errors:
            raise errors[0]
        return cast(Values, np.concatenate(cast(list[Values], parts)))
