"""Charts as SVG elements of a page, which take their colours from the page's style: light, dark, or on paper.

What a mark is stands in its class; what it says when it is pointed at, in its title. A chart is as wide as its place,
and its letters are to be read at the width of a phone as well.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, HEIGHT = 520.0, 330.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 12.0, 12.0, 46.0  # margins, with the letters of the axes in them
ROW = 52.0  # height of an axis of parallel coordinates
TICKS = 5  # about so many on an axis
STEPS = (1, 2, 2.5, 5, 10)  # of an axis, times a power of ten
LETTER = 7.0  # pixels, about


@dataclass(frozen=True)
class Mark:
    """A point, with the class of the style sheet that it has."""

    x: float
    y: float
    title: str
    style: str = ""


@dataclass(frozen=True)
class Axis:
    """What an axis shows, and from where to where; in its logarithm, or choices at equal distances."""

    title: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False  # only whole numbers
    choices: tuple[Any, ...] = ()

    @classmethod
    def around(cls, title: str, values: Sequence[float], *, zero: bool = False) -> "Axis":
        """An axis on which these values have some air; from zero where that is asked for."""
        low, high = min(values, default=0.0), max(values, default=1.0)
        air = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
        return cls(title, 0.0 if zero else low - air, high + air)

    def at(self, value: Any) -> float:
        """Where a value lies, from 0 to 1."""
        if self.choices:
            return (self.choices.index(value) + 0.5) / len(self.choices)
        number = float(value)
        if self.log:
            return math.log(number / self.low) / (math.log(self.high / self.low) or 1.0)
        return (number - self.low) / (self.high - self.low or 1.0)

    def ticks(self) -> list[tuple[float, str]]:
        """Where to write what."""
        if self.choices:
            return [(self.at(choice), str(choice)) for choice in self.choices]
        if self.log:
            return [(0.0, f"{self.low:.3g}"), (1.0, f"{self.high:.3g}")]
        rough = (self.high - self.low) / TICKS or 1.0
        rough = max(rough, 1.0) if self.whole else rough
        power = 10 ** math.floor(math.log10(rough))
        step = next(power * part for part in STEPS if power * part >= rough * 0.999)
        digits = max(0, -math.floor(math.log10(step)) + (round(step / power, 3) == 2.5))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(self.at(index * step), f"{index * step:.{digits}f}") for index in range(first, last + 1)]


def scatter(marks: Sequence[Mark], x: Axis, y: Axis) -> str:
    """Points, the last ones on top."""
    return _chart(x, y, [_dot(mark.title, mark.style, _x(x, mark.x), _y(y, mark.y)) for mark in marks])


def steps(marks: Sequence[Mark], x: Axis, y: Axis) -> str:
    """Values that hold until the next one, from zero on; a point where one has a title."""
    height, path = 0.0, [f"M{_x(x, x.low):.1f} {_y(y, 0.0):.1f}"]
    for mark in marks:
        path.append(f"H{_x(x, mark.x):.1f}" + (f"V{_y(y, mark.y):.1f}" if mark.y != height else ""))
        height = mark.y
    line = f'<path class="line" d="{"".join(path)}"/>'
    return _chart(x, y, [line, *(_dot(m.title, m.style, _x(x, m.x), _y(y, m.y)) for m in marks if m.title)])


def parallel(lines: Sequence[tuple[str, str, Sequence[Any]]], axes: Sequence[Axis]) -> str:
    """Parallel coordinates: an axis a row, each line with a title, a style, and a value (or None) on every axis.

    Where a value is missing the line is interrupted. The axes lie, so that their names can be read on any screen.
    """
    height = ROW * len(axes) + TOP
    inner, parts = WIDTH - 2 * RIGHT, []
    for title, style, values in lines:
        pieces, pen = [], "M"
        for row, (axis, value) in enumerate(zip(axes, values, strict=True)):
            if value is None:
                pen = "M"
                continue
            pieces.append(f"{pen}{RIGHT + inner * axis.at(value):.1f} {_row(row):.1f}")
            pen = "L"
        parts.append(f'<path class="trial {style}" d="{"".join(pieces)}"><title>{escape(title)}</title></path>')
    for row, axis in enumerate(axes):
        y = _row(row)
        parts.append(f'<line class="axis" x1="{RIGHT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="name halo" x="{RIGHT}" y="{y - 26:.1f}">{escape(axis.title)}</text>')
        parts += [_label(RIGHT + inner * at, y - 8, label, at) for at, label in _apart(axis.ticks(), inner)]
    return _svg(WIDTH, height, parts)


def _row(row: int) -> float:
    return TOP + ROW * row + 38


def _apart(ticks: Sequence[tuple[float, str]], inner: float) -> list[tuple[float, str]]:
    """The ticks whose labels do not run into each other, from the left."""
    kept: list[tuple[float, str]] = []
    for at, label in sorted(ticks):
        if not kept or (at - kept[-1][0]) * inner > LETTER * (len(label) + len(kept[-1][1])) / 2 + LETTER:
            kept.append((at, label))
    return kept


def _label(x: float, y: float, label: str, at: float) -> str:
    anchor = "start" if at < 0.02 else "end" if at > 0.98 else "middle"
    return f'<text class="halo" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(label)}</text>'


def _chart(x: Axis, y: Axis, marks: Sequence[str]) -> str:
    """The frame of a chart of two axes, with its grid."""
    bottom, right, parts = HEIGHT - BOTTOM, WIDTH - RIGHT, []
    for at, label in y.ticks():
        level = TOP + (1 - at) * (bottom - TOP)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{level:.1f}" y2="{level:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{level + 4:.1f}" text-anchor="end">{label}</text>')
    for at, label in _apart(x.ticks(), right - LEFT):
        place = LEFT + at * (right - LEFT)
        parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{place:.1f}" y="{bottom + 17}" text-anchor="middle">{label}</text>')
    middle = (TOP + bottom) / 2
    parts.append(f'<text class="name" x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{x.title}</text>')
    turned = f'transform="rotate(-90 14 {middle})"'
    parts.append(f'<text class="name" x="14" y="{middle}" text-anchor="middle" {turned}>{y.title}</text>')
    return _svg(WIDTH, HEIGHT, [*parts, *marks])


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.at(value) * (WIDTH - RIGHT - LEFT)


def _y(axis: Axis, value: float) -> float:
    return TOP + (1 - axis.at(value)) * (HEIGHT - BOTTOM - TOP)


def _dot(title: str, style: str, x: float, y: float) -> str:
    return f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{escape(title)}</title></circle>'


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img">{"".join(parts)}</svg>'
