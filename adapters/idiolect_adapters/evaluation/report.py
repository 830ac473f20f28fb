"""A saved evaluation: one Markdown page, and figures where matplotlib is installed."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from idiolect.errors import InvalidInputError
from idiolect_adapters.evaluation.accuracy import Accuracy
from idiolect_adapters.evaluation.judging import Judged

PAGE = "report.md"
NO_FIGURES = "No figures: matplotlib is not installed (pip install 'idiolect[plots]')."


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`about` says what was evaluated, `counts` what the data held and what was left out of the figures."""

    title: str
    about: Mapping[str, str]
    counts: Mapping[str, int]
    judged: tuple[Judged, ...]


def can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def check_folder(folder: Path) -> None:
    """Raises InvalidInputError: better before an evaluation of minutes than after it."""
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InvalidInputError(f"a report can't be written to {folder}.", mend="Name a folder that can be written.")


def save_report(folder: Path, evaluation: Evaluation) -> list[Path]:
    """Writes the page, and each figure as SVG and PNG. Returns what was written, the page first."""
    folder.mkdir(parents=True, exist_ok=True)
    figures: list[Path] = []
    if can_draw():
        from idiolect_adapters.evaluation.plots import draw

        figures = draw(folder, evaluation.judged)
    page = folder / PAGE
    page.write_text(render(evaluation, figures), encoding="utf-8")
    return [page, *figures]


def render(evaluation: Evaluation, figures: Sequence[Path]) -> str:
    lines = [f"# {evaluation.title}", ""]
    lines += [f"- {_escaped(name)}: {_escaped(value)}" for name, value in evaluation.about.items()]
    lines += ["", *_counts(evaluation.counts), *_overview(evaluation.judged), *_biases(evaluation.judged)]
    lines += _slices(evaluation.judged)
    pictures = [figure for figure in figures if figure.suffix == ".svg"]
    lines += ["## Figures", ""]
    lines += [f"![{figure.stem.replace('_', ' ')}]({figure.name})" for figure in pictures] or [NO_FIGURES]
    return "\n".join(lines) + "\n"


def _counts(counts: Mapping[str, int]) -> list[str]:
    return ["## What was read", "", *_table(("what", "count"), [(n, f"{c:,}") for n, c in counts.items()])]


def _overview(judged: Sequence[Judged]) -> list[str]:
    head = (
        "part",
        "stack",
        "accuracy",
        "95% over people",
        "people",
        "worst tenth",
        "calibration error",
        "gain",
        "over",
    )
    rows = [
        (
            one.part,
            one.stack,
            figure(one.accuracy.value),
            interval(one.accuracy),
            f"{one.accuracy.people:,}",
            figure(one.worst),
            figure(one.calibration_error),
            "" if one.gain is None else f"{signed(one.gain.value)} ({interval(one.gain)})",
            one.gain_over or "",
        )
        for one in judged
    ]
    note = "Accuracy is the share of a person's pairs in their order, averaged over people with at least 4 pairs."
    return ["## Stacks", "", note, "", *_table(head, rows)]


def _biases(judged: Sequence[Judged]) -> list[str]:
    rows = [
        (
            one.part,
            one.stack,
            bias.name,
            figure(bias.model),
            figure(bias.people),
            signed(bias.excess),
            f"{bias.pairs:,}",
        )
        for one in judged
        for bias in one.biases
    ]
    return ["## Biases", "", *_table(("part", "stack", "what", "model", "people", "excess", "pairs"), rows)]


def _slices(judged: Sequence[Judged]) -> list[str]:
    head = ("slice", "", "pairs", "people", "accuracy", "95% over people", "calibration error")
    lines = ["## Slices", ""]
    for one in judged:
        rows = [
            (
                each.kind,
                each.value,
                f"{each.pairs:,}",
                f"{each.accuracy.people:,}",
                figure(each.accuracy.value),
                interval(each.accuracy),
                figure(each.calibration_error),
            )
            for each in one.slices
        ]
        lines += [f"### {_escaped(one.part)}, {_escaped(one.stack)}", "", *_table(head, rows)]
    return lines


def figure(number: float) -> str:
    return "-" if not math.isfinite(number) else f"{number:.3f}"


def interval(accuracy: Accuracy) -> str:
    return f"{figure(accuracy.low)} .. {figure(accuracy.high)}"


def signed(number: float) -> str:
    return "-" if not math.isfinite(number) else f"{number:+.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return [*lines, *(f"| {' | '.join(map(_escaped, row))} |" for row in rows), ""]


def _escaped(text: str) -> str:
    """Names of domains and data sets come from users: nothing in them may break out of a cell or become markup."""
    plain = " ".join(text.split())
    return "".join(f"\\{character}" if character in "\\|<>[]`*_!" else character for character in plain)
