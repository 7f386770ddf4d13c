"""The front door for programs: :func:`embed`, and :func:`run` behind it and the command line."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from headrace.config import (
    Dtype,
    EmbedConfig,
    Engine,
    FormatChoice,
    IdType,
    OnError,
    Precision,
    TransportChoice,
    WordCacheChoice,
)
from headrace.contract import TOKENIZER_FILE, entry_name, file_hash, model_slug
from headrace.errors import (
    DamagedInputError,
    HeadraceError,
    MissingDependencyError,
    ServerError,
    UsageError,
)
from headrace.inputs import Input, find_inputs
from headrace.lifeline import Elsewhere, Ours
from headrace.pipeline import run as run_pipeline
from headrace.progress import Counters, ProgressLine
from headrace.report import Report
from headrace.sinks import (
    check_output,
    check_unlocked,
    errors_path,
    manifest_path,
    partial_folder,
)
from headrace.stopping import Stop
from headrace.tokenizerfile import try_file
from headrace.transport import Connection, connect


class Settings(TypedDict, total=False):
    """The optional settings of :func:`embed`; :class:`EmbedConfig` says what each means."""

    text_field: str
    id_field: str | None
    id_type: IdType
    format: FormatChoice
    dtype: Dtype
    prompt: str | None
    prompt_name: str | None
    max_length: int | None
    truncate_dim: int | None
    normalize: bool
    precision: Precision
    engine: Engine
    transport: TransportChoice
    server: str | None
    repository: str | PathLike[str]
    tokenizer: str | PathLike[str] | None
    on_error: OnError
    overwrite: bool
    extend: bool
    feeders: int | Literal["auto"]
    word_cache: WordCacheChoice
    quiet: bool
    report: str | PathLike[str] | None
    share: float
    server_timeout: float
    request_timeout: float
    memory_limit: int | None
    block_bytes: int
    block_rows: int | None


def embed(
    inputs: str | PathLike[str] | Sequence[str | PathLike[str]],
    output: str | PathLike[str],
    *,
    model: str,
    **settings: Unpack[Settings],
) -> Report:
    """Embeds files of text into a file of vectors, row for row.

    ::

        report = headrace.embed("corpus.jsonl.zst", "corpus.npy", model="all-MiniLM-L6-v2")

    Args:
        inputs: one or several files, folders, globs, URIs, or ``"-"`` for standard input.
        output: the file to write: ``.npy`` (float[rows, dimension]) or ``.parquet``.
        model: a folder, a Hugging Face id, an installed package that carries a model, or, with
            ``server``, the name of a model there.
        **settings: every other field of :class:`headrace.EmbedConfig`, with its default.

    A run that does not end, for whatever reason, keeps the blocks that it has finished beside the
    output; the same call goes on from there.

    Returns:
        What was done. Bad rows do not raise (unless ``on_error="fail"``): see ``bad_rows``.

    Raises:
        UsageError: what was asked for cannot be done as asked.
        BadRowError: a bad row was met with ``on_error="fail"``.
        DamagedInputError: an input breaks off; the rows before the damage are in ``output``.
        MachineError: the machine, a file or the server is not as it must be.
    """
    paths = [inputs] if isinstance(inputs, str | PathLike) else list(inputs)
    chosen: dict[str, Any] = {"quiet": True, **settings}
    for name in ("repository", "tokenizer", "report"):
        if chosen.get(name) is not None:
            chosen[name] = Path(chosen[name])
    config = EmbedConfig(
        inputs=tuple(str(path) for path in paths), output=Path(output), model=model, **chosen
    )
    report, damage = run(config)
    if damage is not None:
        raise damage
    return report


def run(
    config: EmbedConfig, *, alone: bool = False, stop: Stop | None = None
) -> tuple[Report, DamagedInputError | None]:
    """Does one run, with a server of its own unless ``config.server`` names one.

    Args:
        config: the run's settings.
        alone: whether this process does nothing else, so that its allocator and its garbage
            collector can be tuned.
        stop: by which the run can be asked to stop.

    Returns:
        The report, and what ended the reading early, if something did.

    Raises:
        UsageError: what was asked for cannot be done as asked.
        BadRowError: a bad row was met with ``on_error="fail"``.
        MachineError: the machine, a file or the server is not as it must be.
    """
    _check_files(config)
    inputs = find_inputs(config.inputs, format=config.format, own=_own_files(config))
    _check_not_an_input(config, inputs)
    counters = Counters()
    complete = False
    try:
        with _model(config, counters, stop or Stop()) as (lifeline, tokenizer):
            _check_tokenizer(lifeline.connection, tokenizer)
            report, damage = run_pipeline(
                config,
                lifeline.connection,
                tokenizer,
                inputs,
                counters=counters,
                alone=alone,
                lifeline=lifeline,
                stop=stop,
            )
            complete = True
            # While the server is still there: whatever happens when it goes, this is done.
            if config.report is not None:
                report.write(config.report)
    except KeyboardInterrupt as error:
        if complete:
            error.add_note(f"{config.output} is complete")
        raise
    return report, damage


def _files_written(config: EmbedConfig) -> dict[str, Path]:
    files = {
        "output": config.output,
        "errors file": errors_path(config.output),
        "manifest": manifest_path(config.output),
    }
    return files | ({"report": config.report} if config.report is not None else {})


def _own_files(config: EmbedConfig) -> list[Path]:
    """Returns what the run puts beside its output, which may lie among the inputs."""
    of_output = (errors_path, manifest_path, partial_folder)
    paths = [path(config.output) for path in of_output]
    return [Path(os.path.realpath(path.parent)) / path.name for path in paths]


def _check_files(config: EmbedConfig) -> None:
    """Checks that what will be written can be, and replaces nothing by accident."""
    check_output(config.output)
    files = _files_written(config)
    if len({os.path.realpath(path) for path in files.values()}) < len(files):
        raise UsageError(f"the report {config.report} is another file of the run; name another")
    for name, path in files.items():
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise UsageError(f"the {name} {path} is not a file in a folder that exists; mend that")
    check_unlocked(config.output)
    unfinished = partial_folder(config.output).exists()
    if config.extend or config.overwrite or unfinished:  # then it is known what they are of
        return
    # A report is replaced as reports are everywhere; vectors and errors of a run are not.
    for name in ("output", "errors file"):
        if files[name].exists():
            more = ", or --extend to add new input to it" if files["manifest"].exists() else ""
            raise UsageError(
                f"the {name} {files[name]} exists; pass --overwrite to replace it{more}"
            )


def _check_not_an_input(config: EmbedConfig, inputs: list[Input]) -> None:
    read = {Path(os.path.realpath(item.path)) for item in inputs if item.local}
    for name, path in _files_written(config).items():
        if Path(os.path.realpath(path)) in read:
            raise UsageError(f"the {name} {path} is one of the inputs; name another file")
    folder = partial_folder(config.output)
    if any(path.parent == Path(os.path.realpath(folder)) for path in read):
        raise UsageError(f"an input lies in {folder}, which is the run's own; move it out")


@contextmanager
def _model(
    config: EmbedConfig, counters: Counters, stop: Stop
) -> Iterator[tuple[Elsewhere | Ours, Path]]:
    """Gives a lifeline to the model's server and its tokenizer file."""
    if config.server is None:
        with _local_model(config, counters) as found:
            yield found
        return
    # Any entry that can serve the settings will do: the exact variant, the same with all
    # dimensions (cut here then), an entry of just that name, the model's default entry.
    variants = [
        entry_name(
            config.model,
            precision=config.precision,
            truncate_dim=dimension,
            normalize=config.normalize,
            engine=config.engine,
        )
        for dimension in (config.truncate_dim, None)
    ]
    names = dict.fromkeys([*variants, config.model, model_slug(config.model)])
    connection = connect(
        config.server,
        list(names),
        engine=config.engine,
        precision=config.precision,
        patience=config.request_timeout,
    )
    lifeline = Elsewhere(connection, config.server_timeout, stop)
    try:
        _check_identity(config, connection)
        yield lifeline, config.tokenizer or _find_tokenizer(config, connection)
    except ServerError as error:
        error.add_note(f"the server is {config.server}; see whether it runs, and its log")
        raise
    finally:
        lifeline.connection.close()


