"""What the user names -> the files to read, each found, sniffed and checked.

Everything opens through ``pyarrow.fs``, so object stores are read as local paths are. The one
exception are streams (standard input, FIFOs), which it cannot open: these are opened at once
and keep what was looked at.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from headrace.config import Format, FormatChoice
from headrace.decompress import ENDINGS, Stored, compression, decompress, one_line
from headrace.errors import (
    ChangedInputError,
    DamagedInputError,
    HeadraceError,
    InputError,
    MachineError,
    UsageError,
)
from headrace.paths import Found, expand, shown, without_secrets

BOM = b"\xef\xbb\xbf"
_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".text": "text",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_PARQUET = b"PAR1"
_MANIFEST = b'{"headrace_manifest"'
_SNIFF_MAX = 256 << 10  # a zstd block has at most 128 KiB, and nothing of it shows before its end
_ARRAY = "holds a JSON array, not one object a line; convert it with: jq -c '.[]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One file to read.

    Attributes:
        name: the file as shown to the user; ``<stdin>`` for standard input.
        format: what it holds.
        size: bytes as stored; None for a stream, whose end nobody knows.
        mtime: nanoseconds since 1970 of its last change, or None where that is not known.
        path: the path within ``filesystem``.
        filesystem: the ``pyarrow.fs.FileSystem``.
        stream: the open stream, which can be read once; None for a file.
    """

    name: str
    format: Format
    size: int | None
    mtime: int | None = None
    path: str = ""
    filesystem: Any = field(default=None, repr=False)
    stream: Stored | None = field(default=None, repr=False)

    @property
    def local(self) -> bool:
        """Whether this is a file on this machine that ``path`` names."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def open(self) -> Stored:
        """Opens the file at its start; what was opened is to be closed.

        Reading from it raises InputError where it cannot be opened, or read any more.
        """
        return self.stream or Stored(_Late(self.filesystem, self.path), self.name)

    def is_compressed(self) -> bool:
        """Returns whether the file is compressed, by its first bytes.

        Raises:
            InputError: it cannot be read.
        """
        stored = self.open()
        try:
            return compression(stored.peek(4)) is not None
        finally:
            stored.close()

    def check_unchanged(self) -> None:
        """Checks that the file is as it was found; of a stream nothing can be told.

        Raises:
            InputError: it is gone.
            ChangedInputError: it has changed since.
        """
        if self.stream is not None:
            return
        try:
            info = self.filesystem.get_file_info(self.path)
        except OSError as error:
            raise InputError(
                f"{self.name}: cannot be looked at any more: {one_line(error)}; see to it"
            ) from error
        if info.type == pafs.FileType.NotFound:
            raise InputError(f"{self.name}: has disappeared while it was read; put it back")
        if (info.size, info.mtime_ns) != (self.size, self.mtime):
            how = f"{self.size} bytes before, {info.size} now"
            if info.size == self.size:
                how = "its time of change is another"
            raise ChangedInputError(
                f"{self.name}: has changed while it was read ({how}): rows of both states may have "
                f"been embedded; let nothing write there and start anew with --overwrite, or, if "
                f"it only grew, use --extend"
            )


class _Late:
    """A file that is opened by its first read, so that failing to counts as failing to read."""

    def __init__(self, filesystem: Any, path: str) -> None:
        self._where = (filesystem, path)
        self._file: Any = None

    def read(self, size: int, /) -> bytes:
        if self._file is None:
            filesystem, path = self._where
            # The default would decompress by the ending of the name.
            self._file = filesystem.open_input_stream(path, compression=None)
        return bytes(self._file.read(size))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def find_inputs(
    inputs: Sequence[str],
    *,
    format: FormatChoice = "auto",  # noqa: A002 -- as the option is called
    own: Collection[Path] = (),
) -> list[Input]:
    """Finds and checks the files to read, in the order given.

    Args:
        inputs: files, folders (read recursively, sorted by path, names that begin with ``.`` or
            ``_`` left out), globs (``*``, ``?``, ``[]``, ``**``; a path that exists is no glob),
            URIs of ``pyarrow.fs``, or ``-`` for standard input.
        format: the format of all; ``auto`` decides for each by content, then by name.
        own: files, and folders with all that is in them, of the run itself: they are left out of
            folders and of what a glob matches.

    Returns:
        One entry a file; a file named twice is there twice.

    Raises:
        UsageError: nothing is there, or what is there cannot be read as asked.
        MachineError: a file or a folder exists and cannot be read.
    """
    found = []
    for given in inputs:
        if given == "-":
            if sys.stdin is None:
                raise UsageError("standard input is closed; name a file")
            stdin: Any = sys.stdin.buffer
            found.append(_check_stream("<stdin>", getattr(stdin, "raw", stdin), format))
            continue
        with _explained(given):
            files = [file for file in expand(given) if file.name == given or not _is_own(file, own)]
            if not files:
                raise UsageError(f"{given}: holds nothing but files of this run; name the inputs")
            found += [_check(file, format) for file in files]
    return found


def _is_own(file: Found, own: Collection[Path]) -> bool:
    if not own or not isinstance(file.filesystem, pafs.LocalFileSystem):
        return False
    path = Path(file.info.path).absolute()
    folder = path.parent.resolve()
    return folder / path.name in own or folder in own


def total_bytes(inputs: Sequence[Input]) -> int | None:
    """Returns the bytes as stored of all inputs, or None where one is a stream."""
    sizes = [item.size for item in inputs if item.size is not None]
    return sum(sizes) if len(sizes) == len(inputs) else None


@contextmanager
def _explained(given: str) -> Iterator[None]:
    """Turns what opening and listing raise into errors that name ``given``, without its secrets."""
    name = shown(given)
    explained: HeadraceError
    cause: Exception
    try:
        yield
    except FileNotFoundError as error:
        explained, cause = UsageError(f"{name}: no such file or folder; check the path"), error
    except PermissionError as error:
        explained, cause = MachineError(f"{name}: permission denied; make it readable"), error
    except UnicodeError as error:
        reason = "a file name there is not UTF-8, so Arrow cannot list it; rename the file"
        explained, cause = UsageError(f"{name!r}: {reason}"), error
    except (pa.ArrowInvalid, NotImplementedError) as error:
        reason = without_secrets(one_line(error), given)
        explained, cause = UsageError(f"{name}: cannot be opened: {reason}"), error
    except OSError as error:
        reason = without_secrets(one_line(error), given)
        explained, cause = MachineError(f"{name}: cannot be read: {reason}"), error
    else:
        return
    # What Arrow says may quote the URI: where that has secrets, a traceback must not show it.
    raise explained from (cause if name == given else None)


def _check(file: Found, choice: FormatChoice) -> Input:
    name, path, found = file.name, str(file.info.path), file.info.type
    local = isinstance(file.filesystem, pafs.LocalFileSystem)
    with _explained(name):
        if found == pafs.FileType.NotFound:
            raise FileNotFoundError(name)
        if local and (found == pafs.FileType.Unknown or path.startswith("/dev/")):
            if file.in_folder:
                raise UsageError(f"{name}: is not a regular file; name the files to read")
            return _check_stream(name, Path(path).open("rb", buffering=0), choice)
        late = _Late(file.filesystem, path)
        late.read(0)  # so that an error says why it cannot be opened
        stored = Stored(late, name)
        try:
            kind = _detect(stored, choice, in_folder=file.in_folder)
        finally:
            stored.close()
    return Input(
        name=name,
        format=kind,
        size=int(file.info.size),
        mtime=file.info.mtime_ns,
        path=path,
        filesystem=file.filesystem,
    )


def _check_stream(name: str, file: Any, choice: FormatChoice) -> Input:
    stored = Stored(file, name)
    return Input(name=name, format=_detect(stored, choice, stream=True), size=None, stream=stored)


def _beginning(stored: Stored) -> bytes:
    """Returns the first bytes of the content that are neither a byte-order mark nor blank."""
    seen, had = b"", -1
    size = 4
    # Little by little, or a slow stream would be waited for in vain.
    while len(seen) < len(_PARQUET) and size <= _SNIFF_MAX:
        head = stored.peek(size)
        if len(head) == had:
            break
        had, size = len(head), size * 2
        with suppress(DamagedInputError):  # most often for being cut off here
            seen = next(decompress(Stored(BytesIO(head), "")), b"")
            seen = seen.removeprefix(BOM).lstrip(b" \t\r\n")
    return seen


def _detect(
    stored: Stored, choice: FormatChoice, *, stream: bool = False, in_folder: bool = False
) -> Format:
    name = stored.name
    if not stream and stored.peek(len(_MANIFEST)) == _MANIFEST:
        raise UsageError(f"{name}: is the manifest of an output, not texts; leave it out")
    begins = _beginning(stored)
    ending = name.lower()
    for packed in ENDINGS:
        ending = ending.removesuffix(packed)
    by_name = _FORMATS.get("." + ending.rpartition(".")[2])
    kind = by_name if choice == "auto" else choice
    if begins[:4] == _PARQUET and choice != "text":
        if choice == "jsonl":
            raise UsageError(f"{name}: is a Parquet file; leave --format jsonl out")
        if compression(stored.peek(4)):
            raise UsageError(f"{name}: is a compressed Parquet file; decompress it first")
        if stream:
            raise UsageError(f"{name}: Parquet cannot be read from a stream; name the file")
        return "parquet"
    if kind == "parquet":
        raise UsageError(f"{name}: is not a Parquet file; pass --format jsonl or --format text")
    if kind is None and stream:
        if begins[:1] == b"[":
            raise UsageError(f"{name}: {_ARRAY}; or pass --format text if it is text")
        kind = "jsonl" if begins[:1] == b"{" else "text"
    if kind is None:
        remedy = "pass --format jsonl, text or parquet"
        if in_folder:
            remedy += ", or name the files with a glob"
        raise UsageError(f"{name}: unknown ending, so the format cannot be told; {remedy}")
    if kind == "jsonl" and begins[:1] == b"[":
        raise UsageError(f"{name}: {_ARRAY}")
    return kind
