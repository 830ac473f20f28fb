"""The text kernel: likelihood and gradient, what it learns from texts, and what it remembers of known items."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import check_grad

from idiolect_adapters.lexical import (
    BUCKETS,
    MAX_CHARACTERS,
    count_matrix,
    inverse_frequencies,
    ngram_counts,
    unit_rows,
)
from idiolect_adapters.text_kernel import ItemMemory, TextKernel, short_hash
from idiolect_adapters.training.factors import fit_factors
from idiolect_adapters.training.kernel_fit import (
    START,
    Parts,
    fit_kernel,
    fit_shapes,
    make_lens,
    negative_log_likelihood,
    parts_between,
    targets_of,
)
from idiolect_adapters.training.votes import Votes

WORDS = ("tax", "parks", "school", "roads", "housing", "water", "music", "sport")


def texts(count: int, seed: int = 0) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Statements on two prompts, and whether each says "not"."""
    rng = np.random.default_rng(seed)
    negated = rng.random(count) < 0.5
    pairs = [
        (
            f"prompt {i % 2}",
            f"we should {'not ' if negated[i] else ''}spend on {' and '.join(rng.choice(WORDS, 3))} {i}",
        )
        for i in range(count)
    ]
    return pairs, negated.astype(float)


def fitted(items: int = 120, people: int = 400, seed: int = 0) -> tuple[TextKernel, list[tuple[str, str]], np.ndarray]:
    """Everybody's opinion turns on the word "not"; half of the people like it."""
    pairs, negated = texts(items, seed)
    rng = np.random.default_rng(seed)
    lean = np.where(np.arange(people) % 2 == 0, 1.5, -1.5)
    person = np.repeat(np.arange(people), 20)
    item = np.concatenate([rng.choice(items, 20, replace=False) for _ in range(people)])
    score = lean[person] * (2 * negated[item] - 1) + 0.8 * (item % 2)
    liked = (rng.random(len(item)) < 1 / (1 + np.exp(-score))).astype(float)
    votes = Votes(person, item, liked, np.ones(len(item)), people, items)
    pooled = rng.normal(size=(items, 8)).astype(np.float32)  # an encoder that sees nothing of it
    lens = make_lens(pooled, pairs)
    factors = fit_factors(votes, 2, seed=0)
    views = lens.views(pooled, pairs)
    theta = fit_shapes(views, targets_of(votes, factors), rng, lambda _d, _t: None)
    kernel = fit_kernel(views, lens, pairs, votes, factors, theta, rng, lambda _d, _t: None)
    return kernel, pairs, factors.item_mean_I_O


def tells_apart(outputs_N_O: np.ndarray, negated: np.ndarray) -> float:
    """Of the two directions of taste, the better one's correlation with what people quarrel about."""
    return max(abs(float(np.corrcoef(outputs_N_O[:, column], negated)[0, 1])) for column in range(2))


@pytest.fixture(scope="module")
def trained() -> tuple[TextKernel, list[tuple[str, str]], np.ndarray]:
    return fitted()


def some_parts(count: int = 25) -> Parts:
    pairs, _ = texts(count)
    pooled = np.random.default_rng(1).normal(size=(count, 6)).astype(np.float32)
    lens = make_lens(pooled, pairs)
    views = lens.views(pooled, pairs)
    rows = np.arange(count)
    return parts_between(views, views, rows, rows)


def test_the_gradient_is_that_of_the_likelihood() -> None:
    parts, rng = some_parts(), np.random.default_rng(2)
    target, noise = rng.normal(size=25), rng.random(25)
    for _ in range(3):
        theta = START + 0.3 * rng.normal(size=len(START))
        error = check_grad(
            lambda t: negative_log_likelihood(t, parts, target, noise)[0],
            lambda t: negative_log_likelihood(t, parts, target, noise)[1],
            theta,
        )
        assert error < 1e-3


def test_the_likelihood_is_that_of_a_gaussian() -> None:
    parts, rng = some_parts(), np.random.default_rng(3)
    target, noise = rng.normal(size=25), rng.random(25)
    covariance = parts.kernel(START) + np.diag(np.exp(START[-1]) + noise)
    expected = 0.5 * target @ np.linalg.solve(covariance, target) + 0.5 * np.linalg.slogdet(covariance)[1]
    assert np.isclose(negative_log_likelihood(START, parts, target, noise)[0], expected)


def test_new_texts_are_told_apart_by_a_word_that_the_encoder_misses(
    trained: tuple[TextKernel, list[tuple[str, str]], np.ndarray],
) -> None:
    kernel, _, _ = trained
    pairs, negated = texts(60, seed=7)
    pooled = np.random.default_rng(8).normal(size=(60, 8)).astype(np.float32)
    assert tells_apart(kernel.outputs_of(pooled, pairs), negated) > 0.7


