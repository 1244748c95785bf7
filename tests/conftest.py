"""What every test stands on: shape checks in `tide_core`, and shared fixtures."""

from jaxtyping import install_import_hook

import tests.support.shape_checks  # noqa: F401 - jaxtyping looks it up by name
from tests.support.tree_entry_points import install_entry_points

install_entry_points()

# Annotations such as Float[Tensor, "batch chunk"] are checked in every call under test, at no cost in
# production. The hook must be there before the first import of these modules. The contracts are left out:
# pydantic checks them already, and its validators use annotations that only a class can resolve.
CHECKED = "alignment data evaluation losses masks models objective samplers schedules studies training"
install_import_hook([f"tide_core.{name}" for name in CHECKED.split()], "tests.support.shape_checks.checked")
# Of the workers, the modules that compute with tensors.
CHECKED_WORKERS = (
    "evaluation.held_out evaluation.noise evaluation.readout evaluation.tally evaluation.teacher_sampling"
)
install_import_hook(
    [f"workers.{name}" for name in CHECKED_WORKERS.split()], "tests.support.shape_checks.checked"
)

pytest_plugins = [
    "tests.support.skips",
    "tests.support.fixtures_jobs",
    "tests.support.fixtures_runs",
    "tests.support.fixtures_tokenizers",
]
