"""The leave-one-fold-out protocol, and the kernel model that is measured by it."""

from __future__ import annotations

import numpy as np
import pytest

from idiolect.signals.comparison import Item
from idiolect.signals.data import Comparisons
from idiolect.signals.importers.ukpconvarg import CrowdLabel, CrowdLabels
from idiolect_adapters.evaluation.folds import FoldProtocol, cross_validated, fold_protocol, fold_scores
from idiolect_adapters.evaluation.kernel_preference import KernelOptions, item_kernels, predict


def crowd(*rows: tuple[str, int, int, float], sides: int = 3) -> CrowdLabels:
    """Items 0, 1, 2 are of side 0, items 3, 4, 5 of side 1, and so on."""
    items = tuple(Item(f"side{n // 3}", "p", f"text {n}") for n in range(3 * sides))
    return CrowdLabels(items, tuple(CrowdLabel(*row) for row in rows), "d" * 64)


def nothing(done: int, total: int) -> None:
    assert done <= total


def test_equal_labels_count_for_the_worker_but_are_never_tested_or_learned_from() -> None:
    protocol = fold_protocol(
        crowd(
            ("u", 0, 1, 1.0), ("u", 1, 2, 0.0), ("u", 0, 2, 0.5), ("u", 3, 4, 0.5), ("v", 0, 1, 1.0), ("v", 0, 2, 1.0)
        )
    )
    assert len(protocol.inside([0])) == 4
    assert len(protocol.outside([0])) == 0
    assert protocol.counted_people(0, 0).tolist() == [True, False]  # v has no label elsewhere
    assert protocol.counted_people(0, 1).tolist() == [False, False]


def test_workers_with_a_single_decided_label_in_the_fold_do_not_count() -> None:
    protocol = fold_protocol(crowd(("u", 0, 1, 1.0), ("u", 0, 2, 0.5), ("u", 3, 4, 1.0)))
    assert not protocol.counted_people(0, 0).any()


def test_the_second_argument_wins_where_the_value_says_so() -> None:
    protocol = fold_protocol(crowd(("u", 0, 1, 0.0)))
    assert (protocol.decided.chosen_C.tolist(), protocol.decided.rejected_C.tolist()) == ([1], [0])


def test_a_text_beside_itself_is_tested_as_a_tie_and_teaches_nothing() -> None:
    protocol = fold_protocol(crowd(("u", 0, 0, 1.0), ("u", 0, 1, 1.0), ("u", 3, 3, 1.0)))
    assert len(protocol.inside([0])) == 2
    assert len(protocol.outside([0])) == 0


def test_scores_are_means_over_labels_then_workers_then_folds() -> None:
    rows = [("u", 0, 1, 1.0), ("u", 0, 2, 1.0), ("v", 0, 1, 1.0), ("v", 0, 2, 1.0), ("v", 1, 2, 1.0)]
    other = [("u", 3, 4, 1.0), ("v", 3, 4, 1.0), ("v", 3, 5, 1.0)]
    protocol = fold_protocol(crowd(*rows, *other))
    predicted = {0: np.array([0.9, 0.1, 0.5, 0.9, 0.9]), 1: np.array([0.9, 0.8, 0.8])}
    scores = fold_scores(protocol, predicted, more_than=0)
    assert scores.accuracy_F.tolist() == pytest.approx([(0.5 + 2.5 / 3) / 2, 1.0])  # in fold 1 only v counts
    assert scores.cross_entropy_F[1] == pytest.approx(-np.log(0.8))
    assert len(scores.probability_C) == 7


def test_a_certain_mistake_costs_much_but_not_everything() -> None:
    protocol = fold_protocol(crowd(("u", 0, 1, 1.0), ("u", 0, 2, 1.0), ("u", 3, 4, 1.0)))
    scores = fold_scores(protocol, {0: np.array([0.0, 1.0])}, more_than=0)
    assert np.isfinite(scores.cross_entropy_F).all()


