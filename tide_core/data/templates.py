"""Render conversations with a checkpoint's own chat template, and know where each answer lies.

A content is never searched for in the text: an answer that also stands in the prompt, or that is a word of
the template, would be found in the wrong place. Instead the template is rendered a second time with two
marks around each answer; the marks show its place, and the rendering without them must equal the true one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tide_core.checkpoints.tokenizer_folder import read_chat_template, read_settings, token_text
from tide_core.contracts.errors import TokenizerError
from tide_core.data.conversations import ASSISTANT, Message, UnusableRowError
from tide_core.data.samples import RejectionReason

# Some templates print today's date. A prepared data set is a function of its inputs, so the day stands
# still (the one that Llama 3.1's template names where no clock is given).
TEMPLATE_DATE = date(2024, 7, 26)
_MARK_PLANES = (0xF0000, 0x100000)
"""Starts of the private-use planes: characters that hardly a text uses, and that no template trims."""


@dataclass(frozen=True)
class Placed:
    """Where one answer lies in a rendered conversation; offsets are in characters of the text.

    Attributes:
        response_start: where what the model itself would write begins (after the generation prompt).
        start: first character of the answer.
        end: one past its last character.
        skipped: characters at the answer's beginning that the template left out.
        dropped: characters at its end that the template left out.
        is_last: nothing but the closing markup follows.
    """

    response_start: int
    start: int
    end: int
    skipped: int
    dropped: int
    is_last: bool


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model reads it, and the places of the answers that are trained."""

    text: str
    answers: tuple[Placed, ...]


class ChatTemplate:
    """A compiled chat template with the special tokens and options it is rendered with.

    Args:
        source: the template's text (Jinja, run in a sandbox).
        variables: what the template sees besides the messages: special tokens and template options.

    Raises:
        TokenizerError: the template does not compile.
    """

    def __init__(self, source: str, variables: Mapping[str, object]) -> None:
        self.variables = dict(variables)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise TokenizerError(
                f"the chat template does not compile: {error}", param="chat_template"
            ) from error

    @classmethod
    def from_folder(cls, folder: str | Path, options: Mapping[str, object]) -> ChatTemplate:
        """The template of a tokenizer folder.

        Args:
            folder: has ``chat_template.jinja``, or ``chat_template`` in its ``tokenizer_config.json``.
            options: variables for the template, such as ``enable_thinking``.

        Raises:
            TokenizerError: code ``chat_template_missing``.
        """
        source = read_chat_template(folder)
        if source is None:
            raise TokenizerError(
                f"the tokenizer in {folder} has no chat template, which rows with messages need; put a "
                "chat_template.jinja beside it, or give plain text rows",
                code="chat_template_missing",
                param="chat_template",
            )
        settings = read_settings(folder, "special_tokens_map.json")
        settings |= read_settings(folder, "tokenizer_config.json")
        named = {key: token_text(value) for key, value in settings.items() if key.endswith("_token")}
        return cls(source, {key: value for key, value in named.items() if value is not None} | dict(options))

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation.

        Raises:
            UnusableRowError: the template refuses the conversation.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(
                messages=turns, add_generation_prompt=add_generation_prompt, **self.variables
            )
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError) as error:
            raise UnusableRowError(RejectionReason.TEMPLATE_REFUSED, str(error)) from error

    def render_placed(self, messages: Sequence[Message], *, every_answer: bool = False) -> Rendered:
        """The text of a conversation and the places of its answers.

        Args:
            messages: the last one is an assistant's.
            every_answer: place all of the assistant's messages, not the last one alone.

        Raises:
            UnusableRowError: the template refuses the conversation, or an answer's place is unknown.
        """
        last = len(messages) - 1
        answers = [turn for turn, message in enumerate(messages) if message.role == ASSISTANT]
        turns = answers if every_answer else [last]
        text = self.render(messages)
        views = [self._marked_view(messages, turns, text, is_inside=False)]
        if not all(_is_whole(messages[turn].content, views[0].get(turn), text) for turn in turns):
            views.append(self._marked_view(messages, turns, text, is_inside=True))
        placed: list[Placed] = []
        for turn in turns:
            prompt_end = self._prompt_end(messages[:turn], text)
            earliest = prompt_end if prompt_end is not None else placed[-1].end if placed else 0
            span = _best_span(messages[turn].content, [view.get(turn) for view in views], text, earliest)
            start = min(span.start, prompt_end if prompt_end is not None else span.start)
            placed.append(
                Placed(start, span.start, span.end, span.skipped, span.dropped, is_last=turn == last)
            )
        return Rendered(text, tuple(placed))

    def _prompt_end(self, messages: Sequence[Message], text: str) -> int | None:
        """Length of the prompt that asks for the next answer, if the conversation's text begins with it."""
        if not messages:
            return None
        try:
            prompt = self.render(messages, add_generation_prompt=True)
        except UnusableRowError:
            return None
        return len(prompt) if text.startswith(prompt) else None

    def _marked_view(
        self, messages: Sequence[Message], turns: list[int], text: str, *, is_inside: bool
    ) -> dict[int, _Edges]:
        """Where the marks around each answer end up, in offsets of the true text.

        Outside an answer the marks keep a template from trimming it; inside, at its first and last character
        that is not white space, they are carried along by a trim.
        """
        base = _free_marks(text)
        marked = list(messages)
        for number, turn in enumerate(turns):
            message = messages[turn]
            lead, trail = _margins(message.content) if is_inside else (0, 0)
            stop = len(message.content) - trail
            head, core, tail = message.content[:lead], message.content[lead:stop], message.content[stop:]
            content = f"{head}{chr(base + 2 * number)}{core}{chr(base + 2 * number + 1)}{tail}"
            marked[turn] = Message(message.role, content)
        try:
            rendered = self.render(marked)
        except UnusableRowError:
            return {}
        plain, marks = _unmark(rendered, base)
        found = {}
        for number, turn in enumerate(turns):
            opens = _in_true_text(marks.get(2 * number, []), plain, text, is_open=True)
            closes = _in_true_text(marks.get(2 * number + 1, []), plain, text, is_open=False)
            found[turn] = _Edges(opens, closes, _margins(messages[turn].content) if is_inside else (0, 0))
        return found


