"""Quantised weights: against a loop in plain Python, within a bound, in fewer bytes, as another teacher."""

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tide_core.checkpoints.fingerprint import fingerprint
from tide_core.contracts.errors import InvalidInputError, NonFiniteError
from tide_core.contracts.job import Quantisation
from tide_core.contracts.teacher import bits_per_weight
from tide_core.models import mixture
from tide_core.models.dense import DenseConfig, DenseDecoder
from tide_core.models.mixture import Experts
from tide_core.models.quantisation import (
    QuantisedExperts,
    QuantisedLinear,
    QuantisedMatrix,
    memory_bytes,
    pack,
    parameter_count,
    quantise_layer,
    unpack,
)
from tide_core.models.teachers.adapter import load_teacher
from tide_core.models.teachers.llada2_moe import LLaDA2MoeConfig, LLaDA2MoeModel

KEPT = ("embed_tokens.weight", "word_embeddings.weight", "lm_head.weight", "mlp.gate.weight")
KINDS: tuple[Quantisation, ...] = ("int8", "int4")


def bfloat16(number: float) -> float:
    """Round to bfloat16, ties to even, by the bits of the float32."""
    (bits,) = struct.unpack("<I", struct.pack("<f", number))
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return float(struct.unpack("<f", struct.pack("<I", rounded & 0xFFFFFFFF))[0])


def oracle(row: list[float], bits: int) -> list[float]:
    """A row as it comes back, group by group of 32, by the definition in ``quantisation.py``."""
    lowest = -(2 ** (bits - 1))
    restored = []
    for start in range(0, len(row), 32):
        group = row[start : start + 32]
        extreme = max(group, key=abs)
        scale = bfloat16(extreme / lowest)
        for number in group:
            multiple = round(number / scale) if scale else 0
            restored.append(min(max(multiple, lowest), -lowest - 1) * scale)
    return restored


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [32, 96, 7, 33])
def test_a_matrix_comes_back_as_the_loop_says(kind: Quantisation, columns: int) -> None:
    weight = torch.randn(5, columns, generator=torch.Generator().manual_seed(columns))
    weight[1] = 0.0
    weight[2] *= 1e-30
    weight[3] *= 1e20
    matrix = QuantisedMatrix(weight, kind, "weight")
    expected = torch.tensor([oracle(row, matrix.bits) for row in weight.tolist()], dtype=torch.float64)
    restored = matrix.restore(torch.float64)
    scale = weight.abs().amax(1, keepdim=True).double() / 2 ** (matrix.bits - 1)
    off = (restored - expected).abs() / scale.clamp_min(1e-300)
    # Where a number lies halfway between two multiples, float32 and float64 may choose differently.
    assert (off < 1e-2).float().mean() > 0.99
    assert off.max() < 1.1
    assert not restored[1].any()


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), size=st.sampled_from([1e-6, 0.02, 1.0, 300.0]))
@settings(max_examples=30, deadline=None)
def test_no_number_moves_by_more_than_a_step(kind: Quantisation, data: st.DataObject, size: float) -> None:
    seed = data.draw(st.integers(0, 2**31))
    columns = data.draw(st.integers(1, 80))
    weight = torch.randn(3, columns, generator=torch.Generator().manual_seed(seed)) * size
    matrix = QuantisedMatrix(weight, kind, "weight")
    levels = 2 ** (matrix.bits - 1)
    for start in range(0, columns, 32):
        part = weight[:, start : start + 32].double()
        step = part.abs().amax(1, keepdim=True) / levels
        error = (matrix.restore(torch.float64)[:, start : start + 32] - part).abs()
        # Half a step; up to a whole one at the end of the range that lacks a level. The step was rounded to
        # bfloat16 (by 2^-8 at most), which a number at the end of the range feels once a level.
        is_last = part.abs() > (levels * (1 - 2**-8) - 1) * step
        bound = torch.where(is_last, 1.0 + levels * 2**-8, 0.5 * (1 + 2**-7))
        assert (error <= step * bound).all()


