"""What a power cut may leave of a job's files: what was not synced is cut off, zeroed or torn.

The file system is taken at its word and no more: of a file the bytes are durable that were there
when it was last synced, and its name is durable once its folder was synced after it was made.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

from headrace.errors import MachineError
from headrace.manifest import read_manifest
from headrace.sinks.staging import ERRORS, MANIFEST, ROWS

WAYS = ("cut", "zero", "torn", "page")
_PAGE = 4096


def begin(folder: Path, journal: Path) -> None:
    """Notes, before a job is gone on with, what of its files will be written anew."""
    try:
        saved = read_manifest(folder / MANIFEST)
    except MachineError:
        return
    if saved is None:
        return
    last = saved.records[-1] if saved.records else None
    data, errors = (last.data_bytes, last.error_bytes) if last else (0, 0)
    kept = {MANIFEST: saved.size, ERRORS: errors, ROWS: data, "data.npy": data, "data.parquet": 0}
    with journal.open("a") as file:
        for name, size in kept.items():
            if not (saved.complete and name.startswith("data.")):
                record = {"at most": os.path.realpath(folder / name), "size": size}
                file.write(json.dumps(record) + "\n")


def cut(folder: Path, journal: Path, way: str, chance: random.Random) -> None:
    """Takes from a job's files what was not synced.

    Args:
        folder: the job's folder.
        journal: what its runs have synced.
        way: what becomes of it: ``cut`` off, made ``zero``, cut somewhere (``torn``), or its first
            ``page`` made zero, as if later ones had reached the disk earlier.
        chance: for what is torn.
    """
    sizes: dict[str, int] = {}
    names: dict[str, set[str]] = {}
    for line in journal.read_text().splitlines() if journal.exists() else []:
        record = json.loads(line)
        if "folder" in record:
            names[record["folder"]] = set(record["names"])
        elif "at most" in record:
            path, size = record["at most"], record["size"]
            sizes[path] = min(sizes.get(path, 0), size)
            if not size:
                folder_names = names.get(str(Path(path).parent), set())
                folder_names.discard(Path(path).name)
        else:
            sizes[record["path"]] = record["size"]
    real = Path(os.path.realpath(folder))
    if not real.exists():
        return
    if real.name not in names.get(str(real.parent), ()):
        shutil.rmtree(real)
        return
    for path in real.iterdir():
        if path.name not in names.get(str(real), ()):
            path.unlink()
            continue
        _take(path, sizes.get(str(path), 0), way, chance)


def _take(path: Path, durable: int, way: str, chance: random.Random) -> None:
    size = path.stat().st_size
    if size <= durable:
        return
    with path.open("r+b") as file:
        if way == "cut":
            file.truncate(durable)
        elif way == "torn":
            file.truncate(chance.randint(durable, size))
        else:
            stop = size if way == "zero" else min(size, (durable // _PAGE + 1) * _PAGE)
            file.seek(durable)
            file.write(bytes(stop - durable))
