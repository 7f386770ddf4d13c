"""Mutations of a model's files, as somebody who means harm (or a broken disk) would make them."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        7,
        10**6,
        2**31,
        2**32 - 1,
        2**63,
        10**12,
        10**400,
        -(10**30),
    ),
    *(0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", " ", "a", "\n", "\0", "\ud800", "../../x", "/etc/passwd", "é" * 50, "x" * 100_000),
    *([], {}, [[]], [{}], {"": ""}, ["a", "a"], [None], {"type": None}, {"type": "Sequence"}),
    *("bert", "roberta", "distilbert", "xlm-roberta", "mean", "cls", "gelu", "relu", "Lowercase"),
]
TEXTS = ["", "null", "[]", "{", '"', "{}", "[" * 100_000, '{"a":' * 100_000, "9" * 5000, "\ufeff{}"]


def mutate(content: bytes, dice: random.Random) -> bytes:
    """Returns a JSON file with something in it changed."""
    kind = dice.random()
    if kind < 0.1:
        return dice.choice(TEXTS).encode()
    if kind < 0.2:
        return mutate_bytes(content, dice)
    tree = [json.loads(content)]
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        _change(tree, dice)
    return json.dumps(tree[0]).encode()


def mutate_bytes(content: bytes, dice: random.Random) -> bytes:
    """Returns bytes with some flipped, cut out or doubled."""
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 4, 20))):
        at = dice.randrange(max(1, len(changed)))
        match dice.randrange(4):
            case 0:
                changed[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                del changed[at : at + dice.choice((1, 8, 1000))]
            case 2:
                changed[at:at] = changed[at : at + dice.choice((1, 8, 1000))]
            case _:
                del changed[at:]
    return bytes(changed)


def _change(tree: list[Any], dice: random.Random) -> None:
    """Changes one place, found by walking down at random."""
    holder: Any = tree
    key: Any = 0
    while isinstance(inner := holder[key], dict | list) and inner and dice.random() < 0.85:
        holder = inner
        key = dice.choice(list(inner)) if isinstance(inner, dict) else dice.randrange(len(inner))
    match dice.randrange(6):
        case 0 if isinstance(holder, dict):
            del holder[key]
            holder.setdefault("more", copy.deepcopy(dice.choice(VALUES)))
        case 1 if isinstance(holder, list):
            holder.extend(copy.deepcopy(holder) if len(holder) < 100_000 else [])
        case 2:
            holder[key] = [holder[key]]
        case 3 if isinstance(holder[key], int):
            holder[key] = dice.choice((-1, 1, 0.5, 1000, 2**32)) * holder[key]
        case _:
            holder[key] = copy.deepcopy(dice.choice(VALUES))
