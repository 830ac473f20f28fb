"""The sample that ships in `deploy/sample/`: written texts, and simulated people with stated tastes.

Nobody's choices are stored: they are drawn here, and always the same ones. Every person has a generator of their own,
seeded by the stated seed and the person's id, so that more people in the file do not change what the others chose.

A person's utility of an answer is the dot product of six standardised attributes with (the person's weights + the
domain's weights); which of two answers is chosen follows Bradley-Terry on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from random import Random
from statistics import fmean, pstdev

from idiolect.errors import InvalidInputError
from idiolect.ids import text_digest
from idiolect.signals.comparison import Comparison, Item, PreferenceDataset
from idiolect.signals.importers.sample_format import (
    ATTRIBUTES,
    PANEL,
    TASTES,
    Answer,
    Prompt,
    Taste,
    Tastes,
    Weights,
    read_sample,
    words,
)

HELD_OUT_SHARE = 0.25  # of the prompts of each domain
ADAPTATION_PAIRS = 30
TEST_KNOWN_PAIRS = 12
TEST_NEW_PAIRS = 16

# With the stated weights, these make about 88% of a person's choices agree with their own utility.
STRENGTH = (0.7, 1.3)  # uniform: how much of the taste a person has
INDIVIDUAL_NOISE = 0.3  # standard deviation, per attribute

Pair = tuple[int, int]  # two items of one prompt


@dataclass(frozen=True, slots=True)
class _Texts:
    """Items with their attributes, and the pairs of items that can be compared."""

    items: tuple[Item, ...]
    attributes_I_A: tuple[tuple[float, ...], ...]  # standardised over all items, in the order of ATTRIBUTES
    training: tuple[Pair, ...]
    held_out: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class _Person:
    id: str
    weights_A: tuple[float, ...]
    rng: Random


def load_sample(folder: Path) -> PreferenceDataset:
    """The sample in `folder`: every `*.jsonl` there is a domain.

    Raises ConfigurationError for files that are missing, InvalidInputError for what can't be right in one.
    """
    files = read_sample(folder)
    prompts, tastes, texts = files.prompts, files.tastes, _texts(files.prompts)
    _check_sizes(folder, tastes, texts)
    comparisons = tuple(
        choice
        for person in _panel(tastes)
        for choice in _choices(person, tastes, texts, texts.training, tastes.comparisons_per_person)
    )
    adaptation, evaluation = _new_people_choices(tastes, texts)
    return PreferenceDataset(
        name="sample",
        digest=files.digest,
        items=texts.items,
        comparisons=comparisons,
        new_people=frozenset(choice.person for choice in adaptation),
        adaptation=adaptation,
        evaluation=evaluation,
        report={
            "domains": len(prompts),
            "prompts": sum(map(len, prompts.values())),
            "prompts_held_out": sum(_held_out_count(of_domain) for of_domain in prompts.values()),
            "items": len(texts.items),
            "people": tastes.people.panel,
            "new_people": tastes.people.new,
            "comparisons": len(comparisons),
            "adaptation": len(adaptation),
            **{part: len(choices) for part, choices in evaluation.items()},
        },
    )


def _check_sizes(folder: Path, tastes: Tastes, texts: _Texts) -> None:
    """Pairs are drawn without replacement, so there must be enough of them."""
    needed = max(tastes.comparisons_per_person, ADAPTATION_PAIRS + TEST_KNOWN_PAIRS)
    if len(texts.training) < needed or len(texts.held_out) < TEST_NEW_PAIRS:
        raise InvalidInputError(
            f"{folder} has {len(texts.training)} training and {len(texts.held_out)} held-out pairs of answers; "
            f"{needed} and {TEST_NEW_PAIRS} are needed.",
            mend=f"Add prompts, or lower comparisons_per_person in {TASTES}.",
        )


def _texts(prompts: Mapping[str, Sequence[Prompt]]) -> _Texts:
    items, attributes, training, held_out = list[Item](), list[list[float]](), list[Pair](), list[Pair]()
    for domain, of_domain in prompts.items():
        hidden = _held_out(of_domain)
        for prompt in of_domain:
            first = len(items)
            items += [Item(domain, prompt.prompt, answer.text) for answer in prompt.answers]
            attributes += [_attributes(answer) for answer in prompt.answers]
            pairs = combinations(range(first, len(items)), 2)
            (held_out if prompt.prompt in hidden else training).extend(pairs)
    return _Texts(tuple(items), _standardised(attributes), tuple(training), tuple(held_out))


def _held_out_count(prompts: Sequence[Prompt]) -> int:
    return round(HELD_OUT_SHARE * len(prompts))


def _held_out(prompts: Sequence[Prompt]) -> set[str]:
    """Those with the smallest hashes: their order in the file means nothing."""
    by_hash = sorted((prompt.prompt for prompt in prompts), key=text_digest)
    return set(by_hash[: _held_out_count(prompts)])


def _attributes(answer: Answer) -> list[float]:
    """In the order of ATTRIBUTES."""
    stated = answer.style.model_dump()
    return [math.log(words(answer.text)), *(float(stated[name]) for name in ATTRIBUTES[1:])]


def _standardised(rows_I_A: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """Mean 0 and standard deviation 1 in each column; all 0 in a column that never varies."""
    scales = [(fmean(column), pstdev(column) or 1.0) for column in zip(*rows_I_A, strict=True)]
    return tuple(
        tuple((value - mean) / deviation for value, (mean, deviation) in zip(row, scales, strict=True))
        for row in rows_I_A
    )


def _panel(tastes: Tastes) -> Iterator[_Person]:
    """Tastes take turns, so that all are equally common."""
    for index in range(tastes.people.panel):
        taste = tastes.tastes[index % len(tastes.tastes)]
        yield _person(f"{PANEL}-{index + 1:03d}", taste, tastes.seed)


def _new_people(tastes: Tastes) -> Iterator[_Person]:
    for index in range(tastes.people.new):
        turn, position = divmod(index, len(tastes.tastes))
        taste = tastes.tastes[position]
        yield _person(f"{taste.name}-{turn + 1:02d}", taste, tastes.seed)


def _person(person_id: str, taste: Taste, seed: int) -> _Person:
    rng = Random(f"{seed}/{person_id}")  # noqa: S311 a simulation that must repeat, and protects nothing
    strength = rng.uniform(*STRENGTH)
    weights = [strength * weight + INDIVIDUAL_NOISE * rng.gauss(0.0, 1.0) for weight in _vector(taste.weights)]
    return _Person(person_id, tuple(weights), rng)


def _vector(weights: Weights) -> list[float]:
    return [weights.get(name, 0.0) for name in ATTRIBUTES]


def _new_people_choices(
    tastes: Tastes, texts: _Texts
) -> tuple[tuple[Comparison, ...], dict[str, tuple[Comparison, ...]]]:
    """What new people adapt to, and their evaluation parts. No pair of a person is in both."""
    adaptation, test_known, test_new = list[Comparison](), list[Comparison](), list[Comparison]()
    for person in _new_people(tastes):
        known = _choices(person, tastes, texts, texts.training, ADAPTATION_PAIRS + TEST_KNOWN_PAIRS)
        adaptation += known[:ADAPTATION_PAIRS]
        test_known += known[ADAPTATION_PAIRS:]
        test_new += _choices(person, tastes, texts, texts.held_out, TEST_NEW_PAIRS)
    return tuple(adaptation), {"test_known": tuple(test_known), "test_new": tuple(test_new)}


def _choices(person: _Person, tastes: Tastes, texts: _Texts, pairs: Sequence[Pair], count: int) -> list[Comparison]:
    """`count` different pairs, in random order, each decided by Bradley-Terry on the person's utility."""
    weights_A = {
        domain: [own + shared for own, shared in zip(person.weights_A, _vector(stated), strict=True)]
        for domain, stated in tastes.domain_tastes.items()
    }
    choices = []
    for first, second in person.rng.sample(pairs, count):
        weights = weights_A.get(texts.items[first].domain, person.weights_A)
        advantage = _dot(weights, texts.attributes_I_A[first]) - _dot(weights, texts.attributes_I_A[second])
        # tanh is the logistic function that can't overflow.
        prefers_first = person.rng.random() < (1 + math.tanh(advantage / 2)) / 2
        chosen, rejected = (first, second) if prefers_first else (second, first)
        choices.append(Comparison(person.id, chosen, rejected))
    return choices


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
