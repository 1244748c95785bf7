"""Where trainers and replicas go, how fast that is, and which split of the devices is the fastest."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.plan import DeviceKind, Placement, ProcessMemory
from tide_core.planning.roles import Step, TeacherRole, TrainerRole
from tide_core.planning.simulation import ROUND_TRIP_SECONDS

Group = tuple[DeviceKind, int]
_GIB = 2**30


@dataclass(frozen=True)
class Candidate:
    """A placement that may be asked for; `replicas` is 0 when nothing is asked of a teacher."""

    step: Step
    trainer: TrainerRole
    trainers: int
    teacher: TeacherRole | None = None
    replicas: int = 0
    shares_devices: bool = False

    @property
    def devices(self) -> int:
        return max(self.trainers, self.replicas) if self.shares_devices else self.trainers + self.replicas

    def placement(self, steps: int | None) -> Placement:
        """The figures of this candidate.

        Stages follow each other for a step: the teacher answers, the wire carries, the trainer trains; up to
        ``prefetch_steps + 1`` steps are under way. In the mean nothing is faster than the slowest stage, nor
        than all stages over the steps under way.
        """
        student = self.trainer.cost(self.trainers)
        own = student.process_seconds
        teacher = self.teacher.cost(self.replicas) if self.teacher is not None else None
        wire = self.wire_seconds
        total, limit = self._pace(own, teacher.process_seconds if teacher else 0.0, wire)
        hours = None if steps is None else steps * total / 3600.0
        return Placement(
            trainers=self.trainers,
            trainer_kind=self.trainer.kind.name,
            teacher_replicas=self.replicas,
            teacher_kind=self.teacher.kind.name if self.teacher else None,
            shares_devices=self.shares_devices,
            devices=self.devices,
            student=student,
            teacher=teacher,
            wire_bytes_per_step=self.step.wire_bytes,
            wire_seconds=wire,
            seconds_per_step=total,
            teacher_wait_ratio=max(0.0, 1.0 - own / total),
            limited_by=limit,
            tokens_per_second=self.step.batch * self.step.sizes.tokens / total,
            hours=hours,
            device_hours=None if hours is None else hours * self.devices,
            trainer_memory=self.trainer.memory(self.trainers),
            teacher_memory=self.teacher.memory() if self.teacher else None,
            simulated=None,
        )

    @property
    def wire_seconds(self) -> float:
        """Of the busiest link in a step."""
        if self.teacher is None:
            return 0.0
        from_replicas = self.step.wire_bytes / self.replicas / self.teacher.kind.link_bandwidth
        to_trainers = self.step.wire_bytes / self.trainers / self.trainer.kind.link_bandwidth
        return max(from_replicas, to_trainers)

    @property
    def seconds(self) -> float:
        """A step."""
        theirs = self.teacher.cost(self.replicas).process_seconds if self.teacher else 0.0
        return self._pace(self.trainer.cost(self.trainers).process_seconds, theirs, self.wire_seconds)[0]

    def _pace(
        self, own: float, theirs: float, wire: float
    ) -> tuple[float, Literal["trainer", "teacher", "wire", "latency"]]:
        if self.teacher is None:
            return own, "trainer"
        if self.shares_devices:  # they take turns on the device; the wire is its own memory
            return own + theirs, "trainer" if own >= theirs else "teacher"
        # A question goes to one replica as a whole.
        answer = max(theirs, self.teacher.answer_seconds(self.trainer.shares(self.trainers)[1]))
        under_way = self.step.spec.resources.prefetch_steps + 1
        latency = (own + answer + wire + ROUND_TRIP_SECONDS) / under_way
        slowest = max(own, theirs, wire)
        if latency > slowest:
            return latency, "latency"
        return slowest, "trainer" if own == slowest else "teacher" if theirs == slowest else "wire"

    def with_replicas(self, replicas: int) -> Candidate:
        """The same with another number of replicas."""
        return replace(self, replicas=replicas)

    @property
    def fits(self) -> bool:
        """Whether every process finds its memory."""
        return shortage(self) is None


def shortage(candidate: Candidate) -> str | None:
    """Which process lacks memory, with both figures and what to change; None when all fit."""
    own = candidate.trainer.memory(candidate.trainers)
    theirs = candidate.teacher.memory() if candidate.teacher is not None else None
    if own.device_bytes > own.available_bytes:
        return _trainer_shortage(candidate, own)
    if theirs is not None and theirs.device_bytes > theirs.available_bytes:
        return _teacher_shortage(candidate, theirs)
    if candidate.shares_devices and theirs is not None:
        together = own.device_bytes + theirs.device_bytes
        if together > own.available_bytes:
            return (
                f"A trainer ({_gib(own.device_bytes)}) and a teacher replica ({_gib(theirs.device_bytes)}) "
                f"need {_gib(together)} on one {candidate.trainer.kind.name}, which has "
                f"{_gib(own.available_bytes)}: give them a device each, that is at least two."
            )
    return None


def fastest(step: Step, groups: list[Group], count: int) -> list[Candidate]:
    """The fastest placements in the mean that fit, each with all devices that its trainers leave.

    Raises:
        InvalidInputError: ``does_not_fit``: no placement has the memory.
    """
    found = [candidate for candidate in _candidates(step, groups) if candidate.fits]
    if found:
        return heapq.nsmallest(count, found, key=lambda candidate: (candidate.seconds, candidate.devices))
    reasons = dict.fromkeys(filter(None, map(shortage, _candidates(step, groups))))
    raise InvalidInputError(
        "The job does not fit this cluster. " + " ".join(list(reasons)[:4]),
        code="does_not_fit",
        param="cluster",
    )


def read_wish(step: Step, groups: list[Group]) -> tuple[Candidate | None, str]:
    """The placement that the spec's resources ask for, or why there is none."""
    resources = step.spec.resources
    workers, gpus = resources.gpus_per_worker, resources.gpus_per_teacher
    needs_teacher = step.teacher is not None
    replicas = resources.teacher_replicas if needs_teacher else 0
    is_shared = bool(workers and gpus and workers + gpus <= 1 and resources.student_workers == replicas == 1)
    if resources.student_workers > step.batch:
        return None, (
            f"A global batch of {step.batch} sequences leaves nothing to do for one of "
            f"{resources.student_workers} trainers: raise hyperparameters.global_batch_size."
        )
    wanted = 1 if is_shared else resources.student_workers + replicas
    possible = [
        Candidate(
            step,
            TrainerRole(step, own),
            resources.student_workers,
            TeacherRole(step, theirs) if needs_teacher else None,
            replicas,
            is_shared,
        )
        for own, theirs in _pairs(groups, resources.student_workers, replicas, is_shared=is_shared)
    ]
    if not possible:
        return None, (
            f"resources asks for {resources.student_workers} trainers and {replicas} teacher replicas, "
            f"{wanted} devices; the cluster has {sum(count for _, count in groups)}."
        )
    fitting = [candidate for candidate in possible if candidate.fits]
    if fitting:
        return min(fitting, key=lambda candidate: candidate.seconds), ""
    return None, f"What resources asks for does not fit: {shortage(possible[0])}"


