"""Generated tasks with one exact answer each, in chat form.

They teach more in little time than prose does, and give the demo a figure that is easy to judge: exact
match. Every question is drawn from a seeded generator; the split of a question is a function of its text
(`workers.demo.splits`), so questions of the test split occur in no training set, a teacher's included.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from workers.demo.splits import Split, split_of


@dataclass(frozen=True)
class GeneratedTask:
    """One question with its only right answer.

    Attributes:
        kind: which generator made it, for a report by kind.
        question: what the user says.
        answer: what the assistant must say, to the letter.
    """

    kind: str
    question: str
    answer: str


def _sum(draw: random.Random) -> GeneratedTask:
    a, b = draw.randint(0, 99), draw.randint(0, 99)
    question = draw.choice(("What is {a} + {b}?", "Add {a} and {b}."))
    return GeneratedTask("sum", question.format(a=a, b=b), f"{a} + {b} = {a + b}")


def _difference(draw: random.Random) -> GeneratedTask:
    b, a = sorted((draw.randint(0, 99), draw.randint(0, 99)))
    question = draw.choice(("What is {a} - {b}?", "Subtract {b} from {a}."))
    return GeneratedTask("difference", question.format(a=a, b=b), f"{a} - {b} = {a - b}")


def _larger(draw: random.Random) -> GeneratedTask:
    a, b = draw.sample(range(100), 2)
    if draw.random() < 0.5:
        return GeneratedTask(
            "larger", f"Which is larger, {a} or {b}?", f"{max(a, b)} is larger than {min(a, b)}."
        )
    return GeneratedTask(
        "larger", f"Which is smaller, {a} or {b}?", f"{min(a, b)} is smaller than {max(a, b)}."
    )


def _letters(draw: random.Random, low: int, high: int) -> list[str]:
    return draw.choices(string.ascii_lowercase, k=draw.randint(low, high))


def _digits(draw: random.Random, low: int, high: int) -> list[int]:
    return [draw.randint(0, 9) for _ in range(draw.randint(low, high))]


def _reversal(draw: random.Random) -> GeneratedTask:
    letters = _letters(draw, 3, 7)
    question = draw.choice(("Reverse: {x}", "Write {x} backwards."))
    return GeneratedTask("reversal", question.format(x=" ".join(letters)), " ".join(reversed(letters)))


def _replacement(draw: random.Random) -> GeneratedTask:
    old, new = draw.sample(string.ascii_lowercase[:10], 2)
    letters = draw.choices(string.ascii_lowercase[:10], k=draw.randint(3, 6))
    letters[draw.randrange(len(letters))] = old
    answer = " ".join(new if letter == old else letter for letter in letters)
    return GeneratedTask("replacement", f"Replace {old} by {new} in: {' '.join(letters)}", answer)


def _count(draw: random.Random) -> GeneratedTask:
    wanted, other, third = draw.sample(string.ascii_lowercase, 3)
    letters = draw.choices((wanted, other, third), weights=(2, 1, 1), k=draw.randint(3, 8))
    return GeneratedTask(
        "count",
        f"How often does {wanted} occur in {' '.join(letters)}?",
        f"{wanted} occurs {letters.count(wanted)} times.",
    )


def _python_list(draw: random.Random) -> GeneratedTask:
    values = _digits(draw, 3, 6)
    position = draw.randrange(len(values))
    expression, value = draw.choice(
        (
            (f"sorted({values})", sorted(values)),
            (f"{values}[::-1]", values[::-1]),
            (f"max({values})", max(values)),
            (f"min({values})", min(values)),
            (f"len({values})", len(values)),
            (f"{values}[{position}]", values[position]),
            (f"sum({values})", sum(values)),
            (f"{values}[1:]", values[1:]),
            (f"[x + 1 for x in {values}]", [x + 1 for x in values]),
        )
    )
    return GeneratedTask("python", f"What does `{expression}` give in Python?", f"`{value}`")


def _next_in_row(draw: random.Random) -> GeneratedTask:
    start, step = draw.randint(0, 30), draw.randint(1, 9)
    row = [start + step * i for i in range(4)]
    answer = f"{start + 4 * step}, since each number adds {step}."
    return GeneratedTask("series", f"What comes next? {', '.join(map(str, row))}", answer)


_GENERATORS: tuple[Callable[[random.Random], GeneratedTask], ...] = (
    _sum,
    _difference,
    _larger,
    _reversal,
    _replacement,
    _count,
    _python_list,
    _next_in_row,
)


def generate_tasks(split: Split, seed: int) -> Iterator[GeneratedTask]:
    """An endless, deterministic stream of tasks of one split, all kinds equally often.

    Args:
        split: only questions of this split are drawn.
        seed: another seed gives another stream over the same space of questions.

    Yields:
        Tasks; a small space of questions may repeat one.
    """
    draw = random.Random(f"{split}/{seed}")
    while True:
        for generator in _GENERATORS:
            task = generator(draw)
            while split_of(task.question) != split:
                task = generator(draw)
            yield task
