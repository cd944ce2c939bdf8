"""The text that `tpinit plan` prints: the decision, and tables of ranks, parameters, collectives and memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tpinit.cli.plan_format import MEMORY_KINDS, byte_size, collective_totals, memory_rows, rank_range, shape_text

__all__ = ["text_of"]


def text_of(forecast: dict[str, Any], decision: str) -> str:
    """Return a forecast as text, with the explanation of its decision."""
    model = forecast["model"]
    summary = f"{model['class']}, {model['parameters']:,} parameters; {model['source_of_plan']}"
    parts = [
        f"decision\n\n{_indented(decision)}",
        f"ranks\n\n{_indented(_ranks(forecast['ranks']))}",
        f"parameters ({summary})\n\n{_indented(_parameters(forecast['parameters']))}",
        f"collectives ({_batch(forecast['batch'])})\n\n{_indented(_collectives(forecast['collectives']))}",
        f"memory of a rank, without activations\n\n{_indented(_memory(forecast['memory']))}",
        f"replicated on every rank\n\n{_indented(_replicated(forecast['replicated']))}",
    ]
    parts += ["warnings\n\n" + _indented("\n".join(forecast["notes"]))] if forecast["notes"] else []
    return "\n\n".join(parts)


def _batch(batch: dict[str, Any]) -> str:
    return f"micro batch {batch['micro']} x {batch['sequence']} tokens, {batch['accumulation']} per step"


def _ranks(ranks: dict[str, Any]) -> str:
    lines = [f"{ranks['world']} ranks: {ranks['dp_size']} TP groups of {ranks['tp_size']}; {ranks['rule']}", ""]
    rows = [("dp rank", "ranks, by tp rank")]
    left_out = ranks["tp_groups_left_out"]
    groups = ranks["tp_groups"]
    for index, group in enumerate(groups):
        if left_out and index and group["dp_rank"] != groups[index - 1]["dp_rank"] + 1:
            rows.append(("...", f"{left_out} more"))
        rows.append((str(group["dp_rank"]), rank_range(group["ranks"])))
    return "\n".join(lines) + _table(rows)


def _parameters(parameters: list[dict[str, Any]]) -> str:
    rows = [("parameter", "count", "shape", "cut", "on rank 0", "on the last", "bytes per rank", "gradients")]
    rows += [
        (
            parameter["name"],
            str(parameter["count"]),
            shape_text(parameter["shape"]),
            parameter["cut"] if parameter["dim"] is None else f"{parameter['cut']}, dim {parameter['dim']}",
            shape_text(parameter["local_shapes"][0]),
            shape_text(parameter["local_shapes"][-1]),
            byte_size(max(parameter["local_bytes"])),
            parameter["gradients"],
        )
        for parameter in parameters
    ]
    return _table(rows)


def _collectives(collectives: dict[str, Any]) -> str:
    rows = [("where", "calls", "when", "what", "group", "largest", "total", "on the wire")]
    rows += [
        (
            collective["module"],
            str(collective["calls"]),
            collective["phase"],
            collective["kind"],
            collective["group"],
            byte_size(collective["largest_bytes"]),
            byte_size(collective["bytes"]),
            byte_size(collective["wire_bytes"]),
        )
        for collective in collectives["each"]
    ]
    return _table(rows) + "\n\n" + "\n".join(collective_totals(collectives))


def _memory(memory: list[dict[str, Any]]) -> str:
    return _table([("tp rank", *MEMORY_KINDS), *memory_rows(memory)])


def _replicated(replicated: dict[str, Any]) -> str:
    lines = [f"{replicated['parameters']} parameters, {byte_size(replicated['bytes'])}"]
    return "\n".join([*lines, *(f"{byte_size(held)}: {reason}" for reason, held in replicated["reasons"].items())])


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows as lines of aligned columns, with a rule below the first row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())