def balanced_ratio(candidate: Candidate) -> float | None:
    """Replicas a trainer at which both take as long, on the candidate's kinds."""
    if candidate.teacher is None:
        return None
    own = candidate.trainer.cost(candidate.trainers).process_seconds * candidate.trainers
    theirs = candidate.teacher.cost(candidate.replicas).process_seconds * candidate.replicas
    return theirs / own


def _pairs(
    groups: list[Group], trainers: int, replicas: int, *, is_shared: bool
) -> Iterator[tuple[DeviceKind, DeviceKind]]:
    """Kinds that have room for so many trainers and replicas."""
    for own, own_count in groups:
        for theirs, their_count in groups:
            if is_shared or not replicas:
                if own == theirs and trainers <= own_count:
                    yield own, theirs
            elif own == theirs:
                if trainers + replicas <= own_count:
                    yield own, theirs
            elif trainers <= own_count and replicas <= their_count:
                yield own, theirs


def _candidates(step: Step, groups: list[Group]) -> Iterator[Candidate]:
    """Every split worth a look, with all devices that are left given to the teacher."""
    for own, own_count in groups:
        trainer = TrainerRole(step, own)
        if step.teacher is None:
            yield from (Candidate(step, trainer, number) for number in _trainer_counts(step, own_count))
            continue
        for theirs, their_count in groups:
            teacher = TeacherRole(step, theirs)
            if own != theirs:
                for number in _trainer_counts(step, own_count):
                    yield Candidate(step, trainer, number, teacher, their_count)
                continue
            yield Candidate(step, trainer, 1, teacher, 1, shares_devices=True)
            for number in _trainer_counts(step, own_count - 1):
                yield Candidate(step, trainer, number, teacher, own_count - number)


