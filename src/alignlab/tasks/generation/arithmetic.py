"""`lab-arithmetic`: questions of arithmetic, drawn with a seed, each with its answer and the steps that lead there.

Nothing can have been learnt by heart, and as many items as an effect needs can be had. `SHORT` kinds are bare sums,
small enough for a small model to get some of them right, which is what learning from a verifiable reward starts from.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alignlab.core.config import require
from alignlab.core.rng import derive_seed
from alignlab.tasks.generation.conversation import conversation_sample
from alignlab.tasks.generation.worked import WorkedItem
from alignlab.tasks.task import Sample

NAMES = ("Ada", "Ben", "Chloe", "Dan", "Esra", "Finn", "Gita", "Hugo", "Ines", "Jun", "Kofi", "Lena")
THINGS = ("apples", "pencils", "marbles", "stamps", "shells", "cards", "coins", "books", "beads", "seeds")


@dataclass(frozen=True)
class Exercise:
    """What a kind of question draws."""

    question: str
    steps: str
    answer: int


def _adding(draw: random.Random) -> Exercise:
    a, b = draw.randint(12, 998), draw.randint(12, 998)
    return Exercise(f"What is {a} + {b}?", f"{a} + {b} = {a + b}.", a + b)


def _subtracting(draw: random.Random) -> Exercise:
    a, b = draw.randint(12, 998), draw.randint(12, 998)
    return Exercise(f"What is {a} - {b}?", f"{a} - {b} = {a - b}.", a - b)


def _multiplying(draw: random.Random) -> Exercise:
    a, b = draw.randint(3, 99), draw.randint(3, 29)
    return Exercise(f"What is {a} times {b}?", f"{a} * {b} = {a * b}.", a * b)


def _dividing(draw: random.Random) -> Exercise:
    b, answer = draw.randint(3, 19), draw.randint(4, 60)
    return Exercise(f"What is {b * answer} divided by {b}?", f"{b * answer} / {b} = {answer}.", answer)


def _remainder(draw: random.Random) -> Exercise:
    b = draw.randint(3, 19)
    a = draw.randint(b + 1, 300)
    steps = f"{a // b} * {b} = {a // b * b} and {a} - {a // b * b} = {a % b}."
    return Exercise(f"What is the remainder when {a} is divided by {b}?", steps, a % b)


def _brackets(draw: random.Random) -> Exercise:
    a, b, c, d = draw.randint(2, 40), draw.randint(2, 40), draw.randint(2, 12), draw.randint(1, 90)
    total = (a + b) * c - d
    steps = f"{a} + {b} = {a + b}. {a + b} * {c} = {(a + b) * c}. {(a + b) * c} - {d} = {total}."
    return Exercise(f"What is ({a} + {b}) * {c} - {d}?", steps, total)


def _sharing(draw: random.Random) -> Exercise:
    name, thing = draw.choice(NAMES), draw.choice(THINGS)
    boxes, each, given = draw.randint(3, 15), draw.randint(6, 40), draw.randint(2, 17)
    question = f"{name} has {boxes} boxes with {each} {thing} in each, and gives {given} {thing} away. "
    steps = f"{boxes} * {each} = {boxes * each}. {boxes * each} - {given} = {boxes * each - given}."
    return Exercise(question + f"How many {thing} does {name} have left?", steps, boxes * each - given)


def _paying(draw: random.Random) -> Exercise:
    name, thing = draw.choice(NAMES), draw.choice(THINGS)
    first, price, more, other = draw.randint(2, 12), draw.randint(2, 30), draw.randint(2, 9), draw.randint(2, 45)
    total = first * price + more * other
    question = (
        f"{name} buys {first} bags of {thing} at {price} dollars a bag and {more} lamps at {other} dollars each. "
    )
    steps = f"{first} * {price} = {first * price}. {more} * {other} = {more * other}. "
    steps += f"{first * price} + {more * other} = {total}."
    return Exercise(question + "How many dollars is that together?", steps, total)


def _sum(draw: random.Random) -> Exercise:
    a, b = draw.randint(1, 99), draw.randint(1, 99)
    return Exercise(f"{a} + {b}", f"{a} + {b} = {a + b}.", a + b)


def _difference(draw: random.Random) -> Exercise:
    b, a = sorted(draw.sample(range(1, 100), 2))
    return Exercise(f"{a} - {b}", f"{a} - {b} = {a - b}.", a - b)


def _product(draw: random.Random) -> Exercise:
    a, b = draw.randint(2, 9), draw.randint(2, 99)
    return Exercise(f"{a} * {b}", f"{a} * {b} = {a * b}.", a * b)


KINDS: dict[str, Callable[[random.Random], Exercise]] = {
    "adding": _adding,
    "subtracting": _subtracting,
    "multiplying": _multiplying,
    "dividing": _dividing,
    "remainder": _remainder,
    "brackets": _brackets,
    "sharing": _sharing,
    "paying": _paying,
}
SHORT: dict[str, Callable[[random.Random], Exercise]] = {"sum": _sum, "difference": _difference, "product": _product}


def arithmetic_items(
    n: int,
    *,
    seed: int = 0,
    stream: str = "items",
    avoid: tuple[str, ...] = (),
    kinds: Sequence[str] = tuple(KINDS),
) -> list[WorkedItem]:
    """`n` different questions, the kinds (of `KINDS` and `SHORT`) in turn; none of the questions in `avoid`.

    The first items of a longer list are those of a shorter one. `stream` keeps examples apart from what is asked.
    """
    require(isinstance(n, int) and n >= 1, "n", n, "a whole number of at least 1")
    known = KINDS | SHORT
    require(bool(kinds) and set(kinds) <= known.keys(), "kinds", kinds, f"some of {', '.join(known)}")
    seen = set(avoid)
    items: list[WorkedItem] = []
    draws = {kind: random.Random(derive_seed(seed, "lab-arithmetic", stream, kind)) for kind in kinds}
    while len(items) < n:
        kind = kinds[len(items) % len(kinds)]
        exercise = known[kind](draws[kind])
        for _ in range(10_000):
            if exercise.question not in seen:
                break
            exercise = known[kind](draws[kind])
        else:
            require(False, "n", n, f"fewer: there are not so many different questions of the kind {kind!r}")
        seen.add(exercise.question)
        name = f"{stream}-{seed}-{len(items) + 1}"
        items.append(WorkedItem(name, exercise.question, str(exercise.answer), exercise.steps, category=kind))
    return items


def arithmetic_conversations(n: int, *, seed: int = 0, turns: int = 3) -> list[Sample]:
    """`n` conversations that start with a sum and go on from the answer before: "Now add 14 to that."

    Every turn has a target, so `EachTurn` tells how fast a model loses the thread.
    """
    require(isinstance(n, int) and n >= 1, "n", n, "a whole number of at least 1")
    require(2 <= turns <= 16, "turns", turns, "a whole number from 2 to 16")
    samples = []
    for number in range(n):
        draw = random.Random(derive_seed(seed, "lab-arithmetic-turns", number))
        a, b = draw.randint(3, 90), draw.randint(3, 90)
        said, value = [f"What is {a} + {b}? Answer with the number only."], a + b
        targets: list[str | None] = [str(value)]
        for _ in range(turns - 1):
            sentence, value = _next_step(draw, value)
            said.append(f"{sentence} Answer with the number only.")
            targets.append(str(value))
        samples.append(conversation_sample(f"turns-{seed}-{number + 1}", said, targets))
    return samples


def _next_step(draw: random.Random, value: int) -> tuple[str, int]:
    n = draw.randint(3, 60)
    kind = draw.choice(("add", "take", "double", "times"))
    if kind == "take":
        return f"Now subtract {n} from that.", value - n
    if kind == "double":
        return "Now double that.", value * 2
    if kind == "times" and abs(value) < 100:
        return f"Now multiply that by {n % 7 + 3}.", value * (n % 7 + 3)
    return f"Now add {n} to that.", value + n
