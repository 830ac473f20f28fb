"""Figures of an evaluation. matplotlib is optional; import this module only where it is installed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from idiolect_adapters.evaluation.judging import Judged

FORMATS = (".svg", ".png")
COLOURS = ("#8a94a3", "#2f6fb2", "#d2742a", "#3b8f5a", "#8457a8")


def draw(folder: Path, judged: Sequence[Judged]) -> list[Path]:
    """accuracy and, per part, calibration and slices by domain; each as SVG and PNG."""
    parts = list(dict.fromkeys(one.part for one in judged))
    drawn = {"accuracy": _accuracy(parts, judged)}
    for part in parts:
        inside = [one for one in judged if one.part == part]
        drawn[f"calibration_{part}"] = _calibration(part, inside)
        drawn[f"slices_{part}"] = _slices(part, inside)
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


def _accuracy(parts: Sequence[str], judged: Sequence[Judged]) -> Figure:
    stacks = list(dict.fromkeys(one.stack for one in judged))
    figure = _figure(1.8 + 2.2 * len(parts), 3.6)
    axes = figure.subplots()
    for offset, stack in enumerate(stacks):
        own = [one for one in judged if one.stack == stack and one.accuracy.people]
        places = [parts.index(one.part) + 0.16 * (offset - (len(stacks) - 1) / 2) for one in own]
        values = [one.accuracy.value for one in own]
        below = [max(0.0, one.accuracy.value - one.accuracy.low) for one in own]
        above = [max(0.0, one.accuracy.high - one.accuracy.value) for one in own]
        colour = COLOURS[offset % len(COLOURS)]
        axes.errorbar(places, values, yerr=[below, above], fmt="o", capsize=4, color=colour, label=stack)
    axes.axhline(0.5, color="#bbbbbb", linewidth=1, linestyle=":")
    axes.set_xticks(range(len(parts)), list(parts), parse_math=False)
    axes.set_xlim(-0.6, len(parts) - 0.4)
    axes.set_ylabel("accuracy, mean over people")
    axes.set_title("Pairs in the order that people chose (95% over people)", fontsize=10)
    if stacks:
        axes.legend(fontsize=8)
    return figure


def _calibration(part: str, judged: Sequence[Judged]) -> Figure:
    figure = _figure(4.2, 4.0)
    axes = figure.subplots()
    axes.plot([0.5, 1.0], [0.5, 1.0], color="#bbbbbb", linewidth=1, linestyle=":")
    for offset, one in enumerate(judged):
        stated, observed = [point[0] for point in one.curve], [point[1] for point in one.curve]
        label = f"{one.stack} (error {one.calibration_error:.3f})"
        axes.plot(stated, observed, "o-", markersize=4, color=COLOURS[offset % len(COLOURS)], label=label)
    axes.set_xlabel("stated probability of the likelier text")
    axes.set_ylabel("how often it was chosen")
    axes.set_title(f"Calibration, {part}", fontsize=10, parse_math=False)
    if judged:
        axes.legend(fontsize=8)
    return figure


def _slices(part: str, judged: Sequence[Judged]) -> Figure:
    names = list(
        dict.fromkeys((each.kind, each.value) for one in judged for each in one.slices if each.accuracy.people)
    )
    figure = _figure(6.4, 1.2 + 0.28 * max(1, len(names)))
    axes = figure.subplots()
    for offset, one in enumerate(judged):
        found = {(each.kind, each.value): each.accuracy.value for each in one.slices}
        rows = [(row, found[name]) for row, name in enumerate(names) if name in found]
        colour = COLOURS[offset % len(COLOURS)]
        axes.plot(
            [value for _, value in rows], [row for row, _ in rows], "o", markersize=5, color=colour, label=one.stack
        )
    labels = [f"{kind}: {value}" for kind, value in names]
    axes.set_yticks(range(len(names)), labels, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.grid(axis="y", color="#eeeeee")
    axes.set_xlabel("accuracy, mean over people")
    axes.set_title(f"Slices, {part}", fontsize=10, parse_math=False)
    if judged:
        axes.legend(fontsize=8)
    return figure
