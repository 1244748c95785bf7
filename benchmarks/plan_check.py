"""How near a plan comes: seconds and memory of small real runs against what the planner says of them.

Run: ``python benchmarks/plan_check.py [--steps 12] [--length 256] [--batch 8] [--vocab 32768]``. First the
machine is measured (``workers.device_figures``: kernels alone, no training step), then each scenario is
planned with those figures and run: the real training loop against the real engine, one process, one thread
each. Prints one JSON object a scenario.

Seconds are of the processor, not of the clock on the wall: this machine may be shared, and a plan is about
what a trainer and a replica compute. ``wall_seconds`` is printed beside them. Memory is the peak of the
resident set of a fresh process, which holds trainer and teacher.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tide_core.alignment.coverage import CoverageReport
from tide_core.contracts.environment import compute_environment
from tide_core.contracts.job import JobSpec, ResolvedJobSpec, resolve
from tide_core.contracts.labels import IGNORED_LABEL, NO_CHUNK
from tide_core.contracts.objective import Pipeline
from tide_core.contracts.plan import Cluster, DataExpectations, DeviceGroup, DeviceKind
from tide_core.contracts.reporting import AnyReport, Metrics
from tide_core.contracts.scores import Want
from tide_core.contracts.teacher import TeacherDescription, want_of
from tide_core.data.batches import BatchPlan
from tide_core.data.samples import PreparedSample
from tide_core.data.shards import PreparedSplit, SplitManifest, write_shard
from tide_core.models.decoder import Decoder
from tide_core.models.registry import model_class
from tide_core.models.student import BlockDiffusionStudent
from tide_core.planning.make_plan import ModelConfig, make_plan
from tide_core.planning.memory import CPU_RUNTIME_BYTES
from tide_core.training.collective import Alone
from tide_core.training.digest import spec_digest
from tide_core.training.distiller import Distillation
from tide_core.training.drawing import recipe_for
from workers.device_figures import measure_device
from workers.reporting.recording import RecordingReporter
from workers.scores.local_transport import LocalTransport
from workers.student.checkpoint import CheckpointStore
from workers.student.loop import Run, train
from workers.teachers.engine import EngineSettings, TeacherEngine

SCENARIOS: dict[str, tuple[Pipeline, str]] = {
    "cross_entropy": (Pipeline.SHARED_TOKENIZER, "none"),
    "reverse_calm": (Pipeline.CROSS_TOKENIZER, "tide_cross"),
    "tidal_calm_comp_demo": (Pipeline.CROSS_TOKENIZER, "tide_shared"),
    "forward_kl": (Pipeline.SHARED_TOKENIZER, "baseline"),
    "tidal_comp_demo": (Pipeline.SHARED_TOKENIZER, "tide_shared"),
}
_WARM_UP = 2


def student_config(vocab: int) -> dict[str, Any]:
    """11 M parameters at a vocabulary of 32k."""
    return {
        "model_type": "a2d-qwen3",
        "vocab_size": vocab,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "tie_word_embeddings": True,
        "mask_token_id": vocab - 1,
        "eos_token_id": 0,
    }


def teacher_config(pipeline: Pipeline, vocab: int) -> dict[str, Any]:
    """A mixture of 57 M parameters, or a dense model of 42 M, at a vocabulary of 32k."""
    common = {
        "vocab_size": vocab,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "tie_word_embeddings": False,
        "mask_token_id": vocab - 1,
        "eos_token_id": 0,
    }
    if pipeline is Pipeline.SHARED_TOKENIZER:
        dense = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 3}
        switches = {"model_type": "wedlm", "qk_norm": True, "attention_bias": False}
        return common | dense | switches | {"num_attention_heads": 8}
    experts = {
        "moe_intermediate_size": 144,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "num_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "first_k_dense_replace": 1,
    }
    sizes = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6}
    return common | sizes | experts | {"model_type": "llada2_moe", "num_attention_heads": 6}


def job_spec(name: str, options: argparse.Namespace) -> ResolvedJobSpec:
    """The job of a scenario."""
    pipeline, variant = SCENARIOS[name]
    spec = JobSpec.model_validate(
        {
            "teacher": {"model": "/teacher"},
            "student": {"config": student_config(options.vocab), "tokenizer": "/tokenizer"},
            "objective": variant,
            "data": {
                "sources": [{"location": "/data"}],
                "student_length": options.length,
                "teacher_length": options.length,
            },
            "hyperparameters": {
                "max_steps": options.steps + _WARM_UP,
                "global_batch_size": options.batch,
                "micro_batch_size": options.batch,
                "precision": "float32",
            },
            "checkpoints": {"every_steps": 10_000},
        }
    )
    return resolve(spec, pipeline=pipeline)


def sample(index: int, options: argparse.Namespace, pipeline: Pipeline) -> PreparedSample:
    """Half prompt, half answer; every token its own chunk, or at its own place."""
    draws = np.random.default_rng(index)
    ids = draws.integers(1, options.vocab - 1, options.length).astype(np.int32)
    prompt = options.length // 2
    labels = ids.copy()
    labels[:prompt] = IGNORED_LABEL
    places = np.where(labels != IGNORED_LABEL, np.arange(options.length), NO_CHUNK).astype(np.int32)
    chunks = np.where(places >= 0, places - prompt, -1).astype(np.int32)
    if pipeline is Pipeline.CROSS_TOKENIZER:
        return PreparedSample(
            index, 0, ids, labels, ids, student_chunk_ids=chunks, teacher_chunk_ids=chunks.copy()
        )
    return PreparedSample(index, 0, ids, labels, ids, teacher_positions=places)


class Timing(RecordingReporter):
    """Notes the clocks before and after every step: this thread's, the process's, and the wall's."""

    def __init__(self) -> None:
        super().__init__()
        self.clocks: list[tuple[float, float, float]] = []

    def send(self, body: AnyReport) -> None:
        if isinstance(body, Metrics):
            self.note()
        super().send(body)

    def note(self) -> None:
        """Read the clocks."""
        self.clocks.append((time.thread_time(), time.process_time(), time.perf_counter()))


