"""What can go wrong, said once and completely.

Bad input raises `InputError`, which carries every problem found, not the first one. A question that has an
answer, but the answer is "it cannot be done" (it does not fit, no strategy is legal), raises `Infeasible`.
Anything else that escapes is a defect of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

EXIT_ANSWER = 0
EXIT_INFEASIBLE = 1
EXIT_BAD_INPUT = 2
EXIT_INTERNAL = 3


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with an input.

    `where` is a place a person can go to ("models/gpt3/gpt3-175b.toml:12" or "--tp"), `message` says what is
    wrong with the failed arithmetic in it, `hint` the nearest fix.
    """

    message: str
    where: str = ""
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.message}" + (f" {self.hint}" if self.hint else "")


class ShardwiseError(Exception):
    """The base of every error this package raises on purpose."""

    def __init__(self, problems: Iterable[Problem | str]) -> None:
        self.problems = tuple(p if isinstance(p, Problem) else Problem(p) for p in problems)
        super().__init__("\n".join(str(p) for p in self.problems))


class InputError(ShardwiseError):
    """The input is wrong; every problem is listed. Exit code 2."""


def all_of(*questions: Callable[[], Any]) -> list[Any]:
    """Every question's answer, in order. When some fail, one InputError with the problems of all of them.

    >>> all_of(lambda: 1, lambda: 2)
    [1, 2]
    """
    answers: list[Any] = []
    problems: list[Problem] = []
    for question in questions:
        try:
            answers.append(question())
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return answers


class Infeasible(ShardwiseError):
    """The input is sound and the answer is no; every reason is listed. Exit code 1."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known word as a sentence, or the choices when there are few, or nothing.

    >>> did_you_mean("gpt3-175", ["gpt3-175b", "bert-base"])
    'Did you mean gpt3-175b?'
    """
    choices = sorted(set(known))
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]}?"
    if choices and len(choices) <= 12:
        return f"Choose from: {', '.join(choices)}."
    return ""


class Complaints:
    """Collects problems so that all are reported at once.

    >>> complaints = Complaints()
    >>> complaints.add("tp(3) does not divide heads(8)", where="--tp")
    >>> complaints.raise_if_any()
    Traceback (most recent call last):
    ...
    simulator.errors.InputError: --tp: tp(3) does not divide heads(8)
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def add(self, message: str, *, where: str = "", hint: str = "") -> None:
        self.problems.append(Problem(message, where, hint))

    def require(self, condition: bool, message: str, *, where: str = "", hint: str = "") -> None:
        if not condition:
            self.add(message, where=where, hint=hint)

    def raise_if_any(self) -> None:
        if self.problems:
            raise InputError(self.problems)
