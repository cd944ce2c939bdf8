"""The page of `tpinit plan --html`: one HTML file without scripts, with a picture of every sharded parameter."""

from __future__ import annotations

from html import escape
from typing import Any

from tpinit.cli.plan_format import MEMORY_KINDS, byte_size, collective_totals, memory_rows, rank_range, shape_text

__all__ = ["page_of"]

_SHOWN = 16  # ranks that the legend lists
_STYLE = """
:root { color-scheme: light dark;
  --ink: #1b1f24; --paper: #ffffff; --soft: #f1f3f5; --line: #ccd2d9; --faint: #57606a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --paper: #14171b; --soft: #1f242a; --line: #3a424c; --faint: #9aa4b0; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p, pre { overflow-wrap: anywhere; white-space: pre-wrap; }
pre { background: var(--soft); padding: .8rem; border-radius: .4rem; font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; min-width: 100%; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--faint); font-weight: 600; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.cuts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: 1rem; }
figure { margin: 0; padding: .7rem; background: var(--soft); border-radius: .4rem; min-width: 0; }
figcaption { font-size: .8rem; overflow-wrap: anywhere; }
figcaption b { font-weight: 600; }
figcaption span { color: var(--faint); }
svg { display: block; width: 100%; height: auto; margin-bottom: .5rem; }
svg text { font: 600 9px system-ui, sans-serif; fill: #101418; text-anchor: middle; dominant-baseline: central; }
.key { display: flex; flex-wrap: wrap; gap: .3rem .9rem; list-style: none; padding: 0; font-size: .85rem; }
.key i { display: inline-block; width: .9em; height: .9em; border-radius: .2em; margin-right: .35em;
  vertical-align: -.1em; }
"""


def page_of(page: dict[str, Any], decision: str) -> str:
    """Return a forecast, with the explanation of its decision, as an HTML document."""
    ranks, model = page["ranks"], page["model"]
    title = f"{model['class']} over {ranks['world']} ranks"
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{model['parameters']:,} parameters, {escape(str(model['dtype'] or 'each in its own dtype'))}; "
        f"the plan is from {escape(model['source_of_plan'])}.</p>",
        f"<h2>Decision</h2><pre>{escape(decision)}</pre>",
        f"<h2>Ranks</h2><p>{ranks['world']} ranks: {ranks['dp_size']} TP groups of {ranks['tp_size']}; "
        f"{escape(ranks['rule'])}.</p>",
        _ranks(ranks),
        f"<h2>The slices of each TP rank</h2>{_legend(ranks['tp_size'])}",
        f'<div class="cuts">{"".join(_figure(parameter, ranks["tp_size"]) for parameter in page["parameters"])}</div>',
        "<h2>Collectives</h2>",
        "".join(f"<p>{escape(line[0].upper() + line[1:])}.</p>" for line in collective_totals(page["collectives"])),
        _collectives(page["collectives"]["each"]),
        "<h2>Memory of a rank, without activations</h2>",
        _memory(page["memory"]),
        "<h2>Replicated on every rank</h2>",
        _replicated(page["replicated"]),
    ]
    if page["notes"]:
        body.append("<h2>Warnings</h2>" + "".join(f"<p>{escape(note)}</p>" for note in page["notes"]))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>{''.join(body)}</body></html>\n"
    )


def _colour(rank: int, tp_size: int) -> str:
    return f"hsl({360 * rank / tp_size:.0f} 60% {72 if rank % 2 else 64}%)"


def _legend(tp_size: int) -> str:
    shown = list(range(min(tp_size, _SHOWN)))
    items = [f'<li><i style="background:{_colour(rank, tp_size)}"></i>tp rank {rank}</li>' for rank in shown]
    more = [f"<li>and so on to {tp_size - 1}</li>"] if tp_size > _SHOWN else []
    grey = '<li><i style="background:#b6bec8"></i>replicated on every rank</li>'
    return f'<ul class="key">{"".join([*items, *more, grey])}</ul>'


