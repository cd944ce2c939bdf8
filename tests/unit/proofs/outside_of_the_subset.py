"""Bugs of the resolver that depend on more than its input: the checker of the subset must reject each by its syntax."""

from __future__ import annotations

__all__ = ["OUTSIDE_OF_THE_SUBSET"]

_AT = "    sizes = given_sizes(inputs)\n    if not created"


def _before(statements: str) -> tuple[str, str]:
    return _AT, f"    {statements}\n{_AT}"


# Edits of the resolver that depend on what the subset does not have, and a word of the problem that is told.
OUTSIDE_OF_THE_SUBSET: dict[str, tuple[tuple[str, str], str]] = {
    "a type": (_before("if isinstance(inputs.world_size, bool):\n        return False"), "isinstance()"),
    "the name of a type": (_before("if type(inputs) is not Inputs:\n        return False"), "type()"),
    "a class": (_before("if inputs.call.__class__ is None:\n        return False"), "__class__"),
    "a text": (_before("if str(inputs.world_size) == '13':\n        return False"), "str()"),
    "a formatted text": (_before("if f'{inputs.world_size}' == '13':\n        return False"), "JoinedStr"),
    "a text by %": (_before("if '%d' % inputs.world_size == '13':\n        return False"), "type str"),
    "a representation": (_before("if repr(inputs) == '':\n        return False"), "repr()"),
    "a hash": (_before("if hash(inputs) % 97 == 0:\n        return False"), "hash()"),
    "an identity": (_before("if id(inputs) % 97 == 0:\n        return False"), "id()"),
    "the identity of a number": (_before("if inputs.world_size is 4:\n        return False"), "`is`"),
    "a caught exception": (
        _before("try:\n        inputs.call.tp_size + ''\n    except Exception:\n        return False"),
        "Try",
    ),
    "a pattern": (_before("match inputs.world_size:\n        case 13:\n            return False"), "Match"),
    "the environment": (_before("import os\n    if 'TP' in os.environ:\n        return False"), "Import"),
    "membership": (_before("if inputs.world_size in (13, 17):\n        return False"), "In "),
    "a method of a text": (
        _before("if Source.UNSET.upper() == 0:\n        return False"),
        "only a function with a name",
    ),
    "a floating-point number": (_before("if inputs.world_size > 1e300:\n        return False"), "type float"),
    "an attribute by name": (_before("if getattr(inputs, 'call') is None:\n        return False"), "getattr()"),
    "a walrus": (_before("if (world := inputs.world_size) == 13:\n        return False"), "NamedExpr"),
    "earlier calls": (("VIOLATIONS: tuple", "_SEEN = []\n\nVIOLATIONS: tuple"), "List"),
    "a default argument": (
        ("def created(inputs: Inputs) -> bool:", "def created(inputs: Inputs, seen: int = 0) -> bool:"),
        "default argument",
    ),
    "a decorator": (("def created(inputs", "@staticmethod\ndef created(inputs"), "decorator"),
    "a replaced builtin": (("VIOLATIONS: tuple", "len = 3\n\nVIOLATIONS: tuple"), "len may not be bound"),
    "a replaced method": (("VIOLATIONS: tuple", "Given.__eq__ = None\n\nVIOLATIONS: tuple"), "Assign"),
}
