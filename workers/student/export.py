"""The trained student as a model folder that plain transformers and the dLLM tools load.

In: a trained student and the folder that it began from. Out: a model folder with safetensors, config,
tokenizer and manifest.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tide_core.contracts.job import ResolvedJobSpec
from tide_core.models.export import ModelCard
from tide_core.models.student import BlockDiffusionStudent
from workers.storage import publish_folder


def export_student(student: BlockDiffusionStudent, initial: Path, location: str, card: ModelCard) -> int:
    """Write weights, config, tokenizer, chat template and model card to `location`; gives the bytes.

    Args:
        student: the trained student, in the dtype that is wanted on disk.
        initial: folder of the student before training, whose tokenizer goes along.
        location: folder or fsspec URL; an existing export is replaced.
        card: what README.md tells.
    """
    with tempfile.TemporaryDirectory(prefix="tide-export-") as scratch:
        student.eval().save_pretrained(scratch, tokenizer_folder=initial, card=card)
        return publish_folder(Path(scratch), location)


def model_card(
    spec: ResolvedJobSpec, job_id: str, *, steps: int, teacher_fingerprint: str | None
) -> ModelCard:
    """What the export's README says: where it comes from and how it was trained."""
    hyper, student = spec.hyperparameters, spec.student
    terms = " + ".join(f"{term.weight:g} {term.type}" for term in spec.objective)
    training = {
        "job": job_id,
        "teacher": f"{spec.teacher.model} ({spec.teacher.architecture})",
        "teacher fingerprint": teacher_fingerprint or "not asked",
        "pipeline": spec.pipeline,
        "variant": spec.variant.value if spec.variant else "custom",
        "objective": terms,
        "teacher context": spec.teacher_context.type,
        "block size": str(student.block_size),
        "steps": str(steps),
        "global batch": str(hyper.global_batch_size),
        "learning rate": f"{hyper.learning_rate:g} ({hyper.learning_rate_schedule})",
        "student length": str(spec.data.student_length),
        "seed": str(spec.seed),
        "data": ", ".join(source.location for source in spec.data.sources),
    }
    origin = student.model if student.model and not Path(student.model).is_absolute() else None
    return ModelCard(
        title=spec.name or f"Tide student {job_id}",
        summary="A block-diffusion language model distilled with Tide (TIDE, arXiv 2604.26951).",
        origin=origin,
        training=training,
    )
