"""The naive arm and Tide's own step compute the same thing; only then is comparing their times fair."""

import pytest
import torch

from benchmarks.arms import make_arm
from benchmarks.naive.step import NaiveArm
from benchmarks.scenario import SCENARIOS, Sizes, batch_of, samples

SMALL = Sizes(
    vocab=211,
    length=96,
    batch=4,
    block=16,
    hidden=32,
    layers=2,
    teacher_hidden=32,
    teacher_layers=3,
    # Far from flat distributions, so that a wrong teacher would show.
    weight_scale=0.2,
)
TOLERANCE = 1e-4


def one_step(arm_name: str, scenario_name: str) -> tuple[float, dict[str, float], dict[str, torch.Tensor]]:
    scenario = SCENARIOS[scenario_name]
    arm = make_arm(arm_name, scenario, SMALL)
    loss, parts = arm.step(batch_of(samples(scenario, SMALL, 1), SMALL, 0), 0.0)
    gradients = {name: gradient.clone() for name, gradient in arm.gradients().items()}
    arm.close()
    return loss, parts, gradients


@pytest.mark.parametrize("name", SCENARIOS)
def test_loss_and_gradients_agree(name: str) -> None:
    naive_loss, naive_parts, naive_gradients = one_step("naive", name)
    loss, parts, gradients = one_step("tide", name)

    assert loss == pytest.approx(naive_loss, rel=TOLERANCE)
    assert parts == pytest.approx(naive_parts, rel=TOLERANCE)
    assert gradients.keys() == naive_gradients.keys()
    for key, gradient in gradients.items():
        difference = (gradient - naive_gradients[key]).norm() / naive_gradients[key].norm()
        assert float(difference) < TOLERANCE, key


@pytest.mark.parametrize("name", ["reverse_calm", "tidal_compdemo"])
def test_a_wrong_teacher_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tolerance is fine enough: shifting the teacher's logits a little parts the arms."""
    right = one_step("naive", name)[2]
    teacher_logits = NaiveArm.teacher_logits
    monkeypatch.setattr(NaiveArm, "teacher_logits", lambda arm, batch: teacher_logits(arm, batch) * 1.1)
    wrong = one_step("naive", name)[2]
    key = "model.norm.weight"
    assert float((right[key] - wrong[key]).norm() / right[key].norm()) > TOLERANCE
