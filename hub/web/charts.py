"""Figures as inline SVG: drawn by the server, readable in both colour schemes, no script, no style.

Series are (round, value) points. Colours are classes of the page's sheet, so that a figure follows the
reader's light or dark setting. The same numbers always stand in a table beside it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 34
COLOURS = 8
TICKS_X, TICKS_Y = 8, 4
SPAN_WIDTH = 240
DOTS = 40  # on a line; of a longer one, the newest value alone has a dot

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Curve:
    """One drawn figure and its legend: (name, CSS class of its colour, newest value) in drawing order."""

    title: str
    svg: Markup
    legend: list[tuple[str, str, float]]


def draw(series: Mapping[str, Points], *, rounds: int, title: str, main: str, label: str) -> Curve:
    """Draw values per round.

    Args:
        rounds: length of the x axis, so that a live curve does not jump.
        main: name of the series drawn heavier, in the colour of text.
        label: what the figure is, for those who do not see it.
    """
    series = {name: points for name, points in series.items() if points}
    ticks = _ticks([value for points in series.values() for _, value in points])
    low, high = ticks[0], ticks[-1]
    classes, number = {}, 0
    for name in series:
        classes[name] = "main" if name == main else f"s{number % COLOURS}"
        number += name != main
    order = sorted(series, key=lambda name: name == main)  # the main one on top
    parts = [
        Markup('<svg class="curve" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, HEIGHT, label
        ),
        *_y_axis(ticks),
        *_x_axis(max(rounds, 2)),
        *(_line(name, series[name], classes[name], max(rounds, 2), low, high) for name in order),
        Markup("</svg>"),
    ]
    legend = [(name, classes[name], points[-1][1]) for name, points in series.items()]
    return Curve(title, Markup("").join(parts), legend)


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers that enclose the values, least first: the marks of the y axis.

    >>> _ticks([0.53, 0.82])
    [0.5, 0.6, 0.7, 0.8, 0.9]
    """
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    size = 10.0 ** math.floor(math.log10((high - low) / TICKS_Y))
    step = next(size * each for each in (1, 2, 2.5, 5, 10) if size * each * TICKS_Y >= high - low)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _x(number: int, rounds: int) -> float:
    return LEFT + (number - 1) / (rounds - 1) * (WIDTH - LEFT - RIGHT)


def _y(value: float, low: float, high: float) -> float:
    return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _line(name: str, points: Points, colour: str, rounds: int, low: float, high: float) -> Markup:
    places = [(number, value, _x(number, rounds), _y(value, low, high)) for number, value in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for _, _, x, y in places)
    dots = Markup("").join(
        Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3"><title>{}, {}: {:.4g}</title></circle>').format(
            x, y, name, number, value
        )
        for number, value, x, y in (places if len(places) <= DOTS else places[-1:])
    )
    return Markup('<g class="{}"><polyline points="{}"/>{}</g>').format(colour, path, dots)


def _y_axis(ticks: Sequence[float]) -> list[Markup]:
    low, high = ticks[0], ticks[-1]
    return [
        Markup(
            '<line class="axis" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>'
            '<text x="{3}" y="{4}" text-anchor="end">{5:.4g}</text>'
        ).format(
            LEFT,
            WIDTH - RIGHT,
            f"{_y(tick, low, high):.1f}",
            LEFT - 7,
            f"{_y(tick, low, high) + 4:.1f}",
            tick,
        )
        for tick in ticks
    ]


def _x_axis(rounds: int) -> list[Markup]:
    step = max(1, -(-rounds // TICKS_X))
    return [
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
            f"{_x(number, rounds):.1f}", HEIGHT - 10, number
        )
        for number in range(1, rounds + 1, step)
    ]


def bar(value: float, most: float, label: str) -> Markup:
    """A bar as long as ``value`` is of ``most``, for one row of a table."""
    width = 0.0 if most <= 0 else max(1.0, min(1.0, value / most) * 100)
    return Markup(
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<rect class="rail" width="100" height="8"/><rect width="{:.1f}" height="8"/></svg>'
    ).format(label, width)


def span(value: float, low: float, high: float, bar_at: float, label: str) -> Markup:
    """A share with its interval on a line from 0 to 1, and where the bar to pass stood."""

    def at(share: float) -> str:
        return f"{8 + max(0.0, min(1.0, share)) * (SPAN_WIDTH - 16):.1f}"

    return Markup(
        '<svg class="span" viewBox="0 0 {} 22" role="img" aria-label="{}">'
        '<line class="rail" x1="8" x2="{}" y1="11" y2="11"/>'
        '<line class="goal" x1="{}" x2="{}" y1="3" y2="19"/>'
        '<line class="reach" x1="{}" x2="{}" y1="11" y2="11"/><circle cx="{}" cy="11" r="5"/></svg>'
    ).format(SPAN_WIDTH, label, SPAN_WIDTH - 8, at(bar_at), at(bar_at), at(low), at(high), at(value))
