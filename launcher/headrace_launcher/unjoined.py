"""Entries as a run's own server loads them: each batch is computed as it was sent.

Triton's TensorRT backend computes what its dynamic batcher has joined, and TensorRT does not
promise that a row's last bit is the same in a batch of another size. Online callers want their
requests joined; a run, which has the server to itself and sends full batches, wants the same bytes
each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from google.protobuf import text_format

from headrace_launcher.repository import CONFIG_FILE, read_config


def link_unjoined(repository: Path, names: Sequence[str], folder: Path) -> None:
    """Makes a repository of links to some entries, whose configs have no dynamic batching.

    Args:
        repository: where the entries lie.
        names: which.
        folder: the repository to make.

    Raises:
        OSError: the folder cannot be made.
    """
    folder.mkdir()
    for name in names:
        entry = repository / name
        config = read_config(entry)
        if config is None or not config.HasField("dynamic_batching"):
            (folder / name).symlink_to(entry.absolute())
            continue
        config.ClearField("dynamic_batching")
        (folder / name).mkdir()
        for path in entry.iterdir():
            if path.name != CONFIG_FILE:
                (folder / name / path.name).symlink_to(path.absolute())
        text = text_format.MessageToString(config, as_utf8=True)
        (folder / name / CONFIG_FILE).write_text(text)
