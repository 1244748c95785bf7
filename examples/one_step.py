"""Distil a small student from a shipped teacher in this process: no Ray, no service, no GPU.

    python examples/one_step.py                   # a mixture of experts, another tokenizer (pipeline A)
    python examples/one_step.py --teacher dense   # a dense model, the student's tokenizer (pipeline B)

Read `main` from top to bottom. A job of the service takes the very same steps; around them its loop
(`workers/student/loop.py`) asks the teacher some steps ahead, saves states, and reports.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tide_core.checkpoints.tokenizer_folder import load_tokenizer
from tide_core.contracts.job import (
    DataSource,
    DataSpec,
    Hyperparameters,
    JobSpec,
    ResolvedJobSpec,
    StudentSpec,
    TeacherSpec,
    resolve,
)
from tide_core.contracts.objective import Pipeline, Variant
from tide_core.data.batches import training_plan
from tide_core.data.dataset_preparation import prepare
from tide_core.data.row_preparation import pair_recipe
from tide_core.data.shards import PreparedDataset
from tide_core.models.conversion import initialise
from tide_core.models.student import BlockDiffusionStudent
from tide_core.scoring.local_teacher import LocalTeacher
from tide_core.training.distiller import Distillation, Distiller, recipe_of_pair

MODELS = Path(__file__).parents[1] / "workers" / "demo" / "assets"
BLOCK_SIZE = 8


def main(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, float]]:
    """Distil, one step after the other; gives each step's losses."""
    # What is distilled: the same spec that a job is posted with.
    pipeline = Pipeline.CROSS_TOKENIZER if arguments.teacher == "moe" else Pipeline.SHARED_TOKENIZER
    spec = write_spec(arguments, pipeline, folder)

    # The conversations in both tokenisations, with the correspondence between them.
    dataset = prepare_data(spec, pipeline, folder)

    # A student with fresh weights, and the teacher, which answers in this process.
    student_folder = folder / "student"
    assert spec.student.config is not None
    assert spec.student.tokenizer is not None
    initialise(spec.student.config, spec.student.tokenizer, student_folder, seed=spec.seed)
    student = BlockDiffusionStudent.from_pretrained(student_folder, dtype=torch.float32)
    teacher = LocalTeacher.load(spec.teacher.model)

    # All that decides a step: which samples, their noise, and what is asked of the teacher.
    vocab = teacher.describe().vocab_size
    recipe = recipe_of_pair(spec, dataset, student, student_folder, teacher_vocab=vocab)
    distiller = Distiller(
        Distillation(spec, recipe, training_plan(dataset, spec), student, teacher_head=teacher.head)
    )

    adaptive = None
    for number in range(distiller.total_steps):
        # Timesteps, masks and views are drawn here; the teacher's answer is a pure function of the question.
        step = distiller.draw(number)
        answers = [teacher.answer(request) for request in step.requests]
        # Every mean is over the whole step: with several trainers, `agree` sums the counts over all of them.
        taken = distiller.take(step, answers, distiller.agree(step), adaptive)
        adaptive = taken.adaptive
        yield {"total": taken.result.total, **taken.result.parts}


def write_spec(arguments: argparse.Namespace, pipeline: Pipeline, folder: Path) -> ResolvedJobSpec:
    """Write some sums as conversations, and the spec of a distillation over them."""
    draw = random.Random(0)
    pairs = [(draw.randint(0, 99), draw.randint(0, 99)) for _ in range(200)]
    rows = [{"prompt": f"What is {a} + {b}?", "response": f"{a} + {b} = {a + b}"} for a, b in pairs]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    is_cross = pipeline is Pipeline.CROSS_TOKENIZER
    tokenizer = arguments.models / "student_tokenizer"
    spec = JobSpec(
        teacher=TeacherSpec(model=str(arguments.models / f"teacher_{arguments.teacher}")),
        student=StudentSpec(
            config=student_config(load_tokenizer(tokenizer).get_vocab_size()),
            tokenizer=str(tokenizer),
            block_size=BLOCK_SIZE,
        ),
        objective=Variant.TIDE_CROSS if is_cross else Variant.TIDE_SHARED,
        data=DataSpec(sources=(DataSource(location=str(folder / "rows.jsonl")),), student_length=64),
        hyperparameters=Hyperparameters(max_steps=arguments.steps, global_batch_size=16, learning_rate=4e-3),
    )
    return resolve(spec, pipeline=pipeline)


def student_config(vocab_size: int) -> dict[str, object]:
    """A student of the Qwen3 shape with two layers."""
    return {
        "model_type": "a2d-qwen3",
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": True,
        "block_size": BLOCK_SIZE,
    }


def prepare_data(spec: ResolvedJobSpec, pipeline: Pipeline, folder: Path) -> PreparedDataset:
    """Tokenise with both tokenizers and align the answers."""
    assert spec.data.teacher_length is not None, "resolve() fills it in"
    pair = pair_recipe(
        str(spec.student.tokenizer),
        spec.teacher.model,
        pipeline=pipeline,
        student_length=spec.data.student_length,
        teacher_length=spec.data.teacher_length,
        block_size=spec.student.block_size,
        template=spec.data.template,
    )
    return prepare(spec.data, pair, folder / "prepared")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Distil a small student from a shipped teacher.")
    parser.add_argument("--teacher", choices=["moe", "dense"], default="moe")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of the shipped models")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    if not options.models.is_dir():
        parser.error(f"--models: there is no folder {options.models}")
    with TemporaryDirectory() as scratch:
        for place, losses in enumerate(main(options, Path(scratch)), 1):
            print(f"step {place:3}  " + "  ".join(f"{name} {loss:7.4f}" for name, loss in losses.items()))
