"""Where answers lie in rendered conversations: by marks, never by searching."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.fixtures_tokenizers import LLADA2_TEMPLATE, QWEN_TEMPLATE
from tide_core.contracts.errors import TokenizerError
from tide_core.data.conversations import Message, UnusableRowError
from tide_core.data.samples import RejectionReason
from tide_core.data.templates import ChatTemplate, Placed, Rendered

TRIMMING = "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}<end>{% endfor %}"


def chat(*contents: str) -> list[Message]:
    """User and assistant in turn."""
    return [Message(("user", "assistant")[n % 2], content) for n, content in enumerate(contents)]


def template(source: str, **options: object) -> ChatTemplate:
    return ChatTemplate(source, options)


def found(rendered: Rendered, number: int = -1) -> str:
    answer = rendered.answers[number]
    return rendered.text[answer.start : answer.end]


@pytest.mark.parametrize("source", [LLADA2_TEMPLATE, QWEN_TEMPLATE, TRIMMING])
@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Say yes or no. yes", "yes"),
        ("What is your role?", "user"),
        ("And yours?", "assistant"),
        ("Which words open a turn?", "im_start"),
        ("A letter?", "e"),
        ("same", "same"),
        ("Is 1 < 2 & 3?", "<b>1 & 2</b> {{ 'not a template' }} {% x %}"),
        ("漢字", "は 漢字"),
    ],
)
def test_an_answer_is_found_at_its_own_place(source: str, prompt: str, answer: str) -> None:
    rendered = template(source).render_placed(chat(prompt, answer))
    place = rendered.answers[-1]
    assert found(rendered) == answer
    # The truth, by construction: after the prompt and the last opening markup nothing else can come.
    assert rendered.text.rindex(answer, 0, place.end) == place.start
    assert rendered.text[place.end :] in ("<|role_end|>", "<|im_end|>\n", "<end>")


def test_what_the_model_would_write_begins_after_the_generation_prompt() -> None:
    rendered = template(QWEN_TEMPLATE, enable_thinking=False).render_placed(chat("q", "a"))
    assert rendered.text[rendered.answers[0].response_start :] == "a<|im_end|>\n"
    rendered = template(QWEN_TEMPLATE).render_placed(chat("q", "a"))
    assert rendered.text[rendered.answers[0].response_start :] == "<think>\n\n</think>\n\na<|im_end|>\n"


def test_a_trimmed_answer_is_located_by_its_core() -> None:
    rendered = template(TRIMMING).render_placed(chat(" q ", " \n the answer\t"))
    assert found(rendered) == "the answer"
    assert (rendered.answers[0].skipped, rendered.answers[0].dropped) == (3, 1)


def test_white_space_that_is_kept_belongs_to_the_answer() -> None:
    rendered = template(LLADA2_TEMPLATE).render_placed(chat("q", "\n  kept \n"))
    assert found(rendered) == "\n  kept \n"
    assert (rendered.answers[0].skipped, rendered.answers[0].dropped) == (0, 0)


def test_a_one_sided_trim_keeps_what_is_certain() -> None:
    rendered = template(QWEN_TEMPLATE).render_placed(chat("q", "\n\nanswer "))
    # The markup before it ends in the same two newlines: they are not the answer's.
    assert found(rendered) == "answer "
    assert (rendered.answers[0].skipped, rendered.answers[0].dropped) == (2, 0)


def test_an_answer_that_the_template_repeats_is_taken_at_its_place() -> None:
    source = "{{ messages[-1].content }}|" + LLADA2_TEMPLATE + "|{{ messages[-1].content }}"
    rendered = template(source).render_placed(chat("q", "echo"), every_answer=False)
    # No generation prompt is a prefix of such a text, so the first place is taken.
    assert rendered.answers[0].start == 0
    source = LLADA2_TEMPLATE + "|{{ messages[-1].content }}"
    rendered = template(source).render_placed(chat("q", "echo"))
    assert rendered.text[: rendered.answers[0].start].endswith("ASSISTANT</role>")


def test_answers_stand_in_the_order_of_their_turns() -> None:
    source = "{{ messages[-1].content }}|" + LLADA2_TEMPLATE
    rendered = template(source).render_placed(chat("q", "first", "q", "last"), every_answer=True)
    # The quotation of the last answer stands before the first answer, so it is not its place.
    assert [found(rendered, 0), found(rendered, 1)] == ["first", "last"]
    assert rendered.answers[1].start == rendered.text.rindex("last")


def test_of_a_rewritten_answer_the_unchanged_part_is_kept() -> None:
    source = (
        "{% for m in messages %}<{{ m.role }}>"
        "{{ m.content.split('</think>')[-1].lstrip('\\n') if loop.last else m.content }}</>{% endfor %}"
    )
    rendered = template(source).render_placed(chat("q", "<think>\nlong reasoning\n</think>\n\nThe answer."))
    assert rendered.text == "<user>q</><assistant>The answer.</>"
    assert found(rendered) == "The answer."
    assert rendered.answers[0].skipped == len("<think>\nlong reasoning\n</think>\n\n")
    cut = "{% for m in messages %}<{{ m.role }}>{{ m.content.split('|')[0] }}</>{% endfor %}"
    rendered = template(cut).render_placed(chat("q", "first|second"))
    assert found(rendered) == "first"
    assert rendered.answers[0].dropped == len("|second")


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.role }}{% endfor %}",
        "{% for m in messages %}{{ m.content | length }}{% endfor %}",
        "{% for m in messages %}{{ m.content | replace('e', 'a') | upper }}{% endfor %}",
    ],
)
def test_an_answer_that_is_not_in_the_text_is_rejected(source: str) -> None:
    with pytest.raises(UnusableRowError) as caught:
        template(source).render_placed(chat("q", "echo"))
    assert caught.value.reason is RejectionReason.CONTENT_NOT_LOCATED


def test_every_answer_of_a_conversation() -> None:
    messages = chat("one", "yes", "two yes", "yes", "three", "yes yes")
    rendered = template(QWEN_TEMPLATE, enable_thinking=False).render_placed(messages, every_answer=True)
    assert [found(rendered, n) for n in range(3)] == ["yes", "yes", "yes yes"]
    assert [answer.is_last for answer in rendered.answers] == [False, False, True]
    starts = [answer.start for answer in rendered.answers]
    assert starts == sorted(starts)
    before = [rendered.text[: answer.start] for answer in rendered.answers]
    assert [text.count("<|im_start|>assistant") for text in before] == [1, 2, 3]
    # The think block stands before the last answer alone, so it is no part of the earlier prompts.
    assert [answer.start - answer.response_start for answer in rendered.answers] == [0, 0, 0]


def test_a_conversation_may_begin_with_an_answer_or_a_system_message() -> None:
    rendered = template(LLADA2_TEMPLATE).render_placed([Message("assistant", "hello")])
    assert rendered.answers == (Placed(22, 22, 27, 0, 0, True),)
    messages = [Message("system", "be brief: hello"), *chat("q", "hello")]
    assert found(template(LLADA2_TEMPLATE).render_placed(messages)) == "hello"


def test_texts_that_use_private_characters() -> None:
    icon, other = chr(0xF0000), chr(0x100000)
    assert found(template(LLADA2_TEMPLATE).render_placed(chat(icon, f"a{icon}b"))) == f"a{icon}b"
    with pytest.raises(UnusableRowError, match="private planes"):
        template(LLADA2_TEMPLATE).render_placed(chat(icon, other))


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[7].content.nothing }}",
        "{{ messages[0].role + 1 }}",
        "{{ ''.__class__.__mro__ }}",
    ],
)
def test_a_template_that_refuses_rejects_the_row(source: str) -> None:
    with pytest.raises(UnusableRowError) as caught:
        template(source).render_placed(chat("q", "a"))
    assert caught.value.reason is RejectionReason.TEMPLATE_REFUSED


def test_a_template_that_refuses_half_a_conversation_is_not_asked_for_a_prompt() -> None:
    source = (
        "{% if messages | length % 2 %}{{ raise_exception('even only') }}{% endif %}"
        "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    )
    rendered = template(source).render_placed(chat("q", "a"))
    assert found(rendered) == "a"
    assert rendered.answers[0].response_start == rendered.answers[0].start


def test_a_template_that_refuses_marks_rejects_the_row() -> None:
    source = (
        "{% for m in messages %}"
        "{% if m.content | length > 1 %}{{ raise_exception('one letter') }}{% endif %}<{{ m.content }}>"
        "{% endfor %}"
    )
    with pytest.raises(UnusableRowError) as caught:
        template(source).render_placed(chat("q", "a"))
    assert caught.value.reason is RejectionReason.CONTENT_NOT_LOCATED


def test_what_transformers_offers_to_templates_is_there() -> None:
    source = (
        "{%- for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
        "{{ {'ä': [1]} | tojson }}{{ strftime_now('%d %b %Y') }}{{ bos_token }}"
    )
    messages = [Message("system", "s"), *chat("q", "a")]
    text = template(source, bos_token="<s>").render(messages)
    assert text == 'qa{"ä": [1]}26 Jul 2024<s>', (
        "the date stands still, or no data set could be prepared twice"
    )


def test_a_folder_gives_template_tokens_and_options(qwen_folder: Path, tmp_path: Path) -> None:
    loaded = ChatTemplate.from_folder(qwen_folder, {"enable_thinking": False})
    assert loaded.variables["eos_token"] == "<|im_end|>"
    assert loaded.variables["enable_thinking"] is False
    with pytest.raises(TokenizerError, match="has no chat template") as caught:
        ChatTemplate.from_folder(tmp_path, {})
    assert caught.value.code == "chat_template_missing"
    with pytest.raises(TokenizerError, match="does not compile"):
        template("{% for %}")


@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "gemma3", "deepseek_v3"])
@pytest.mark.parametrize(
    "answer",
    [
        "yes",
        "user",
        "  indented\n",
        "\n\nleading",
        "<think>\nsome thought\n</think>\n\nThe answer.",
        "model",
        "e\u0301 and é",
        "1. one\r\n2. two",
    ],
)
def test_genuine_templates(name: str, answer: str, real_tokenizer_folder: Callable[[str], Path]) -> None:
    loaded = ChatTemplate.from_folder(real_tokenizer_folder(name), {"enable_thinking": False})
    messages = chat("Answer with yes or user or model.", "model", "Again: yes user model", answer)
    rendered = loaded.render_placed(messages)
    place = rendered.answers[0]
    kept = answer[place.skipped : len(answer) - place.dropped]
    assert found(rendered) == kept
    assert kept.strip() == answer.strip() or kept == answer.split("</think>")[-1]
    closing = {"qwen3": "<|im_end|>", "llama3_1": "<|eot_id|>", "gemma3": "<end_of_turn>"}
    rest = rendered.text[place.end :].lstrip()
    assert rest.startswith(closing.get(name, "<｜end▁of▁sentence｜>"))
    assert messages[2].content in rendered.text[: place.response_start]
