"""torch.compile makes one graph of a forward, without stepping back into Python.

In a process of its own, because the tests' shape checks are Python that cannot be compiled. The grouped
expert product, which CUDA uses, is put in the place of the CPU's loop: the loop's sizes depend on the data,
so that it stays outside of a graph.
"""

import subprocess
import sys

import pytest

PREPARATION = """
import sys
from pathlib import Path
import torch
from torch import _dynamo
from tide_core.masks.block_attention import compact_layout
from tide_core.models import mixture
from tide_core.models.dense import DenseDecoder
from tide_core.models.student import BlockDiffusionStudent
from tide_core.models.teachers.llada2_moe import LLaDA2MoeModel
from tide_core.models.quantisation import quantise_layer

mixture.uses_grouped_product = lambda rows: True
SHARED = {
    "vocab_size": 89, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.3,
}
MOE = SHARED | {
    "model_type": "llada2_moe", "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2,
    "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "partial_rotary_factor": 0.5,
}
WEDLM = SHARED | {"model_type": "wedlm", "qk_norm": True, "attention_bias": False}
STUDENT = SHARED | {"model_type": "a2d-qwen3", "tie_word_embeddings": True}
is_masked = torch.zeros(2, 24, dtype=torch.bool)
is_masked[:, 10:14] = is_masked[1, 20] = True
layout = compact_layout(is_masked, torch.tensor([24, 24]), 8)
ids = layout.input_ids(torch.arange(48).view(2, 24), 5)
FORMS = {
    "block pattern": (ids, layout.attention_mask, layout.position_ids),
    "padding": (ids, torch.ones(ids.shape, dtype=torch.bool)),
    "everything": (ids,),
}

def quantised(model, kind):
    for index, layer in enumerate(model.layers):
        quantise_layer(layer, kind, str(index))
    return model

def check(model, tolerance):
    for name, inputs in FORMS.items():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")  # a break is an error
        close = {"atol": tolerance, "rtol": tolerance, "msg": lambda text: f"{name}: {text}"}
        torch.testing.assert_close(compiled(*inputs), model(*inputs), **close)
        _dynamo.reset()
"""
CASES = {
    "sparse teacher": """
with torch.no_grad():
    check(LLaDA2MoeModel.from_config(MOE, dtype=torch.bfloat16).eval(), 2e-2)
""",
    "sparse teacher in 4 bits": """
with torch.no_grad():
    check(quantised(LLaDA2MoeModel.from_config(MOE, dtype=torch.bfloat16).eval(), "int4"), 2e-2)
""",
    "dense teacher": """
with torch.no_grad():
    check(DenseDecoder.from_config(WEDLM).eval(), 1e-4)
""",
    "dense teacher in 8 bits": """
with torch.no_grad():
    check(quantised(DenseDecoder.from_config(WEDLM).eval(), "int8"), 1e-4)
""",
    "student in training": """
model = BlockDiffusionStudent.from_config(STUDENT)
check(model, 1e-4)
def gradients(forward):
    model.zero_grad()
    forward(*FORMS["block pattern"]).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
for one, other in zip(gradients(compiled), gradients(model), strict=True):
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
""",
}


# A minute more: the long tests have them. A student's layers compile in tests/workers/student.
MARKS = {name: [pytest.mark.soak] for name in CASES if "bits" in name or "student" in name}


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, [])) for name in CASES])
def test_a_forward_compiles_into_one_graph(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PREPARATION + CASES[name]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
