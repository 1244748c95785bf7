"""Every benchmark runs at small sizes, the GPU's too, and what it reports hangs together."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import alignment, gpu, held_answers, losses, pieces, system
from benchmarks.aims import AIMS, findings, table
from benchmarks.measuring import PeakMemory, alternate, machine
from benchmarks.plots import draw_all
from benchmarks.scenario import SCENARIOS, Sizes, as_json, samples
from benchmarks.step import peak_memory, time_both, time_one

SMALL = Sizes(
    vocab=256, length=64, batch=2, block=16, hidden=32, layers=2, teacher_hidden=32, teacher_layers=2
)


def test_memory_is_counted_where_it_is_highest() -> None:
    with PeakMemory() as peak:
        torch.ones(16 * 2**20)
    assert 60 * 2**20 < peak.bytes < 90 * 2**20


def test_calls_take_turns_and_warm_up_does_not_count() -> None:
    order: list[str] = []
    taken = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2, warmup=1)
    assert order == ["a", "b"] * 3
    assert taken.keys() == {"a", "b"}


@pytest.mark.parametrize("name", ["reverse_calm", "tidal_compdemo"])
def test_samples_have_the_stated_shape(name: str) -> None:
    for sample in samples(SCENARIOS[name], SMALL, 2):
        assert sample.student_ids.size == SMALL.length
        assert (sample.labels == -100).sum() == SMALL.length // 2
        if sample.teacher_positions is not None:
            aligned = np.flatnonzero(sample.teacher_positions >= 0)
            at_teacher = sample.teacher_ids[sample.teacher_positions[aligned]]
            assert np.array_equal(sample.student_ids[aligned], at_teacher)


def test_step_compares_equal_arms() -> None:
    found = time_both(SCENARIOS["kl"], SMALL, repeats=2, warmup=1, device="cpu")
    assert found["loss_difference"] < 1e-4
    assert found["ratio"] == pytest.approx(found["seconds"]["naive"] / found["seconds"]["tide"])


def test_the_naive_arm_holds_more() -> None:
    sizes = Sizes(vocab=8000, length=128, batch=4, hidden=32, layers=1, teacher_hidden=32, teacher_layers=2)
    naive, tide = (peak_memory(arm, SCENARIOS["reverse_calm"], sizes) for arm in ("naive", "tide"))
    assert naive["bytes"] > 2 * tide["bytes"]
    # The heaviest single thing it holds: float32 logits at both copies of every token.
    assert naive["bytes"] > 4 * sizes.batch * 2 * sizes.length * sizes.vocab


def test_alignment_agrees_with_the_loop() -> None:
    found = alignment.measure(repeats=1, contents=4, tokens=64)  # asserts that both cut the same chunks
    assert found["tokens"] > 300


def test_losses_agree_plain_and_fused() -> None:
    x = losses.operands(16, 300, 8, 12)
    assert losses.times(x, repeats=1).keys() == losses.FUSED.keys()  # asserts that the gradients agree
    assert losses.peaks(x).keys() == losses.PLAIN.keys()


def test_pieces_run() -> None:
    assert pieces.masks(SMALL, repeats=1)["kept_tokens"] < pieces.masks(SMALL, repeats=1)["whole_tokens"]
    assert pieces.engine(SMALL, repeats=1, requests=4)["batch_fill"] > 0.5
    assert pieces.cache(SMALL, repeats=1).keys() == {"reverse_calm", "tidal_compdemo"}
    assert pieces.sampler(SMALL, repeats=1, new_tokens=16)["4"]["tokens_per_forward"] == pytest.approx(4.0)


def test_the_wire_carries_what_is_promised() -> None:
    sizes = Sizes(vocab=256, length=256, batch=32, hidden=32, layers=1, teacher_hidden=64, teacher_layers=2)
    for row in pieces.wire(sizes).values():
        assert row["promised"] <= row["bytes_per_masked_token"] < 1.05 * row["promised"]


def test_held_answers_say_when_there_is_no_nixl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "tide-distill[nixl]" in held_answers.measure((4,), repeats=1)


def test_flops_count_what_a_token_multiplies_with() -> None:
    model = pieces.teacher("dense", SMALL)
    weights = sum(weight.numel() for layer in model.layers for weight in layer.parameters())
    attention = 2 * 4 * 3 * 10**2 * model.config.num_attention_heads * model.config.head_dim
    assert pieces.forward_flops(model, 3, 10) == 2 * 30 * weights + attention
    mixture = pieces.teacher("mixture", SMALL)
    everything = sum(weight.numel() for layer in mixture.layers for weight in layer.parameters())
    assert pieces.forward_flops(mixture, 1, 1) < 2 * everything


def test_a_study_of_six_costs_as_much_as_one() -> None:
    found = system.study(steps=1)
    assert len(found["variants"]) == 6
    assert found["ratio"] == 1.0
    # Two views instead of one, beside the questions that the other variants share.
    assert found["ratio_with_compdemo"] == pytest.approx(1.0 + found["ratio_compdemo_alone"])


def test_gpu_code_runs_on_the_cpu() -> None:
    found = gpu.forwards(SMALL, "cpu", repeats=1)
    assert found["grouped_over_loop"] > 0
    assert 0 < found["dense"]["share_of_peak"] < 2
    waiting = gpu.waiting(SCENARIOS["tidal_compdemo"], SMALL, "cpu", number_of_steps=2)
    assert 0 <= waiting["wait_ratio"] < 1
    alone = time_one("naive", SCENARIOS["reverse_calm"], SMALL, repeats=1, warmup=1, device="cpu")
    assert alone["seconds"] > 0


@pytest.mark.soak
@pytest.mark.slow
def test_gpu_engine_runs_on_the_cpu() -> None:
    script = (
        "import json; from benchmarks import gpu; from benchmarks.scenario import Sizes;"
        f"print(json.dumps(gpu.engine({SMALL!r}, 'cpu', repeats=1, backend='eager', requests=3)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["seconds"]) == {"serial", "streams", "compiled"}
    assert all(value > 0 for value in found["tokens_per_second"].values())


@pytest.mark.soak  # four processes that import everything; what they run is tested above in this one
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_gpu_steps_run_in_processes_of_their_own() -> None:
    found = gpu.steps(SCENARIOS["reverse_calm"], SMALL, "cpu", repeats=1)
    assert found["seconds"].keys() == found["peak_bytes"].keys() == {"naive", "tide"}


def results() -> dict[str, Any]:
    step = {
        "seconds": {"naive": 3.0, "tide": 1.0},
        "ratio": 3.0,
        "memory_share": 0.2,
        "scenario": "reverse_calm",
        "sizes": as_json(SMALL),
    }
    growth = [{"sizes": {"vocab": vocab}, "bytes": size} for vocab, size in ((32_000, 100), (152_000, 120))]
    return {
        "machine": machine(),
        "step": {"reverse_calm": step},
        "growth": {"length": [step, step]},
        "vocabulary_memory": growth,
        "system": {"scaling": [{"trainers": n, "teacher_speed": 3.0, "throughput_ratio": n} for n in (1, 2)]},
    }


def test_aims_are_judged_by_their_side() -> None:
    judged = {found.aim.name: found.is_met for found in findings(results())}
    assert judged["Reverse CALM step, times faster than naive"]
    assert not judged["Growth of step memory, vocabulary 32k to 152k"]
    assert judged["Throughput of two trainers on one replica"]
    # What was not run is not judged.
    assert len(judged) < len(AIMS)
    assert "missed" in table(results())
    json.dumps(results())


def test_plots_are_drawn(tmp_path: Path) -> None:
    pictures = draw_all(results(), tmp_path)
    assert {picture.name for picture in pictures} == {
        "step.png",
        "growth-length.png",
        "vocabulary-memory.png",
        "scaling.png",
    }
    assert all(picture.stat().st_size > 1000 for picture in pictures)
