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
from idiolect_adapters.evaluation.judging import Judged, SliceScore

PAGE = "report.md"
STACKS_NOTE = (
    "Accuracy is the share of a person's pairs in their order, averaged over people with at least 4 pairs; the worst "
    "tenth are those of them with the lowest. The calibration error is how far stated probabilities are from what "
    "happened; beside it, how far they would be by chance if all of them held, since pairs are few. A gain is taken "
    "within each person, over the stack that is named."
)
BIASES_NOTE = (
    "How often the model, and how often people, preferred the longer text, or the one that the data set lists first, "
    "of pairs that differ in it. Only the excess of the model over people is its own. A score never sees an order."
)
SLICES_NOTE = (
    "Pairs and people of each slice; of people, those with at least 4 pairs within it. A slice of few people says "
    "little: one person alone has no interval, and of a hundred pairs the calibration error is about .08 by chance."
)
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
        "by chance",
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
            figure(one.chance_error),
            "" if one.gain is None else f"{signed(one.gain.value)} ({interval(one.gain)})",
            one.gain_over or "",
        )
        for one in judged
    ]
    return ["## Stacks", "", STACKS_NOTE, "", *_table(head, rows)]


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
    return [
        "## Biases",
        "",
        BIASES_NOTE,
        "",
        *_table(("part", "stack", "what", "model", "people", "excess", "pairs"), rows),
    ]


def _slices(judged: Sequence[Judged]) -> list[str]:
    """Per part, the stacks side by side."""
    lines = ["## Slices", "", SLICES_NOTE, ""]
    for part in dict.fromkeys(one.part for one in judged):
        own = [one for one in judged if one.part == part]
        for what, told in (("accuracy (95% over people)", _accuracy), ("calibration error", _error)):
            head = ("slice", "", "pairs", "people", *(one.stack for one in own))
            rows = [
                (same[0].kind, same[0].value, f"{same[0].pairs:,}", f"{same[0].accuracy.people:,}", *map(told, same))
                for same in zip(*(one.slices for one in own), strict=True)
            ]
            lines += [f"### {_escaped(part)}: {what}", "", *_table(head, rows)]
    return lines


def _accuracy(slice_: SliceScore) -> str:
    return f"{figure(slice_.accuracy.value)} ({interval(slice_.accuracy)})"


def _error(slice_: SliceScore) -> str:
    return figure(slice_.calibration_error)


def figure(number: float) -> str:
    return "-" if not math.isfinite(number) else f"{number:.3f}"


def interval(accuracy: Accuracy) -> str:
    """None of one person alone."""
    if accuracy.people < 2:
        return "-"
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
