"""The pieces of the score path and of the step, each on its own.

Run: ``python -m benchmarks.pieces --repeats N``, in a process with the allocator settings of a worker.
"""

from __future__ import annotations

import argparse
import json
import pickle
import tempfile
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import alignment
from benchmarks.arms import FINGERPRINT, describe
from benchmarks.measuring import alternate, in_a_fresh_process, matmul_flops, median_seconds
from benchmarks.naive.batch import naive_batch, staircase_mask
from benchmarks.scenario import SCENARIOS, Scenario, Sizes, recipe, samples, student, teacher
from tide_core.contracts.scores import ScoreRequest, ScoreResponse, Want
from tide_core.models.decoder import Decoder
from tide_core.models.mixture import MixtureFeedForward
from tide_core.samplers.block import sample
from tide_core.samplers.settings import SamplerSettings
from tide_core.scoring.layouts import footprint, samples_of
from tide_core.scoring.transport import ScoreTransport
from tide_core.training.collating import MicroBatch, collate
from tide_core.training.drawing import draw
from workers.scores.cache import CachingTransport, ScoreCache
from workers.scores.local_transport import LocalTransport
from workers.teachers.engine import TeacherEngine


def micro_batch(scenario: Scenario, sizes: Sizes) -> MicroBatch:
    """The first micro-batch of a scenario."""
    own = recipe(scenario, sizes)
    return collate(
        [draw(row, 0, own) for row in samples(scenario, sizes, 1)], own, mask_token_id=sizes.mask_id
    )


def request_of(scenario: Scenario, sizes: Sizes, *, job_id: str = "bench") -> ScoreRequest:
    """Its question to the teacher."""
    request = micro_batch(scenario, sizes).request
    assert request is not None, "a teacher is asked"
    return replace(request, job_id=job_id)


def masks(sizes: Sizes, *, repeats: int) -> dict[str, Any]:
    """Drawing and laying out a micro-batch, against whole copies with a mask over all of them."""
    scenario = SCENARIOS["reverse_calm"]
    own = recipe(scenario, sizes)
    rows = samples(scenario, sizes, 1)

    def compact() -> object:
        return collate([draw(row, 0, own) for row in rows], own, mask_token_id=sizes.mask_id)

    def whole() -> object:
        batch = naive_batch([draw(row, 0, own) for row in rows], sizes.mask_id)
        return staircase_mask(batch.lengths, batch.x_0.shape[1], sizes.block, x0_first=False)

    taken = alternate({"tide": compact, "naive": whole}, repeats=repeats)
    kept = micro_batch(scenario, sizes).input_ids
    return {"seconds": taken, "kept_tokens": kept.numel(), "whole_tokens": 2 * sizes.batch * sizes.length}


def losses(sizes: Sizes, rows: int, *, repeats: int) -> dict[str, Any]:
    """Each loss plain and fused."""
    flags = ["--rows", str(rows), "--vocab", str(sizes.vocab), "--repeats", str(repeats)]
    flags += ["--width", str(sizes.hidden), "--teacher-width", str(sizes.teacher_hidden)]
    return {
        "rows": rows,
        "vocab": sizes.vocab,
        "seconds": in_a_fresh_process("benchmarks.losses", ["time", *flags]),
        "peak_bytes": in_a_fresh_process("benchmarks.losses", ["memory", *flags], memory=True),
    }


def engine(sizes: Sizes, *, repeats: int, requests: int = 16) -> dict[str, Any]:
    """One-sequence requests of two jobs through the engine: batched, and one after the other."""
    scenario = SCENARIOS["reverse_calm"]
    served = make_engine(teacher("mixture", sizes))
    asked = _single_requests(scenario, sizes, requests)

    def together() -> None:
        answers: list[Future[ScoreResponse]] = [served.submit(request) for request in asked]
        for answer in answers:
            answer.result()

    def in_turn() -> None:
        for request in asked:
            served.submit(request).result()

    taken = alternate({"batched": together, "one by one": in_turn}, repeats=repeats)
    figures = served.statistics()
    served.close()
    tokens = sum(footprint(part).tokens for request in asked for part in samples_of(request))
    return {
        "requests": requests,
        "tokens": tokens,
        "tokens_per_second": {name: tokens / spent for name, spent in taken.items()},
        "batch_fill": figures.batch_fill,
    }


def _single_requests(scenario: Scenario, sizes: Sizes, count: int) -> list[ScoreRequest]:
    """Questions of two jobs about one sequence each; sequences without a masked token ask nothing."""
    own = recipe(scenario, sizes)
    asked: list[ScoreRequest] = []
    rows = samples(scenario, sizes, 2 * count)
    for row in rows:
        request = collate([draw(row, 0, own)], own, mask_token_id=sizes.mask_id).request
        if request is not None:
            asked.append(replace(request, job_id=f"job-{len(asked) % 2}"))
        if len(asked) == count:
            break
    return asked


def make_engine(model: Decoder) -> TeacherEngine:
    """An engine over drawn weights."""
    return TeacherEngine(model, fingerprint=FINGERPRINT, tokenizer_fingerprint=FINGERPRINT)


