"""A picture of the losses of one or more runs, as SVG with colours for light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

__all__ = ["draw_losses", "largest_difference"]

Curve = Sequence[tuple[int, float]]  # (step, loss)

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 800, 400, 70, 20, 46, 50
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600 } .small { fill: #59636e }
.grid { stroke: #d1d9e0 } .curve { fill: none; stroke-linejoin: round; stroke-linecap: round }
.c0 { stroke: #0969da } .c1 { stroke: #bc4c00 } .c2 { stroke: #1a7f37 } .c3 { stroke: #8250df } .c4 { stroke: #cf222e }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .small { fill: #9198a1 } .grid { stroke: #3d444d }
.c0 { stroke: #4493f8 } .c1 { stroke: #db6d28 } .c2 { stroke: #3fb950 } .c3 { stroke: #ab7df8 }
.c4 { stroke: #f85149 } }
"""
_COLOURS = 5
_STROKES = ((9, "none"), (4, "none"), (1.6, "5 6"))  # a later curve lies on the earlier ones, and lets them be seen


def largest_difference(curves: Mapping[str, Curve]) -> float:
    """Return the largest relative difference of a loss from that of the first curve at the same step.

    Infinite if the curves have other steps or a loss is not finite.
    """
    first, *others = (dict(curve) for curve in curves.values())
    worst = 0.0
    for other in others:
        if set(other) != set(first):
            return math.inf
        for step, loss in first.items():
            if loss == other[step]:
                continue
            difference = abs(other[step] - loss) / max(abs(loss), 1e-12)
            worst = max(worst, difference) if math.isfinite(difference) else math.inf
    return worst


def draw_losses(curves: Mapping[str, Curve], title: str, note: str = "") -> str:
    """Return the picture as an SVG document: the loss of each curve by step, all on one pair of axes."""
    points = [(step, loss) for curve in curves.values() for step, loss in curve if math.isfinite(loss)]
    steps = [step for step, _ in points] or [0, 1]
    losses = [loss for _, loss in points] or [0.0, 1.0]
    left, right = min(steps), max(max(steps), min(steps) + 1)
    ticks = _ticks(min(losses), max(losses))
    low, high = min(ticks[0], *losses), max(ticks[-1], *losses)

    def x(step: float) -> float:
        return _LEFT + (step - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)

    def y(loss: float) -> float:
        return _HEIGHT - _BOTTOM - (loss - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<text class="title" x="{_LEFT}" y="24">{escape(title)}</text>']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="small" x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts += [
        f'<text class="small" x="{x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">{tick}</text>'
        for tick in sorted({round(one) for one in _ticks(left, right) if left <= one <= right})
    ]
    parts.append(f'<text class="small" x="{_LEFT}" y="{_HEIGHT - 10}">step{escape(f"; {note}" if note else "")}</text>')
    for index, (name, curve) in enumerate(curves.items()):
        width, dashes = _STROKES[min(index, len(_STROKES) - 1)] if len(curves) > 1 else (2, "none")
        look = f'class="curve c{index % _COLOURS}" stroke-width="{width}" stroke-dasharray="{dashes}"'
        if index == 0 and len(curves) > 1:
            look += ' stroke-opacity="0.45"'
        path = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in curve if math.isfinite(loss))
        parts.append(f'<polyline {look} points="{path}"><title>{escape(name)}</title></polyline>')
        if len(curves) > 1:
            at, row = _WIDTH - _RIGHT - 110, _TOP + 14 + 20 * index
            parts.append(f'<polyline {look} points="{at},{row} {at + 40},{row}"/>')
            parts.append(f'<text x="{at + 50}" y="{row + 4}">{escape(name)}</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">\n<style>{_STYLE}</style>\n{body}\n</svg>\n'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers that cover a range."""
    span = max(high - low, abs(high) * 1e-6, 1e-9)
    size = 10 ** math.floor(math.log10(span / 4))
    step = next(size * factor for factor in (1, 2, 5, 10) if span / (size * factor) <= 5)
    first = math.floor(low / step)
    return [round(step * (first + index), 12) for index in range(max(2, math.ceil(high / step) - first + 1))]
