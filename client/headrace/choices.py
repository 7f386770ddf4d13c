"""What a run does, by its settings, its model and its inputs."""

from __future__ import annotations

import os

import numpy as np

from headrace.config import EmbedConfig
from headrace.contract import Contract
from headrace.errors import UsageError
from headrace.inputs import Input, total_bytes
from headrace.sharing import Part
from headrace.transport import Connection

SMALL_BYTES = 2 << 20  # of input as stored: less is done before another process is up
FEEDERS_AUTO_MAX = 16
_WINDOW_BATCHES = 16
_WINDOW_ROWS = (1024, 32768)
_WINDOW_BYTES = 32 << 20


def block_rows(config: EmbedConfig, contract: Contract) -> int:
    """Returns the most rows of a block.

    Enough batches of the model's that few are padded much, and that requests are few; not so many
    that the vectors of a block, of which a feeder has two or three, take much memory.
    """
    if config.block_rows is not None:
        return config.block_rows
    largest = contract.max_batch
    vector = (config.truncate_dim or contract.dimension) * np.dtype(config.dtype).itemsize
    least, most = _WINDOW_ROWS
    return max(least, min(most, _WINDOW_BATCHES * largest, _WINDOW_BYTES // vector))


def choose_feeders(config: EmbedConfig, contract: Contract, inputs: list[Input]) -> int:
    """Returns how many feeder processes a run has; 0 does all in this process."""
    if config.feeders != "auto":
        return config.feeders
    size = total_bytes(inputs)
    if contract.engine == "openvino" or (size is not None and size < SMALL_BYTES):
        return 0
    return max(1, min(FEEDERS_AUTO_MAX, len(os.sched_getaffinity(0))))


def part_of(config: EmbedConfig, connection: Connection, feeders: int) -> Part:
    """Returns how many batches each feeder, or this process, has at the server, and how long."""
    each = max(1, feeders)
    if config.share < 1:
        return Part.of(config.share, connection.contract, connection.instances / each)
    return Part(max(2, -(-connection.slots // each)), 1.0)


def check_settings(config: EmbedConfig, contract: Contract) -> None:
    """Checks that a model can do what the config asks for.

    Raises:
        UsageError: it cannot; the message says which setting and why.
    """
    if config.max_length is not None and config.max_length > contract.length_limit:
        raise UsageError(
            f"--max-length {config.max_length}: the entry {contract.name} takes at most "
            f"{contract.length_limit} tokens; if the model takes more, build it with longer "
            f"--buckets"
        )
    if config.truncate_dim is not None and config.truncate_dim > contract.dimension:
        raise UsageError(
            f"--truncate-dim {config.truncate_dim}: vectors of {contract.name} have only "
            f"{contract.dimension} dimensions"
        )
    if config.normalize != contract.normalized:
        have, want = ("does", "--no-normalize") if contract.normalized else ("does not", "")
        raise UsageError(
            f"the model {contract.name} on the server {have} normalise its vectors; "
            f"build a variant with: headrace build MODEL {want}".rstrip()
        )
    if config.engine not in {"auto", contract.engine}:
        raise UsageError(
            f"--engine {config.engine}: the model {contract.name} on the server is computed by "
            f"{contract.engine}; leave --engine out, or name another model"
        )
    if config.precision not in {"auto", contract.precision}:
        raise UsageError(
            f"--precision {config.precision}: the model {contract.name} on the server computes in "
            f"{contract.precision}; build a variant with: headrace build MODEL --precision "
            f"{config.precision}"
        )


def choose_prompt(config: EmbedConfig, contract: Contract) -> tuple[str, str]:
    """Returns the text to put in front of every row, and why it is that.

    Raises:
        UsageError: the model has no prompt of that name.
    """
    if config.prompt is not None:
        return config.prompt, "--prompt"
    if config.prompt_name is not None:
        if config.prompt_name not in contract.prompts:
            known = ", ".join(sorted(contract.prompts)) or "none at all"
            raise UsageError(
                f"--prompt-name {config.prompt_name}: {contract.model_id} has no such prompt; "
                f"it has: {known}"
            )
        return contract.prompts[config.prompt_name], f"--prompt-name {config.prompt_name}"
    if contract.default_prompt is not None:
        name = contract.default_prompt
        return contract.prompts[name], f"the model's default, {name!r}; --prompt '' for none"
    return "", "none asked for"
