"""Figures of an evaluation. matplotlib is optional; import this module only where it is installed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from idiolect_adapters.evaluation.accuracy import Accuracy
from idiolect_adapters.evaluation.judging import Judged

FORMATS = (".svg", ".png")
# Told apart also by who sees few colours (Okabe and Ito 2008), and by their markers where there are more stacks.
COLOURS = ("#7f7f7f", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
MARKERS = ("o", "s", "^", "D")
LABEL_CHARS = 44


def draw(folder: Path, judged: Sequence[Judged]) -> list[Path]:
    """Accuracy and, per part, calibration and slices if there are several; each as SVG and PNG."""
    parts = list(dict.fromkeys(one.part for one in judged))
    drawn = {"accuracy": _accuracy(parts, judged)}
    for part in parts:
        inside = [one for one in judged if one.part == part]
        drawn[f"calibration_{part}"] = _calibration(part, inside)
        if names := _slice_names(inside):
            drawn[f"slices_{part}"] = _slices(part, inside, names)
    return [path for name, figure in drawn.items() for path in _saved(folder, name, figure)]


def _saved(folder: Path, name: str, figure: Figure) -> list[Path]:
    paths = [folder / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name)}{suffix}" for suffix in FORMATS]
    for path in paths:
        figure.savefig(path, dpi=120)
    return paths


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number // len(COLOURS) % len(MARKERS)]}


def _whiskers(found: Sequence[Accuracy]) -> list[list[float]]:
    """Lengths down and up of the intervals; none where one person is all there is."""
    known = [(one.value - one.low, one.high - one.value) if one.people > 1 else (0.0, 0.0) for one in found]
    return [[max(0.0, down) for down, _ in known], [max(0.0, up) for _, up in known]]


def _accuracy(parts: Sequence[str], judged: Sequence[Judged]) -> Figure:
    stacks = list(dict.fromkeys(one.stack for one in judged))
    figure = _figure(2.6 + max(1.6, 0.4 * len(stacks)) * len(parts), 3.6)
    axes = figure.subplots()
    for number, stack in enumerate(stacks):
        own = [one for one in judged if one.stack == stack and one.accuracy.people]
        places = [parts.index(one.part) + _aside(number, len(stacks)) for one in own]
        found = [one.accuracy for one in own]
        values = [one.value for one in found]
        axes.errorbar(places, values, yerr=_whiskers(found), linestyle="", capsize=4, label=stack, **_style(number))
    axes.axhline(0.5, color="#bbbbbb", linewidth=1, linestyle=":")
    axes.set_xticks(range(len(parts)), [_named(part, judged) for part in parts], parse_math=False)
    axes.set_xlim(-0.55, len(parts) - 0.45)
    axes.set_ylabel("accuracy, mean over people")
    axes.set_title("Pairs in the order that people chose (95% over people)", fontsize=10)
    _legend(figure, "outside right upper")
    return figure


def _named(part: str, judged: Sequence[Judged]) -> str:
    return f"{part}\n{max(one.accuracy.people for one in judged if one.part == part):,} people"


def _aside(number: int, of: int) -> float:
    """Places beside one another that take 0.8 of the room between two rows or columns."""
    return 0.8 * ((number + 0.5) / of - 0.5)


def _legend(figure: Figure, place: str) -> None:
    """Beside the axes, where it hides nothing."""
    if figure.axes[0].get_legend_handles_labels()[0]:
        figure.legend(fontsize=8, loc=place)


def _calibration(part: str, judged: Sequence[Judged]) -> Figure:
    figure = _figure(4.4, 4.0 + 0.18 * len(judged))
    axes = figure.subplots()
    axes.plot([0.5, 1.0], [0.5, 1.0], color="#bbbbbb", linewidth=1, linestyle=":")
    for number, one in enumerate(judged):
        stated, observed = [point[0] for point in one.curve], [point[1] for point in one.curve]
        label = f"{one.stack} (error {one.calibration_error:.3f})"
        axes.plot(stated, observed, markersize=4, label=label, **_style(number))
    axes.set_xlabel("stated probability of the likelier text")
    axes.set_ylabel("how often it was chosen")
    axes.set_title(f"Calibration, {part}", fontsize=10, parse_math=False)
    _legend(figure, "outside lower center")
    return figure


def _slice_names(judged: Sequence[Judged]) -> dict[tuple[str, str], int]:
    """(kind, value) of those that people fall into, of kinds that tell any apart; and how many people."""
    people = {(each.kind, each.value): each.accuracy.people for one in judged for each in one.slices}
    values = Counter(kind for kind, _ in people)
    return {name: count for name, count in people.items() if count and values[name[0]] > 1}


def _slices(part: str, judged: Sequence[Judged], names: Mapping[tuple[str, str], int]) -> Figure:
    """With their intervals, since many are small."""
    figure = _figure(7.0, 1.4 + 0.18 * len(judged) + len(names) * (0.16 + 0.06 * len(judged)))
    axes = figure.subplots()
    for number, one in enumerate(judged):
        found = {(each.kind, each.value): each.accuracy for each in one.slices}
        rows = [row + _aside(number, len(judged)) for row, name in enumerate(names) if name in found]
        own = [found[name] for name in names if name in found]
        axes.errorbar(
            [each.value for each in own],
            rows,
            xerr=_whiskers(own),
            linestyle="",
            markersize=4,
            elinewidth=0.8,
            label=one.stack,
            **_style(number),
        )
    labels = [f"{_short(f'{kind}: {value}')} ({people:,})" for (kind, value), people in names.items()]
    axes.set_yticks(range(len(names)), labels, fontsize=8, parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    for row in range(len(names) - 1):
        axes.axhline(row + 0.5, color="#eeeeee", linewidth=1)
    axes.set_xlabel("accuracy, mean over people (95% over people)")
    axes.set_title(f"Slices, {part} (people)", fontsize=10, parse_math=False)
    _legend(figure, "outside lower center")
    return figure


def _short(name: str) -> str:
    return name if len(name) <= LABEL_CHARS else f"{name[: LABEL_CHARS - 1]}\u2026"
