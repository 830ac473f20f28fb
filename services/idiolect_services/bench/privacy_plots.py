"""The figures of the privacy benchmark, drawn from the rows of its table. Needs matplotlib, which is optional."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from idiolect_services.bench.form import Measured

FORMATS = ("svg", "png")
COLOURS = ("#1b6ca8", "#d1495b", "#66a182", "#8d6a9f")
Epsilon = float | None
Named = Sequence[tuple[str, Sequence[tuple[Epsilon, str]]]]  # (label, (epsilon, metric) along the axis) of each line


def can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def draw_lines(
    folder: Path,
    name: str,
    rows: Mapping[str, Measured],
    panels: Sequence[tuple[str, Named, str | None]],
    *,
    title: str,
) -> None:
    """One panel per (title, lines, metric of a level to compare with); accuracy against epsilon with intervals."""
    figure, axes = _figure(len(panels))
    for axis, (panel, lines, level) in zip(axes, panels, strict=True):
        ticks = [epsilon for epsilon, _ in lines[0][1]]
        for index, (label, points) in enumerate(lines):
            # Side by side, so that no interval hides another.
            shift = 0.08 * (index - (len(lines) - 1) / 2)
            found = [rows[metric] for _, metric in points]
            axis.errorbar(
                [place + shift for place in range(len(found))],
                [row.value for row in found],
                yerr=[
                    [row.value - _side(row.low, row) for row in found],
                    [_side(row.high, row) - row.value for row in found],
                ],
                label=label,
                color=COLOURS[index % len(COLOURS)],
                marker="o",
                markersize=4,
                capsize=3,
                linewidth=1.5,
            )
        if level is not None:
            axis.axhline(rows[level].value, color="#555555", linestyle="--", linewidth=1, label="no user adapter")
        axis.set_xticks(range(len(ticks)), ["none" if epsilon is None else f"{epsilon:g}" for epsilon in ticks])
        axis.set(title=panel, xlabel="epsilon of a comparison (none: no noise)", ylabel="accuracy, mean over people")
    _legend(figure, axes[0])
    _save(figure, folder, name, title)


def draw_audit(folder: Path, name: str, rows: Mapping[str, Measured], lines: Named, *, title: str) -> None:
    """Lower bounds on epsilon that attacks surely show, against the claim."""
    figure, (axis,) = _figure(1)
    claims = [epsilon for epsilon, _ in lines[0][1] if epsilon is not None]
    axis.plot(claims, claims, color="#555555", linestyle="--", linewidth=1, label="the claim: no bound may be above")
    for index, (label, points) in enumerate(lines):
        axis.plot(
            [epsilon for epsilon, _ in points],
            [rows[metric].value for _, metric in points],
            color=COLOURS[index % len(COLOURS)],
            marker="o",
            label=label,
        )
    axis.set_xscale("log")
    # Straight where the claim is, and with a place for 0, which is what an attack shows that finds nothing.
    axis.set_yscale("symlog", linthresh=claims[0], linscale=0.4)
    axis.set(xlabel="claimed epsilon", ylabel="lower bound on epsilon")
    axis.set_xticks(claims, [f"{claim:g}" for claim in claims], minor=False)
    axis.set_yticks([0, *claims], ["0", *(f"{claim:g}" for claim in claims)], minor=False)
    axis.minorticks_off()
    _legend(figure, axis)
    _save(figure, folder, name, title)


def _legend(figure: Any, axis: Any) -> None:
    """Below all panels, where it hides no interval."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)


def _side(bound: float | None, row: Measured) -> float:
    return row.value if bound is None else bound


def _figure(panels: int) -> tuple[Any, Sequence[Any]]:
    # Without pyplot there is no global state, and nothing that could open a window.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * panels, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def _save(figure: Any, folder: Path, name: str, title: str) -> None:
    figure.suptitle(title, fontsize=11)
    for form in FORMATS:
        figure.savefig(folder / f"{name}.{form}", dpi=150)
