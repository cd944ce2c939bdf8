"""Rows of tokens: one line each, or lines behind one another in rows of equal length; and micro batches of them."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from tpinit.runtime.errors import DataError
from tpinit.runtime.finetune.lines import Line, LineFile, LineProblem, raise_problems
from tpinit.runtime.finetune.marked_text import MarkedText, mark

__all__ = ["Collate", "Rows", "collate_for", "make_rows"]

IGNORED = -100  # a label that no loss counts
_BATCH = 256  # lines that the tokenizer gets at once

Row = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Rows:
    """A map-style dataset. Row i is `tokens[bounds[i]:bounds[i + 1]]`, and `trained` says which of them have a label.

    `notes` are sentences for the user.
    """

    tokens: torch.Tensor
    trained: torch.Tensor
    bounds: torch.Tensor
    lines: int
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> Row:
        part = slice(int(self.bounds[index]), int(self.bounds[index + 1]))
        return self.tokens[part], self.trained[part]

    def digest(self) -> str:
        """Return a SHA-256 of all rows: those of a resumed run must be the same."""
        total = hashlib.sha256()
        for tensor in (self.tokens, self.trained, self.bounds):
            total.update(tensor.numpy().tobytes())
        return total.hexdigest()


@dataclass(frozen=True, slots=True)
class Collate:
    """Makes a micro batch of rows, padded at the end to the longest, or to the next multiple of `multiple` tokens.

    The result has `input_ids`, `attention_mask` and `labels`, each [rows, tokens] and int64.
    """

    pad: int
    multiple: int = 1

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Return the micro batch of these rows."""
        longest = -(-max(len(tokens) for tokens, _ in rows) // self.multiple) * self.multiple
        ids = torch.full((len(rows), longest), self.pad)
        labels = torch.full_like(ids, IGNORED)
        mask = torch.zeros_like(ids)
        for index, (tokens, trained) in enumerate(rows):
            ids[index, : len(tokens)] = tokens
            labels[index, : len(tokens)] = torch.where(trained, tokens.long(), IGNORED)
            mask[index, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def make_rows(file: LineFile, tokenizer: Any, length: int, *, pack: bool, everything: bool, vocabulary: int) -> Rows:
    """Read and tokenize a file into rows of at most `length` tokens. Raises DataError for lines that can't be used.

    `pack`: the lines follow one another in rows of `length` tokens; else each line is a row, and longer ones are cut.
    `everything`: prompts and questions are trained on too. `vocabulary`: the number of the model's embeddings.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"the tokenizer is a {type(tokenizer).__name__}, which can't say where a token lies in the text: put a "
            "tokenizer.json into the model's directory"
        )
    tokens, trained, bounds = array("i"), bytearray(), array("q", [0])
    problems: list[tuple[int, str]] = []
    cut = 0
    for number, ids, marks in _tokenized(file, tokenizer, everything, problems):
        if not ids:
            problems.append((number, "gives no token"))
            continue
        if max(ids) >= vocabulary:
            raise DataError(
                f"{file.path}, line {number}: the tokenizer gives token {max(ids)}, and the model has {vocabulary} "
                "embeddings: use the tokenizer of this model"
            )
        if not pack:
            if not any(marks[1:length]):
                needed = marks.index(1, 1) + 1 if any(marks[1:]) else None
                problems.append((number, _nothing_to_train(length, needed)))
                continue
            cut += len(ids) > length
            ids, marks = ids[:length], marks[:length]
        tokens.extend(ids)
        trained += marks
        bounds.append(len(tokens))
    raise_problems(file.path, [*file.problems, *problems], file.count)
    notes = []
    if cut:
        notes.append(f"{cut} of {file.count} lines are longer than {length} tokens and are cut (--length, --pack)")
    if file.ignored:
        named = ", ".join(f"{key} ({times} lines)" for key, times in file.ignored.most_common(8))
        notes.append(f"keys that are not read: {named}")
    flat = torch.tensor(tokens, dtype=torch.int32)
    marked = torch.frombuffer(trained, dtype=torch.uint8).bool()
    if not pack:
        return Rows(flat, marked, torch.tensor(bounds), file.count, tuple(notes))
    return _packed(flat, marked, length, file.count, notes)


def _packed(tokens: torch.Tensor, trained: torch.Tensor, length: int, lines: int, notes: list[str]) -> Rows:
    """Return rows of `length` tokens, the last one shorter, without those that have no token to train on."""
    starts = range(0, len(tokens), length)
    kept = [start for start in starts if bool(trained[start + 1 : start + length].any())]
    if not kept:
        raise DataError(f"no row of {length} tokens has a token to train on: give a larger --length")
    left_out = len(starts) - len(kept)
    if left_out:
        notes = [*notes, f"{left_out} of {len(starts)} rows have no token to train on and are left out"]
        tokens, trained = (torch.cat([one[start : start + length] for start in kept]) for one in (tokens, trained))
    bounds = torch.tensor([*range(0, len(tokens), length), len(tokens)])
    return Rows(tokens, trained, bounds, lines, tuple(notes))


def _nothing_to_train(length: int, needed: int | None) -> str:
    if needed is None:
        return "has no token to train on after its first: give it more text"
    return (
        f"its first {length} tokens have none to train on; the first is token {needed}: give --length {needed} or more"
    )


def _tokenized(
    file: LineFile, tokenizer: Any, everything: bool, problems: list[tuple[int, str]]
) -> Iterator[tuple[int, list[int], bytes]]:
    """Return (number of the line, tokens, whether each is trained on) of each line that can be used."""
    lines = iter(file)
    while batch := list(islice(lines, _BATCH)):
        tried = [(line.number, _marked(line, tokenizer, everything)) for line in batch]
        marked = [(number, text) for number, text in tried if isinstance(text, MarkedText)]
        problems += [(number, text) for number, text in tried if isinstance(text, str)]
        found: dict[int, tuple[list[int], bytes]] = {}
        for plain in (True, False):
            some = [(number, text) for number, text in marked if text.plain is plain]
            found.update(_encode(some, tokenizer, plain))
        for number, _ in marked:
            yield (number, *found[number])


def _marked(line: Line, tokenizer: Any, everything: bool) -> MarkedText | str:
    """Return a line as text, or what is wrong with it."""
    try:
        return mark(line, tokenizer, everything)
    except LineProblem as problem:
        return str(problem)


def _encode(
    texts: list[tuple[int, MarkedText]], tokenizer: Any, plain: bool
) -> Iterator[tuple[int, tuple[list[int], bytes]]]:
    if not texts:
        return
    encoded = tokenizer(
        [text.text for _, text in texts],
        add_special_tokens=plain,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    end = tokenizer.eos_token_id if plain else None
    for (number, text), ids, places in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        marks = b"\1" * len(ids) if text.whole else bytes(text.trains_on(*place) for place in places)
        if end is not None and (not ids or ids[-1] != end):
            ids, marks = [*ids, end], marks + b"\1"
        yield number, (ids, marks)


def collate_for(tokenizer: Any, multiple: int) -> Callable[[Sequence[Row]], dict[str, torch.Tensor]]:
    """Return what makes micro batches. The tokenizer needs no token for padding: padding has no label."""
    pad = next((one for one in (tokenizer.pad_token_id, tokenizer.eos_token_id) if one is not None), 0)
    return Collate(pad, multiple)
