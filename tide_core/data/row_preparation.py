"""Rows into samples: a pure function of the rows and the recipe.

TIDE (arXiv 2604.26951): both tokenisations of one conversation, the answer's bytes matched chunk by chunk
(different tokenizers) or token by token (a shared one), truncation, and closing tokens that are trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64

from tide_core.alignment.chunks import TokenRuns, align_runs, chunk_ids_per_token
from tide_core.alignment.coverage import CoverageReport
from tide_core.alignment.vocabulary import shared_vocabulary_size
from tide_core.checkpoints.special_tokens import require_eos_token
from tide_core.checkpoints.tokenizer_folder import tokenizer_fingerprint
from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.job import DataSource, TemplateOptions
from tide_core.contracts.labels import IGNORED_LABEL, NO_CHUNK
from tide_core.contracts.objective import Pipeline
from tide_core.data.conversations import Conversation, Message, PlainText, UnusableRowError, read_row
from tide_core.data.samples import PreparedSample, Rejection, RejectionReason
from tide_core.data.sources import SourceRow
from tide_core.data.tokenization import PlacedBytes, RenderedText, TextSide, TokenizedText, text_side


@dataclass(frozen=True)
class PairRecipe:
    """What decides how a row becomes a sample, beside the row.

    Attributes:
        student_folder: the student's tokenizer folder.
        teacher_folder: the teacher's.
        student_fingerprint: of the student's tokenizer files.
        teacher_fingerprint: of the teacher's.
        pipeline: chunks (different tokenizers) or positions (a shared one).
        student_length: longest student sequence in tokens, a multiple of the block size.
        teacher_length: longest teacher sequence in tokens.
        block_size: tokens of a diffusion block.
        shared_vocab: leading ids that mean the same to both.
        template_options: variables for both chat templates, as sorted pairs.
        every_answer: train all of the assistant's turns instead of the last one.
    """

    student_folder: str
    teacher_folder: str
    student_fingerprint: str
    teacher_fingerprint: str
    pipeline: Pipeline
    student_length: int
    teacher_length: int
    block_size: int
    shared_vocab: int
    template_options: tuple[tuple[str, object], ...] = ()
    every_answer: bool = False

    def __post_init__(self) -> None:
        if self.student_length % self.block_size:
            raise InvalidInputError(
                f"the student's length ({self.student_length}) must be a multiple of the block size "
                f"({self.block_size})",
                param="student_length",
            )

    def student(self) -> TextSide:
        """The student's tokenizer and template (kept loaded in this process)."""
        return text_side(self.student_folder, self.student_fingerprint, self.template_options)

    def teacher(self) -> TextSide:
        """The teacher's."""
        return text_side(self.teacher_folder, self.teacher_fingerprint, self.template_options)


def pair_recipe(
    student_folder: str,
    teacher_folder: str,
    *,
    pipeline: Pipeline,
    student_length: int,
    teacher_length: int,
    block_size: int,
    template: TemplateOptions,
    every_answer: bool = False,
) -> PairRecipe:
    """The recipe of a pair of tokenizer folders; confirms what preparation needs of them.

    Raises:
        TokenizerError: a folder without a usable tokenizer, or a student without an end-of-sequence token.
        InvalidInputError: lengths that do not fit, or a pair without shared tokens in a shared pipeline.
    """
    options = tuple(sorted(({"enable_thinking": template.enable_thinking} | template.extra).items()))
    prints = (tokenizer_fingerprint(student_folder), tokenizer_fingerprint(teacher_folder))
    student = text_side(student_folder, prints[0], options)
    teacher = text_side(teacher_folder, prints[1], options)
    require_eos_token(student_folder, student.tokenizer)
    shared_vocab = shared_vocabulary_size(student.tokenizer, teacher.tokenizer)
    if pipeline is Pipeline.SHARED_TOKENIZER and not shared_vocab:
        raise InvalidInputError(
            "the tokenizers share no leading token ids, so positions cannot be compared; "
            "use pipeline cross_tokenizer",
            code="pipeline_does_not_fit",
            param="pipeline",
        )
    return PairRecipe(
        student_folder=student_folder,
        teacher_folder=teacher_folder,
        student_fingerprint=prints[0],
        teacher_fingerprint=prints[1],
        pipeline=pipeline,
        student_length=student_length,
        teacher_length=teacher_length,
        block_size=block_size,
        shared_vocab=shared_vocab,
        template_options=options,
        every_answer=every_answer,
    )


