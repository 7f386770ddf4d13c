"""How an output was made: what its manifest tells, and what the command line says instead."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from headrace.config import FormatChoice
from headrace.errors import MachineError, UsageError
from headrace.manifest import read_manifest
from headrace.reading import DEFAULT_ID_FIELD
from headrace.sinks import manifest_path

_Value = TypeVar("_Value", str, int)
_FORMATS: dict[str, FormatChoice] = {"jsonl": "jsonl", "text": "text", "parquet": "parquet"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeOf:
    """The settings of a job, None where nobody tells them.

    Attributes:
        manifest: the file that told them, or None where there is none.
        model: the model, as a person would name it.
        revision: its commit on the hub, or "".
        weights: SHA-256 (hex) of its weights.
        engine: what computed, and its version.
        precision: what it computed in: ``fp32``, ``bf16`` or ``fp16``.
        dtype: type of the written values.
        dimension: length of a vector.
        normalized: whether vectors have the length 1.
        rows: how many rows the output has by its manifest.
        ids: what its ids are: ``row numbers``, or a type; None where that is not known.
        id_field: field or column that they come from, where they are no row numbers.
        prompt: text in front of every row.
        max_length: tokens a row was cut to.
        on_error: what became of bad rows: ``null``, ``skip`` or ``fail``.
        text_field: field or column that holds the text.
        format: of the inputs; ``auto`` where they differ.
    """

    manifest: Path | None
    model: str
    revision: str
    weights: str | None
    engine: str | None
    precision: str | None
    dtype: str | None
    dimension: int | None
    normalized: bool | None
    rows: int | None
    ids: str | None
    id_field: str
    prompt: str | None
    max_length: int | None
    on_error: str
    text_field: str
    format: FormatChoice


def made_of(output: Path, options: argparse.Namespace) -> MadeOf:
    """Returns how an output was made.

    Args:
        output: the file; its manifest lies beside it, if there is one.
        options: with ``model``, ``truncate_dim``, ``prompt``, ``max_length``, ``on_error``,
            ``text_field`` and ``format``; what is not None there counts, whatever the manifest
            says.

    Raises:
        UsageError: nobody tells the model.
        MachineError: the manifest is damaged.
    """
    path = manifest_path(output)
    try:
        saved = read_manifest(path)
    except MachineError as error:
        raise MachineError(
            f"{path} is damaged, or of another version of headrace; move it away and give --model "
            f"and the other settings"
        ) from error
    job = {} if saved is None else saved.job
    model = options.model or _told(job, "model", str)
    if model is None:
        why = f"{path} does not tell" if path.exists() else f"there is no {path} to tell"
        raise UsageError(f"{why} which model made {output}; name it with --model")
    return MadeOf(
        manifest=None if saved is None else path,
        model=model,
        # A model that was named is taken as it is found; its weights tell whether it is the same.
        revision="" if options.model else _told(job, "revision", str) or "",
        weights=_told(job, "model weights", str),
        engine=_told(job, "engine", str),
        precision=_told(job, "precision", str),
        dtype=_told(job, "dtype", str),
        dimension=_either(options.truncate_dim, _told(job, "dimension", int)),
        normalized=job["normalize"] if isinstance(job.get("normalize"), bool) else None,
        rows=saved.records[-1].written if saved is not None and saved.records else None,
        ids=None if saved is None else saved.ids,
        id_field=_told(job, "id field", str) or DEFAULT_ID_FIELD,
        prompt=_either(options.prompt, _told(job, "prompt", str)),
        max_length=_either(options.max_length, _told(job, "max length", int)),
        on_error=options.on_error or _told(job, "on-error", str) or "null",
        text_field=options.text_field or _told(job, "text field", str) or "text",
        format=options.format or _format(job),
    )


def _told(job: dict[str, Any], name: str, kind: type[_Value]) -> _Value | None:
    value = job.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        return None
    return None if isinstance(value, int) and value < 1 else value


def _either(asked: _Value | None, told: _Value | None) -> _Value | None:
    return told if asked is None else asked


def _format(job: dict[str, Any]) -> FormatChoice:
    """Returns the one format of a job's inputs: their names alone need not tell it."""
    found = {each.get("format") for each in job.get("inputs", [])}
    return _FORMATS.get(str(found.pop()), "auto") if len(found) == 1 else "auto"
