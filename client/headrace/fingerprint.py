"""What a job is, as far as its output depends on it, and how two of them differ.

A job goes on only where it left off if all of this is the same: the model (its weights, its
tokenizer, its engine), the settings that shape rows, how rows are put into blocks and batches, and
the inputs. Of an input that is the path, the size, the time of the last change, and a hash of its
first and last 64 KiB; of a stream only its place in the list, and the blocks' checksums tell the
rest when they are read again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from headrace.config import EmbedConfig
from headrace.contract import Contract
from headrace.decompress import one_line
from headrace.errors import InputError, UsageError
from headrace.inputs import Input

ENDS_BYTES = 64 << 10
_AT_ONCE = 16
_MOST_SHOWN = 8
_MOST_LETTERS = 60
# Where the model came from is told, but it may lie elsewhere the next time: its weights count.
_TOLD = {"inputs", "model", "revision"}


def job_of(
    config: EmbedConfig,
    contract: Contract,
    inputs: Sequence[Input],
    *,
    prompt: str,
    max_length: int,
    block_rows: int,
) -> dict[str, Any]:
    """Returns a job's fingerprint: JSON values only.

    Args:
        config: the run's settings.
        contract: the model's.
        inputs: what is read.
        prompt: text in front of every row.
        max_length: tokens a row is cut to.
        block_rows: rows of a block, at most.

    Raises:
        InputError: an input cannot be read.
    """
    job: dict[str, Any] = {
        "model": contract.model_id,
        "revision": contract.revision,
        "model weights": contract.weights_hash,
        "tokenizer": contract.tokenizer_hash,
        "engine": f"{contract.engine} {contract.engine_version} {contract.capability}".rstrip(),
        "precision": contract.precision,
        "pooling": contract.pooling,
        "normalize": contract.normalized,
        "answers": f"{contract.dtype}[{contract.dimension}]",
        "dimension": config.truncate_dim or contract.dimension,
        "prompt": prompt,
        "max length": max_length,
        "dtype": config.dtype,
        "on-error": config.on_error,
        "text field": config.text_field,
        "id field": config.id_field,
        "id type": config.id_type,
        "block bytes": config.block_bytes,
        "block rows": block_rows,
        "pad multiple": contract.pad_multiple,
        "token budget": contract.token_budget,
        "buckets": [[each.max_length, each.max_batch] for each in contract.buckets],
    }
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        job["inputs"] = list(pool.map(_of_input, inputs))
    found: dict[str, Any] = json.loads(json.dumps(job))  # as it comes back from a file
    return found


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns in words what two jobs differ in; nothing where they are the same."""
    return [*_settings(before, now), *_inputs(before["inputs"], now["inputs"])]


def check_extension(before: dict[str, Any], now: dict[str, Any], inputs: Sequence[Input]) -> bool:
    """Checks that a job is an earlier one with more input.

    Args:
        before: the earlier job.
        now: the job to do.
        inputs: its inputs.

    Returns:
        Whether the earlier job's last input has grown.

    Raises:
        UsageError: it is not; the message says what differs.
        InputError: an input cannot be read.
    """
    old, new = before["inputs"], now["inputs"]
    wrong = [*_settings(before, now), *_inputs(old[:-1], new[: len(old) - 1])]
    grown = False
    if len(new) < len(old):
        wrong = wrong or [f"{len(old)} inputs before, {len(new)} now"]
    elif old and old[-1] != new[len(old) - 1]:
        grown = not wrong and _has_grown(old[-1], inputs[len(old) - 1])
        if not grown:
            wrong += list(_input(old[-1], new[len(old) - 1]))
    if wrong:
        raise UsageError(
            f"--extend: only more inputs after those that there were, or more lines at the end of "
            f"the last one, if it is a plain file, extend a job; but {listed(wrong)}"
        )
    if not grown and len(old) == len(new):
        raise UsageError("--extend: there is nothing new; the inputs are those of the job")
    return grown


def listed(found: Sequence[str]) -> str:
    """Returns differences in one line, the first of many."""
    shown = list(found[:_MOST_SHOWN])
    if len(found) > len(shown):
        shown.append(f"and {len(found) - len(shown)} more")
    return "; ".join(shown)


def _settings(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*before, *now]):
        one, other = before.get(name), now.get(name)
        if name not in _TOLD and one != other:
            yield f"{name}: {_short(one)} before, {_short(other)} now"


def _inputs(before: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> Iterator[str]:
    for one, other in zip(before, now, strict=False):
        yield from _input(one, other)
    if len(before) != len(now):
        more, word = (now, "new") if len(now) > len(before) else (before, "missing")
        for each in more[min(len(before), len(now)) :]:
            yield f"input {each['path']}: {word}"


def _input(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    if before["path"] != now["path"]:
        yield f"input: {before['path']} before, {now['path']} now"
        return
    changed = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
    if "size" in changed:
        yield f"input {now['path']}: {before['size']} bytes before, {now['size']} now"
    elif changed:
        yield f"input {now['path']}: another {' and '.join(sorted(changed))}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..."


def _of_input(item: Input) -> dict[str, Any]:
    path = _absolute(item) if item.local else item.name
    found: dict[str, Any] = {"path": path, "format": item.format, "size": item.size}
    if item.size is not None:
        found["modification time"] = item.mtime
        found["beginning"] = _hash(item, 0, ENDS_BYTES)
        found["end"] = _hash(item, max(0, item.size - ENDS_BYTES), item.size)
    return found


def _has_grown(before: dict[str, Any], item: Input) -> bool:
    """Whether a plain file is what it was, and more."""
    size = before.get("size")
    if size is None or item.size is None or item.size <= size or not item.local:
        return False
    if before["path"] != _absolute(item) or before["format"] != item.format:
        return False
    if item.format == "parquet" or item.is_compressed():
        return False
    head = _hash(item, 0, min(size, ENDS_BYTES))
    tail = _hash(item, max(0, size - ENDS_BYTES), size)
    return bool(head == before["beginning"] and tail == before["end"])


def _absolute(item: Input) -> str:
    return str(Path(item.path).absolute())


def _hash(item: Input, start: int, stop: int) -> str:
    try:
        with item.filesystem.open_input_file(item.path) as file:
            file.seek(start)
            return hashlib.sha256(file.read(stop - start)).hexdigest()
    except OSError as error:
        raise InputError(f"{item.name}: cannot be read: {one_line(error)}") from error
