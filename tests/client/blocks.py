"""All blocks of inputs, and the damage that ended them."""

from __future__ import annotations

from headrace.errors import DamagedInputError
from headrace.sources import read_blocks

LIMITS = {"block_bytes": 1 << 20, "block_rows": 1000}


def blocks_of(inputs, **limits):
    return list(read_blocks(inputs, columns=["text"], **{**LIMITS, **limits}))


def until_damage(inputs, columns=("text",), **limits):
    """Returns the blocks and the damage that ended them."""
    blocks = []
    try:
        for block in read_blocks(inputs, columns=columns, **{**LIMITS, **limits}):
            blocks.append(block)
    except DamagedInputError as damage:
        return blocks, damage
    return blocks, None
