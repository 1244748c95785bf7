"""A teacher with compiled layers answers as a plain one, from few graphs for all lengths and batches.

In a process of its own, because the tests' shape checks are Python that cannot be compiled; and with a
compiler that changes nothing, because a real one needs a C++ compiler and minutes.
"""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from functools import partial
from pathlib import Path
import numpy as np
from tide_core.contracts.job import TeacherSpec
from tide_core.contracts.scores import Layout, ScoreRequest, Want
from workers.teachers import loading
from workers.teachers.tiny import write_tiny_teacher

graphs = []

def recording(graph, inputs):
    graphs.append(graph)
    return graph

loading.compile_layers = partial(loading.compile_layers, backend=recording)
folder = str(write_tiny_teacher(Path(sys.argv[1]), sys.argv[2]))
plain, compiled = (
    loading.load_for_serving(TeacherSpec(model=folder, compile=is_compiled)) for is_compiled in (False, True)
)
assert plain.description == compiled.description
for lengths in ([24], [40, 33], [16, 16, 9, 12]):
    draws = np.random.default_rng(sum(lengths))
    for layout, want in ((Layout.BIDIRECTIONAL, Want.TARGET_LOG_PROB), (Layout.BLOCK_STAIRCASE, Want.HIDDEN)):
        request = ScoreRequest(
            token_ids=draws.integers(0, 256, sum(lengths)).astype(np.int32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            groups=(draws.random(sum(lengths)) < 0.5).astype(np.uint8),
            layout=layout, want=want, block_size=8,
        )
        one, other = (each.engine.submit(request).result(60).values for each in (plain, compiled))
        if want is Want.HIDDEN:
            assert (one == other).mean() > 0.95
        else:
            np.testing.assert_allclose(one, other, atol=1e-4)
count = len(graphs)
assert 0 < count <= int(sys.argv[3]), count
for each in (plain, compiled):
    each.engine.close()
"""


@pytest.mark.parametrize(
    ("kind", "most"), [("wedlm", 8), pytest.param("llada2_moe", 20, marks=pytest.mark.soak)]
)
def test_compiled_layers_answer_as_plain_ones(kind: str, most: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "teacher"), kind, str(most)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
