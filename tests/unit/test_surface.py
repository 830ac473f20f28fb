"""What can be counted in a text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idiolect_adapters.surface import NAMES, surface_features


def feature(name: str, text: str) -> float:
    return float(surface_features([text])[0, NAMES.index(name)])


@given(st.text(max_size=300))
def test_every_text_has_finite_features_of_a_bounded_size(text: str) -> None:
    features = surface_features([text])
    assert features.shape == (1, len(NAMES))
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert features.min() >= 0.0
    assert features.max() <= 20.0


@given(st.lists(st.text(max_size=50), max_size=8), st.integers(0, 7))
def test_a_text_has_the_same_row_in_any_company(texts: list[str], row: int) -> None:
    together = surface_features(texts)
    assert together.shape == (len(texts), len(NAMES))
    if row < len(texts):
        assert np.array_equal(together[row], surface_features([texts[row]])[0])


@pytest.mark.parametrize(
    ("name", "more", "less"),
    [
        ("log_words", "one two three four five six", "one two"),
        ("log_sentences", "One. Two. Three.", "One two three."),
        ("words_per_sentence", "one two three four five six.", "One. Two. Three."),
        ("letters_per_word", "extraordinary considerations", "a big cat"),
        ("bullets", "- one\n- two\n* three\n1. four", "one, two, three and four"),
        ("line_breaks", "one\ntwo\nthree", "one two three"),
        ("questions", "Why? How?", "Because."),
        ("exclamations", "Great! Yes!", "Great. Yes."),
        ("commas_per_word", "one, two, three", "one two three"),
        ("digits", "12 of 34", "twelve of them"),
        ("capitals", "READ THIS NOW", "read this now"),
        ("contractions", "don't, I'm, it's", "do not, I am, it is"),
        ("first_person", "I think we should, in my view", "one thinks that somebody should"),
        ("second_person", "you and your friends", "they and their friends"),
        ("hedges", "perhaps it might seem so", "it is so"),
        ("warmth", "thanks, happy to help, sorry", "send the form to the office"),
        ("examples", "fruit, for example apples, such as these", "fruit"),
        ("distinct_words", "one two three four", "one one one one"),
    ],
)
def test_each_feature_counts_what_its_name_says(name: str, more: str, less: str) -> None:
    assert feature(name, more) > feature(name, less)


def test_every_feature_is_tested_above() -> None:
    marks = test_each_feature_counts_what_its_name_says.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for case in marks[0].args[1]} == set(NAMES)


def test_a_flood_of_one_sign_does_not_drown_the_rest() -> None:
    for flood in ("!", "a", "\n", " ", "- x\n", "1", "1.", ", ", "a'", "e.g", "`", "- "):
        assert surface_features([flood * 20_000]).max() <= 20.0


@pytest.mark.parametrize("flood", ["!", "\n", " \n", "\t", "1", "1\n", "a'", "'", ".", "such as"])
def test_no_text_takes_longer_than_its_length_is_worth(flood: str) -> None:
    """A pattern that starts anew at every character of a million would not come back today."""
    assert np.isfinite(surface_features([flood * (1_000_000 // len(flood)) + "x"])).all()


def test_bullets_after_blank_lines_are_counted_once() -> None:
    assert feature("bullets", "\n\n  - one\n\n\t2) two\n\n") == pytest.approx(np.log1p(2))
    assert feature("log_sentences", "What?! Yes... Well. v1.2 is out!") == pytest.approx(np.log1p(4))


def test_other_languages_have_shapes_though_not_tones() -> None:
    german = "Vielen Dank für Ihre Nachricht. Wir helfen gern!"
    assert feature("log_words", german) > 1.5
    assert feature("exclamations", german) > 0
    assert feature("hedges", german) == feature("second_person", german) == 0
