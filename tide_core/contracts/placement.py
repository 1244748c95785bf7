"""Which nodes of a cluster are for what: a label on the nodes, asked for by what runs there."""

from __future__ import annotations

from enum import StrEnum

from tide_core.contracts.states import Phase

PURPOSE_LABEL = "tide.dev/purpose"
"""Label of a Ray node; the chart's worker groups carry it, elsewhere it is given to `ray start --labels`."""


class Purpose(StrEnum):
    """What a node is for."""

    PREPARATION = "preparation"
    TRAINER = "trainer"
    TEACHER = "teacher"


def labels_for(purpose: Purpose) -> dict[str, str]:
    """The labels that a node for this purpose carries."""
    return {PURPOSE_LABEL: purpose.value}


def purpose_of(phase: Phase) -> Purpose:
    """Where the processes of a phase run; evaluation holds a student, as training does."""
    return Purpose.PREPARATION if phase is Phase.PREPARE else Purpose.TRAINER
