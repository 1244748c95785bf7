"""What a trainer and a teacher replica do for a step: work, seconds and memory, on a kind of device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from tide_core.checkpoints.headers import BYTES_PER_DTYPE
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.objective import (
    ChunkTerm,
    CrossEntropyTerm,
    PositionTerm,
    ReverseKLTerm,
    temperatures,
)
from tide_core.contracts.plan import DeviceKind, ProcessMemory, StepCost
from tide_core.contracts.scores import Layout, TopKQuestion, Want, value_format
from tide_core.contracts.teacher import want_of
from tide_core.planning import costs, memory, traffic
from tide_core.planning.costs import Precision, Seconds, Work
from tide_core.planning.noise import DrawnSequences
from tide_core.planning.shapes import ModelShape

# Kernels of a tile, views left out: forward and backward of a clean token's statistic and of a comparison,
# and a readout's.
_TOKEN_KERNELS, _POSITION_KERNELS, _READOUT_KERNELS = 41.0, 56.0, 22.0
_MASKED_ROUNDING = 16
_MICRO_BATCH_BYTES = 34
"""Of a token drawn ahead: ids, position, copy and block number in int64, two bools."""
_REQUEST_BYTES = 5
"""Of a token in a question: its id in int32 and its view in uint8; and 8 for a sequence's offset."""


@dataclass(frozen=True)
class Step:
    """A job's step, whatever runs it.

    Attributes:
        spec: the job.
        sizes: its drawn sequences.
        student, teacher: the models; no teacher when nothing is asked.
    """

    spec: ResolvedJobSpec
    sizes: DrawnSequences
    student: ModelShape
    teacher: ModelShape | None

    @property
    def batch(self) -> int:
        """Sequences of a step."""
        return self.spec.hyperparameters.global_batch_size

    @property
    def want(self) -> Want | None:
        """What is asked of the teacher."""
        return want_of(self.spec)

    @property
    def row_bytes(self) -> int:
        """Bytes on the wire for each masked token."""
        if self.want is None or self.teacher is None:
            return 0
        question = None
        if self.want is Want.TOP_K:
            assert self.spec.teacher.top_k is not None
            k = min(self.spec.teacher.top_k, self.shared_vocab)
            question = TopKQuestion(k, self.shared_vocab, temperatures(self.spec.objective))
        values = value_format(self.want, question, self.teacher.hidden)
        return values.dtype.itemsize * math.prod(values.row)

    @property
    def shared_vocab(self) -> int:
        """Ids that both models may share: known exactly only from the tokenizers."""
        return min(self.student.vocab, self.teacher.vocab) if self.teacher is not None else 0

    @cached_property
    def wire_bytes(self) -> float:
        """Bytes of a step's questions and answers."""
        if self.want is None:
            return 0.0
        asked = _REQUEST_BYTES * self.sizes.teacher_tokens + 8
        return self.batch * (asked + self.row_bytes * float(self.sizes.teacher_masked.mean()))


