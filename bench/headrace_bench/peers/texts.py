"""The rows that peers are compared on: of a file, of MS MARCO, or docstrings; never cut short."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from headrace.config import FormatChoice
from headrace.errors import UsageError
from headrace.paths import shown
from headrace_bench import corpus
from headrace_bench.options import say
from headrace_bench.rows import read_texts
from headrace_launcher.locate import HUB_SECONDS

POOL = 200_000
"""Rows of a file to draw from; a file of any size is read that far at most."""
MSMARCO = ("sentence-transformers/msmarco-corpus", "passage/train-00000-of-00007.parquet")
"""Where the hub has the passages of MS MARCO (Bajaj et al., 2016): dataset, and a file of it."""
DOCSTRINGS = 50_000
"""Paragraphs of docstrings to draw from."""


@dataclass(frozen=True, slots=True)
class Texts:
    """The rows.

    Attributes:
        source: where they come from, in words.
        texts: themselves, whole, in the order of the source.
        left_out: rows that were met meanwhile and cannot be embedded by all: bad or blank ones.
    """

    source: str
    texts: list[str]
    left_out: int = 0


def choose_texts(options: argparse.Namespace) -> Texts:
    """Returns a random sample of ``options.rows`` rows, the same for the same ``options.seed``.

    Of ``options.input``; without it, of MS MARCO's passages where a hub is reachable; else of the
    docstrings that are installed here.

    Raises:
        HeadraceError: the input cannot be read, or has no rows.
    """
    rows, seed = options.rows, options.seed
    if options.input is not None:
        return _of_file(
            options.input,
            rows,
            seed,
            text_field=options.text_field,
            format=options.format,
            name=shown(options.input),
        )
    found = find_msmarco()
    if found is None:
        say("no hub is reachable for MS MARCO's passages; docstrings are taken instead")
        pool = list(islice(corpus.paragraphs(), max(rows, DOCSTRINGS)))
        return Texts(
            _drawn("paragraphs of the docstrings of what is installed", len(pool), rows, seed),
            _sample(pool, rows, seed),
        )
    path, revision = found
    name = f"{MSMARCO[0]} (MS MARCO passages), {MSMARCO[1]}, revision {revision[:12]}"
    return _of_file(str(path), rows, seed, text_field="text", format="parquet", name=name)


def find_msmarco() -> tuple[Path, str] | None:
    """Returns the file of passages (238 MB, downloaded once) and its commit; None without a hub."""
    try:
        hub = importlib.import_module("huggingface_hub")
        errors = importlib.import_module("huggingface_hub.errors")
    except ImportError:
        return None
    # The HTTP library's own root error, whichever the hub's client uses.
    roots = [base for base in errors.HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    failures: tuple[type[Exception], ...] = (OSError, ValueError, *roots)
    dataset, file = MSMARCO
    try:
        commit = hub.HfApi().dataset_info(dataset, timeout=HUB_SECONDS).sha
        path = hub.hf_hub_download(dataset, file, repo_type="dataset", revision=commit)
    except failures:
        try:  # a copy that an earlier download left
            path = hub.hf_hub_download(dataset, file, repo_type="dataset", local_files_only=True)
        except failures:
            return None
    return Path(path), Path(path).parent.parent.name  # .../snapshots/COMMIT/passage/FILE


def _of_file(
    given: str,
    rows: int,
    seed: int,
    *,
    text_field: str,
    format: FormatChoice,  # noqa: A002 -- as the option is called
    name: str,
) -> Texts:
    pool: list[str] = []
    most = max(rows, POOL)
    bad = 0
    if given == "-":
        raise UsageError("--input -: the input is read by several programs; name a file")
    for block in read_texts([given], text_field=text_field, format=format):
        wrong = {each.row for each in block.bad}
        had = len(pool)
        good = [text for row, text in enumerate(block.texts.to_pylist()) if row not in wrong]
        pool += [text for text in good if text.strip()]  # TEI takes no blank ones
        bad += block.block.rows - (len(pool) - had)
        if len(pool) >= most:
            del pool[most:]
            break
    if not pool:
        raise UsageError(f"{name} has no rows that can be embedded; name another file")
    if bad:
        say(f"{name}: {bad:,} rows are left out, which are bad or blank")
    return Texts(_drawn(name, len(pool), rows, seed), _sample(pool, rows, seed), bad)


def _sample(pool: list[str], rows: int, seed: int) -> list[str]:
    if len(pool) <= rows:
        return pool
    chosen = np.random.default_rng(seed).choice(len(pool), rows, replace=False)
    return [pool[place] for place in np.sort(chosen)]


def _drawn(source: str, pool: int, rows: int, seed: int) -> str:
    if pool < rows:
        say(f"{source}: has {pool:,} rows, fewer than the {rows:,} that were asked for")
    if pool <= rows:
        return f"{source}, all {pool:,} of it"
    return f"{source}, drawn from its first {pool:,} (seed {seed})"
