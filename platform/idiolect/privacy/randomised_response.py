"""The local option: what a person answered is randomised once, before it is stored, so that nobody who reads the store
can be sure of it.

Warner 1965 flips a yes or no with probability 1 / (1 + e^epsilon). A signal says more than one yes or no: choosing one
of five documents implies four comparisons, and which pairs they are gives the choice away however their directions
are flipped. So one pair of shown documents is drawn first, without looking at the answer, and only its direction is
reported; where the answer does not order that pair, the direction is a fair coin. Each report is then at most e^epsilon
times as likely under one answer as under any other: the whole signal is epsilon-locally private. That there was a
signal, of which kind, about which inference and when, is not hidden.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence

from idiolect.errors import InvalidInputError
from idiolect.privacy.accountant import check_epsilon
from idiolect.signals.events import DerivedComparison

_BITS = 64

Below = Callable[[int], int]  # a uniform whole number in [0, n)


def flip_probability(epsilon: float) -> float:
    """Warner 1965: e^epsilon to 1 for the truth."""
    return math.exp(-check_epsilon(epsilon)) / (1.0 + math.exp(-epsilon))


def debiasing_weight(epsilon: float) -> float:
    """(e^epsilon + 1) / (e^epsilon - 1), by which the mean of randomised directions is that of the true ones.

    At an adapter of zero it makes the expected gradient that of the true comparison; elsewhere the logistic loss is
    not linear, and the learned preference stays on the cautious side.
    """
    return 1.0 / math.tanh(check_epsilon(epsilon) / 2.0)


def randomised_comparisons(
    truth: Sequence[DerivedComparison],
    shown: Sequence[int],
    weight: float,
    epsilon: float,
    below: Below = secrets.randbelow,
) -> tuple[DerivedComparison, ...]:
    """One comparison of two `shown` documents in place of all that the answer implied; none if fewer than two were.

    `weight` must not depend on the answer. `below` is for tests; the default is the operating system's CSPRNG.
    Call it once per stored signal: every call tells another epsilon.
    """
    flip = round(flip_probability(epsilon) * 2**_BITS)
    if len(shown) < 2:
        return ()
    first, second = _two_of(shown, below)
    if (first, second) not in (order := {(c.chosen, c.rejected) for c in truth}):
        if (second, first) in order:
            first, second = second, first
        else:
            flip = 2 ** (_BITS - 1)
    if below(2**_BITS) < flip:
        first, second = second, first
    return (DerivedComparison(first, second, weight * debiasing_weight(epsilon)),)


def _two_of(shown: Sequence[int], below: Below) -> tuple[int, int]:
    if len(set(shown)) != len(shown):
        raise InvalidInputError("an inference shows a document twice.", mend="Show each once.")
    first = below(len(shown))
    second = below(len(shown) - 1)
    return shown[first], shown[second + (second >= first)]
