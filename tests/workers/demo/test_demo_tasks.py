"""Generated tasks: every answer is right, and no question of one split occurs in another."""

import ast
import re
from itertools import islice

import pytest

from workers.demo.splits import SPLITS, split_of
from workers.demo.tasks import GeneratedTask, generate_tasks


def tasks(split: str, count: int = 800) -> list[GeneratedTask]:
    return list(islice(generate_tasks(split, seed=5), count))


def numbers(text: str) -> list[int]:
    return [int(word) for word in re.findall(r"\d+", text)]


def expected(task: GeneratedTask) -> str:
    """The right answer by another way than the generator's: read from the question alone."""
    question = task.question
    match task.kind:
        case "sum":
            a, b = numbers(question)
            return f"{a} + {b} = {sum((a, b))}"
        case "difference":
            found = numbers(question)
            b, a = sorted(found)
            return f"{a} - {b} = {a - b}"
        case "larger":
            a, b = sorted(numbers(question))
            return f"{b} is larger than {a}." if "larger" in question else f"{a} is smaller than {b}."
        case "reversal":
            letters = re.findall(r"\b[a-z]\b", question)
            return " ".join(letters[::-1])
        case "replacement":
            old, new, rest = re.match(r"Replace (\w) by (\w) in: (.*)", question).groups()
            return rest.replace(old, new)
        case "count":
            wanted, rest = re.match(r"How often does (\w) occur in (.*)\?", question).groups()
            return f"{wanted} occurs {sum(letter == wanted for letter in rest.split())} times."
        case "series":
            row = numbers(question)
            return f"{2 * row[-1] - row[-2]}, since each number adds {row[1] - row[0]}."
        case "python":
            code = re.search(r"`(.*)`", question).group(1)
            ast.parse(code)
            return f"`{eval(code)}`"
    raise AssertionError(task.kind)


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_right(split: str) -> None:
    for task in tasks(split):
        assert task.answer == expected(task), task


def test_questions_of_a_split_stay_in_it() -> None:
    questions = {split: {task.question for task in tasks(split)} for split in SPLITS}
    for split, found in questions.items():
        assert {split_of(question) for question in found} == {split}
    assert not questions["train"] & questions["test"]


def test_the_stream_is_a_function_of_split_and_seed() -> None:
    assert tasks("train", 50) == tasks("train", 50)
    assert tasks("train", 50) != list(islice(generate_tasks("train", seed=6), 50))


def test_all_kinds_come_equally_often() -> None:
    kinds = [task.kind for task in tasks("train", 80)]
    assert {kinds.count(kind) for kind in kinds} == {10}