@dataclass(frozen=True)
class BatchOutcome:
    """What became of a batch of rows, in their order."""

    samples: list[PreparedSample]
    rejections: list[Rejection]
    coverage: CoverageReport


@dataclass(frozen=True)
class _Draft:
    """A row that both sides can read, in tokens."""

    row: SourceRow
    student: TokenizedText
    teacher: TokenizedText


def prepare_rows(
    rows: Sequence[SourceRow], sources: Sequence[DataSource], recipe: PairRecipe
) -> BatchOutcome:
    """Make samples of rows. The outcome of a row does not depend on the rows beside it.

    Args:
        rows: as ``sources.iterate_rows`` yields them.
        sources: the data sources that ``SourceRow.source_index`` counts.
        recipe: the pair and its lengths.

    Returns:
        Samples and rejections; together as many as there are rows.
    """
    rejections: list[Rejection] = []
    drafts = _drafts(rows, sources, recipe, rejections)
    coverage = CoverageReport()
    samples = _align(drafts, recipe, coverage, rejections)
    rejections.sort(key=lambda rejection: rejection.row_index)
    return BatchOutcome(samples, rejections, coverage)


def _drafts(
    rows: Sequence[SourceRow], sources: Sequence[DataSource], recipe: PairRecipe, rejections: list[Rejection]
) -> list[_Draft]:
    """Read, render and tokenise; rows that fail are rejected."""
    student, teacher = recipe.student(), recipe.teacher()
    readable: list[SourceRow] = []
    texts: list[tuple[RenderedText, RenderedText]] = []
    for row in rows:
        try:
            text = _normalise(_read(row, sources), student, teacher)
            ours, theirs = (
                side.render(text, every_answer=recipe.every_answer) for side in (student, teacher)
            )
        except UnusableRowError as error:
            rejections.append(Rejection(row.index, error.reason, error.detail))
            continue
        readable.append(row)
        texts.append((ours, theirs))
    tokens = (student.tokenize([pair[0] for pair in texts]), teacher.tokenize([pair[1] for pair in texts]))
    return _tokenised_drafts(readable, tokens, rejections)


def _tokenised_drafts(
    rows: Sequence[SourceRow],
    tokens: tuple[list[TokenizedText | UnusableRowError], list[TokenizedText | UnusableRowError]],
    rejections: list[Rejection],
) -> list[_Draft]:
    drafts = []
    for row, ours, theirs in zip(rows, *tokens, strict=True):
        if isinstance(ours, UnusableRowError):
            rejections.append(Rejection(row.index, ours.reason, f"student: {ours.detail}"))
        elif isinstance(theirs, UnusableRowError):
            rejections.append(Rejection(row.index, theirs.reason, f"teacher: {theirs.detail}"))
        else:
            drafts.append(_Draft(row, ours, theirs))
    return drafts


def _read(row: SourceRow, sources: Sequence[DataSource]) -> Conversation | PlainText:
    if row.fields is None:
        raise UnusableRowError(RejectionReason.MALFORMED_ROW, row.problem)
    return read_row(row.fields, sources[row.source_index])


def _normalise(
    text: Conversation | PlainText, student: TextSide, teacher: TextSide
) -> Conversation | PlainText:
    """The row in the Unicode form that the tokenizers see, so that both sides hold the same bytes."""
    forms = (*student.unicode_forms, *teacher.unicode_forms)
    if not forms:
        return text

    def apply(content: str) -> str:
        if content.isascii():
            return content
        for form in forms:
            content = form.normalize_str(content)
        return content

    if isinstance(text, PlainText):
        return PlainText(apply(text.text))
    return Conversation(tuple(Message(turn.role, apply(turn.content)) for turn in text.messages))


@dataclass(frozen=True)
class _Run:
    """The tokens of one side that lie wholly inside the common part of one answer.

    Attributes:
        first: index of the first one.
        borders: byte offsets counted in the answer, one more than there are tokens; empty without tokens.
        straddling: tokens that cross an edge of the common part.
        is_cut: the length limit took a part of the answer away.
    """

    first: int
    borders: Int64[np.ndarray, " border"]
    straddling: int
    is_cut: bool