def wire(sizes: Sizes) -> dict[str, Any]:
    """Bytes of a pickled answer for each masked token, beside what the contract promises."""
    found = {}
    for name in ("reverse_calm", "calm_tidal_compdemo", "kl", "tidal_compdemo"):
        scenario = SCENARIOS[name]
        request = request_of(scenario, sizes)
        served = make_engine(teacher(scenario.teacher, sizes))
        answer = served.submit(request).result()
        served.close()
        masked = int(request.masked_counts.sum())
        promised = 4 if request.want is Want.TARGET_LOG_PROB else 2 * sizes.teacher_hidden
        found[name] = {
            "masked_tokens": masked,
            "bytes_per_masked_token": len(pickle.dumps(answer, protocol=5)) / masked,
            "promised": promised,
            "request_bytes_per_token": len(pickle.dumps(request, protocol=5)) / request.token_ids.size,
        }
    return found


def ask(transport: ScoreTransport, request: ScoreRequest) -> ScoreResponse:
    """Ask and wait."""
    return transport.submit(request).result()


def cache(sizes: Sizes, *, repeats: int) -> dict[str, Any]:
    """Seconds of a question that the cache answers, against the teacher's own answer."""
    found = {}
    for name in ("reverse_calm", "tidal_compdemo"):
        scenario = SCENARIOS[name]
        served = make_engine(teacher(scenario.teacher, sizes))
        direct = LocalTransport(served, describe(served))
        request = request_of(scenario, sizes)
        with tempfile.TemporaryDirectory() as folder:
            caching = CachingTransport(direct, ScoreCache(Path(folder), 2**30))
            first = caching.submit(request).result()
            again = caching.submit(request).result()
            assert again.cache_hits == request.batch
            assert np.array_equal(first.array, again.array)
            found[name] = alternate(
                {
                    "hit": partial(ask, caching, request),
                    "teacher": partial(ask, direct, request),
                },
                repeats=repeats,
            )
            caching.close()
        served.close()
    return found


def sampler(sizes: Sizes, *, repeats: int, new_tokens: int = 64) -> dict[str, Any]:
    """Tokens a second of the block sampler, by tokens a forward; prompts of half the length."""
    model = student(sizes).eval()
    prompts = [row.student_ids[: sizes.length // 2].tolist() for row in samples(SCENARIOS["ce"], sizes, 1)]
    found = {}
    for per_forward in (1, 4):
        settings = SamplerSettings(
            max_new_tokens=new_tokens, block_size=sizes.block, steps=new_tokens // per_forward
        )

        def draw_answers(settings: SamplerSettings = settings) -> Any:
            # No end token, so that every answer has its full length.
            return sample(model, prompts, settings, eos_token_ids=())

        result = draw_answers()
        spent = median_seconds(draw_answers, repeats=repeats, warmup=0)
        found[str(per_forward)] = {
            "forwards": result.forwards,
            "tokens_per_forward": result.tokens_per_forward,
            "tokens_per_second": len(prompts) * new_tokens / spent,
        }
    return found


def teacher_flops(
    sizes: Sizes,
    *,
    repeats: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    models: dict[str, Decoder] | None = None,
) -> dict[str, Any]:
    """FLOP/s of whole teacher forwards, as a share of this machine's matrix-product peak."""
    peak = matmul_flops(device=device, dtype=dtype)
    found: dict[str, Any] = {"matmul_flops": peak}
    for kind in ("dense", "mixture"):
        model = (models or {}).get(kind) or teacher(kind, sizes, dtype=dtype, device=device)
        ids = torch.ones(sizes.batch, sizes.length, dtype=torch.long, device=device)
        spent = median_seconds(partial(model.hidden_states, ids), repeats=repeats)
        rate = forward_flops(model, sizes.batch, sizes.length) / spent
        found[kind] = {
            "seconds": spent,
            "flops": rate,
            "share_of_peak": rate / peak,
            "tokens_per_second": ids.numel() / spent,
        }
    return found


def forward_flops(model: Decoder, batch: int, length: int) -> float:
    """Floating-point operations of a forward without the head: 2 for each weight used, and attention."""
    config = model.config
    attended = 4 * batch * length**2 * config.num_attention_heads * config.head_dim
    return float(2 * batch * length * _used_weights(model) + config.num_hidden_layers * attended)


def _used_weights(model: Decoder) -> int:
    """Weights that a token's way through the layers multiplies with."""
    everything = sum(weight.numel() for layer in model.layers for weight in layer.parameters())
    mixtures = [module for module in model.modules() if isinstance(module, MixtureFeedForward)]
    idle = sum(
        (mixture.experts.gate_up.numel() + mixture.experts.down.numel())
        * (mixture.router.rule.experts - mixture.router.rule.chosen)
        // mixture.router.rule.experts
        for mixture in mixtures
    )
    return everything - idle


def measure(sizes: Sizes, *, repeats: int) -> dict[str, Any]:
    """All pieces."""
    return {
        "alignment": alignment.measure(repeats=repeats),
        "masks": masks(sizes, repeats=repeats),
        "losses": losses(sizes, sizes.batch * sizes.length // 4, repeats=repeats),
        "engine": engine(sizes, repeats=repeats),
        "wire": wire(replace(sizes, batch=4 * sizes.batch)),
        "cache": cache(sizes, repeats=repeats),
        "sampler": sampler(sizes, repeats=max(1, repeats // 2)),
        "teacher_flops": teacher_flops(sizes, repeats=repeats),
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    print(json.dumps(measure(Sizes(), repeats=parser.parse_args().repeats)))


if __name__ == "__main__":
    main()
