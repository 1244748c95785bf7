"""``tide convert``: a causal checkpoint, a config or a training state to a block-diffusion student's folder,
in our layout or in that of the dLLM tools.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

from tide_core.checkpoints.headers import read_config, read_json
from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.families import FolderLayout
from tide_core.models.conversion import convert, initialise
from tide_core.models.student import BlockDiffusionStudent
from workers.storage import materialise_model
from workers.student.checkpoint import load_state_weights


@dataclass(frozen=True, kw_only=True)
class ConversionRequest:
    """What to convert; ``source`` is a model's location, or with ``is_from_config`` a ``config.json`` or its
    folder. ``state`` is a training state whose weights go in the place of the source's.
    """

    source: str
    target: Path
    adds_mask_token: bool = False
    is_from_config: bool = False
    tokenizer: str | None = None
    seed: int = 0
    block_size: int | None = None
    layout: str = "student"
    state: str | None = None


@dataclass(frozen=True)
class ConversionReport:
    """What was written."""

    target: str
    model_type: str
    parameters: int
    vocab_size: int
    mask_token_id: int
    block_size: int | None = None
    layout: str = "student"

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return asdict(self)

    def summary(self) -> str:
        """One line for a person."""
        line = (
            f"{self.target}: {self.model_type}, {self.parameters / 1e6:.1f}M parameters, vocabulary "
            f"{self.vocab_size}, mask token {self.mask_token_id}"
        )
        if self.layout == "dllm" and self.block_size is not None:
            # Their samplers do not read it from config.json.
            line += f"; sample with block_size={self.block_size} there"
        return line


def convert_model(request: ConversionRequest) -> ConversionReport:
    """Convert and report.

    Raises:
        InvalidInputError: options that do not go together, or a source that does not exist.
        CheckpointError: the source cannot become a student.
        TokenizerError: no mask token, and none is to be added; or one that does not fit the layout.
        ConflictError: the target exists.
    """
    if request.layout not in get_args(FolderLayout):
        raise InvalidInputError(
            f"--to takes {' or '.join(get_args(FolderLayout))}, not {request.layout!r}.", param="layout"
        )
    student = _initialise(request) if request.is_from_config else _convert(request)
    return ConversionReport(
        target=str(request.target),
        model_type=student.config.model_type,
        parameters=sum(parameter.numel() for parameter in student.parameters()),
        vocab_size=student.vocab_size,
        mask_token_id=student.mask_token_id,
        block_size=student.config.block_size,
        layout=request.layout,
    )


def _convert(request: ConversionRequest) -> BlockDiffusionStudent:
    if request.tokenizer is not None:
        raise InvalidInputError(
            "--tokenizer goes with --from-config: a model brings its own.", param="tokenizer"
        )
    state = request.state
    return convert(
        materialise_model(request.source),
        request.target,
        add_mask_token=request.adds_mask_token,
        block_size=request.block_size,
        layout=cast(FolderLayout, request.layout),
        fill=None if state is None else lambda student: load_state_weights(state, student),
    )


def _initialise(request: ConversionRequest) -> BlockDiffusionStudent:
    if request.state is not None or request.layout != "student":
        raise InvalidInputError(
            "--from-config makes fresh weights in Tide's own layout: leave out --state and --to.",
            param="state" if request.state is not None else "layout",
        )
    source = Path(request.source)
    config = read_json(source) if source.is_file() else read_config(source)
    if request.block_size is not None:
        config["block_size"] = request.block_size
    folder = source.parent if source.is_file() else source
    return initialise(
        config,
        request.tokenizer or folder,
        request.target,
        seed=request.seed,
        add_mask_token=request.adds_mask_token,
    )
