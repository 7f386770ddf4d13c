"""The entries that a server loads, as a repository of links.

A server loads all that lies in its repository, and nothing else: Triton's own way to name models
(``--model-control-mode=explicit``) would let whoever reaches its port load more, and a model that
is loaded can be code.

Triton's TensorRT backend computes what its dynamic batcher has joined, and TensorRT does not
promise that a row's last bit is the same in a batch of another size. Online callers want their
requests joined; a run, which has the server to itself and sends full batches, wants the same bytes
each time: for it the configs are without dynamic batching; and without the warming up, which would
only make it wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from google.protobuf import text_format

from headrace_launcher.repository import CONFIG_FILE, read_config


def link_entries(repository: Path, names: Sequence[str], folder: Path, *, joined: bool) -> None:
    """Makes a repository of links to some entries.

    Args:
        repository: where the entries lie.
        names: which.
        folder: the repository to make.
        joined: whether requests that wait may be computed together where an entry's config says so.

    Raises:
        OSError: the folder cannot be made.
    """
    folder.mkdir()
    for name in names:
        entry = repository / name
        config = None if joined else read_config(entry)
        if config is None or not (config.HasField("dynamic_batching") or config.model_warmup):
            (folder / name).symlink_to(entry.absolute())
            continue
        config.ClearField("dynamic_batching")
        config.ClearField("model_warmup")
        (folder / name).mkdir()
        for path in entry.iterdir():
            if path.name != CONFIG_FILE:
                (folder / name / path.name).symlink_to(path.absolute())
        text = text_format.MessageToString(config, as_utf8=True)
        (folder / name / CONFIG_FILE).write_text(text)