def _run(side: TokenizedText, answer: PlacedBytes, low: int, high: int, limit: int) -> _Run:
    """``low`` and ``high`` bound the part of the answer that both templates kept, in the answer's bytes."""
    shift = answer.start - answer.skipped
    starts, ends = side.spans[:, 0], side.spans[:, 1]
    first = int(np.searchsorted(starts, low + shift, side="left"))
    stop = int(np.searchsorted(ends, high + shift, side="right"))
    straddling = int(first > 0 and ends[first - 1] > low + shift)
    # A token that covers the whole part crosses both edges and counts once.
    straddling += int(first <= stop < len(ends) and starts[stop] < high + shift)
    kept = min(stop, limit)
    if kept <= first:
        return _Run(first, np.zeros(0, dtype=np.int64), straddling, kept < stop)
    borders = np.concatenate([starts[first : first + 1], ends[first:kept]]) - shift
    return _Run(first, borders, straddling, kept < stop)


def _align(
    drafts: Sequence[_Draft], recipe: PairRecipe, coverage: CoverageReport, rejections: list[Rejection]
) -> list[PreparedSample]:
    """Match the answers of all drafts at once, then build the samples."""
    runs: tuple[list[_Run], list[_Run]] = ([], [])
    owners: list[int] = []
    for number, draft in enumerate(drafts):
        for ours, theirs in zip(draft.student.answers, draft.teacher.answers, strict=True):
            low, high = _common_part(ours, theirs)
            runs[0].append(_run(draft.student, ours, low, high, recipe.student_length))
            runs[1].append(_run(draft.teacher, theirs, low, high, recipe.teacher_length))
            owners.append(number)
            _count_answer(coverage, ours, theirs, runs[0][-1], runs[1][-1])
    chunks, content = align_runs(*(_as_token_runs(side) for side in runs))
    # Contents are in the order of the drafts, so each draft's chunks lie side by side.
    owner = np.array(owners, dtype=np.int64)[content]
    bounds = np.searchsorted(owner, np.arange(len(drafts) + 1))
    samples = []
    for number, draft in enumerate(drafts):
        outcome = _sample(draft, chunks[bounds[number] : bounds[number + 1]], recipe, coverage)
        if isinstance(outcome, RejectionReason):
            rejections.append(Rejection(draft.row.index, outcome))
        else:
            samples.append(outcome)
    return samples


def _common_part(ours: PlacedBytes, theirs: PlacedBytes) -> tuple[int, int]:
    """Byte range of the answer that both templates kept (each may have trimmed it)."""
    total = ours.skipped + (ours.end - ours.start) + ours.dropped
    return max(ours.skipped, theirs.skipped), total - max(ours.dropped, theirs.dropped)


def _count_answer(
    coverage: CoverageReport, ours: PlacedBytes, theirs: PlacedBytes, student: _Run, teacher: _Run
) -> None:
    low, high = _common_part(ours, theirs)
    ends = [int(run.borders[-1]) if len(run.borders) else low for run in (student, teacher) if run.is_cut]
    coverage.contents += 1
    coverage.content_bytes += max(0, min([high, *ends]) - low)
    coverage.student_straddling += student.straddling
    coverage.teacher_straddling += teacher.straddling
    coverage.cut_contents += int(student.is_cut or teacher.is_cut)
    coverage.shortened_contents += int(any([ours.skipped, ours.dropped, theirs.skipped, theirs.dropped]))


def _as_token_runs(runs: Sequence[_Run]) -> TokenRuns:
    borders = [run.borders for run in runs]
    return TokenRuns(
        np.concatenate([*borders, np.zeros(0, dtype=np.int64)]).astype(np.int64),
        np.array([len(border) for border in borders], dtype=np.int64),
        np.array([run.first for run in runs], dtype=np.int64),
    )


