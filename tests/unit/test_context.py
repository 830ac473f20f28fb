"""For which tasks and languages a domain is trained."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idiolect.errors import InvalidInputError
from idiolect.signals.comparison import Item
from idiolect.signals.context import Context, declared
from idiolect.signals.data import Comparisons, Ratings, SharedData

TAGS = (("", "de"), ("reply", "de"), ("reply", "en"), ("summary", "pt-BR"))


@pytest.mark.parametrize(
    ("context", "covered"),
    [
        (Context(languages=("de",)), [True, True, False, False]),
        (Context(("reply",)), [False, True, True, False]),
        (Context(("reply", "summary"), ("de", "pt-BR")), [False, True, False, True]),
        (Context(languages=("pt",)), [False] * 4),
    ],
)
def test_what_is_named_is_all_that_counts_and_what_is_not_named_may_be_anything(
    context: Context, covered: list[bool]
) -> None:
    assert [context.covers(task, language) for task, language in TAGS] == covered


def test_what_is_typed_may_be_in_any_order_and_repeated() -> None:
    assert declared(["b", "a", "b"], ()) == Context(("a", "b"))
    assert declared((), ()) is None
    assert str(declared(["b", "a"], ["de"])) == "task a or b; language de"


@pytest.mark.parametrize(
    ("tasks", "languages"),
    [
        (["x" * 65], []),
        (["a\nb"], []),
        ([""], []),
        ([], ["low german"]),
        ([], [""]),
        ([f"{n:060}" for n in range(9)], []),
    ],
)
def test_what_no_text_can_be_or_no_line_can_hold_is_refused(tasks: list[str], languages: list[str]) -> None:
    with pytest.raises(InvalidInputError):
        declared(tasks, languages)


@given(seed=st.integers(0, 1000), rated=st.integers(0, 8), compared=st.integers(0, 8))
def test_what_is_left_of_a_context_is_what_a_loop_would_leave(seed: int, rated: int, compared: int) -> None:
    rng = np.random.default_rng(seed)
    items = tuple(Item("chat", "p", f"text {n}", *reversed(TAGS[rng.integers(len(TAGS))])) for n in range(5))
    data = SharedData(
        items,
        tuple(f"person {n}" for n in range(4)),
        Ratings(*_indices(rng, rated, 4, 5), rng.normal(size=rated).astype(np.float32)),
        Comparisons(*_indices(rng, compared, 4, 5, 5), rng.random(compared, dtype=np.float32)),
    )
    context = Context(("reply",), ("de", "en"))
    found = data.within(context)
    assert _said(found) == [said for said in _said(data) if all(context.covers(*tag) for tag in said[1])]
    assert set(found.people) == {said[0] for said in _said(found)}
    assert all(context.covers(item.task, item.language) for item in found.items)


def _indices(rng: np.random.Generator, rows: int, *sizes: int) -> list[np.ndarray]:
    return [rng.integers(0, size, rows).astype(np.int32) for size in sizes]


def _said(data: SharedData) -> list[tuple[str, tuple[tuple[str, str], ...], tuple[str, ...], float]]:
    """Each rating and comparison: who, the tags of its texts, the texts, and the number."""
    r, c = data.ratings, data.comparisons
    rows = [((item,), person, value) for person, item, value in zip(r.person_R, r.item_R, r.value_R, strict=True)]
    compared = zip(c.person_C, c.chosen_C, c.rejected_C, c.weight_C, strict=True)
    rows += [((chosen, rejected), person, weight) for person, chosen, rejected, weight in compared]
    return [
        (
            data.people[person],
            tuple((data.items[item].task, data.items[item].language) for item in items),
            tuple(data.items[item].text for item in items),
            float(value),
        )
        for items, person, value in rows
    ]