def test_known_items_get_what_their_votes_say(trained: tuple[TextKernel, list[tuple[str, str]], np.ndarray]) -> None:
    kernel, pairs, _ = trained
    pooled = np.random.default_rng(0).normal(size=(len(pairs), 8)).astype(np.float32)  # even under another encoding
    assert len(kernel.memory) == len(pairs)
    bare = replace(kernel, memory=ItemMemory(np.zeros(0, np.uint64), np.zeros((0, 3), np.float32)))
    added = kernel.outputs_of(pooled, pairs) - bare.outputs_of(pooled, pairs)
    np.testing.assert_allclose(added, kernel.memory.look_up(pairs), atol=1e-6)
    assert np.abs(added).max() > 0.05


def test_the_memory_answers_to_the_very_same_text_only(
    trained: tuple[TextKernel, list[tuple[str, str]], np.ndarray],
) -> None:
    kernel, pairs, _ = trained
    prompt, text = pairs[0]
    strangers = [(prompt, text + " "), (prompt + text, ""), ("", prompt + text), (text, prompt), (prompt, text.upper())]
    assert not kernel.memory.look_up(strangers).any()
    assert kernel.memory.look_up([pairs[0]]).any()


def test_a_text_gives_the_same_bits_in_any_company(
    trained: tuple[TextKernel, list[tuple[str, str]], np.ndarray],
) -> None:
    kernel, pairs, _ = trained
    pooled = np.random.default_rng(3).normal(size=(len(pairs), 8)).astype(np.float32)
    together = kernel.outputs_of(pooled, pairs)
    for row in (0, 5, len(pairs) - 1):
        assert np.array_equal(kernel.outputs_of(pooled[row : row + 1], pairs[row : row + 1])[0], together[row])


def test_more_items_than_landmarks_are_still_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idiolect_adapters.training.kernel_fit.MAX_LANDMARKS", 50)
    kernel, _, _ = fitted()
    assert len(kernel.landmark_M_H) == 50
    pairs, negated = texts(60, seed=7)
    pooled = np.random.default_rng(8).normal(size=(60, 8)).astype(np.float32)
    assert tells_apart(kernel.outputs_of(pooled, pairs), negated) > 0.6


def test_tensors_come_back_as_the_same_kernel(trained: tuple[TextKernel, list[tuple[str, str]], np.ndarray]) -> None:
    kernel, pairs, _ = trained
    pooled = np.random.default_rng(3).normal(size=(len(pairs), 8)).astype(np.float32)
    again = TextKernel.from_tensors(kernel.tensors())
    assert np.array_equal(again.outputs_of(pooled, pairs), kernel.outputs_of(pooled, pairs))


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("kernel_weights", lambda a: a[:-1]),
        ("kernel_theta", lambda a: a[:, :-1]),
        ("kernel_landmarks", lambda a: np.where(a == a[0, 0], np.nan, a)),
        ("kernel_letters_buckets", lambda a: a + BUCKETS),
        ("kernel_letters_starts", lambda a: a[::-1].copy()),
        ("memory_hashes", lambda a: a[::-1].copy()),
        ("memory_extra", lambda a: a[:-1]),
    ],
)
def test_damaged_tensors_are_refused(
    trained: tuple[TextKernel, list[tuple[str, str]], np.ndarray], name: str, spoil: object
) -> None:
    tensors = trained[0].tensors()
    tensors[name] = spoil(tensors[name])  # type: ignore[operator]
    with pytest.raises(ValueError, match=r".+"):
        TextKernel.from_tensors(tensors)


@pytest.mark.parametrize("text", ["", " ", "\x00", "🙂🙂", "ß" * 10_000, "\ud800", "a" * 100_000])
def test_strange_texts_have_finite_outputs(
    trained: tuple[TextKernel, list[tuple[str, str]], np.ndarray], text: str
) -> None:
    out = trained[0].outputs_of(np.ones((1, 8), np.float32), [("p", text)])
    assert np.isfinite(out).all()


def test_counting_is_bounded_whatever_is_sent() -> None:
    assert sum(ngram_counts("word " * 100_000).values()) <= 3 * (MAX_CHARACTERS + 4)


def test_ngrams_of_too_common_and_of_single_texts_count_nothing() -> None:
    counts = count_matrix(["same thing one", "same thing two two", "same stuff two", "same other"])
    weights = inverse_frequencies(counts)
    rows = unit_rows(counts, weights)
    assert set(np.unique(np.asarray(rows.multiply(rows).sum(axis=1)).ravel().round(6))) <= {0.0, 1.0}
    everywhere = set(ngram_counts("same"))
    assert all(weights[bucket] == 0 for bucket in everywhere & set(ngram_counts("same other")))


def test_hashes_do_not_confuse_where_prompt_and_text_meet() -> None:
    assert (
        len({short_hash("a", "b"), short_hash("ab", ""), short_hash("", "ab"), short_hash("a\0b"), short_hash("ab")})
        == 5
    )