@contextmanager
def _local_model(config: EmbedConfig, counters: Counters) -> Iterator[tuple[Ours, Path]]:
    """Builds the entry if it is missing and runs a server for it."""
    try:
        from headrace_launcher.build import build
        from headrace_launcher.server import Server
        from headrace_launcher.triton import find_triton
    except ImportError as error:
        raise MissingDependencyError(
            f"to start a server of its own headrace needs {error.name}, which is not installed; "
            f"pip install 'headrace[launcher,cpu]', or name a running server with --server"
        ) from error
    line = ProgressLine(None, quiet=config.quiet)
    with counters.timed("build"), closing(line):
        entry = build(
            config.model,
            repository=config.repository,
            precision=config.precision,
            engine=config.engine,
            truncate_dim=config.truncate_dim,
            normalize=config.normalize,
            progress=line.step,
            notice=line.notice,
        )
    start = time.perf_counter()
    # The server has no other client, so there is nothing to drain when the run is over.
    names = [entry.contract.name]
    with Server(
        find_triton(),
        config.repository,
        names,
        http_port=0,
        metrics_port=None,
        drain=False,
        joined=False,
    ) as server:
        lifeline = Ours(server, names, config.request_timeout)
        counters.seconds["start"] += time.perf_counter() - start
        try:
            yield lifeline, config.tokenizer or entry.folder / TOKENIZER_FILE
        finally:
            lifeline.connection.close()


def _check_identity(config: EmbedConfig, connection: Connection) -> None:
    """Refuses a model that has the wanted one's name but came from elsewhere."""
    name, source = connection.contract.name, connection.contract.model_id
    same = config.model in {name, source} or (
        "/" not in config.model and source.endswith(f"/{config.model}")
    )
    with suppress(OSError, ValueError):  # of a name that no path can have
        same = same or Path(config.model).resolve() == Path(source).resolve()
    if not same:
        raise UsageError(
            f"the server's model {name} was built from {source}, not from {config.model}; if that "
            f"is the model you want, pass --model {name}"
        )


def _check_tokenizer(connection: Connection, path: Path) -> None:
    """Tries the tokenizer here, before feeders load it."""
    with suppress(OSError):  # whoever opens it says so
        if file_hash(path) == connection.contract.tokenizer_hash:  # else it is never loaded
            try_file(path)


def _find_tokenizer(config: EmbedConfig, connection: Connection) -> Path:
    contract = connection.contract
    places = (config.repository / contract.name, Path(config.model))
    for folder in places:
        path = folder / TOKENIZER_FILE
        with suppress(OSError, ValueError):  # of a name that no path can have
            if path.is_file() and file_hash(path) == contract.tokenizer_hash:
                return path
    with suppress(ImportError, HeadraceError):  # a client alone has no launcher to ask
        from headrace_launcher.models import find_model

        path = find_model(config.model).tokenizer
        if file_hash(path) == contract.tokenizer_hash:
            return path
    raise UsageError(
        f"no tokenizer.json of the model {contract.name} was found in "
        f"{' or '.join(str(folder) for folder in places)}; pass it with --tokenizer (it lies in "
        f"the model's folder of the server's repository)"
    )
