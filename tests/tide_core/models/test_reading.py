"""Reading a forward at some places gives what the whole forward gives there, gradients included."""

import pytest
import torch
from torch import Tensor

from tide_core.models.decoder import Decoder
from tide_core.models.quantisation import quantise_layer
from tide_core.models.reading import read_places
from workers.teachers.tiny import tiny_teacher

BATCH, SEQ = 3, 12


def pattern(kind: str) -> Tensor | None:
    generator = torch.Generator().manual_seed(4)
    if kind == "none":
        return None
    if kind == "padding":
        return torch.arange(SEQ) < torch.tensor([[12], [7], [9]])
    shape = (1 if kind == "shared" else BATCH, 1, SEQ, SEQ)
    return torch.rand(shape, generator=generator) < 0.4


@pytest.fixture(params=["llada2_moe", "wedlm"])
def model(request: pytest.FixtureRequest) -> Decoder:
    return tiny_teacher(request.param, seed=2).requires_grad_(True)


def gradients(model: Decoder, read: Tensor) -> list[Tensor]:
    weights = [weight for name, weight in model.named_parameters() if "lm_head" not in name]
    weights = [weight for weight in weights if weight.requires_grad]
    factors = torch.rand(read.shape, generator=torch.Generator().manual_seed(9))
    found = torch.autograd.grad((read * factors).sum(), weights, allow_unused=True)
    return [torch.zeros(1) if gradient is None else gradient for gradient in found]


@pytest.mark.parametrize("kind", ["none", "padding", "shared", "own"])
@pytest.mark.parametrize(
    "index",
    [[0, 5, 11, 13, 30, 35], [35, 2, 14, 1, 12], list(range(BATCH * SEQ)), [7]],
    ids=["in order", "out of order", "everywhere", "one row alone"],
)
def test_equals_the_whole_forward(model: Decoder, kind: str, index: list[int]) -> None:
    ids = torch.randint(0, 256, (BATCH, SEQ), generator=torch.Generator().manual_seed(1))
    places, mask = read_places(torch.tensor(index), BATCH, SEQ), pattern(kind)
    whole = model(ids, mask).flatten(0, 1)[places.index]
    read = model.forward_at(ids, places, mask)
    torch.testing.assert_close(read, whole, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients(model, read), gradients(model, whole), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_checkpointed_and_frozen_forms_give_the_same(model: Decoder) -> None:
    ids = torch.randint(0, 256, (BATCH, SEQ), generator=torch.Generator().manual_seed(1))
    places = read_places(torch.tensor([3, 20, 21]), BATCH, SEQ)
    read = model.forward_at(ids, places)
    frozen = model.hidden_at(ids, places)
    assert not frozen.requires_grad
    assert torch.equal(frozen, read)
    model.activation_checkpointing = True
    again = model.forward_at(ids, places)
    for one, other in zip(gradients(model, again), gradients(model, read), strict=True):
        torch.testing.assert_close(one, other)


def test_a_quantised_model_reads_what_it_computes() -> None:
    model = tiny_teacher("wedlm", seed=2)
    for layer in model.layers:
        quantise_layer(layer, "int8", "layer")
    ids, places = torch.arange(2 * SEQ).view(2, SEQ), read_places(torch.tensor([1, 15, 3]), 2, SEQ)
    torch.testing.assert_close(
        model.hidden_at(ids, places), model.hidden_states(ids).flatten(0, 1)[places.index]
    )


def test_nothing_to_read(model: Decoder) -> None:
    nothing = read_places(torch.zeros(0, dtype=torch.long), BATCH, SEQ)
    read = model.forward_at(torch.zeros(BATCH, SEQ, dtype=torch.long), nothing)
    assert read.shape == (0, model.hidden_size)