def _sample(
    draft: _Draft, chunks: Int64[np.ndarray, "chunk 4"], recipe: PairRecipe, coverage: CoverageReport
) -> PreparedSample | RejectionReason:
    """One sample, or why there is none."""
    student_ids, labels = _student_sequence(draft.student, recipe)
    if not (labels != IGNORED_LABEL).any():
        return RejectionReason.PROMPT_LONGER_THAN_LENGTH
    teacher_ids = draft.teacher.ids[: recipe.teacher_length]
    chunks = _without_special_tokens(chunks, draft, recipe, coverage)
    is_shared = recipe.pipeline is Pipeline.SHARED_TOKENIZER
    if is_shared:
        chunks = _equal_tokens(chunks, student_ids, teacher_ids, recipe, coverage)
    if not len(chunks):
        return RejectionReason.NO_ALIGNED_CONTENT
    coverage.count_chunks(chunks[:, 1] - chunks[:, 0], chunks[:, 3] - chunks[:, 2])
    spans = draft.student.spans
    coverage.chunk_bytes += int((spans[chunks[:, 1] - 1, 1] - spans[chunks[:, 0], 0]).sum())
    place = (draft.row.index, draft.row.source_index, student_ids, labels, teacher_ids)
    if is_shared:
        positions = np.full(len(student_ids), NO_CHUNK, dtype=np.int32)
        positions[chunks[:, 0]] = chunks[:, 2]
        return PreparedSample(*place, teacher_positions=positions)
    return PreparedSample(
        *place,
        student_chunk_ids=chunk_ids_per_token(chunks[:, :2], len(student_ids)),
        teacher_chunk_ids=chunk_ids_per_token(chunks[:, 2:], len(teacher_ids)),
    )


def _student_sequence(
    side: TokenizedText, recipe: PairRecipe
) -> tuple[Int32[np.ndarray, " student_seq"], Int32[np.ndarray, " student_seq"]]:
    """Ids and labels, cut to the length and filled to a whole block with trained end-of-sequence tokens."""
    student = recipe.student()
    assert student.special.eos is not None, "pair_recipe confirms the end-of-sequence token"
    is_trained = np.zeros(len(side.ids), dtype=np.bool_)
    for answer in side.answers:
        is_trained |= _trained_tokens(side, answer, student)
    ids = side.ids[: recipe.student_length]
    labels = np.where(is_trained, side.ids, np.int32(IGNORED_LABEL))[: recipe.student_length]
    filling = np.full(-len(ids) % recipe.block_size, student.special.eos.id, dtype=np.int32)
    return np.concatenate([ids, filling]), np.concatenate([labels, filling])


def _trained_tokens(side: TokenizedText, answer: PlacedBytes, student: TextSide) -> np.ndarray:
    """Tokens that the model itself would write: the answer, and what closes the turn."""
    is_trained: np.ndarray = side.spans[:, 0] >= answer.response_start
    # A beginning-of-sequence token before a plain text stands for no byte and is given, not written.
    if side.is_plain:
        is_trained[: len(student.leading_ids)] = False
    if not answer.is_last:
        # A turn in the middle ends with the first special token after its answer.
        closes = student.table.is_special[side.ids] & (side.spans[:, 0] >= answer.end)
        stop = int(np.argmax(closes)) + 1 if closes.any() else int((side.spans[:, 1] <= answer.end).sum())
        is_trained[stop:] = False
    return is_trained


def _without_special_tokens(
    chunks: Int64[np.ndarray, "chunk 4"], draft: _Draft, recipe: PairRecipe, coverage: CoverageReport
) -> Int64[np.ndarray, "kept 4"]:
    """A text that spells a special token means markup to one side: such chunks are left out."""
    is_plain = np.ones(len(chunks), dtype=np.bool_)
    for side, text, column in ((recipe.student(), draft.student, 0), (recipe.teacher(), draft.teacher, 2)):
        counted = np.concatenate([[0], np.cumsum(side.table.is_special[text.ids])])
        is_plain &= counted[chunks[:, column + 1]] == counted[chunks[:, column]]
    coverage.special_tokens += int((~is_plain).sum())
    return chunks[is_plain]


def _equal_tokens(
    chunks: Int64[np.ndarray, "chunk 4"],
    student_ids: Int32[np.ndarray, " student_seq"],
    teacher_ids: Int32[np.ndarray, " teacher_seq"],
    recipe: PairRecipe,
    coverage: CoverageReport,
) -> Int64[np.ndarray, "kept 4"]:
    """Chunks that are one and the same token on both sides; the others are counted."""
    is_single = (chunks[:, 1] - chunks[:, 0] == 1) & (chunks[:, 3] - chunks[:, 2] == 1)
    ours, theirs = student_ids[chunks[:, 0]], teacher_ids[chunks[:, 2]]
    is_equal: np.ndarray = is_single & (ours == theirs) & (ours < recipe.shared_vocab)
    coverage.mismatched += int((~is_equal).sum())
    equal: np.ndarray = chunks[is_equal]
    return equal