def _figure(parameter: dict[str, Any], tp_size: int) -> str:
    lengths = parameter["shape"]
    dim = parameter["dim"]
    flat = len(lengths) < 2 or dim == len(lengths) - 1
    height = 26 if len(lengths) < 2 else 90
    caption = f"{shape_text(lengths)}, {parameter['cut']}" + ("" if dim is None else f" along {dim}")
    if dim is None:
        drawing = (
            f'<rect width="240" height="{height}" fill="#b6bec8"/><text x="120" y="{height / 2}">every rank</text>'
        )
    else:
        sharing: dict[tuple[int, int], list[int]] = {}
        for rank, pieces in enumerate(parameter["slices"]):
            for offset, length in pieces:
                sharing.setdefault((offset, length), []).append(rank)
        drawing = "".join(
            _piece((offset / lengths[dim], length / lengths[dim]), (place, len(ranks)), rank, tp_size, flat, height)
            for (offset, length), ranks in sharing.items()
            for place, rank in enumerate(ranks)
        )
    name = escape(parameter["name"])
    local = parameter["local_shapes"]
    held = shape_text(local[0]) if local[0] == local[-1] else f"{shape_text(local[0])} to {shape_text(local[-1])}"
    times = f"{parameter['count']} of this shape, " if parameter["count"] > 1 else ""
    why = f"; {escape(parameter['why'])}" if parameter["why"] else ""
    return (
        f'<figure><svg viewBox="0 0 240 {height}" role="img" aria-label="{escape(caption)}">{drawing}</svg>'
        f"<figcaption><b>{name}</b><br><span>{escape(caption)}; {times}{escape(held)} per rank, "
        f"{byte_size(max(parameter['local_bytes']))}{why}</span></figcaption></figure>"
    )


def _piece(span: tuple[float, float], share: tuple[int, int], rank: int, tp_size: int, flat: bool, height: int) -> str:
    """Draw a rank's slice: its span of the sharded dimension, beside the other ranks with the same slice."""
    place, sharers = share
    if flat:
        x, y, w, h = 240 * span[0], height * place / sharers, 240 * span[1], height / sharers
    else:
        x, y, w, h = 240 * place / sharers, height * span[0], 240 / sharers, height * span[1]
    label = f'<text x="{x + w / 2:.2f}" y="{y + h / 2:.2f}">{rank}</text>' if min(w, h) >= 9 else ""
    fill = _colour(rank, tp_size)
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{w:.2f}" height="{h:.2f}" fill="{fill}">'
        f"<title>tp rank {rank}</title></rect>{label}"
    )


def _ranks(ranks: dict[str, Any]) -> str:
    rows = [[str(group["dp_rank"]), rank_range(group["ranks"])] for group in ranks["tp_groups"]]
    left_out = ranks["tp_groups_left_out"]
    if left_out:
        rows.insert(len(rows) // 2, ["...", f"{left_out} more"])
    return _table(["dp rank", "ranks, by tp rank"], rows, ())


def _collectives(each: list[dict[str, Any]]) -> str:
    rows = [
        [
            collective["module"],
            str(collective["calls"]),
            collective["phase"],
            collective["kind"].replace("_", "-"),
            collective["group"],
            byte_size(collective["largest_bytes"]),
            byte_size(collective["bytes"]),
            byte_size(collective["wire_bytes"]),
        ]
        for collective in each
    ]
    return _table(["where", "calls", "when", "what", "group", "largest", "total", "on the wire"], rows, (1, 5, 6, 7))


def _memory(memory: list[dict[str, Any]]) -> str:
    return _table(["tp rank", *MEMORY_KINDS], [list(row) for row in memory_rows(memory)], (1, 2, 3, 4, 5))


def _replicated(replicated: dict[str, Any]) -> str:
    rows = [[reason, byte_size(held)] for reason, held in replicated["reasons"].items()]
    total = f"<p>{replicated['parameters']} parameters, {byte_size(replicated['bytes'])}.</p>"
    return total + _table(["why", "bytes"], rows, (1,))


def _table(head: list[str], rows: list[list[str]], numeric: tuple[int, ...]) -> str:
    def cells(kind: str, row: list[str]) -> str:
        marked = (' class="n"' if column in numeric else "" for column in range(len(row)))
        return "".join(f"<{kind}{mark}>{escape(cell)}</{kind}>" for cell, mark in zip(row, marked, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{cells("th", head)}</tr>{body}</table></div>'