@dataclass(frozen=True)
class _Edges:
    """Offsets of an answer's marks in the true text, and the white space that lies outside the marks."""

    opens: list[int]
    closes: list[int]
    margins: tuple[int, int]


@dataclass(frozen=True)
class _Span:
    start: int
    end: int
    skipped: int
    dropped: int


def _best_span(content: str, views: Sequence[_Edges | None], text: str, earliest: int) -> _Span:
    """The longest piece of an answer whose place the marks prove.

    Raises:
        UnusableRowError: there is none.
    """
    spans = [_span(content, view, text, earliest) for view in views if view is not None]
    best = max((span for span in spans if span), key=lambda span: span.end - span.start, default=None)
    if best is None or not text[best.start : best.end].strip():
        raise UnusableRowError(RejectionReason.CONTENT_NOT_LOCATED, content[:40])
    return best


def _span(content: str, edges: _Edges, text: str, earliest: int) -> _Span | None:
    """The answer between its marks, or as much of it as stands at the one mark that survived."""
    lead, trail = edges.margins
    core = content[lead : len(content) - trail]
    # A template may repeat an answer: its own place is the first after its prompt.
    start = next((offset for offset in edges.opens if offset >= earliest), None)
    end = next((offset for offset in edges.closes if offset >= (earliest if start is None else start)), None)
    if start is not None and text.startswith(core, start) and end == start + len(core):
        return _Span(start, end, lead, trail)
    pieces = []
    if start is not None:
        size = _common_prefix(core, text[start:end])
        pieces.append(_Span(start, start + size, lead, trail + len(core) - size))
    if end is not None:
        size = _common_prefix(core[::-1], text[earliest if start is None else start : end][::-1])
        pieces.append(_Span(end - size, end, lead + len(core) - size, trail))
    return max(pieces, key=lambda piece: piece.end - piece.start, default=None)


def _is_whole(content: str, edges: _Edges | None, text: str) -> bool:
    """Whether the marks outside an answer enclose all of it, once."""
    if edges is None or len(edges.opens) != 1 or len(edges.closes) != 1:
        return False
    return text[edges.opens[0] : edges.closes[0]] == content


def _common_prefix(a: str, b: str) -> int:
    for size, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return size
    return min(len(a), len(b))


def _margins(content: str) -> tuple[int, int]:
    """White space at both ends of a content, in characters."""
    stripped = content.strip()
    lead = content.find(stripped)
    return lead, len(content) - lead - len(stripped)


def _free_marks(text: str) -> int:
    """First of a range of private-use characters that the text does not use.

    Raises:
        UnusableRowError: the text uses both planes.
    """
    if text.isascii():
        return _MARK_PLANES[0]
    for base in _MARK_PLANES:
        if not any(base <= ord(character) < base + 0xFFFE for character in text):
            return base
    raise UnusableRowError(
        RejectionReason.CONTENT_NOT_LOCATED, "the text uses both private planes of Unicode"
    )


def _unmark(rendered: str, base: int) -> tuple[str, dict[int, list[int]]]:
    """Take the marks out; for each the offsets where it stood, in the text without marks."""
    marks: dict[int, list[int]] = {}
    pieces = []
    position = taken = 0
    for match in re.finditer(f"[{chr(base)}-{chr(base + 0xFFFD)}]", rendered):
        pieces.append(rendered[taken : match.start()])
        position += match.start() - taken
        taken = match.end()
        marks.setdefault(ord(match[0]) - base, []).append(position)
    return "".join([*pieces, rendered[taken:]]), marks


def _in_true_text(offsets: list[int], plain: str, text: str, *, is_open: bool) -> list[int]:
    """The offsets whose place in the true text is certain: all before them, or all after, is the same.

    Where both hold (a trimmed answer begins like the markup before it), the difference is taken to lie inside
    the answer: its opening mark counts from the left, its closing mark from the right.
    """
    shift = len(text) - len(plain)
    found = []
    for offset in offsets:
        candidates = []
        if text.startswith(plain[:offset]):
            candidates.append(offset)
        if offset + shift >= 0 and text.endswith(plain[offset:]):
            candidates.append(offset + shift)
        if candidates:
            found.append(candidates[0] if is_open else candidates[-1])
    return sorted(found)


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}`, with which some templates enclose answers: rendered as is."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> Node | list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as transformers sets it up for chat templates, in a sandbox."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = TEMPLATE_DATE.strftime
    return environment


def _to_json(value: object, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
