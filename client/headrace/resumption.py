"""What a job goes on from: an interrupted one, a finished one to be extended, or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from headrace.config import EmbedConfig
from headrace.errors import OutputError, UsageError
from headrace.files import output_errors
from headrace.fingerprint import check_extension, differences, listed
from headrace.inputs import Input
from headrace.manifest import BlockRecord, Manifest, Saved, read_manifest
from headrace.sinks import Staging, check_npy, errors_path, manifest_path, stage_again
from headrace.sinks.staging import ERRORS, MANIFEST, ROWS


class Start(NamedTuple):
    """Where a run begins.

    Attributes:
        saved: what its manifest says.
        before: the job that this one extends, or this one itself.
        copied: whether its rows are copies from a finished output, which is still in its place.
        useless: whether there were rows that no manifest told of.
    """

    saved: Saved
    before: dict[str, Any]
    copied: bool = False
    useless: bool = False


def find_start(
    config: EmbedConfig, staging: Staging, job: dict[str, Any], inputs: Sequence[Input]
) -> Start:
    """Finds it, and stages what is wanted.

    Args:
        config: the run's settings.
        staging: the job's folder.
        job: the job's fingerprint.
        inputs: what it reads.

    Raises:
        UsageError: the files are of another job, or there is an output that may not be replaced.
        OutputError: the output cannot be written.
        MachineError: the manifest cannot be read.
    """
    useless = False
    manifest = staging.path(MANIFEST)
    saved = None if config.overwrite else read_manifest(manifest)
    if saved is None and not (config.overwrite and manifest.exists()):
        useless = staging.has_data()  # half a copy perhaps
        staging.clear()
    if not config.overwrite:
        if saved is not None:
            return Start(_go_on(config, staging, saved, job, inputs), saved.job)
        if os.path.lexists(staging.output):
            saved = _published(staging, job) if not staging.made else None
            if saved is not None:
                return Start(saved, job)
            return Start(_extend(config, staging, job, inputs), job, copied=True)
    staging.clear()
    Manifest.create(staging.path(MANIFEST), job, replaces=config.overwrite).close()
    return Start(_saved(staging), job, useless=useless)


def _go_on(
    config: EmbedConfig,
    staging: Staging,
    saved: Saved,
    job: dict[str, Any],
    inputs: Sequence[Input],
) -> Saved:
    """Returns what to go on from of a job that was interrupted."""
    found = differences(saved.job, job)
    if found and not config.extend:
        whole = os.path.lexists(staging.output) and staging.data.exists()
        leave = f", or remove that folder to leave {staging.output} as it is" if whole else ""
        more = ", or --extend to add" if _can_be_extended(saved.job, job, inputs) else ""
        raise UsageError(
            f"{staging.folder} holds an unfinished job that differs from this one: "
            f"{listed(found)}; restore what differs to go on with it, or pass --overwrite to "
            f"start anew{more}{leave}"
        )
    if os.path.lexists(staging.output) and not saved.replaces and staging.data.exists():
        raise UsageError(
            f"the output {config.output} exists, and {staging.folder} holds an unfinished job "
            f"of that name; move the output away to go on, or pass --overwrite to start anew"
        )
    if saved.complete and not staging.data.exists() and not staging.output.exists():
        raise OutputError(
            f"{staging.data} is gone; something else has removed it; pass --overwrite to start anew"
        )
    if not found:
        return saved
    if saved.complete:
        raise UsageError(
            f"{staging.folder} holds a job that was complete before it was to be extended; "
            f"run it once more without --extend and with the inputs that it had"
        )
    records = _kept(saved.records, saved.job, check_extension(saved.job, job, inputs))
    Manifest.create(
        staging.path(MANIFEST),
        job,
        records,
        replaces=saved.replaces,
        ids=saved.ids if records else None,
    ).close()
    return _saved(staging)


def _published(staging: Staging, job: dict[str, Any]) -> Saved | None:
    """Returns what the output was made of if that was this job, which is all in place.

    Its run came to an end just before it had removed the folder.
    """
    saved = read_manifest(manifest_path(staging.output))
    whole = saved is not None and saved.complete and not differences(saved.job, job)
    return saved if whole else None


def _extend(
    config: EmbedConfig, staging: Staging, job: dict[str, Any], inputs: Sequence[Input]
) -> Saved:
    """Stages a finished job again, so that more can follow."""
    saved = read_manifest(manifest_path(staging.output))
    if not config.extend:
        more = ", or --extend to add new input to it" if saved and saved.complete else ""
        raise UsageError(f"the output {config.output} exists; pass --overwrite to replace it{more}")
    if saved is None or not saved.complete:
        raise UsageError(
            f"--extend: {manifest_path(config.output)}, which tells what {config.output} was "
            f"made of, is not there; pass --overwrite to start anew"
        )
    records = _kept(saved.records, saved.job, check_extension(saved.job, job, inputs))
    staging.clear()
    whole = saved.records[-1].written if saved.records else 0
    dimension: int = job["dimension"]
    if staging.output.suffix == ".npy":
        check_npy(staging.output, whole, dimension, config.dtype)
        _copy(staging.output, staging.data)
    else:
        ends = stage_again(
            staging.output,
            staging.path(ROWS),
            [each.written for each in records],
            whole=whole,
            dimension=dimension,
            dtype=config.dtype,
        )
        records = [replace(each, data_bytes=end) for each, end in zip(records, ends, strict=True)]
    if records and records[-1].error_bytes:
        _copy(errors_path(staging.output), staging.path(ERRORS))
    Manifest.create(
        staging.path(MANIFEST), job, records, replaces=True, ids=saved.ids if records else None
    ).close()
    return _saved(staging)


def _can_be_extended(job: dict[str, Any], now: dict[str, Any], inputs: Sequence[Input]) -> bool:
    try:
        check_extension(job, now, inputs)
    except UsageError:
        return False
    return True


def _saved(staging: Staging) -> Saved:
    saved = read_manifest(staging.path(MANIFEST))
    if saved is None:
        raise OutputError(f"{staging.path(MANIFEST)} is gone again; see what removes it")
    return saved


def _kept(
    records: Sequence[BlockRecord], job: dict[str, Any], grown: bool
) -> Sequence[BlockRecord]:
    """Returns the blocks that stand when a job is extended.

    Where its last input has grown, that one's last block may have had room for more.
    """
    last = len(job["inputs"]) - 1
    return records[:-1] if grown and records and records[-1].input == last else records


def _copy(source: Path, target: Path) -> None:
    with output_errors(source):
        size = source.stat().st_size
    with output_errors(target, size=size):
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())
