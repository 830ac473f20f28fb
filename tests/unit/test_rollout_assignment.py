from __future__ import annotations

import hashlib
import hmac

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from idiolect.rollouts.assignment import arm_of, new_salt, place_of

SALTS = st.binary(min_size=32, max_size=32)
SHARES = st.floats(min_value=0.0, max_value=1.0)


@given(salt=SALTS, subject=st.text(max_size=40), shares=st.tuples(SHARES, SHARES))
def test_growing_the_share_only_adds_people(salt: bytes, subject: str, shares: tuple[float, float]) -> None:
    small, large = sorted(shares)
    if arm_of(salt, subject, small) == "candidate":
        assert arm_of(salt, subject, large) == "candidate"


@given(salt=SALTS, subject=st.text(max_size=40))
def test_nobody_and_everybody_are_exact(salt: bytes, subject: str) -> None:
    assert arm_of(salt, subject, 0.0) == "control"
    assert arm_of(salt, subject, 1.0) == "candidate"


def test_the_place_is_what_is_documented_for_ever() -> None:
    digest = hmac.new(b"s" * 32, b"ann", hashlib.sha256).hexdigest()
    assert place_of(b"s" * 32, "ann") == int(digest[:16], 16)


def test_shares_are_met_and_two_salts_are_independent() -> None:
    people = [f"{number:032x}" for number in range(20_000)]
    one, two = new_salt(), new_salt()
    assert one != two
    for share in (0.01, 0.25, 0.5):
        first = np.array([arm_of(one, person, share) == "candidate" for person in people])
        second = np.array([arm_of(two, person, share) == "candidate" for person in people])
        spread = 5 * np.sqrt(share * (1 - share) / len(people))  # one chance in two million
        assert abs(first.mean() - share) < spread
        assert abs(second[first].mean() - share) < 5 * np.sqrt(share * (1 - share) / first.sum())
