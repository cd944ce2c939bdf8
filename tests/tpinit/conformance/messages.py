"""Validation of the protocol's messages in both directions; standard library only.

Each `check_` function returns a list of problems, one sentence each, empty for a legal message. Each `read_` function
turns a reply of an implementation into the type of `protocol` that it stands for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from tpinit.conformance.protocol import VERSION, Broken, Case, Errored, Garbage, Implementation, Result, Skipped
from tpinit.spec.vocabulary import DType, Outcome, Source, ViolationCode

__all__ = ["check_case", "check_request", "check_result", "read_answer", "read_implementation"]

Problems: TypeAlias = "list[str]"
_HANDLE = re.compile(r"[a-z][a-z0-9_-]*\Z")
_DTYPES = frozenset(dtype.value for dtype in DType)
_OUTCOMES = frozenset(outcome.value for outcome in Outcome)
_CODES = frozenset(code.value for code in ViolationCode)
_SOURCES = frozenset(source.value for source in Source)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "a very large number"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _keys(value: object, path: str, required: Sequence[str], optional: Sequence[str] = ()) -> Problems:
    if not isinstance(value, Mapping):
        return [f"{path}: {_shown(value)} is not an object"]
    missing = [f"{path}: {key!r} is missing" for key in required if key not in value]
    return missing + [f"{path}: unknown key {key!r}" for key in value if key not in required and key not in optional]


def _maybe(value: object, path: str, legal: Callable[[object], bool], what: str) -> Problems:
    return [] if value is None or legal(value) else [f"{path}: {_shown(value)} is not {what}"]


def _must(value: object, path: str, legal: Callable[[object], bool], what: str) -> Problems:
    return [] if legal(value) else [f"{path}: {_shown(value)} is not {what}"]


def _word_of(words: frozenset[str]) -> tuple[Callable[[object], bool], str]:
    return lambda value: isinstance(value, str) and value in words, "one of " + ", ".join(sorted(words))


_A_DTYPE = _word_of(_DTYPES)
_A_SOURCE = _word_of(_SOURCES)
_AN_OUTCOME = _word_of(_OUTCOMES)


def check_case(case: object) -> Problems:
    """Return the problems of the input of a vector."""
    path = "case"
    problems = _keys(case, path, ("world_size", "groups", "call", "section", "precision", "mpu", "mesh"))
    if problems or not isinstance(case, Mapping):
        return problems
    problems += _must(case["world_size"], f"{path}.world_size", _positive, "a number of ranks (1 or more)")
    groups = case["groups"]
    if not isinstance(groups, Mapping):
        return [*problems, f"{path}.groups: {_shown(groups)} is not an object"]
    for handle, size in groups.items():
        problems += _must(handle, f"{path}.groups", _is_handle, "a handle")
        problems += _must(size, f"{path}.groups.{handle}", _positive, "a number of ranks (1 or more)")
    a_handle = (lambda value: isinstance(value, str) and value in groups), "a handle of this case"
    call, section, mpu = case["call"], case["section"], case["mpu"]
    if call is not None:
        wrong = _keys(call, f"{path}.call", ("tp_size", "dtype", "tp_group"))
        problems += wrong or [
            *_must(call["tp_size"], f"{path}.call.tp_size", _is_int, "an integer"),
            *_must(call["dtype"], f"{path}.call.dtype", *_A_DTYPE),
            *_maybe(call["tp_group"], f"{path}.call.tp_group", *a_handle),
        ]
    if section is not None:
        wrong = _keys(section, f"{path}.section", ("autotp_size", "tp_size", "dtype", "tp_group"))
        problems += wrong or [
            *_maybe(section["autotp_size"], f"{path}.section.autotp_size", _is_int, "an integer"),
            *_maybe(section["tp_size"], f"{path}.section.tp_size", _is_int, "an integer"),
            *_maybe(section["dtype"], f"{path}.section.dtype", *_A_DTYPE),
            *_maybe(section["tp_group"], f"{path}.section.tp_group", *a_handle),
        ]
    if mpu is not None:
        wrong = _keys(mpu, f"{path}.mpu", ("tp_group",))
        problems += wrong or _must(mpu["tp_group"], f"{path}.mpu.tp_group", *a_handle)
    problems += _maybe(case["precision"], f"{path}.precision", *_word_of(frozenset({"bf16", "fp16"})))
    return problems + _maybe(case["mesh"], f"{path}.mesh", *a_handle)


def _positive(value: object) -> bool:
    return _is_int(value) and value >= 1  # type: ignore[operator] # _is_int is no TypeGuard


def _is_handle(value: object) -> bool:
    return isinstance(value, str) and _HANDLE.match(value) is not None


def check_request(request: object) -> Problems:
    """Return the problems of a request that the kit sends."""
    if not isinstance(request, Mapping):
        return [f"request: {_shown(request)} is not an object"]
    cmd = request.get("cmd")
    if cmd == "start":
        problems = _keys(request, "start", ("cmd", "version"), ("rank", "world_size"))
        return problems or _must(request["version"], "start.version", _positive, "a version")
    if cmd == "dialect":
        problems = _keys(request, "dialect", ("cmd", "dialect"))
        return problems or _must(request["dialect"], "dialect.dialect", lambda name: isinstance(name, str), "a name")
    if cmd == "run":
        problems = _keys(request, "run", ("cmd", "seq", "case"), ("ranks",))
        return problems or _must(request["seq"], "run.seq", _is_int, "an integer") + check_case(request["case"])
    if cmd == "stop":
        return _keys(request, "stop", ("cmd",))
    return [f"request: unknown cmd {_shown(cmd)}"]


_RESULT_KEYS = ("outcome", "row", "violations", "tp_size", "dtype", "tp_group", "section_disabled")


def check_result(result: object, case: Case) -> Problems:
    """Return the problems in the shape of a result without its `observed`; its values are not judged."""
    path = "result"
    problems = _keys(result, path, ("outcome",), _RESULT_KEYS)
    if problems or not isinstance(result, Mapping):
        return problems
    problems += _must(result["outcome"], f"{path}.outcome", *_AN_OUTCOME)
    if "row" in result:
        problems += _must(result["row"], f"{path}.row", lambda row: _is_int(row) and row in _ROWS, "a row (1 to 12)")
    if "section_disabled" in result:
        problems += _must(
            result["section_disabled"], f"{path}.section_disabled", lambda it: isinstance(it, bool), "true or false"
        )
    if "violations" in result:
        problems += _check_codes(result["violations"], f"{path}.violations")
    values: dict[str, tuple[Callable[[object], bool], str]] = {
        "tp_size": (_is_int, "an integer"),
        "dtype": _A_DTYPE,
        "tp_group": ((lambda it: isinstance(it, str) and it in case["groups"]), "a handle of this case"),
    }
    for name, (legal, what) in values.items():
        if name in result:
            effective = result[name]
            wrong = _keys(effective, f"{path}.{name}", (), ("value", "source"))
            problems += wrong or [
                *_maybe(effective.get("value"), f"{path}.{name}.value", legal, what),
                *_maybe(effective.get("source"), f"{path}.{name}.source", *_A_SOURCE),
            ]
    return problems


_ROWS = range(1, 13)


def _check_codes(codes: object, path: str) -> Problems:
    if not isinstance(codes, Sequence) or isinstance(codes, str):
        return [f"{path}: {_shown(codes)} is not a list"]
    known = _word_of(_CODES)[0]
    problems = [f"{path}: {_shown(code)} is not a violation" for code in codes if not known(code)]
    return problems or ([f"{path}: a violation is listed twice"] if len(set(codes)) != len(codes) else [])


def read_implementation(reply: object, choices: Sequence[str]) -> Implementation:
    """Read the reply to `start`. Raises Broken, with every problem, for a malformed one.

    `choices` are the names of all permissive choices of the kit.
    """
    problems = _keys(reply, "start reply", ("version", "implementation", "dialects"), ("choices",))
    if problems or not isinstance(reply, Mapping):
        raise Broken("; ".join(problems))
    if reply["version"] != VERSION:
        raise Broken(f"it speaks version {_shown(reply['version'])} of the protocol; this kit speaks version {VERSION}")
    who = reply["implementation"]
    problems += _keys(who, "implementation", ("name", "version", "language"))
    if isinstance(who, Mapping):
        problems += [
            f"implementation.{key}: {_shown(value)} is not a string"
            for key, value in who.items()
            if not isinstance(value, str) or not value
        ]
    for key in ("dialects", "choices"):
        names = reply.get(key, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            problems.append(f"{key}: {_shown(names)} is not a list of names")
        elif key == "choices":
            unknown = [name for name in names if name not in choices]
            problems += [f"choices: {_shown(name)} is not one of {', '.join(choices)}" for name in unknown]
    if problems:
        raise Broken("; ".join(problems))
    return Implementation(
        who["name"], who["version"], who["language"], tuple(reply["dialects"]), tuple(reply.get("choices", ()))
    )


def read_answer(reply: object, seq: int, case: Case) -> Result | Skipped | Errored | Garbage:
    """Read a reply to `run`; an invalid one becomes Garbage with every problem."""
    if not isinstance(reply, Mapping):
        return Garbage(f"{_shown(reply)} is not an object")
    answered_seq = reply.get("seq")
    if not _is_int(answered_seq) or answered_seq != seq:
        return Garbage(f"it answers case {_shown(answered_seq)}, and was asked case {seq}")
    kinds = [kind for kind in ("result", "skipped", "errored") if kind in reply]
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none"
        return Garbage(f"an answer has exactly one of result, skipped and errored; this one has {found}")
    if kinds == ["result"]:
        return _read_result(reply, case)
    word = "reason" if kinds == ["skipped"] else "message"
    problems = _keys(reply, "answer", ("seq", kinds[0], word))
    problems = problems or _must(reply[kinds[0]], kinds[0], lambda it: it is True, "true")
    problems = problems or _must(reply[word], word, lambda it: isinstance(it, str), "a string")
    if problems:
        return Garbage("; ".join(problems))
    return Skipped(reply[word]) if kinds == ["skipped"] else Errored(reply[word])


def _read_result(reply: Mapping[str, Any], case: Case) -> Result | Garbage:
    problems = _keys(reply, "answer", ("seq", "result"))
    result = reply["result"]
    if problems or not isinstance(result, Mapping):
        return Garbage("; ".join(problems) or f"result: {_shown(result)} is not an object")
    observed = result.get("observed", {})
    answer = {key: value for key, value in result.items() if key != "observed"}
    problems = check_result(answer, case)
    if not isinstance(observed, Mapping):
        problems.append(f"observed: {_shown(observed)} is not an object")
    return Garbage("; ".join(problems)) if problems else Result(answer, dict(observed))