def tastes(people: int, sides: int = 8, seed: int = 0) -> tuple[FoldProtocol, np.ndarray, np.ndarray]:
    """Every second person likes long texts, the others short ones; all like the first feature a little."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(3 * sides, 5)).astype(np.float32)
    surface = rng.normal(size=(3 * sides, 2)).astype(np.float32)
    rows = []
    for person in range(people):
        score = features[:, 0] + (3.0 if person % 2 else -3.0) * surface[:, 0]
        for side in range(sides):
            for a, b in ((0, 1), (1, 2), (0, 2)):
                first, second = 3 * side + a, 3 * side + b
                odds = 1 / (1 + np.exp(score[second] - score[first]))
                rows.append((f"p{person:02}", first, second, float(rng.random() < odds)))
    return fold_protocol(crowd(*rows, sides=sides)), features, surface


def test_people_who_differ_are_predicted_better_with_their_own_part_and_honestly() -> None:
    protocol, features, surface = tastes(16)
    kernels = item_kernels(features, surface)
    found = {}
    for personal in (0.0, 1.0):
        predicted = cross_validated(
            protocol, [lambda a, b, c=personal: predict(kernels, a, b, KernelOptions(1.0, c))], nothing
        )
        found[personal] = fold_scores(protocol, predicted, more_than=0)
    assert found[1.0].accuracy_F.mean() > found[0.0].accuracy_F.mean() + 0.15
    assert found[1.0].cross_entropy_F.mean() < found[0.0].cross_entropy_F.mean() - 0.1


def test_a_fold_is_predicted_without_its_own_labels() -> None:
    protocol, _, _ = tastes(4)
    seen: list[set[int]] = []

    def spy(train: Comparisons, test: Comparisons) -> np.ndarray:
        seen.append(set(train.chosen_C.tolist()) & (set(test.chosen_C.tolist()) | set(test.rejected_C.tolist())))
        return np.full(len(test), 0.5)

    predicted = cross_validated(protocol, [spy, spy], nothing)
    assert set(predicted) == set(range(protocol.folds))
    assert all(not leak for leak in seen)


def test_constants_for_a_group_of_folds_are_chosen_without_any_of_them() -> None:
    """A candidate that is right in one fold only is not chosen for that fold."""
    protocol, _, _ = tastes(4)
    item_fold = {item: item // 3 for item in range(24)}

    def good_in(fold: int):
        return lambda train, test: np.array([0.9 if item_fold[int(c)] == fold else 0.1 for c in test.chosen_C])

    modest = lambda train, test: np.full(len(test), 0.5)  # noqa: E731
    predicted = cross_validated(protocol, [modest, good_in(2)], nothing)
    assert predicted[2].tolist() == [0.5] * len(predicted[2])


def test_the_two_orders_of_a_pair_have_probabilities_that_add_up_to_one() -> None:
    protocol, features, surface = tastes(6)
    kernels = item_kernels(features, surface)
    train, test = protocol.outside([0]), protocol.inside([0])
    swapped = Comparisons(test.person_C, test.rejected_C, test.chosen_C, test.weight_C)
    options = KernelOptions()
    both = predict(kernels, train, test, options) + predict(kernels, train, swapped, options)
    assert np.allclose(both, 1.0)


def test_a_stranger_and_an_empty_history_are_predicted_without_certainty() -> None:
    protocol, features, surface = tastes(4)
    kernels = item_kernels(features, surface)
    test = protocol.inside([0])
    stranger = Comparisons(np.full_like(test.person_C, 99), test.chosen_C, test.rejected_C, test.weight_C)
    known = predict(kernels, protocol.outside([0]), stranger, KernelOptions())
    assert ((known > 0.01) & (known < 0.99)).all()
    empty = protocol.outside(range(8))
    assert predict(kernels, empty, test, KernelOptions()).tolist() == pytest.approx([0.5] * len(test))


def test_texts_that_are_all_alike_give_finite_probabilities() -> None:
    protocol, _, _ = tastes(3)
    kernels = item_kernels(np.ones((24, 5), np.float32), np.ones((24, 2), np.float32))
    stated = predict(kernels, protocol.outside([0]), protocol.inside([0]), KernelOptions())
    assert stated.tolist() == pytest.approx([0.5] * len(stated))
