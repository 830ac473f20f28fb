"""The evaluation library: gains, worst people, biases, slices, odd comparisons, and the saved page."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from idiolect.errors import InvalidInputError
from idiolect.signals.comparison import Item
from idiolect.signals.data import Comparisons
from idiolect_adapters.evaluation.judging import Judged, Pairs, judge, slice_values, worst_mean
from idiolect_adapters.evaluation.oddities import oddities
from idiolect_adapters.evaluation.report import NO_FIGURES, Evaluation, check_folder, render, save_report

ITEMS = (
    Item("a", "p", "one"),
    Item("a", "p", "one two three", task="reply"),
    Item("b", "p", "word " * 40, "de"),
    Item("b", "p", "word " * 100, "de"),
)


def pairs(*rows: tuple[int, int, int]) -> Comparisons:
    columns = [np.array(column, np.int32) for column in zip(*rows, strict=True)] or [np.zeros(0, np.int32)] * 3
    return Comparisons(*columns, np.ones(len(rows), np.float32))


MIXED = pairs(*[(0, 1, 0)] * 3, (0, 2, 3), *[(1, 3, 2)] * 4)


def judged(margins: list[float], rows: Comparisons = MIXED, **options: object) -> Judged:
    return judge(Pairs("part", ITEMS, rows), "stack", np.array(margins), 1.0, **options)  # type: ignore[arg-type]


def test_the_gain_is_taken_within_each_person() -> None:
    below = np.array([1.0, -1, -1, -1, 1, 1, 1, 1])
    better = judged([1.0, 1, -1, -1, 1, 1, 1, 1], below=("global", below))
    assert better.gain is not None
    assert (better.gain.value, better.gain_over) == (pytest.approx((0.25 + 0) / 2), "global")
    assert judged([1.0] * 8).gain is None


def test_of_several_draws_every_figure_is_their_mean_and_people_count_once() -> None:
    rng = np.random.default_rng(0)
    rows = pairs(*[(person, *rng.choice(4, 2, replace=False)) for person in range(12) for _ in range(9)])
    draws = rng.normal(size=(5, len(rows)))
    below = ("global", rng.normal(size=len(rows)))
    one_by_one = [judge(Pairs("part", ITEMS, rows), "stack", draw, 1.0, below=below) for draw in draws]
    together = judge(Pairs("part", ITEMS, rows), "stack", draws, 1.0, below=below)
    for read in (
        lambda found: found.accuracy.value,
        lambda found: found.gain.value,
        lambda found: found.worst,
        lambda found: found.calibration_error,
        lambda found: found.curve,
        lambda found: [bias.model for bias in found.biases],
        lambda found: [part.accuracy.value for part in found.slices],
        lambda found: [part.calibration_error for part in found.slices],
    ):
        np.testing.assert_allclose(read(together), np.mean([read(one) for one in one_by_one], axis=0))
    assert (together.accuracy.people, together.pairs) == (12, len(rows))
    widths = [one.accuracy.high - one.accuracy.low for one in one_by_one]
    assert 0.0 < together.accuracy.high - together.accuracy.low < max(widths)


def test_the_worst_tenth_is_at_least_one_person() -> None:
    assert worst_mean(np.array([0.9, 0.2, 0.8])) == pytest.approx(0.2)
    assert worst_mean(np.linspace(0, 1, 40)) == pytest.approx(np.linspace(0, 1, 40)[:4].mean())
    assert np.isnan(worst_mean(np.zeros(0)))


def test_a_model_that_always_prefers_the_longer_text_shows_it() -> None:
    longer, first = judged([1.0, 1, 1, -1, 1, 1, 1, 1]).biases
    assert (longer.name, longer.model, longer.people) == ("longer wins", 1.0, pytest.approx(7 / 8))
    assert longer.excess == pytest.approx(1 / 8)
    assert first.people == pytest.approx(1 / 8)


def test_people_who_like_long_texts_are_no_bias_of_the_model() -> None:
    longer, _ = judged([1.0] * 8).biases
    assert longer.excess == 0.0


def test_texts_of_one_length_say_nothing_about_verbosity() -> None:
    same = (Item("a", "p", "x y"), Item("a", "p", "u v"))
    found = judge(Pairs("part", same, pairs((0, 0, 1))), "s", np.ones(1), 1.0)
    assert found.biases[0].pairs == 0
    assert np.isnan(found.biases[0].model)


def test_slices_go_by_domain_language_task_length_and_activity() -> None:
    values = slice_values(Pairs("part", ITEMS, MIXED))
    assert values["domain"] == ["a"] * 3 + ["b"] * 5
    assert values["language"] == ["en"] * 3 + ["de"] * 5
    assert values["task"] == ["reply"] * 3 + ["not said"] * 5
    assert values["length"] == ["under 15 words"] * 3 + ["over 60 words"] * 5
    assert values["activity"] == ["under 10 pairs"] * 8
    by_domain = {each.value: each for each in judged([1.0] * 4 + [-1.0] * 4).slices if each.kind == "domain"}
    assert by_domain["b"].accuracy.value == 0.0
    assert by_domain["b"].accuracy.people == 1  # the other one has too few pairs there
    assert np.isnan(by_domain["a"].accuracy.value)


def test_a_part_without_pairs_is_judged_without_a_crash() -> None:
    found = judged([], pairs(), below=("global", np.zeros(0)))
    assert (found.accuracy.people, found.slices, found.curve) == (0, (), ())
    assert oddities(pairs(), ITEMS)["pairs"] == 0
    assert "| part | stack | - |" in render(Evaluation("t", {}, {}, (found,)), [])


def test_odd_comparisons_are_counted() -> None:
    items = (*ITEMS, Item("a", "p", " "), Item("a", "p", "x" * 100_000))
    flood = [(7, 0, 1)] * 1001
    found = oddities(pairs((0, 0, 1), (0, 1, 0), (0, 1, 0), (1, 2, 2), (1, 0, 4), (2, 5, 1), *flood), items)
    assert found == {
        "pairs": 1007,
        "said again": 1001,
        "contradicted by the same person": 1,
        "a text with itself": 1,
        "with an empty text": 1,
        "with a huge text": 1,
        "people with over 1,000 pairs": 1,
        "people whose answers all favour one length": 1,
    }


def evaluation(part: str = "test_known") -> Evaluation:
    one = judge(Pairs(part, ITEMS, MIXED), "global", np.array([1.0, -1, 0, 2, 1, -2, 1, 1]), 1.0)
    two = judge(Pairs(part, ITEMS, MIXED), "+ user", np.ones(8), 1.0, below=("global", np.zeros(8)))
    return Evaluation("Evaluation of x", {"data set": "a|b <i>"}, {"pairs": 8}, (one, two))


def test_without_matplotlib_the_page_is_saved_alone_and_says_so_in_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("idiolect_adapters.evaluation.report.can_draw", lambda: False)
    assert save_report(tmp_path / "new", evaluation()) == [tmp_path / "new" / "report.md"]
    page = (tmp_path / "new" / "report.md").read_text()
    assert page.splitlines().count(NO_FIGURES) == 1


def test_with_matplotlib_every_figure_is_drawn_twice_and_shown_on_the_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page, *figures = save_report(tmp_path, evaluation("../$weird$ part"))
    assert sorted(tmp_path.iterdir()) == sorted([page, *figures])  # nothing escaped the folder
    assert len(figures) == 6
    for figure in figures:
        assert figure.read_bytes().startswith(b"\x89PNG" if figure.suffix == ".png" else b"<?xml")
        assert (f"]({figure.name})" in page.read_text()) == (figure.suffix == ".svg")


@pytest.mark.parametrize("stacks", [1, 9])
def test_figures_of_one_slice_or_many_stacks_are_drawn_without_a_warning(stacks: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    alike = pairs(*[(person, 0, 1) for person in (0, 1) for _ in range(5)])
    one = [judge(Pairs("test", ITEMS, alike), f"stack {n}", np.ones(10), 1.0) for n in range(stacks)]
    many = [judge(Pairs("mixed", ITEMS, MIXED), f"stack {n}", np.ones(8), 1.0) for n in range(stacks)]
    page, *figures = save_report(tmp_path, Evaluation("x", {}, {}, (*one, *many)))
    assert {figure.stem for figure in figures} == {"accuracy", "calibration_test", "calibration_mixed", "slices_mixed"}
    assert "1.000 (1.000 .. 1.000)" in page.read_text()


def test_names_from_the_data_cannot_become_markup() -> None:
    page = render(evaluation(), [])
    assert "a\\|b \\<i\\>" in page
    assert "| global |" in page
    assert "+0." in page


def test_a_report_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    check_folder(tmp_path / "a" / "b")
    with pytest.raises(InvalidInputError, match="can't be written"):
        check_folder(tmp_path / "file" / "report")
