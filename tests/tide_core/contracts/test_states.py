"""The transition table says what the design says, and nothing leads out of an end."""

import itertools

from tide_core.contracts.states import (
    ALLOWED_TRANSITIONS,
    TERMINAL_STATES,
    JobState,
    Phase,
    is_allowed,
    submission_id,
)


def test_every_state_has_a_row_and_ends_are_final() -> None:
    assert set(ALLOWED_TRANSITIONS) == set(JobState)
    assert {state for state, targets in ALLOWED_TRANSITIONS.items() if not targets} == TERMINAL_STATES


def test_every_state_that_is_not_final_can_be_cancelled_and_reached() -> None:
    for state in set(JobState) - TERMINAL_STATES - {JobState.CANCELLING}:
        assert is_allowed(state, JobState.CANCELLING), state
    reached = {target for targets in ALLOWED_TRANSITIONS.values() for target in targets}
    assert reached == set(JobState) - {JobState.QUEUED}


def test_the_main_road() -> None:
    road = [
        JobState.QUEUED,
        JobState.PREPARING,
        JobState.PROVISIONING,
        JobState.RUNNING,
        JobState.EVALUATING,
        JobState.SUCCEEDED,
    ]
    assert all(is_allowed(source, target) for source, target in itertools.pairwise(road))
    assert not is_allowed(JobState.QUEUED, JobState.RUNNING)
    assert is_allowed(JobState.RUNNING, JobState.PROVISIONING)


def test_submission_ids_are_a_function_of_job_attempt_and_phase() -> None:
    assert submission_id("j", 2, Phase.TRAIN) == "tide-j-2"
    assert len({submission_id("j", n, phase) for n in (1, 2) for phase in Phase}) == 6
