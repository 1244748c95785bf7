"""Makes the models that the demo ships: `python -m workers.demo.pretrain RECIPE FOLDER`.

Two recipes, the mixture-of-experts teacher and the dense teacher, and the students' tokeniser. A recipe is a
pure function of its seed, its steps and the standard library's text; the losses are written beside the
weights, and a test checks that the script still reaches such losses.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from tide_core.contracts.families import WEDLM
from tide_core.models.decoder import Decoder
from tide_core.models.dense import DenseDecoder
from tide_core.models.mixture import MixtureFeedForward
from tide_core.models.teachers.llada2_moe import LLaDA2MoeModel
from workers.demo.assets import STUDENT_TOKENIZER
from workers.demo.conversations import tokenizer_texts
from workers.demo.corpus import documented_functions
from workers.demo.muon import Muon
from workers.demo.pretraining_data import Batch, RowEncoder, batches, endless_rows
from workers.demo.pretraining_losses import PretrainingLoss, bidirectional_loss, causal_loss, staircase_loss
from workers.demo.sizes import (
    BLOCK_SIZE,
    DENSE_TEACHER_SIZE,
    MAX_LENGTH,
    dense_config,
    moe_config,
)
from workers.demo.vocabularies import (
    DENSE_TEACHER,
    MOE_TEACHER,
    STUDENT,
    VocabularyPlan,
    train_tokenizer,
    write_tokenizer,
)

RECORD_NAME = "pretraining.json"
RECORD_EVERY = 10
_SHARD_BYTES = 1_900_000
_BALANCE_RATE = 1e-3


@dataclass(frozen=True)
class Stage:
    """One phase of pretraining."""

    loss: PretrainingLoss
    steps: int


@dataclass(frozen=True)
class PretrainingSettings:
    """How a recipe trains."""

    batch_size: int = 64
    task_share: float = 0.5
    muon_learning_rate: float = 0.01
    adam_learning_rate: float = 4e-3
    warmup_steps: int = 30
    decay_share: float = 0.4
    seed: int = 0


@dataclass(frozen=True)
class PretrainingRecipe:
    """Everything that makes one of the shipped folders."""

    plan: VocabularyPlan
    build: Callable[[Tokenizer, VocabularyPlan, int], Decoder]
    stages: tuple[Stage, ...]
    settings: PretrainingSettings


def _build_moe(tokenizer: Tokenizer, plan: VocabularyPlan, seed: int) -> Decoder:
    return LLaDA2MoeModel.from_config(moe_config(tokenizer, plan), seed=seed)


def _build_dense(tokenizer: Tokenizer, plan: VocabularyPlan, seed: int) -> Decoder:
    config = dense_config(WEDLM.model_type, DENSE_TEACHER_SIZE, tokenizer, plan, is_tied=False)
    return DenseDecoder.from_config(config, seed=seed)


RECIPES: dict[str, PretrainingRecipe] = {
    "teacher_moe": PretrainingRecipe(
        MOE_TEACHER,
        _build_moe,
        (Stage(causal_loss, 1500), Stage(bidirectional_loss, 3000)),
        PretrainingSettings(seed=11),
    ),
    "teacher_dense": PretrainingRecipe(
        DENSE_TEACHER,
        _build_dense,
        (Stage(causal_loss, 1200), Stage(staircase_loss, 2200)),
        PretrainingSettings(seed=12),
    ),
}


class Optimiser:
    """Muon for the matrices, AdamW for embeddings, head and norms; both follow one schedule."""

    def __init__(self, model: Decoder, settings: PretrainingSettings) -> None:
        matrices = [p for p in model.layers.parameters() if p.requires_grad and p.ndim >= 2]
        taken = {id(parameter) for parameter in matrices}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
        self._muon = Muon(matrices)
        self._adam = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0)
        self._settings = settings
        self._parameters = [*matrices, *rest]

    def step(self, factor: float) -> None:
        """One update at a share of the full learning rates."""
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for group in self._adam.param_groups:
            group["lr"] = self._settings.adam_learning_rate * factor
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self._muon.step(self._settings.muon_learning_rate * factor)


class ExpertBalance:
    """Moves each router's bias towards its idle experts, without an auxiliary loss (LLaDA2.0's way)."""

    def __init__(self, model: Decoder) -> None:
        self._routers = [m.router for m in model.modules() if isinstance(m, MixtureFeedForward)]
        self._counts = [torch.zeros(router.rule.experts) for router in self._routers]
        for router, counts in zip(self._routers, self._counts, strict=True):
            router.register_forward_hook(_counter(counts))

    def step(self) -> None:
        """Shift the biases by the signs of the imbalance and start the count again."""
        for router, counts in zip(self._routers, self._counts, strict=True):
            assert router.expert_bias is not None, "the demo's teacher has LLaDA2's router"
            router.expert_bias.data.add_(torch.sign(counts.mean() - counts), alpha=_BALANCE_RATE)
            counts.zero_()


def _counter(counts: Tensor) -> Callable[[nn.Module, Any, tuple[Tensor, Tensor]], None]:
    def count(router: nn.Module, inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
        counts.add_(torch.bincount(outputs[1].flatten(), minlength=counts.numel()))

    return count


def schedule(step: int, total: int, settings: PretrainingSettings) -> float:
    """Linear warm-up, constant, then a linear fall to zero over the last part of the steps."""
    falling = settings.decay_share * total
    return min(1.0, (step + 1) / settings.warmup_steps, (total - step) / falling if falling else 1.0)


def pretrain(
    model: Decoder,
    stages: tuple[Stage, ...],
    stream: Iterator[Batch],
    settings: PretrainingSettings,
    on_step: Callable[[int, int, float], None],
) -> list[list[float]]:
    """Train through all stages.

    Args:
        model: trained in place.
        stages: each with its own loss; the learning rate falls once, at the end of all.
        stream: endless batches.
        settings: learning rates, warm-up and the seed of the masks.
        on_step: told (step, total steps, loss) after each step.

    Returns:
        For each stage the mean loss of every `RECORD_EVERY` steps.
    """
    optimiser, balance = Optimiser(model, settings), ExpertBalance(model)
    draw = np.random.default_rng(settings.seed)
    total = sum(stage.steps for stage in stages)
    done = 0
    record = []
    model.train()
    for stage in stages:
        losses = []
        for _ in range(stage.steps):
            loss = stage.loss(model, next(stream), draw)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step(schedule(done, total, settings))
            balance.step()
            losses.append(loss.item())
            done += 1
            on_step(done, total, losses[-1])
        record.append(
            [float(np.mean(losses[i : i + RECORD_EVERY])) for i in range(0, len(losses), RECORD_EVERY)]
        )
    return record


@dataclass(frozen=True)
class Draft:
    """A recipe begun: fresh weights, its tokeniser, and batches without end."""

    recipe: PretrainingRecipe
    tokenizer: Tokenizer
    model: Decoder
    stream: Iterator[Batch]
    documents: int


def begin(recipe: PretrainingRecipe) -> Draft:
    """Train the recipe's tokeniser, draw its model, and open its stream of batches."""
    settings = recipe.settings
    functions = documented_functions()
    tokenizer = train_tokenizer(tokenizer_texts(functions), recipe.plan)
    encoder = RowEncoder(tokenizer, recipe.plan, block_size=BLOCK_SIZE, max_length=MAX_LENGTH)
    rows = endless_rows(functions, task_share=settings.task_share, seed=settings.seed)
    stream = batches(rows, encoder, batch_size=settings.batch_size, seed=settings.seed)
    model = recipe.build(tokenizer, recipe.plan, settings.seed)
    return Draft(recipe, tokenizer, model, stream, len(functions))


