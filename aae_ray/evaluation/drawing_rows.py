"""Figures of rows of numbers as PNG bytes, in their own units: a small plot for each column.

Shapes: `N` rows, `D` columns.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aae_ray.evaluation.drawing import CLASS_COLOURS, PRIOR_GREY, on_one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = NDArray[np.floating]

MOST_SHOWN = 24  # columns in a figure
ACROSS = 6  # of them at most
LEAST_BINS, MOST_BINS = 6, 24  # of fewer rows a bin holds one or none
EDGE_PERCENT = 0.5  # of the values at each end may lie outside of a plot
MOST_POINTS = 1000
PLOT_INCHES = (2.1, 1.75)
HEAD_INCHES = 0.75  # for the heading and the legend


def column_histograms(series: Mapping[str, Rows], columns: Sequence[str], heading: str) -> bytes:
    """How the values of each column are spread in each series of rows (N, D), over one another; PNG.

    The first series is drawn filled. Where there are many columns the first ones are shown, and the heading says so.
    """

    def draw(axes: "Axes", column: int) -> None:
        values = [rows_ND[:, column][np.isfinite(rows_ND[:, column])] for rows_ND in series.values()]
        ends = np.concatenate([np.percentile(part, (EDGE_PERCENT, 100 - EDGE_PERCENT)) for part in values if len(part)])
        low, high = (ends.min(), ends.max()) if len(ends) else (0.0, 1.0)
        bins = int(np.clip(1.5 * math.sqrt(min(map(len, values))), LEAST_BINS, MOST_BINS))
        edges = np.linspace(low, high, bins + 1) if high > low else np.array([low - 0.5, low + 0.5])
        for place, (name, part) in enumerate(zip(series, values, strict=True)):
            counts, _ = np.histogram(part, edges)
            share = counts / max(1, counts.sum())
            if place == 0:
                axes.stairs(share, edges, fill=True, color=PRIOR_GREY, label=on_one_line(name))
            else:
                colour = CLASS_COLOURS[(place - 1) % len(CLASS_COLOURS)]
                axes.stairs(share, edges, color=colour, linewidth=1.4, label=on_one_line(name))
        axes.set_yticks([])

    return _small_plots(draw, columns, heading)


def column_scatters(given_ND: Rows, answer_ND: Rows, columns: Sequence[str], heading: str) -> bytes:
    """Each value of each column against its reconstruction, with the line on which both are equal; PNG."""

    def draw(axes: "Axes", column: int) -> None:
        x_N, y_N = given_ND[:MOST_POINTS, column], answer_ND[:MOST_POINTS, column]
        low, high = float(x_N.min()), float(x_N.max())
        axes.plot((low, high), (low, high), color=PRIOR_GREY, linewidth=1.2, label="equal")
        axes.plot(
            x_N, y_N, "o", color=CLASS_COLOURS[0], markersize=2.2, markeredgewidth=0, alpha=0.6, label="reconstruction"
        )

    return _small_plots(draw, columns, heading)


def _small_plots(draw: Callable[["Axes", int], None], columns: Sequence[str], heading: str) -> bytes:
    from matplotlib.figure import Figure

    shown = min(len(columns), MOST_SHOWN)
    down = math.ceil(shown / ACROSS)
    across = math.ceil(shown / down)
    width, height = max(4.2, across * PLOT_INCHES[0]), down * PLOT_INCHES[1] + HEAD_INCHES
    figure = Figure(figsize=(width, height), dpi=110)
    grid = figure.subplots(down, across, squeeze=False).flatten()
    for column, axes in enumerate(grid):
        if column >= shown:
            axes.set_axis_off()
            continue
        draw(axes, column)
        axes.set_title(on_one_line(columns[column], 24), fontsize=8)
        axes.tick_params(labelsize=6.5, length=2)
        axes.locator_params(axis="x", nbins=4)
        axes.ticklabel_format(axis="x", scilimits=(-3, 4))
        axes.xaxis.get_offset_text().set_fontsize(6.5)
        axes.spines[["top", "right"]].set_visible(False)
    if shown < len(columns):
        heading += f"; the first {shown} of {len(columns)} columns"
    figure.suptitle(heading, fontsize=10, x=0.012, ha="left", y=1 - 0.1 / height, va="top")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(0.005, 1 - 0.28 / height),
        ncols=min(len(labels), 6),
        fontsize=8,
        frameon=False,
        handlelength=1.2,
        columnspacing=1.0,
    )
    figure.subplots_adjust(
        left=0.35 / width, right=1 - 0.15 / width, bottom=0.3 / height, top=1 - 0.85 / height, hspace=0.75, wspace=0.25
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
