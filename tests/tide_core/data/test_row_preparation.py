"""Rows into samples: what is trained, what is compared with the teacher, what is rejected."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.support.fixtures_tokenizers import standard_library_texts, write_folder
from tide_core.alignment.bytes import token_bytes
from tide_core.checkpoints.tokenizer_folder import load_tokenizer
from tide_core.contracts.errors import InvalidInputError, TokenizerError
from tide_core.contracts.job import DataSource, TemplateOptions
from tide_core.contracts.objective import Pipeline
from tide_core.data.row_preparation import BatchOutcome, PairRecipe, pair_recipe, prepare_rows
from tide_core.data.samples import PreparedSample, RejectionReason
from tide_core.data.sources import SourceRow

CROSS, SHARED = Pipeline.CROSS_TOKENIZER, Pipeline.SHARED_TOKENIZER
SOURCE = DataSource(location="rows.jsonl")


def make_recipe(student: Path, teacher: Path, pipeline: Pipeline, **changes: Any) -> PairRecipe:
    settings: dict[str, Any] = {"student_length": 256, "teacher_length": 512, "block_size": 32} | changes
    settings.setdefault("template", TemplateOptions())
    return pair_recipe(str(student), str(teacher), pipeline=pipeline, **settings)


@pytest.fixture
def cross(qwen_folder: Path, llada2_folder: Path) -> Callable[..., PairRecipe]:
    return lambda **changes: make_recipe(qwen_folder, llada2_folder, CROSS, **changes)


@pytest.fixture
def shared(qwen_folder: Path, wedlm_folder: Path) -> Callable[..., PairRecipe]:
    return lambda **changes: make_recipe(qwen_folder, wedlm_folder, SHARED, **changes)


@lru_cache(maxsize=16)
def tokenizer_of(folder: str | Path) -> Tokenizer:
    return load_tokenizer(folder)


def rows_of(fields: Sequence[dict[str, Any] | None]) -> list[SourceRow]:
    return [SourceRow(10 + n, 0, row, "" if row else "line 3: bad") for n, row in enumerate(fields)]


def chat(prompt: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def prepare_one(row: dict[str, Any], recipe: PairRecipe, source: DataSource = SOURCE) -> PreparedSample:
    outcome = prepare_rows(rows_of([row]), [source], recipe)
    assert not outcome.rejections
    return outcome.samples[0]


def reason(row: dict[str, Any] | None, recipe: PairRecipe, source: DataSource = SOURCE) -> RejectionReason:
    outcome = prepare_rows(rows_of([row]), [source], recipe)
    assert not outcome.samples
    assert outcome.rejections[0].row_index == 10
    return outcome.rejections[0].reason


def spell(tokenizer: Tokenizer, ids: np.ndarray) -> bytes:
    return b"".join(token_bytes(tokenizer, ids))


def chunk_texts(folder: str, ids: np.ndarray, chunk_ids: np.ndarray) -> list[bytes]:
    """The bytes of each chunk on one side."""
    tokenizer = tokenizer_of(folder)
    count = int(chunk_ids.max()) + 1
    return [spell(tokenizer, ids[chunk_ids == number]) for number in range(count)]


def answers() -> list[str]:
    texts = [text[:400] for text in standard_library_texts()[:60]]
    return [
        *texts,
        "漢字 and かな, 한글, العربية, עברית, ไทย",
        "👩‍👩‍👧‍👦 👍🏽 🇩🇪 ❤️‍🔥",
        "tabs\tand\r\nCRLF\r\n  runs   of    spaces",
        "e\u0301 decomposed, é composed",
        "x",
        " a space before",
        "and after \n",
        "user",
        "yes",
    ]


@pytest.mark.parametrize("teacher", ["llada2_folder", "sentencepiece_folder"])
def test_chunks_are_the_same_bytes_on_both_sides_and_the_finest_possible(
    qwen_folder: Path, teacher: str, request: pytest.FixtureRequest
) -> None:
    recipe = make_recipe(
        qwen_folder, request.getfixturevalue(teacher), CROSS, student_length=512, teacher_length=2048
    )
    rows = [chat(f"Say yes, user: {answer}", answer) for answer in answers()]
    outcome = prepare_rows(rows_of(rows), [SOURCE], recipe)
    assert len(outcome.samples) == len(rows)
    for sample in outcome.samples:
        assert sample.student_chunk_ids is not None
        assert sample.teacher_chunk_ids is not None
        ours = chunk_texts(recipe.student_folder, sample.student_ids, sample.student_chunk_ids)
        theirs = chunk_texts(recipe.teacher_folder, sample.teacher_ids, sample.teacher_chunk_ids)
        assert ours == theirs
        for ids, chunk_ids in (
            (sample.student_ids, sample.student_chunk_ids),
            (sample.teacher_ids, sample.teacher_chunk_ids),
        ):
            numbers = chunk_ids[chunk_ids >= 0]
            assert (np.diff(np.flatnonzero(chunk_ids >= 0)) == 1).all(), "chunks follow each other"
            assert (np.diff(numbers) >= 0).all()
            assert len(ids) == len(chunk_ids)
        _assert_finest(recipe, sample)
        assert (sample.labels[sample.student_chunk_ids >= 0] != -100).all()


def _assert_finest(recipe: PairRecipe, sample: PreparedSample) -> None:
    """No chunk could be cut further: inside it the two sides never end a token at the same byte."""
    sides = (
        (recipe.student_folder, sample.student_ids, sample.student_chunk_ids),
        (recipe.teacher_folder, sample.teacher_ids, sample.teacher_chunk_ids),
    )
    ends: list[list[set[int]]] = []
    for folder, ids, chunk_ids in sides:
        assert chunk_ids is not None
        tokenizer = tokenizer_of(folder)
        per_chunk = []
        for number in range(sample.chunk_count):
            lengths = [len(piece) for piece in token_bytes(tokenizer, ids[chunk_ids == number])]
            per_chunk.append(set(np.cumsum(lengths)[:-1].tolist()))
        ends.append(per_chunk)
    assert all(not (ours & theirs) for ours, theirs in zip(*ends, strict=True))


@pytest.mark.parametrize("answer", answers()[60:])
def test_the_whole_answer_is_in_chunks(cross: Callable[..., PairRecipe], answer: str) -> None:
    import unicodedata

    recipe = cross()
    sample = prepare_one(chat("The answer is yes, user?", answer), recipe)
    assert sample.student_chunk_ids is not None
    text = b"".join(chunk_texts(recipe.student_folder, sample.student_ids, sample.student_chunk_ids))
    # The student's tokenizer composes characters (NFC), so both sides are given the composed form.
    assert text == unicodedata.normalize("NFC", answer).encode()


def test_the_prompt_is_not_trained_and_the_closing_tokens_are(
    cross: Callable[..., PairRecipe], qwen_folder: Path
) -> None:
    tokenizer = tokenizer_of(qwen_folder)
    sample = prepare_one(chat("Is it yes or no?", "yes"), cross())
    is_trained = sample.labels != -100
    assert len(sample.student_ids) % 32 == 0
    assert (sample.labels[is_trained] == sample.student_ids[is_trained]).all()
    eos = tokenizer.token_to_id("<|im_end|>")
    written = spell(tokenizer, sample.student_ids[is_trained])
    assert written.startswith(b"yes<|im_end|>\n<|im_end|>")
    assert written.removeprefix(b"yes<|im_end|>\n").replace(b"<|im_end|>", b"") == b""
    assert sample.student_ids[-1] == eos == sample.labels[-1]
    prompt = spell(tokenizer, sample.student_ids[~is_trained])
    assert prompt.endswith(b"<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert sample.sample_index == 10


def test_thinking_is_an_option_of_the_template(cross: Callable[..., PairRecipe], qwen_folder: Path) -> None:
    recipe = cross(template=TemplateOptions(enable_thinking=True))
    sample = prepare_one(chat("q", "a"), recipe)
    written = spell(tokenizer_of(qwen_folder), sample.student_ids[sample.labels != -100])
    assert written.startswith(b"<think>\n\n</think>\n\na<|im_end|>")


def test_both_sides_are_cut_at_their_lengths(cross: Callable[..., PairRecipe]) -> None:
    text = " ".join(standard_library_texts()[:3])
    whole = prepare_one(chat("q", text), cross(student_length=4096, teacher_length=8192))
    student_cut = prepare_one(chat("q", text), cross(student_length=64, teacher_length=8192))
    assert len(student_cut.student_ids) == 64
    assert (student_cut.student_ids == whole.student_ids[:64]).all()
    assert student_cut.teacher_chunk_ids is not None
    assert student_cut.student_chunk_ids is not None
    assert student_cut.chunk_count == int(student_cut.teacher_chunk_ids.max()) + 1 < whole.chunk_count
    teacher_cut = prepare_one(chat("q", text), cross(student_length=4096, teacher_length=64))
    assert len(teacher_cut.teacher_ids) == 64
    assert teacher_cut.student_chunk_ids is not None
    assert teacher_cut.teacher_chunk_ids is not None
    # A chunk without all of its teacher tokens does not exist; the student still trains on its tokens.
    assert int(teacher_cut.student_chunk_ids.max()) == int(teacher_cut.teacher_chunk_ids.max())
    without = (teacher_cut.student_chunk_ids == -1) & (teacher_cut.labels != -100)
    assert without.sum() > 100
    recipe = cross(student_length=4096, teacher_length=64)
    ours = chunk_texts(recipe.student_folder, teacher_cut.student_ids, teacher_cut.student_chunk_ids)
    assert ours == chunk_texts(recipe.teacher_folder, teacher_cut.teacher_ids, teacher_cut.teacher_chunk_ids)


def test_every_cut_leaves_whole_chunks(cross: Callable[..., PairRecipe]) -> None:
    row = chat("q", "漢字 dont stop, tokenisation is unequal 👩‍👩‍👧‍👦 " * 3)
    for teacher_length in range(30, 90):
        recipe = cross(student_length=128, teacher_length=teacher_length)
        outcome = prepare_rows(rows_of([row]), [SOURCE], recipe)
        for sample in outcome.samples:
            assert sample.student_chunk_ids is not None
            assert sample.teacher_chunk_ids is not None
            ours = chunk_texts(recipe.student_folder, sample.student_ids, sample.student_chunk_ids)
            theirs = chunk_texts(recipe.teacher_folder, sample.teacher_ids, sample.teacher_chunk_ids)
            assert ours == theirs


def test_shared_positions_hold_equal_ids(shared: Callable[..., PairRecipe]) -> None:
    rows = [chat(f"Say yes, user: {answer}", answer) for answer in answers()]
    outcome = prepare_rows(rows_of(rows), [SOURCE], shared())
    assert len(outcome.samples) + len(outcome.rejections) == len(rows)
    assert len(outcome.samples) >= len(rows) - 2
    for sample in outcome.samples:
        assert sample.teacher_positions is not None
        assert sample.student_chunk_ids is None
        has_teacher = sample.teacher_positions >= 0
        places = sample.teacher_positions[has_teacher]
        assert (np.diff(places) == 1).all()
        assert (sample.teacher_ids[places] == sample.student_ids[has_teacher]).all()
        assert (sample.labels[has_teacher] != -100).all()
        assert (sample.student_ids[has_teacher] < shared().shared_vocab).all()
    assert outcome.coverage.share > 0.99


def test_an_answer_that_begins_with_white_space_pairs_equal_tokens(
    shared: Callable[..., PairRecipe], qwen_folder: Path
) -> None:
    # The teacher's template trims, the student's keeps the space: a naive pairing is off by one.
    sample = prepare_one(chat("q", " word and word "), shared())
    assert sample.teacher_positions is not None
    has_teacher = sample.teacher_positions >= 0
    assert (
        sample.teacher_ids[sample.teacher_positions[has_teacher]] == sample.student_ids[has_teacher]
    ).all()
    paired = spell(tokenizer_of(qwen_folder), sample.student_ids[has_teacher])
    assert paired in b" word and word "
    assert b" and word" in paired


def test_tokens_that_differ_for_the_same_bytes_are_counted(
    qwen_folder: Path, llada2_folder: Path, shared: Callable[..., PairRecipe]
) -> None:
    recipe = make_recipe(qwen_folder, llada2_folder, SHARED)
    row = chat("q", "some words that merge differently")
    outcome = prepare_rows(rows_of([row]), [SOURCE], recipe)
    assert outcome.coverage.mismatched > 0
    assert prepare_rows(rows_of([row]), [SOURCE], shared()).coverage.mismatched == 0


def byte_pairs(folder: Path, merges: list[tuple[str, str]], added: Sequence[str] = ()) -> Path:
    """A tokenizer with merges written by hand."""
    vocab = {character: n for n, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken("<eos>", special=True), *added])
    return write_folder(folder, tokenizer, None, eos_token="<eos>")


def test_equal_ids_beyond_the_shared_vocabulary_are_not_compared(tmp_path: Path) -> None:
    # "on" has one id on both sides, but before it an id means something else: logits are cut there.
    student = byte_pairs(tmp_path / "student", [("t", "h"), ("x", "y"), ("o", "n")])
    teacher = byte_pairs(tmp_path / "teacher", [("t", "h"), ("x", "z"), ("o", "n")])
    recipe = make_recipe(student, teacher, SHARED)
    assert recipe.shared_vocab == 257
    sample = prepare_one({"text": "th on a"}, recipe)
    assert sample.teacher_positions is not None
    assert sample.teacher_positions[:6].tolist() == [0, 1, -1, 3, 4, -1]


def test_the_same_byte_under_another_id_is_not_compared(tmp_path: Path) -> None:
    student = byte_pairs(tmp_path / "student", [("t", "h")])
    teacher = byte_pairs(tmp_path / "teacher", [("t", "h")], [" "])
    outcome = prepare_rows(rows_of([{"text": "th a b"}]), [SOURCE], make_recipe(student, teacher, SHARED))
    positions = outcome.samples[0].teacher_positions
    assert positions is not None
    assert positions[:5].tolist() == [0, -1, 2, -1, 4]
    assert outcome.coverage.mismatched == 2


def test_markup_that_looks_like_trimmed_white_space_is_no_content(
    tmp_path: Path, qwen_folder: Path, llada2_folder: Path
) -> None:
    import shutil

    folder = Path(shutil.copytree(llada2_folder, tmp_path / "trims"))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}\n{{ m.content | trim }}\n{% endfor %}"
    )
    recipe = make_recipe(qwen_folder, folder, CROSS)
    sample = prepare_one(chat("q", "word\n"), recipe)
    assert sample.student_chunk_ids is not None
    text = b"".join(chunk_texts(str(qwen_folder), sample.student_ids, sample.student_chunk_ids))
    assert text == b"word"


def test_special_tokens_inside_an_answer_make_no_chunk(cross: Callable[..., PairRecipe]) -> None:
    recipe = cross()
    outcome = prepare_rows(
        rows_of([chat("q", "before <|im_end|> between <|role_end|> after")]), [SOURCE], recipe
    )
    sample = outcome.samples[0]
    assert sample.student_chunk_ids is not None
    text = b"".join(chunk_texts(recipe.student_folder, sample.student_ids, sample.student_chunk_ids))
    assert b"before" in text
    assert b"between" in text
    assert b"after" in text
    assert b"<|im_end|>" not in text
    assert b"<|role_end|>" not in text
    assert outcome.coverage.special_tokens == 2


def test_every_answer_can_be_trained(cross: Callable[..., PairRecipe], qwen_folder: Path) -> None:
    turns = [
        ("user", "one"),
        ("assistant", "yes"),
        ("user", "two yes"),
        ("assistant", "yes"),
        ("user", "bye"),
    ]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    tokenizer = tokenizer_of(qwen_folder)
    last = prepare_one(row, cross())
    assert spell(tokenizer, last.student_ids[last.labels != -100]).startswith(b"yes<|im_end|>\n<|im_end|>")
    every = prepare_one(row, cross(every_answer=True))
    written = spell(tokenizer, every.student_ids[every.labels != -100])
    assert written.startswith(b"yes<|im_end|>yes<|im_end|>\n<|im_end|>")
    assert every.chunk_count == 2 * last.chunk_count
    assert b"bye" not in spell(tokenizer, every.student_ids), "what a user says last has no answer to learn"


def test_a_middle_turn_without_a_closing_token_ends_with_its_answer(
    tmp_path: Path, qwen_folder: Path, llada2_folder: Path
) -> None:
    import shutil

    folder = Path(shutil.copytree(qwen_folder, tmp_path / "bare"))
    bare = "{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(
        bare + "{% if add_generation_prompt %}assistant:\n{% endif %}"
    )
    recipe = make_recipe(folder, llada2_folder, CROSS, every_answer=True)
    turns = [("user", "one"), ("assistant", "first"), ("user", "two"), ("assistant", "second")]
    sample = prepare_one({"messages": [{"role": r, "content": c} for r, c in turns]}, recipe)
    written = spell(tokenizer_of(folder), sample.student_ids[sample.labels != -100])
    assert written.startswith(b"firstsecond\n<|im_end|>")


def test_plain_text_is_trained_from_its_first_token_and_closed(
    sentencepiece_folder: Path, qwen_folder: Path
) -> None:
    recipe = make_recipe(sentencepiece_folder, qwen_folder, CROSS)
    sample = prepare_one({"text": "Some plain text. 漢字"}, recipe)
    tokenizer = tokenizer_of(sentencepiece_folder)
    written = spell(tokenizer, sample.student_ids[sample.labels != -100])
    assert written.startswith("Some plain text. 漢字</s>".encode())
    assert sample.student_chunk_ids is not None
    text = b"".join(chunk_texts(str(sentencepiece_folder), sample.student_ids, sample.student_chunk_ids))
    assert text == "Some plain text. 漢字".encode()
    assert spell(tokenizer_of(qwen_folder), sample.teacher_ids).endswith(b"<|im_end|>")


def test_a_beginning_token_of_plain_text_is_given_and_not_trained(tmp_path: Path, qwen_folder: Path) -> None:
    import shutil

    from tokenizers.processors import TemplateProcessing

    folder = Path(shutil.copytree(qwen_folder, tmp_path / "bos"))
    tokenizer = tokenizer_of(folder)
    begin = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", begin)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    for pipeline, teacher in ((SHARED, folder), (CROSS, qwen_folder)):
        sample = prepare_one({"text": "plain words"}, make_recipe(folder, teacher, pipeline))
        assert sample.student_ids[0] == begin
        assert sample.labels[0] == -100
        assert (sample.labels[1:] != -100).all()
        places = sample.student_chunk_ids if pipeline is CROSS else sample.teacher_positions
        assert places is not None
        assert places[0] == -1
        assert places[1] >= 0


def test_an_exact_block_of_text_needs_no_filling(cross: Callable[..., PairRecipe]) -> None:
    lengths = {len(prepare_one(chat("q", "x " * count), cross()).student_ids) for count in range(1, 40)}
    assert lengths <= {32, 64, 96, 128}
    assert len(lengths) > 1


def test_what_cannot_be_trained_on_is_rejected_with_its_reason(cross: Callable[..., PairRecipe]) -> None:
    recipe = cross()
    assert reason(None, recipe) is RejectionReason.MALFORMED_ROW
    assert reason({"other": 1}, recipe) is RejectionReason.MISSING_FIELD
    assert reason({"messages": "text"}, recipe) is RejectionReason.UNSUPPORTED_CONTENT
    assert reason({"messages": ["text"]}, recipe) is RejectionReason.UNSUPPORTED_CONTENT
    assert reason({"messages": [{"content": "no role"}]}, recipe) is RejectionReason.UNSUPPORTED_CONTENT
    image = [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "a"}]
    assert reason({"messages": image}, recipe) is RejectionReason.UNSUPPORTED_CONTENT
    assert reason({"messages": [{"role": "assistant"}]}, recipe) is RejectionReason.UNSUPPORTED_CONTENT
    assert reason({"messages": []}, recipe) is RejectionReason.NO_ASSISTANT_MESSAGE
    user = [{"role": "user", "content": "hello"}]
    assert reason({"messages": user}, recipe) is RejectionReason.NO_ASSISTANT_MESSAGE
    assert reason(chat("q", " \n"), recipe) is RejectionReason.EMPTY_RESPONSE
    assert reason({"text": ""}, recipe) is RejectionReason.EMPTY_RESPONSE
    assert reason(chat("q", "a \ud800 b"), recipe) is RejectionReason.INVALID_UNICODE
    assert reason(chat("q", "a <|mask|> b"), recipe) is RejectionReason.MASK_TOKEN_IN_TEXT
    roles = [{"role": "tool", "content": "3"}, {"role": "assistant", "content": "a"}]
    assert reason({"messages": roles}, recipe) is RejectionReason.TEMPLATE_REFUSED
    assert reason(chat("long " * 400, "a"), recipe) is RejectionReason.PROMPT_LONGER_THAN_LENGTH
    tight = cross(student_length=1024, teacher_length=64)
    assert reason(chat("long " * 40, "a"), tight) is RejectionReason.NO_ALIGNED_CONTENT


def test_a_text_that_a_tokenizer_rewrites_is_rejected(
    tmp_path: Path, qwen_folder: Path, llada2_folder: Path
) -> None:
    import shutil

    from tokenizers import normalizers

    folder = Path(shutil.copytree(llada2_folder, tmp_path / "lower"))
    tokenizer = tokenizer_of(folder)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.save(str(folder / "tokenizer.json"))
    for student, teacher in ((folder, qwen_folder), (qwen_folder, folder)):
        recipe = make_recipe(student, teacher, CROSS)
        assert reason({"text": "Upper Case"}, recipe) is RejectionReason.TOKENS_DO_NOT_COVER_TEXT
        assert prepare_one({"text": "lower ﬁne case"}, recipe).chunk_count > 0


def test_the_unicode_form_of_either_tokenizer_is_given_to_both(cross: Callable[..., PairRecipe]) -> None:
    recipe = cross()
    composed, decomposed = (
        prepare_one(chat("é", "é é"), recipe),
        prepare_one(chat("e\u0301", "é e\u0301"), recipe),
    )
    assert (composed.student_ids == decomposed.student_ids).all()
    assert (composed.teacher_ids == decomposed.teacher_ids).all()


def test_a_pair_without_unicode_forms_keeps_texts_as_they_are(
    llada2_folder: Path, sentencepiece_folder: Path
) -> None:
    recipe = make_recipe(llada2_folder, sentencepiece_folder, CROSS)
    sample = prepare_one(chat("q", "é e\u0301"), recipe)
    assert sample.student_chunk_ids is not None
    text = b"".join(chunk_texts(str(llada2_folder), sample.student_ids, sample.student_chunk_ids))
    assert text == "é e\u0301".encode()


def test_a_row_does_not_depend_on_the_rows_beside_it(cross: Callable[..., PairRecipe]) -> None:
    rows = rows_of([chat("q", answer) for answer in answers()] + [None, {"text": "plain"}])
    together = prepare_rows(rows, [SOURCE], cross())
    alone = [prepare_rows([row], [SOURCE], cross()) for row in rows]
    assert_equal_samples(together.samples, [sample for outcome in alone for sample in outcome.samples])
    assert [r.row_index for r in together.rejections] == [r.row_index for o in alone for r in o.rejections]
    assert sum(outcome.coverage.chunk_bytes for outcome in alone) == together.coverage.chunk_bytes


def assert_equal_samples(ours: Sequence[PreparedSample], theirs: Sequence[PreparedSample]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        for name, value in vars(a).items():
            assert np.array_equal(value, getattr(b, name)), name


def test_no_rows_give_no_samples(cross: Callable[..., PairRecipe]) -> None:
    assert prepare_rows([], [SOURCE], cross()) == BatchOutcome(
        [], [], prepare_rows([], [SOURCE], cross()).coverage
    )


def test_rows_are_read_in_every_form(cross: Callable[..., PairRecipe]) -> None:
    recipe = cross()
    wanted = prepare_one(chat("the prompt", "the answer"), recipe)
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "answer"}]
    others: list[tuple[dict[str, Any], DataSource]] = [
        ({"prompt": "the prompt", "response": "the answer", "text": "ignored"}, SOURCE),
        ({"prompt": "the prompt", "response": parts}, SOURCE),
        ({"turns": [{"from": "human", "value": "the prompt"}, {"from": "gpt", "value": "the answer"}]},
         DataSource(location="x", messages_field="turns")),
        ({"q": "the prompt", "a": "the answer", "messages": []},
         DataSource(location="x", rows="prompt_response", prompt_field="q", response_field="a")),
    ]  # fmt: skip
    for row, source in others:
        assert_equal_samples([prepare_one(row, recipe, source)], [wanted])
    plain = prepare_one({"text": "t", "messages": [1]}, recipe, DataSource(location="x", rows="text"))
    assert (plain.labels != -100).all()


def test_coverage_counts_what_was_left_out(cross: Callable[..., PairRecipe]) -> None:
    text = standard_library_texts()[0]
    rows = [chat("q", text), chat("q", "short")]
    coverage = prepare_rows(rows_of(rows), [SOURCE], cross(student_length=64)).coverage
    assert coverage.contents == 2
    assert coverage.cut_contents == 1
    assert 0.9 < coverage.share <= 1
    assert sum(coverage.student_lengths.values()) == coverage.chunks > 20


def test_tokens_that_straddle_an_edge_are_counted_and_in_no_chunk(
    tmp_path: Path, qwen_folder: Path, llada2_folder: Path
) -> None:
    import shutil

    folder = Path(shutil.copytree(llada2_folder, tmp_path / "glued"))
    glued = "{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(glued)
    recipe = make_recipe(qwen_folder, folder, CROSS)
    outcome = prepare_rows(rows_of([chat("q", "the argument is the argument")]), [SOURCE], recipe)
    # " the" is one token of the teacher, and its space is markup.
    assert outcome.coverage.teacher_straddling == 1
    sample = outcome.samples[0]
    assert sample.student_chunk_ids is not None
    text = b"".join(chunk_texts(str(qwen_folder), sample.student_ids, sample.student_chunk_ids))
    assert text == b" argument is the argument"


def test_pairs_that_cannot_work_are_refused(
    qwen_folder: Path, llada2_folder: Path, sentencepiece_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match="multiple of the block size"):
        make_recipe(qwen_folder, llada2_folder, CROSS, student_length=100)
    with pytest.raises(InvalidInputError, match="cross_tokenizer") as caught:
        make_recipe(qwen_folder, sentencepiece_folder, SHARED)
    assert caught.value.code == "pipeline_does_not_fit"
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json"):
        make_recipe(qwen_folder, tmp_path, CROSS)