def run(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Train a scenario and give seconds a step, and the peak of this process's memory."""
    torch.set_num_threads(1)
    spec = job_spec(name, options)
    config = teacher_config(SCENARIOS[name][0], options.vocab)
    timing = Timing()
    with tempfile.TemporaryDirectory(prefix="tide-plan-check-") as folder, ExitStack() as stack:
        transport = head = None
        if want_of(spec) is not None:
            teacher = model_class(config["model_type"]).from_config(config, seed=1).eval()
            transport = _transport(teacher.requires_grad_(False), stack)
        if want_of(spec) is Want.HIDDEN:
            # A copy, as a trainer in a process of its own holds one.
            head = teacher.lm_head.weight.detach().clone()
        prepared = _run(spec, transport, head, Path(folder), timing, options)
        timing.note()
        train(prepared)
    clocks = np.array(timing.clocks)
    own, _, wall = np.diff(clocks[_WARM_UP:], axis=0).mean(axis=0).tolist()
    # What the trainer's thread did not use. Over all steps: the teacher is some steps ahead.
    used, of_all, _ = ((clocks[-1] - clocks[0]) / (len(clocks) - 1)).tolist()
    return {"trainer": own, "teacher": of_all - used, "wall": wall, "peak_bytes": float(_peak_bytes())}


def _transport(teacher: Decoder, stack: ExitStack) -> LocalTransport:
    engine = TeacherEngine(
        teacher,
        fingerprint="f",
        tokenizer_fingerprint="t",
        settings=EngineSettings.for_device(torch.device("cpu"), threads=1),
    )
    stack.callback(engine.close)
    return LocalTransport(engine, _description(teacher))


def _run(
    spec: ResolvedJobSpec,
    transport: LocalTransport | None,
    teacher_head: torch.Tensor | None,
    folder: Path,
    timing: Timing,
    options: argparse.Namespace,
) -> Run:
    pipeline = Pipeline(spec.pipeline)
    is_shared = pipeline is Pipeline.SHARED_TOKENIZER
    rows = [sample(index, options, pipeline) for index in range(4 * options.batch)]
    write_shard(rows, folder / "train-0.arrow")
    manifest = SplitManifest(len(rows), (("train-0.arrow", len(rows)),), {}, {}, CoverageReport(), 0, 0, 0)
    shared = options.vocab - 1 if is_shared else 0
    distillation = Distillation(
        spec=spec,
        recipe=recipe_for(spec, job_id="job", lease=None, shared_vocab=shared),
        plan=BatchPlan(
            PreparedSplit(folder, manifest), seed=spec.seed, global_batch_size=options.batch, rows=len(rows)
        ),
        student=BlockDiffusionStudent.from_config(student_config(options.vocab), seed=2),
        teacher_head=teacher_head,
        collective=Alone(),
    )
    return Run(
        distillation=distillation,
        spec_digest=spec_digest(spec, "data"),
        transport=transport,
        reporter=timing,
        store=CheckpointStore(str(folder / "checkpoints"), 1),
    )


def _description(teacher: Decoder) -> TeacherDescription:
    return TeacherDescription(
        fingerprint="f",
        tokenizer_fingerprint="t",
        architecture=teacher.config.model_type,
        vocab_size=teacher.vocab_size,
        hidden_size=teacher.hidden_size,
        mask_token_id=teacher.mask_token_id,
        parameters=0,
        dtype="float32",
        device="cpu",
        weight_bytes=0,
    )


def _peak_bytes() -> int:
    """``VmHWM``: the largest resident set so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not say how much memory a process used at most")


def plan_scenario(name: str, kind: DeviceKind, options: argparse.Namespace) -> dict[str, float]:
    """What the planner says of a scenario: one trainer and one replica, a device each."""
    pipeline, _ = SCENARIOS[name]
    plan = make_plan(
        job_spec(name, options),
        ModelConfig(student_config(options.vocab), "request"),
        ModelConfig(teacher_config(pipeline, options.vocab), "request"),
        Cluster(devices=(DeviceGroup(kind=kind, count=2),)),
        DataExpectations(tokens_per_chunk=1.0),
        is_simulated=False,
    )
    assert plan.asked is not None, plan.notes
    peak = plan.asked.trainer_memory.device_bytes
    if plan.asked.teacher_memory is not None:
        peak += plan.asked.teacher_memory.device_bytes - CPU_RUNTIME_BYTES  # one process holds both
    teacher = plan.asked.teacher.process_seconds if plan.asked.teacher is not None else 0.0
    return {
        "trainer": plan.asked.student.process_seconds,
        "teacher": teacher,
        "wall": plan.asked.seconds_per_step,
        "peak_bytes": float(peak),
    }


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the machine, run the scenario in a process of its own, measure again, plan with the mean."""
    before = _child("kind", options)
    measured = _child(name, options)
    after = _child("kind", options)
    figures = {
        key: (before[key] + after[key]) / 2 if isinstance(before[key], float) else before[key]
        for key in before
    }
    expected = plan_scenario(name, DeviceKind.model_validate(figures), options)
    errors = {
        key: expected[key] / measured[key] - 1.0 for key in measured if measured[key] > 1e-3 and expected[key]
    }
    return {"scenario": name, "measured": measured, "planned": expected, "error": errors, "kind": figures}


def _child(what: str, options: argparse.Namespace) -> dict[str, Any]:
    words = [sys.executable, __file__, "--child", what]
    for option in ("steps", "length", "batch", "vocab"):
        words += [f"--{option}", str(getattr(options, option))]
    # As real workers have it: memory that is given back and taken again each step would count as work.
    environment = os.environ | compute_environment(threads=1)
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the scenarios that are asked for, one JSON object a line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=12, help="steps that count")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence, a multiple of 32")
    parser.add_argument("--batch", type=int, default=8, help="sequences of a step")
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", help="default: all")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child == "kind":
        kind = measure_device(torch.device("cpu"), threads=1, clock=time.thread_time)
        print(kind.model_dump_json())
    elif options.child:
        print(json.dumps(run(options.child, options)))
    else:
        for name in options.scenario or SCENARIOS:
            print(json.dumps(compare(name, options)), flush=True)


if __name__ == "__main__":
    main()