def _trainer_counts(step: Step, most: int) -> Iterator[int]:
    """Numbers of trainers whose busiest one has less to do than with one trainer less."""
    number = 1
    while number <= min(most, step.batch):
        yield number
        share = -(-step.batch // number)
        if share == 1:
            return
        number = (step.batch - 1) // (share - 1) + 1


def trim(candidate: Candidate) -> Candidate:
    """Without the replicas that make nothing faster in the mean."""
    if candidate.teacher is None or candidate.shares_devices:
        return candidate
    low, high = 1, candidate.replicas
    target = candidate.seconds * (1.0 + 1e-9)
    while low < high:
        middle = (low + high) // 2
        if candidate.with_replicas(middle).seconds <= target:
            high = middle
        else:
            low = middle + 1
    return candidate.with_replicas(high)


def _trainer_shortage(candidate: Candidate, own: ProcessMemory) -> str:
    size = candidate.step.spec.hyperparameters.micro_batch_size
    advice = "Train a smaller student, set resources.sharding to fsdp, or take a device with more memory."
    for is_checkpointed in dict.fromkeys(
        (candidate.step.spec.hyperparameters.activation_checkpointing, True)
    ):
        fitting = _largest_micro_batch(candidate, size, is_checkpointed=is_checkpointed)
        if fitting:
            words = [f"hyperparameters.micro_batch_size: {fitting}"]
            if is_checkpointed:
                words.append("hyperparameters.activation_checkpointing: true")
            advice = f"It fits with {' and '.join(words)}."
            break
    kind = candidate.trainer.kind.name
    return (
        f"A trainer needs {_gib(own.device_bytes)} on a {kind}, which has {_gib(own.available_bytes)} "
        f"({_largest_parts(own)}). {advice}"
    )


def _largest_micro_batch(candidate: Candidate, size: int, *, is_checkpointed: bool) -> int | None:
    while size >= 1:
        role = candidate.trainer.with_micro_batch(size, is_checkpointed=is_checkpointed)
        needed = role.memory(candidate.trainers)
        if needed.device_bytes <= needed.available_bytes:
            return size
        size //= 2
    return None


def _teacher_shortage(candidate: Candidate, theirs: ProcessMemory) -> str:
    assert candidate.teacher is not None
    narrower = " a narrower teacher.dtype (bfloat16)," if candidate.teacher.precision == "float32" else ""
    if candidate.step.spec.teacher.quantisation == "none":
        narrower += " teacher.quantisation (int8, int4),"
    return (
        f"A teacher replica needs {_gib(theirs.device_bytes)} on a {candidate.teacher.kind.name}, which has "
        f"{_gib(theirs.available_bytes)} ({_largest_parts(theirs)}). A replica lives on one device: take a "
        f"smaller teacher,{narrower} or a device with more memory."
    )


def _largest_parts(needed: ProcessMemory) -> str:
    parts = sorted(needed.device, key=lambda part: -part.bytes)[:3]
    return ", ".join(f"{part.name} {_gib(part.bytes)}" for part in parts)


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
