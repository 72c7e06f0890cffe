"""A curve as inline SVG: drawn by the server, readable in both colour schemes, no script needed.

``draw`` maps series of (round, value) to one SVG text. Colours are classes of the page's sheet, so the figure
follows the reader's light or dark setting. The same figures stand in a table beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 30
COLOURS = 8

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Curve:
    """One drawn figure and its legend: (name, CSS class of its colour) in drawing order."""

    svg: Markup
    legend: list[tuple[str, str]]


def draw(series: Mapping[str, Points], *, rounds: int, title: str) -> Curve:
    """Draw values per round; ``rounds`` is the length of the x axis, so a live curve does not jump.

    The y axis runs from 0 to 1 when every value lies there (accuracies), else from least to greatest value.
    """
    values = [value for points in series.values() for _, value in points]
    low, high = _range(values)
    legend = [(name, f"s{number % COLOURS}") for number, name in enumerate(series)]
    lines = [
        _line(points, colour, max(rounds, 2), low, high)
        for points, (_, colour) in zip(series.values(), legend, strict=True)
    ]
    parts = [
        Markup('<svg class="curve" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, HEIGHT, title
        ),
        *_y_axis(low, high),
        *_x_axis(max(rounds, 2)),
        *lines,
        Markup("</svg>"),
    ]
    return Curve(Markup("").join(parts), legend)


def _range(values: Sequence[float]) -> tuple[float, float]:
    if not values or (min(values) >= 0 and max(values) <= 1):
        return 0.0, 1.0
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _x(number: int, rounds: int) -> float:
    return LEFT + (number - 1) / (rounds - 1) * (WIDTH - LEFT - RIGHT)


def _y(value: float, low: float, high: float) -> float:
    return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _line(points: Points, colour: str, rounds: int, low: float, high: float) -> Markup:
    places = [(_x(number, rounds), _y(value, low, high)) for number, value in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = Markup("").join(
        Markup('<circle cx="{}" cy="{}" r="3"/>').format(f"{x:.1f}", f"{y:.1f}") for x, y in places
    )
    return Markup('<g class="{}"><polyline points="{}"/>{}</g>').format(colour, path, dots)


def _y_axis(low: float, high: float) -> list[Markup]:
    ticks = [low + (high - low) * step / 4 for step in range(5)]
    return [
        Markup(
            '<line class="axis" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>'
            '<text x="{3}" y="{4}" text-anchor="end">{5}</text>'
        ).format(
            LEFT,
            WIDTH - RIGHT,
            f"{_y(tick, low, high):.1f}",
            LEFT - 6,
            f"{_y(tick, low, high) + 4:.1f}",
            f"{tick:.2f}",
        )
        for tick in ticks
    ]


def _x_axis(rounds: int) -> list[Markup]:
    step = max(1, -(-rounds // 10))
    return [
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
            f"{_x(number, rounds):.1f}", HEIGHT - 8, number
        )
        for number in range(1, rounds + 1, step)
    ]
