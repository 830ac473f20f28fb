"""The local option: what is stored is a coin's word as much as the person's."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from idiolect.errors import InvalidInputError
from idiolect.privacy.randomised_response import debiasing_weight, flip_probability, randomised_comparisons
from idiolect.signals.events import WEIGHTS, DerivedComparison

DRAWS = 20_000
# One in a million of honest runs fails.
P_VALUE = 1e-6


def fits_expected(counts: Sequence[int], expected: Sequence[float]) -> bool:
    statistic = sum((count - want) ** 2 / want for count, want in zip(counts, expected, strict=True))
    return bool(chi2.sf(statistic, len(counts) - 1) > P_VALUE)


def report(truth: Sequence[tuple[int, int]], shown: Sequence[int], epsilon: float) -> tuple[int, int]:
    (drawn,) = randomised_comparisons([DerivedComparison(*pair, 1.0) for pair in truth], shown, 1.0, epsilon)
    return drawn.chosen, drawn.rejected


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0])
def test_a_direction_is_flipped_as_often_as_warner_says(epsilon: float) -> None:
    counts = Counter(report([(4, 7)], [7, 4], epsilon) for _ in range(DRAWS))
    flip = 1.0 / (1.0 + math.exp(epsilon))
    assert set(counts) <= {(4, 7), (7, 4)}
    assert fits_expected([counts[4, 7], counts[7, 4]], [DRAWS * (1 - flip), DRAWS * flip])
    assert not fits_expected([counts[7, 4], counts[4, 7]], [DRAWS * (1 - flip), DRAWS * flip])


def test_every_pair_is_reported_as_often_whatever_the_answer_was() -> None:
    """Else the pair would say what the direction hides."""
    for chosen in range(4):
        truth = [(chosen, other) for other in range(4) if other != chosen]
        pairs = Counter(frozenset(report(truth, range(4), 2.0)) for _ in range(6_000))
        assert len(pairs) == 6
        assert fits_expected(list(pairs.values()), [1_000.0] * 6)


def test_a_pair_that_the_answer_does_not_order_gets_a_fair_coin() -> None:
    reports = Counter(report([(0, 1), (0, 2)], [0, 1, 2], 5.0) for _ in range(DRAWS))
    one, other = reports[1, 2], reports[2, 1]
    assert fits_expected([one, other], [(one + other) / 2] * 2)


def exact(truth: Sequence[tuple[int, int]], shown: Sequence[int], epsilon: float) -> dict[tuple[int, int], float]:
    """The probability of each report, by playing every draw that `below` can answer."""
    reports: dict[tuple[int, int], float] = Counter()
    comparisons = [DerivedComparison(*pair, 1.0) for pair in truth]
    for first in range(len(shown)):
        for second in range(len(shown) - 1):
            thresholds: list[float] = []

            def pair_then(low: int, first: int = first, second: int = second) -> Any:
                answers = iter([first, second, low])
                return lambda bound: next(answers)

            kept = randomised_comparisons(comparisons, shown, 1.0, epsilon, pair_then(2**64 - 1))[0]
            flipped = randomised_comparisons(comparisons, shown, 1.0, epsilon, pair_then(0))[0]
            assert (flipped.rejected, flipped.chosen) == (kept.chosen, kept.rejected)
            low, high = 0, 2**64
            while low < high:  # the smallest draw that does not flip
                middle = (low + high) // 2
                drawn = randomised_comparisons(comparisons, shown, 1.0, epsilon, pair_then(middle))[0]
                low, high = (low, middle) if drawn == kept else (middle + 1, high)
            share = 1.0 / (len(shown) * (len(shown) - 1))
            thresholds.append(low / 2**64)
            reports[flipped.chosen, flipped.rejected] += share * thresholds[-1]
            reports[kept.chosen, kept.rejected] += share * (1.0 - thresholds[-1])
    return reports


@given(st.integers(2, 4), st.floats(0.1, 6), st.data())
@settings(max_examples=25, deadline=None)
def test_no_answer_makes_a_report_more_than_e_to_the_epsilon_as_likely_as_another(
    documents: int, epsilon: float, data: st.DataObject
) -> None:
    def answer() -> list[tuple[int, int]]:
        chosen = data.draw(st.integers(0, documents - 1))
        kind = data.draw(st.sampled_from(["choice", "ranking", "none"]))
        if kind == "none":
            return []
        if kind == "choice":
            return [(chosen, other) for other in range(documents) if other != chosen]
        order = data.draw(st.permutations(range(documents)))
        return list(itertools.pairwise(order))

    one, other = exact(answer(), range(documents), epsilon), exact(answer(), range(documents), epsilon)
    assert sum(one.values()) == pytest.approx(1.0)
    assert set(one) == set(other)
    assert max(one[key] / other[key] for key in one) <= math.exp(epsilon) * (1 + 1e-9)


def test_the_weight_does_not_depend_on_the_answer_and_undoes_the_bias() -> None:
    for kind, weight in WEIGHTS.items():
        for truth in ([], [DerivedComparison(0, 1, weight)]):
            (drawn,) = randomised_comparisons(truth, [0, 1], weight, 1.0)
            assert drawn.weight == weight * debiasing_weight(1.0), kind
    for epsilon in (0.1, 1.0, 8.0):
        kept = 1.0 - 2.0 * flip_probability(epsilon)
        assert debiasing_weight(epsilon) * kept == pytest.approx(1.0)
        assert debiasing_weight(epsilon) == pytest.approx((math.exp(epsilon) + 1) / (math.exp(epsilon) - 1))


def test_the_debiased_mean_of_many_directions_is_the_true_one() -> None:
    truth = [DerivedComparison(0, 1, 1.0)]
    drawn = [randomised_comparisons(truth, [0, 1], 1.0, 1.0)[0] for _ in range(DRAWS)]
    mean = sum(c.weight * (1 if c.chosen == 0 else -1) for c in drawn) / DRAWS
    assert mean == pytest.approx(1.0, abs=5 * debiasing_weight(1.0) / math.sqrt(DRAWS))


def test_absurd_epsilons_neither_overflow_nor_leak() -> None:
    assert flip_probability(1e6) == 0.0
    assert flip_probability(1e-9) == pytest.approx(0.5)
    assert debiasing_weight(1e6) == 1.0
    assert report([(0, 1)], [0, 1], 700.0) == (0, 1)


@pytest.mark.parametrize("epsilon", [0, -1.0, float("nan"), float("inf"), "1", True, None])
def test_a_local_epsilon_that_is_no_number_above_zero_is_refused(epsilon: Any) -> None:
    for refuse in (
        lambda: flip_probability(epsilon),
        lambda: debiasing_weight(epsilon),
        lambda: randomised_comparisons([], [0, 1], 1.0, epsilon),
    ):
        with pytest.raises(InvalidInputError, match="epsilon"):
            refuse()


def test_fewer_than_two_documents_have_nothing_to_compare() -> None:
    assert randomised_comparisons([], [], 1.0, 1.0) == ()
    assert randomised_comparisons([], [3], 1.0, 1.0) == ()