def test_the_largest_number_of_a_group_survives() -> None:
    weight = torch.tensor([[0.01, -0.5, 0.02, 0.25], [0.01, 0.5, 0.02, -0.25]])
    for kind in KINDS:
        restored = QuantisedMatrix(weight, kind, "w").restore(torch.float32)
        assert torch.equal(restored[:, 1], weight[:, 1])
        assert torch.equal(restored[:, 3], weight[:, 3])


def test_packing_is_exact_and_two_to_a_byte() -> None:
    multiples = torch.randint(-8, 8, (4, 64), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    packed = pack(multiples)
    assert packed.shape == (4, 32)
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack(packed), multiples)
    for row, column in ((0, 0), (2, 40)):
        group, place = divmod(column, 32)
        byte = int(packed[row, 16 * group + place % 16])
        assert (byte >> (4 * (place // 16))) % 16 - 8 == multiples[row, column]


def test_quantising_twice_changes_nothing_more() -> None:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(3))
    for kind in KINDS:
        once = QuantisedMatrix(weight, kind, "w").restore(torch.float32)
        assert torch.equal(QuantisedMatrix(once, kind, "w").restore(torch.float32), once)


@pytest.mark.parametrize("kind", KINDS)
def test_modules_compute_with_the_restored_weights(
    kind: Quantisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear = nn.Linear(40, 9)
    inputs = torch.randn(2, 3, 40)
    layer = QuantisedLinear(linear, kind, "linear")
    restored = QuantisedMatrix(linear.weight, kind, "w").restore(torch.float32)
    torch.testing.assert_close(layer(inputs), inputs @ restored.T + linear.bias)
    experts = Experts(5, 40, 16)
    nn.init.normal_(experts.gate_up)
    nn.init.normal_(experts.down)
    quantised = QuantisedExperts(experts, kind, "experts")
    with torch.no_grad():
        experts.gate_up.copy_(torch.stack([_round_trip(m, kind) for m in experts.gate_up]))
        experts.down.copy_(torch.stack([_round_trip(m, kind) for m in experts.down]))
    tokens, weights = torch.randn(4, 40), torch.rand(4, 2)
    chosen = torch.tensor([[0, 2], [2, 4], [0, 2], [4, 2]])
    torch.testing.assert_close(quantised(tokens, weights, chosen), experts(tokens, weights, chosen))
    monkeypatch.setattr(mixture, "uses_grouped_product", lambda rows: True)
    tokens = tokens.bfloat16()
    torch.testing.assert_close(
        quantised(tokens, weights, chosen), experts.bfloat16()(tokens, weights, chosen)
    )


def _round_trip(matrix: Tensor, kind: Quantisation) -> Tensor:
    return QuantisedMatrix(matrix, kind, "w").restore(matrix.dtype)


@pytest.fixture
def folders(
    dense_config: Callable[..., DenseConfig], moe_config: Callable[..., LLaDA2MoeConfig], tmp_path: Path
) -> dict[str, Path]:
    """A dense and a sparse model whose sizes are whole groups."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
    moe = moe_config(**sizes, moe_intermediate_size=32, use_qkv_bias=True)
    models = {
        "dense": DenseDecoder.from_config(dense_config("wedlm", **sizes, tie_word_embeddings=False)),
        "moe": LLaDA2MoeModel.from_config(moe),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name, max_shard_bytes=60_000)
    return {name: tmp_path / name for name in models}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["dense", "moe"])
def test_all_layer_matrices_are_quantised_and_nothing_else(
    folders: dict[str, Path], name: str, kind: Quantisation
) -> None:
    whole = load_teacher(folders[name])
    model = load_teacher(folders[name], quantisation=kind)
    kept = {
        key: tensor
        for key, tensor in whole.checkpoint_tensors().items()
        if tensor.ndim == 1 or key.endswith(KEPT)
    }
    own = dict(model.named_parameters())
    assert sum(parameter.numel() for parameter in own.values()) == sum(t.numel() for t in kept.values())
    assert torch.equal(own["embedding.weight"], whole.embedding.weight)
    assert torch.equal(own["lm_head.weight"], whole.lm_head.weight)
    if name == "moe":
        assert torch.equal(
            own["layers.1.feed_forward.router.weight"], whole.layers[1].feed_forward.router.weight
        )
    assert parameter_count(model) == parameter_count(whole) == sum(p.numel() for p in whole.parameters())
    quantised = parameter_count(whole) - sum(t.numel() for t in kept.values())
    expected = sum(t.nbytes for t in kept.values()) + quantised * bits_per_weight(kind) / 8
    assert memory_bytes(model) == expected
    assert memory_bytes(whole) == 4 * parameter_count(whole)
    with pytest.raises(InvalidInputError, match="load it without quantisation") as caught:
        model.save_pretrained(folders[name].parent / "copy")
    assert caught.value.param == "quantisation"


class Watched(LLaDA2MoeModel):
    """Notes the state of all layers whenever one of them is about to be filled."""

    seen: ClassVar[list[list[str]]] = []

    def layer_tensors(self, index: int) -> dict[str, Tensor]:
        self.seen.append([state(layer) for layer in self.layers])
        return super().layer_tensors(index)


def state(layer: nn.Module) -> str:
    if any(parameter.is_meta for parameter in layer.parameters()):
        return "empty"
    return "whole" if any(isinstance(module, nn.Linear) for module in layer.modules()) else "quantised"


def test_no_more_than_one_layer_is_whole_while_loading(folders: dict[str, Path]) -> None:
    Watched.seen.clear()
    Watched.from_pretrained(folders["moe"], quantisation="int8")
    checking, filling = Watched.seen[:3], Watched.seen[3:]
    assert checking == 3 * [["empty"] * 3]
    assert filling == [
        ["whole", "empty", "empty"],
        ["quantised", "whole", "empty"],
        ["quantised", "quantised", "whole"],
    ]


def test_four_bits_lose_more_than_eight_and_another_seed_more_than_both(folders: dict[str, Path]) -> None:
    whole = load_teacher(folders["moe"])
    ids = torch.arange(48).view(2, 24)
    errors = [
        (load_teacher(folders["moe"], quantisation=kind).hidden_states(ids) - whole.hidden_states(ids))
        .norm()
        .item()
        for kind in KINDS
    ]
    unrelated = LLaDA2MoeModel.from_config(whole.config, seed=1).hidden_states(ids)
    assert 0 < 5 * errors[0] < errors[1] < (unrelated - whole.hidden_states(ids)).norm().item() / 2


def test_a_quantised_teacher_is_another(folders: dict[str, Path]) -> None:
    folder = folders["dense"]
    prints = {fingerprint(folder, "float32", kind) for kind in ("none", *KINDS)}
    assert len(prints) == 3
    assert fingerprint(folder, "float32") in prints


def test_an_unknown_quantisation_is_refused(folders: dict[str, Path]) -> None:
    jaxtyping.config.update(
        "jaxtyping_disable", True
    )  # else the tests' own checks of annotations speak first
    try:
        with pytest.raises(InvalidInputError, match="int8, int4") as caught:
            load_teacher(folders["dense"], quantisation="int3")  # type: ignore[arg-type]
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert caught.value.param == "quantisation"


def test_a_nan_is_found_by_name_and_not_rounded_away(folders: dict[str, Path]) -> None:
    for file in folders["moe"].glob("*.safetensors"):
        tensors = load_file(file)
        for key, tensor in tensors.items():
            if key == "model.layers.2.mlp.experts.7.up_proj.weight":
                tensor[1, 2] = math.nan
        save_file(tensors, file)
    with pytest.raises(NonFiniteError) as caught:
        load_teacher(folders["moe"], quantisation="int8")
    assert caught.value.param == "model.layers.2.feed_forward.experts.gate_up"


def test_a_layers_modules_are_replaced_in_place() -> None:
    layer = nn.Sequential(nn.Linear(32, 16), nn.Sequential(nn.Linear(16, 4), nn.LayerNorm(4)))
    quantise_layer(layer, "int4", "layer")
    kinds = [type(module) for module in layer.modules() if not isinstance(module, nn.Sequential)]
    assert kinds == [QuantisedLinear, QuantisedMatrix, QuantisedLinear, QuantisedMatrix, nn.LayerNorm]