def make(name: str, folder: Path, *, share_of_steps: float = 1.0) -> None:
    """Make one shipped folder: tokeniser, weights in bfloat16, and the record of how it was made.

    Args:
        name: a key of `RECIPES`.
        folder: written to; made when it does not exist.
        share_of_steps: train only so much of the recipe.
    """
    recipe = RECIPES[name]
    draft = begin(recipe)
    stages = tuple(Stage(s.loss, max(1, round(s.steps * share_of_steps))) for s in recipe.stages)
    started = time.monotonic()
    losses = pretrain(draft.model, stages, draft.stream, recipe.settings, _print_progress(name))
    write_tokenizer(draft.tokenizer, recipe.plan, folder)
    draft.model.to(torch.bfloat16).save_pretrained(folder, max_shard_bytes=_SHARD_BYTES)
    record = {
        "recipe": name,
        "settings": asdict(recipe.settings),
        "stages": [{"loss": s.loss.__name__, "steps": s.steps} for s in stages],  # type: ignore[attr-defined]
        "record_every": RECORD_EVERY,
        "losses": [[round(value, 4) for value in stage] for stage in losses],
        "documents": draft.documents,
        "seconds": round(time.monotonic() - started),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
    }
    (folder / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n")


def _print_progress(name: str) -> Callable[[int, int, float], None]:
    recent: list[float] = []
    started = time.monotonic()

    def show(step: int, total: int, loss: float) -> None:
        recent.append(loss)
        if step % 100 == 0 or step == total:
            seconds = time.monotonic() - started
            remaining = seconds / step * (total - step)
            mean = math.fsum(recent) / len(recent)
            print(
                f"{name} {step}/{total} loss {mean:.3f} {seconds:.0f} s, {remaining:.0f} s left", flush=True
            )
            recent.clear()

    return show


def main() -> None:
    """Command line: which of the shipped folders, where to, how many of its steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", choices=[*RECIPES, STUDENT_TOKENIZER.name])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--share-of-steps", type=float, default=1.0, help="train only so much of it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.recipe == STUDENT_TOKENIZER.name:
        texts = tokenizer_texts(documented_functions())
        write_tokenizer(train_tokenizer(texts, STUDENT), STUDENT, arguments.folder)
        return
    make(arguments.recipe, arguments.folder, share_of_steps=arguments.share_of_steps)


if __name__ == "__main__":
    main()
