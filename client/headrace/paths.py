"""What the user names -> the files that it stands for, on any ``pyarrow.fs`` file system."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_plus

import pyarrow.fs as pafs

from headrace.errors import UsageError

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HARMLESS = {"region", "scheme", "anonymous", "allow_bucket_creation", "allow_bucket_deletion"}
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Found:
    """One file that was found.

    Attributes:
        name: the file as shown to the user: see :func:`shown`.
        filesystem: the ``pyarrow.fs.FileSystem``.
        info: its ``pyarrow.fs.FileInfo`` there.
        in_folder: whether it is there for lying in a folder that was named.
    """

    name: str
    filesystem: Any
    info: Any
    in_folder: bool


def shown(given: str) -> str:
    """Returns a path or URI as it may be shown and stored: a URI without user, keys and options."""
    if not (scheme := _URI.match(given)):
        return given
    rest = given[scheme.end() :]
    return scheme[0] + rest[len(_user(rest)) :].partition("?")[0]


def without_secrets(text: str, given: str) -> str:
    """Returns ``text``, which may quote the URI ``given``, without its user, keys and options."""
    if not (scheme := _URI.match(given)):
        return text
    rest = given[scheme.end() :]
    user = _user(rest)
    key = user[:-1]
    options = rest[len(user) :].partition("?")[2]
    pairs = [pair.partition("=") for pair in options.split("&")]
    secrets = [key, *key.split(":", 1), options]
    secrets += [value for name, _, value in pairs if name.lower() not in _HARMLESS]
    secrets += [unquote(one) for one in secrets] + [unquote_plus(one) for one in secrets]
    text = text.replace(given, shown(given))
    for secret in sorted(set(secrets), key=len, reverse=True):
        # Of a few characters it is no secret, and would be met in other words.
        if len(secret) > 3:
            text = text.replace(secret, "***")
    return text


def _user(rest: str) -> str:
    """Returns what stands before the host in a URI without its scheme: ``USER:KEY@``, or nothing.

    Where a key's slashes should have been escaped and were not, it goes to the last ``@``.
    """
    host = rest.partition("/")[0]
    if "@" in host:
        return host[: host.rindex("@") + 1]
    before = rest.partition("?")[0]
    _, colon, port = host.partition("?")[0].partition(":")
    if colon and not port.isdecimal() and "@" in before:
        return before[: before.rindex("@") + 1]
    return ""


def expand(given: str) -> Iterator[Found]:
    """Yields the files that a path, a folder, a glob or a URI stands for, sorted by path.

    A path that exists is no glob. Folders are read recursively, without the names that begin
    with ``.`` or ``_``; wildcards match no leading dot unless they spell it.

    Raises:
        UsageError: a folder or a glob stands for nothing.
        OSError: there is no such file, or a folder cannot be listed.
        pyarrow.ArrowInvalid: the URI is of no known kind.
    """
    filesystem, path, root, inside = pafs.LocalFileSystem(), given, "", ""
    wild = _MAGIC.search(given)
    if _URI.match(given):
        # In a URI the '?' begins the store's own options.
        location, mark, options = given.partition("?")
        wild = _MAGIC.search(location)
        root = location[: location.rindex("/", 0, wild.start())] if wild else location
        filesystem, inside = pafs.FileSystem.from_uri(root + mark + options)
        path = inside = inside.rstrip("/") or "/"
        if wild:
            path = inside + location[len(root) :]
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.Directory:
        found = list(_walk(filesystem, path.rstrip("/") or "/", ()))
        if not found:
            raise UsageError(f"{shown(given)}: the folder holds no file to read; check the path")
    elif info.type != pafs.FileType.NotFound:
        found = [info]
    elif wild:
        found = list({match.path: match for match in _glob(filesystem, path)}.values())
        if not found:
            raise UsageError(f"{shown(given)}: no file matches; check the pattern")
    else:
        raise FileNotFoundError(shown(given))
    for file in sorted(found, key=lambda info: str(info.path)):
        name = shown(root).rstrip("/") + file.path[len(inside) :] if root else file.path
        yield Found(name, filesystem, file, info.type == pafs.FileType.Directory)


def _list(filesystem: Any, folder: str) -> list[Any]:
    """Lists a folder; links to nothing, which pyarrow leaves out, are listed as not found."""
    entries = list(filesystem.get_file_info(pafs.FileSelector(folder or ".")))
    if isinstance(filesystem, pafs.LocalFileSystem):
        inside = Path(folder).iterdir()
        lost = [str(path) for path in inside if path.is_symlink() and not path.exists()]
        entries += filesystem.get_file_info(lost)
    return entries


def _real(filesystem: Any, folder: str) -> str:
    local = isinstance(filesystem, pafs.LocalFileSystem)
    return os.path.realpath(folder) if local else folder


def _walk(filesystem: Any, folder: str, above: tuple[str, ...]) -> Iterator[Any]:
    """Yields the files beneath a folder; a link to one of the folders above is not followed."""
    above = (*above, _real(filesystem, folder))
    if above[-1] in above[:-1]:
        return
    for entry in _list(filesystem, folder):
        if entry.base_name.startswith((".", "_")):
            continue
        if entry.type == pafs.FileType.Directory:
            yield from _walk(filesystem, entry.path, above)
        else:
            yield entry


def _glob(filesystem: Any, pattern: str) -> Iterator[Any]:
    """Yields the files that match; wildcards match no leading dot unless they spell it."""
    parts = [part for part in pattern.split("/") if part]
    fixed = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
    base = ("/" if pattern.startswith("/") else "") + "/".join(parts[:fixed])
    yield from _match(filesystem, base, parts[fixed:])


def _match(
    filesystem: Any, base: str, parts: list[str], above: tuple[str, ...] = ()
) -> Iterator[Any]:
    part, rest = parts[0], parts[1:]
    if part == "**":
        above = (*above, _real(filesystem, base or "."))
        if above[-1] in above[:-1]:
            return
        yield from _match(filesystem, base, rest or ["*"])
    elif not _MAGIC.search(part):
        # A fixed name after a wildcard needs no listing, and may be hidden.
        entry = filesystem.get_file_info(f"{base}/{part}" if base else part)
        if rest and entry.type == pafs.FileType.Directory:
            yield from _match(filesystem, entry.path, rest)
        elif not rest and entry.type not in (pafs.FileType.NotFound, pafs.FileType.Directory):
            yield entry
        return
    if filesystem.get_file_info(base or ".").type != pafs.FileType.Directory:
        return
    for entry in _list(filesystem, base):
        is_folder = entry.type == pafs.FileType.Directory
        hidden = entry.base_name.startswith(".") and not part.startswith(".")
        path = entry.path if base else entry.base_name
        if hidden or (part != "**" and not fnmatchcase(entry.base_name, part)):
            continue
        if part == "**":
            if is_folder:
                yield from _match(filesystem, path, parts, above)
        elif rest and is_folder:
            yield from _match(filesystem, path, rest)
        elif not rest and not is_folder:
            yield entry if base else filesystem.get_file_info(path)
