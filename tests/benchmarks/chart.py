"""The SVG plot: one bar per peer and size, as a multiple of the ideal, with colours for light and dark pages."""

from __future__ import annotations

import statistics
from xml.sax.saxutils import escape

from benchmarks.campaign import BenchmarkRun, SizeMeasurement

__all__ = ["draw"]

_WIDTH, _LEFT, _RIGHT, _BAR, _GAP, _HEAD = 800, 310, 110, 20, 10, 46
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600 } .small { fill: #59636e }
.peer { fill: #8c959f } .ours { fill: #0969da } .whole { fill: #c8ccd1 } .wrong { fill: #cf222e }
.ideal { stroke: #1a7f37; stroke-width: 1.5; stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .small { fill: #9198a1 } .peer { fill: #656c76 } .ours { fill: #4493f8 }
.whole { fill: #3d444d } .wrong { fill: #f85149 } .ideal { stroke: #3fb950 } }
"""


def draw(result: BenchmarkRun) -> str:
    """Return the plot of a run as an SVG document."""
    top, parts = 0, []
    for measurement in result.sizes:
        drawn, height = _panel(measurement, top)
        parts += drawn
        top += height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}" height="{top}" '
        f'role="img" aria-label="Time of a training step as a multiple of the ideal">\n<style>{_STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _panel(measurement: SizeMeasurement, top: int) -> tuple[list[str], int]:
    """Return the elements of one size (title, bars, the line of the ideal) and their height in pixels."""
    unsharded = measurement.rows[0]
    ratios = {row.peer.name: row.to_ideal(unsharded) for row in measurement.rows if row.step is not None}
    middles = {name: statistics.median(values) for name, values in ratios.items() if values}
    scale = (_WIDTH - _LEFT - _RIGHT) / max([1.0, *middles.values()])
    title = (
        f"{measurement.size.name}, {measurement.size.parameters / 1e6:.1f} M parameters: step time / (unsharded / 2)"
    )
    parts = [f'<text class="title" x="12" y="{top + 24}">{escape(title)}</text>']
    y = top + _HEAD
    for row in measurement.rows:
        middle = y + _BAR - 5
        parts.append(f'<text x="{_LEFT - 10}" y="{middle}" text-anchor="end">{escape(row.peer.label)}</text>')
        ratio = middles.get(row.peer.name)
        if ratio is None:
            parts.append(f'<text class="small" x="{_LEFT + 6}" y="{middle}">does not run</text>')
        else:
            kind = "wrong" if row.wrong else {"tpinit": "ours", "unsharded": "whole"}.get(row.peer.name, "peer")
            note = f"{ratio:.2f}" + (" WRONG" if row.wrong else "")
            parts.append(
                f'<rect class="{kind}" x="{_LEFT}" y="{y}" width="{ratio * scale:.1f}" height="{_BAR}" rx="2"/>'
                f'<text x="{_LEFT + ratio * scale + 6:.1f}" y="{middle}">{note}</text>'
            )
        y += _BAR + _GAP
    line = _LEFT + scale
    parts.append(f'<line class="ideal" x1="{line:.1f}" x2="{line:.1f}" y1="{top + _HEAD - 6}" y2="{y - 4}"/>')
    return parts, y - top + 10
