"""Compiled layers give the student's values and gradients at any shape, from one graph for all of them.

In a process of its own, because the tests' shape checks are Python that cannot be compiled; and with a
compiler that changes nothing, because a real one needs a C++ compiler and minutes.
"""

import subprocess
import sys

SCRIPT = """
import torch
from tide_core.masks.block_attention import compact_layout
from tide_core.models.student import BlockDiffusionStudent
from tide_core.models.compiling import compile_layers
from tide_core.models.reading import read_places

CONFIG = {
    "model_type": "a2d-qwen3", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 12, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "initializer_range": 0.2, "tie_word_embeddings": True,
}
graphs = []

def recording(graph, inputs):
    graphs.append(graph)
    return graph

def gradients(student, batch, length):
    is_masked = torch.zeros(batch, length, dtype=torch.bool)
    is_masked[:, 9:12] = is_masked[0, -1] = True
    layout = compact_layout(is_masked, torch.full((batch,), length), 8)
    ids = layout.input_ids((torch.arange(batch * length) % 60).view(batch, length), 63)
    student.zero_grad()
    places = read_places(layout.masked_index, *ids.shape)
    whole = student(ids, layout.attention_mask, layout.position_ids)
    read = student.forward_at(ids, places, layout.attention_mask, layout.position_ids)
    (whole.square().mean() + read.square().mean()).backward()
    return [whole.detach(), read.detach(), *(parameter.grad.clone() for parameter in student.parameters())]

for is_checkpointing in (False, True):
    plain, compiled = (BlockDiffusionStudent.from_config(CONFIG, seed=1).train() for _ in range(2))
    compile_layers(compiled, backend=recording)
    plain.activation_checkpointing = compiled.activation_checkpointing = is_checkpointing
    assert [name for name, _ in compiled.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for batch, length in ((2, 24), (3, 40), (5, 16), (4, 56), (2, 64), (7, 32)):
        pairs = zip(gradients(compiled, batch, length), gradients(plain, batch, length), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    # Twelve layers, six shapes, and the last layer in two forms: far fewer graphs than that.
    assert 0 < len(graphs) <= 7, len(graphs)
    graphs.clear()
    torch._dynamo.reset()
"""


def test_compiled_layers_train_as_plain_ones() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