@dataclass(frozen=True)
class TrainerRole:
    """A trainer on a kind of device."""

    step: Step
    kind: DeviceKind

    @property
    def precision(self) -> Precision:
        """Of the forward: bfloat16 where asked for, or by default on a GPU."""
        asked = self.step.spec.hyperparameters.precision
        if asked == "auto":
            return "bfloat16" if self.kind.is_accelerator else "float32"
        return asked

    def shares(self, trainers: int) -> tuple[int, int]:
        """Micro-batches of the trainer with the most to do, and sequences of each."""
        sequences = -(-self.step.batch // trainers)
        hyper = self.step.spec.hyperparameters
        size = hyper.micro_batch_size
        if hyper.micro_batch_tokens is not None:
            size = min(size, max(1, hyper.micro_batch_tokens // int(self.step.sizes.kept.max())))
        micro_batches = -(-sequences // size)
        return micro_batches, -(-sequences // micro_batches)

    @property
    def is_sharded(self) -> bool:
        """Whether the student lies in parts on the trainers."""
        return self.step.spec.resources.sharding == "fsdp"

    def cost(self, trainers: int) -> StepCost:
        """A step on so many trainers, the busiest of them."""
        micro_batches, rows = self.shares(trainers)
        one, parameters = self.micro_batch(rows, micro_batches * rows), self.step.student.parameters
        own = parameters / trainers if self.is_sharded else parameters
        between = costs.update(own) + costs.accumulation(own).times(micro_batches - 1)
        if self.is_sharded:
            between = between + costs.gathering(parameters).times(micro_batches)
        work = one.times(micro_batches) + between
        time = costs.seconds(work, self.kind, self.precision)
        exposed = self._exposed_exchange(trainers, micro_batches, one)
        limit = (
            time.limit if exposed <= max(time.compute, time.memory, time.dispatch) else "gradient_exchange"
        )
        number = self.step.batch / rows
        return StepCost(
            flops=one.all_flops * number,
            memory_traffic_bytes=one.traffic * number + between.traffic * trainers,
            process_seconds=time.total + exposed,
            limited_by=limit,
        )

    def micro_batch(self, rows: int, share: int) -> Work:
        """Forward, loss and backward of one micro-batch of a trainer's share."""
        step, hyper = self.step, self.step.spec.hyperparameters
        length = step.sizes.padded_kept(rows, share)
        masked = rows * float(step.sizes.masked.mean())
        layers = costs.training(
            step.student,
            costs.Places(rows, length, masked),
            self.precision,
            is_checkpointed=hyper.activation_checkpointing,
        )
        return layers + costs.head_gradient(step.student) + self._loss(masked)

    def memory(self, trainers: int) -> ProcessMemory:
        """Memory of a trainer among so many."""
        step, spec = self.step, self.step.spec
        micro_batches, rows = self.shares(trainers)
        # The longest of many micro-batches decides the peak.
        length = float(step.sizes.kept.max())
        masked = rows * float(step.sizes.masked.mean())
        token = rows * length * _MICRO_BATCH_BYTES + rows * length**2
        answer = rows * float(step.sizes.teacher_masked.mean()) * step.row_bytes
        question = rows * step.sizes.teacher_tokens * _REQUEST_BYTES if step.want else 0.0
        ahead = (spec.resources.prefetch_steps + 1) * micro_batches
        holds_head = step.want is Want.HIDDEN and step.teacher is not None
        return memory.trainer_memory(
            step.student,
            self.kind,
            self.precision,
            rows=rows,
            length=length,
            masked=masked,
            trainers=trainers,
            is_sharded=self.is_sharded,
            is_checkpointed=spec.hyperparameters.activation_checkpointing,
            kept_logits=sum(self._kept_logits(masked)),
            teacher_head=step.teacher.head if holds_head and step.teacher is not None else 0,
            prefetched=ahead * (token + answer + question),
        )

    def with_micro_batch(self, size: int, *, is_checkpointed: bool) -> TrainerRole:
        """The same trainer under other hyper-parameters."""
        changes = {"micro_batch_size": size, "activation_checkpointing": is_checkpointed}
        hyper = self.step.spec.hyperparameters.model_copy(update=changes)
        spec = self.step.spec.model_copy(update={"hyperparameters": hyper})
        return replace(self, step=replace(self.step, spec=spec))

    def _loss(self, masked: float) -> Work:
        """The terms at the masked rows: one pass over the LM head forward, and one backward.

        On a GPU the student's products are in the forward's precision, summed and answered in float32; on a
        CPU they are in float32 in any precision, since its last norm's result is.
        """
        student = self.step.student
        tile = self.kind.working_sizes.loss_tile
        own_again, theirs_again = self._multiplied_again(masked)
        one = self._own_product(masked, student.vocab)
        # Scores, the gradient of the rows, the gradient of the head, and the scores that were not kept.
        products = one.times(3.0 + own_again)
        written = costs.tiles(masked, student.vocab, 1.0 + own_again + traffic.GRADIENT_READS)
        numbers = masked * student.hidden * costs.slices(masked, student.vocab, tile)
        summed = Work(tile_bytes=4.0 * traffic.SLICE_SUM_PASSES * numbers)
        total = products + written + summed
        if self._reads_tokens:
            total = total + self._statistic(masked, student.vocab, traffic.TOKEN_PASSES, _TOKEN_KERNELS)
        for term in self._position_terms:
            total = total + self._comparison(masked, term, theirs_again)
        return total

    def _comparison(self, masked: float, term: PositionTerm, again: float) -> Work:
        """What a term that compares positions reads: a teacher's logits, or buckets of the student's own."""
        step, vocab = self.step, self.step.shared_vocab
        if step.want is Want.TOP_K:  # the student's own likeliest ids are looked for first
            found = self._own_product(masked, vocab) + costs.tiles(masked, vocab, traffic.CANDIDATE_PASSES)
            return found + self._statistic(masked, vocab, traffic.BUCKET_PASSES, _POSITION_KERNELS)
        passes = traffic.REVERSE_PASSES if isinstance(term, ReverseKLTerm) else traffic.TIDAL_PASSES
        compared = self._statistic(masked, vocab, passes, _POSITION_KERNELS)
        if step.teacher is None:
            return compared
        width = BYTES_PER_DTYPE[self.precision]
        product = costs.head_product(masked, vocab, step.teacher.hidden, width).times(1.0 + again)
        # Written once, and where that is in a narrow dtype, cast for the comparison, forward and backward.
        answer = self._answer_width
        written = traffic.Passes(own=1.0 + again, casts=2.0).bytes(answer) * masked * vocab
        return compared + product + Work(tile_bytes=written)

    @property
    def _answer_width(self) -> int:
        """Bytes of a teacher's logit as it is multiplied and kept: a GPU answers in float32."""
        return BYTES_PER_DTYPE["float32" if self.kind.is_accelerator else self.precision]

    def _own_product(self, masked: float, vocab: int) -> Work:
        """Student's hidden states times rows of its LM head."""
        product = costs.head_product(masked, vocab, self.step.student.hidden, BYTES_PER_DTYPE["float32"])
        if self.kind.is_accelerator:
            return product
        return replace(product, flops=0.0, wide_flops=product.flops)

    def _statistic(self, masked: float, vocab: float, passes: float, kernels: float) -> Work:
        tile = self.kind.working_sizes.loss_tile
        started = kernels * costs.slices(masked, vocab, tile)
        return costs.tiles(masked, vocab, passes) + Work(kernels=started)

    @property
    def _reads_tokens(self) -> bool:
        """Whether a term takes log-probabilities of clean tokens."""
        terms = self.step.spec.objective
        return any(isinstance(term, CrossEntropyTerm | ChunkTerm) and term.weight > 0 for term in terms)

    @property
    def _position_terms(self) -> list[PositionTerm]:
        terms = self.step.spec.objective
        return [term for term in terms if isinstance(term, PositionTerm) and term.weight > 0]

    def _kept_logits(self, masked: float) -> tuple[float, float]:
        """Bytes that are kept of the student's and of the teacher's logits, as `head_pass` does."""
        room = float(self.kind.working_sizes.loss_kept_bytes)
        compared = len(self._position_terms) if self.step.want is Want.HIDDEN else 0
        theirs = min(room, compared * masked * self.step.shared_vocab * self._answer_width)
        return min(room - theirs, masked * self.step.student.vocab * BYTES_PER_DTYPE["float32"]), theirs

    def _multiplied_again(self, masked: float) -> tuple[float, float]:
        """Shares of the student's and of the teacher's logits that the backward pass must compute again."""
        own, theirs = self._kept_logits(masked)
        compared = len(self._position_terms) * self.step.shared_vocab
        own_share = own / max(1.0, masked * self.step.student.vocab * BYTES_PER_DTYPE["float32"])
        return 1.0 - own_share, 1.0 - theirs / max(1.0, masked * compared * self._answer_width)

    def _exposed_exchange(self, trainers: int, micro_batches: int, one: Work) -> float:
        """Seconds of exchange between trainers that their own work does not hide.

        Whole students sum gradients once, behind the last backward. In parts, each micro-batch gathers
        weights twice and sums gradients, behind all of its work.
        """
        if trainers < 2:
            return 0.0
        exchange = costs.exchange_bytes(self.step.student.parameters, trainers) / self.kind.link_bandwidth
        busy = costs.seconds(one, self.kind, self.precision).total
        if self.is_sharded:
            return micro_batches * max(0.0, 1.5 * exchange - busy)
        return max(0.0, exchange - 2.0 / 3.0 * busy)


@dataclass(frozen=True)
class TeacherRole:
    """A teacher's replicas on a kind of device."""

    step: Step
    kind: DeviceKind

    @property
    def shape(self) -> ModelShape:
        assert self.step.teacher is not None
        return self.step.teacher

    @property
    def precision(self) -> Precision:
        """Of the served weights: bfloat16 by default on a GPU; float16 is as fast and as wide."""
        asked = self.step.spec.teacher.dtype
        if asked == "auto":
            return "bfloat16" if self.kind.is_accelerator else "float32"
        return "float32" if asked == "float32" else "bfloat16"

    @property
    def budget(self) -> int:
        """Tokens of a forward."""
        return self.kind.working_sizes.batch_tokens

    def batch(self, rows: float, length: float, masked: float) -> Work:
        """One forward and its readout."""
        shape, is_grouped = self.shape, self.kind.is_accelerator and self.precision == "bfloat16"
        places = costs.Places(rows, length, masked)
        work = costs.forward(shape, places, self.precision, is_grouped=is_grouped)
        if self.step.spec.teacher.quantisation != "none":
            work = work + costs.restoring(shape, rows * length, self.precision, is_grouped=is_grouped)
        want = self.step.want
        if want is None or want is Want.HIDDEN:
            return work
        vocab = self.step.shared_vocab if want is Want.TOP_K else shape.vocab
        sizes = self.kind.working_sizes
        head = costs.head_product(masked, vocab, shape.hidden, BYTES_PER_DTYPE[self.precision])
        passes = traffic.readout_passes(want, len(temperatures(self.step.spec.objective)))
        kernels = _READOUT_KERNELS * costs.slices(masked, vocab, sizes.readout_rows * sizes.readout_vocab)
        return work + head + costs.tiles(masked, vocab, passes) + Work(kernels=kernels)

    def batch_seconds(self, rows: float, length: float, masked: float) -> Seconds:
        """Time of one forward and its readout."""
        return costs.seconds(self.batch(rows, length, masked), self.kind, self.precision)

    def pace(self, rows: float, length: float, masked: float) -> float:
        """Seconds of a forward for the simulation, which asks very often: masked tokens rounded up to 16."""
        size = rows, length, -(-masked // _MASKED_ROUNDING) * _MASKED_ROUNDING
        if size not in self._paces:
            self._paces[size] = self.batch_seconds(*size).total
        return self._paces[size]

    @cached_property
    def _paces(self) -> dict[tuple[float, float, float], float]:
        return {}

    def cost(self, replicas: int) -> StepCost:
        """All of a step's questions on so many replicas.

        A replica gathers what a step leaves it into forwards of at most the token budget.
        """
        work, time = self._scale(self.step.batch / replicas)
        return StepCost(
            flops=work.all_flops * replicas,
            memory_traffic_bytes=work.traffic * replicas,
            process_seconds=time.total,
            limited_by=time.limit,
        )

    def answer_seconds(self, sequences: float) -> float:
        """Time of one question of so many sequences on an idle replica."""
        return self._scale(sequences)[1].total

    def memory(self) -> ProcessMemory:
        """Memory of a replica."""
        sizes = self.step.sizes
        return memory.teacher_memory(
            self.shape,
            self.kind,
            self.precision,
            longest=float(sizes.teacher_lengths.max()),
            readout=self.step.want is not Want.HIDDEN,
            has_mask=Layout(self.step.spec.teacher.attention) is not Layout.BIDIRECTIONAL,
            quantisation=self.step.spec.teacher.quantisation,
        )

    @cached_property
    def padded_tokens(self) -> float:
        """Mean tokens of a sequence in a forward: of a step's sequences, as many as the budget takes."""
        sizes = self.step.sizes
        mean = max(1.0, float((sizes.teacher_rows * sizes.teacher_lengths).mean()))
        return sizes.pad_teacher(max(1, min(self.step.batch, int(self.budget / mean))))

    def _scale(self, sequences: float) -> tuple[Work, Seconds]:
        sizes = self.step.sizes
        asking = max(1e-9, float((sizes.teacher_rows > 0).mean()))
        rows_each = float(sizes.teacher_rows.mean()) / asking
        length = self.padded_tokens / max(1e-9, float(sizes.teacher_rows.mean()))
        masked_each = float(sizes.teacher_masked.mean()) / asking
        asked = sequences * asking
        together = min(max(1.0, asked), max(1.0, self.budget / max(1.0, rows_each * length)))
        work = self.batch(together * rows_each, length, together * masked_each).times(asked / together)
        return work, costs.seconds(work, self.kind, self.precision)
