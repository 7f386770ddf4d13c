"""The command line: parses, calls, prints; results on stdout, everything else on stderr."""

from __future__ import annotations

import sys
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from headrace.api import run
from headrace.benches import PASSED_ON, bench, verify
from headrace.config import (
    Dtype,
    EmbedConfig,
    FormatChoice,
    IdType,
    OnError,
    TransportChoice,
    WordCacheChoice,
    host_of,
)
from headrace.errors import (
    EXIT_BAD_ROWS,
    EXIT_ENVIRONMENT,
    ServerError,
)
from headrace.exits import exits, needs, say
from headrace.options import (
    DEFAULTS,
    Backend,
    EngineOption,
    ListenOption,
    ModelArgument,
    NormalizeOption,
    PrecisionOption,
    RepositoryOption,
    TruncateOption,
    is_loopback,
    numbers,
    size_in_bytes,
)
from headrace.progress import ProgressLine
from headrace.stopping import Interrupted, Stop

app = typer.Typer(
    name="headrace",
    help="Files of text in, files of embeddings out: exact, row for row.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.")
    ] = False,
) -> None:
    if show_version:
        typer.echo(f"headrace {version('headrace')}")
        raise typer.Exit


@app.command()
def embed(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...", help="Files, folders, globs, URIs, or - for standard input."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write: .npy or .parquet.")
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            envvar="HEADRACE_MODEL",
            help="A folder, a Hugging Face id, an installed package with a model; with --server "
            "also the name of a model there.",
        ),
    ],
    text_field: Annotated[
        str, typer.Option(help="Field or column with the text; dots descend: post.body.")
    ] = DEFAULTS["text_field"],
    id_field: Annotated[
        str | None,
        typer.Option(
            help="Field or column for the id column of a .parquet output.",
            show_default="id where the first record has it, else row numbers",
        ),
    ] = DEFAULTS["id_field"],
    id_type: Annotated[
        IdType,
        typer.Option(help="Type of the ids in the output; auto: as in the first block."),
    ] = DEFAULTS["id_type"],
    format: Annotated[  # noqa: A002 -- the option's name
        FormatChoice, typer.Option(help="Format of the inputs; auto: by content and name.")
    ] = DEFAULTS["format"],
    dtype: Annotated[Dtype, typer.Option(help="Type of the written numbers.")] = DEFAULTS["dtype"],
    prompt: Annotated[
        str | None, typer.Option(help="Text in front of every row, e.g. 'passage: '.")
    ] = DEFAULTS["prompt"],
    prompt_name: Annotated[
        str | None, typer.Option(help="One of the model's own prompts, e.g. document.")
    ] = DEFAULTS["prompt_name"],
    max_length: Annotated[
        int | None,
        typer.Option(help="Tokens a row is cut to.", show_default="the model's own"),
    ] = DEFAULTS["max_length"],
    truncate_dim: TruncateOption = DEFAULTS["truncate_dim"],
    normalize: NormalizeOption = DEFAULTS["normalize"],
    precision: PrecisionOption = DEFAULTS["precision"],
    engine: EngineOption = DEFAULTS["engine"],
    transport: Annotated[
        TransportChoice,
        typer.Option(
            help="How batches reach the server; auto: through a GPU's memory (cuda), shared memory "
            "(system) or messages (grpc), the first that works."
        ),
    ] = DEFAULTS["transport"],
    server: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            envvar="HEADRACE_SERVER",
            help="gRPC endpoint of a running server.",
            show_default="start one for this run",
        ),
    ] = DEFAULTS["server"],
    repository: RepositoryOption = DEFAULTS["repository"],
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="The model's tokenizer.json.", show_default="the repository's"),
    ] = DEFAULTS["tokenizer"],
    feeders: Annotated[
        str,
        typer.Option(
            metavar="auto|N",
            help="Processes that tokenize and feed the server; 0: all in one process.",
        ),
    ] = DEFAULTS["feeders"],
    word_cache: Annotated[
        WordCacheChoice,
        typer.Option(help="Remember tokenized words: for later runs too, for this run, or not."),
    ] = DEFAULTS["word_cache"],
    on_error: Annotated[
        OnError,
        typer.Option(help="Bad rows: null keeps them as NaN or null, skip leaves out, fail stops."),
    ] = DEFAULTS["on_error"],
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace an existing output; begin an unfinished job anew."
        ),
    ] = DEFAULTS["overwrite"],
    extend: Annotated[
        bool,
        typer.Option(
            "--extend",
            help="Add new inputs, or lines at the end of the last plain one, to a job, finished or "
            "not.",
        ),
    ] = DEFAULTS["extend"],
    share: Annotated[
        float,
        typer.Option(
            help="Part of the server's time that the run takes, e.g. 0.8, so that other callers of "
            "that server are answered soon."
        ),
    ] = DEFAULTS["share"],
    server_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="How long to wait for a lost server, if it is not our own."
        ),
    ] = DEFAULTS["server_timeout"],
    request_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="A server that leaves a batch unanswered so long is lost."
        ),
    ] = DEFAULTS["request_timeout"],
    memory_limit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Most memory of the client's processes, as 4GiB: says how many feeders there are.",
            show_default="none",
        ),
    ] = DEFAULTS["memory_limit"],
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, no summary.")
    ] = DEFAULTS["quiet"],
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the report as JSON.")
    ] = DEFAULTS["report"],
) -> None:
    """Embed files of text into a file of vectors, row for row.

    Starts a Triton server for the run unless --server names one. A run that was interrupted, or
    failed, goes on where it stopped when the same command is given again.
    Exit codes: 0 done; 2 wrong usage; 3 bad rows (described in OUTPUT.errors.jsonl);
    4 something on the machine, in a file or at the server is wrong; 130, 143 interrupted.
    """
    settings = dict(locals())
    settings["inputs"] = tuple(inputs)
    settings["feeders"] = int(feeders) if feeders.isdecimal() else feeders
    stop = Stop()
    with exits(stop):
        settings["memory_limit"] = size_in_bytes("--memory-limit", memory_limit)
        config = EmbedConfig(**settings)
        done, damage = run(config, alone=True, stop=stop)
        if not quiet:
            say(done.summary())
        if stop.number is not None:
            interrupted = Interrupted(stop.number)
            interrupted.add_note(f"{output} is complete")
            raise interrupted
        if damage is not None:
            raise damage
        if done.bad_rows:
            rows = "1 bad row" if done.bad_rows == 1 else f"{done.bad_rows:,} bad rows"
            say(f"headrace: {rows}, described in {done.errors_file}")
            raise typer.Exit(EXIT_BAD_ROWS)


@app.command()
def build(
    model: ModelArgument,
    repository: RepositoryOption = DEFAULTS["repository"],
    name: Annotated[
        str | None,
        typer.Option(help="Name in the repository.", show_default="from model and settings"),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit on the Hugging Face hub.")
    ] = None,
    precision: PrecisionOption = DEFAULTS["precision"],
    engine: EngineOption = DEFAULTS["engine"],
    capability: Annotated[
        str,
        typer.Option(
            metavar="X.Y",
            help="Compute capability of a GPU that is not here, for --engine tensorrt-rtx.",
            show_default="the GPU's here",
        ),
    ] = "",
    backend: Annotated[
        Backend,
        typer.Option(
            help="Which of Triton's backends runs a plan; auto: tensorrt where the server has it."
        ),
    ] = "auto",
    buckets: Annotated[
        str,
        typer.Option(
            metavar="N,N,...",
            help="Longest row of each bucket, in tokens: one optimization profile each.",
            show_default="about ten, up to the model's limit",
        ),
    ] = "",
    max_batch: Annotated[
        int | None, typer.Option(help="Most rows of a batch.", show_default="by the engine")
    ] = None,
    token_budget: Annotated[
        int | None,
        typer.Option(help="Most padded tokens of a batch.", show_default="by the engine"),
    ] = None,
    truncate_dim: TruncateOption = DEFAULTS["truncate_dim"],
    normalize: NormalizeOption = DEFAULTS["normalize"],
    force: Annotated[bool, typer.Option("--force", help="Build even if it is there.")] = False,
) -> None:
    """Build a model's entry in the Triton model repository; prints its folder."""
    with exits():
        with needs():
            from headrace_launcher.build import Batching
            from headrace_launcher.build import build as build_entry
        with closing(ProgressLine(None)) as line:
            entry = build_entry(
                model,
                repository=repository,
                revision=revision,
                precision=precision,
                engine=engine,
                capability=capability,
                backend=backend,
                batching=Batching(
                    buckets=numbers("--buckets", buckets),
                    max_batch=max_batch,
                    token_budget=token_budget,
                ),
                truncate_dim=truncate_dim,
                normalize=normalize,
                name=name,
                force=force,
                progress=line.step,
                notice=line.notice,
            )
        settings = entry.contract
        say(
            f"headrace: {'built' if entry.built else 'is current:'} {settings.name}: "
            f"{settings.model_id}, {settings.dimension} dimensions, {settings.precision}, "
            f"{settings.engine} {settings.engine_version}"
            + (f", compute capability {settings.capability}" if settings.capability else "")
        )
        typer.echo(entry.folder)


@app.command()
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Models to serve, built if they are missing; none serves the whole repository.",
        ),
    ] = None,
    repository: RepositoryOption = DEFAULTS["repository"],
    listen: ListenOption = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="gRPC port; 0 takes a free one.")] = 8001,
    http_port: Annotated[int, typer.Option(help="HTTP port; 0 takes a free one.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Metrics port; 0 takes a free one.")] = 8002,
) -> None:
    """Serve the model repository until Ctrl-C; prints the endpoints when ready."""
    with exits():
        with needs():
            from headrace_launcher.serve import entry_names, with_text_models
            from headrace_launcher.server import Server
            from headrace_launcher.triton import find_triton
        with closing(ProgressLine(None)) as line:
            names = entry_names(models or [], repository, progress=line.step, notice=line.notice)
            names = with_text_models(names, repository, notice=line.notice)
        _warn_if_open(listen, "password")
        server = Server(
            find_triton(),
            repository,
            names,
            host=listen,
            grpc_port=grpc_port,
            http_port=http_port,
            metrics_port=metrics_port,
        )
        try:
            with server:
                ends = server.endpoints
                typer.echo(f"models  {' '.join(names)}")
                typer.echo(f"gRPC    {ends.grpc}")
                typer.echo(f"HTTP    http://{ends.http}")
                typer.echo(f"metrics http://{ends.metrics}/metrics")
                sys.stdout.flush()
                server.wait()
                raise ServerError(f"Triton has died: {server.obituary()}")
        except KeyboardInterrupt:
            say("headrace: stopped")


@app.command()
def gateway(
    server: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT", envvar="HEADRACE_SERVER", help="gRPC endpoint of a running server."
        ),
    ] = "127.0.0.1:8001",
    model: Annotated[
        str | None,
        typer.Option(
            help="Model of /embed, where the server has several.", show_default="the only one"
        ),
    ] = None,
    listen: ListenOption = "127.0.0.1",
    port: Annotated[int, typer.Option(help="HTTP port; 0 takes a free one.")] = 8080,
    api_key: Annotated[
        str,
        typer.Option(
            envvar="HEADRACE_API_KEY",
            help="What callers must send as a bearer token; better in the environment.",
            show_default="none: everybody is let in",
        ),
    ] = "",
    max_concurrent: Annotated[
        int, typer.Option(help="Requests at once; more are answered 429.")
    ] = 512,
    max_inputs: Annotated[int, typer.Option(help="Texts in one request.")] = 2048,
    max_body: Annotated[
        str, typer.Option(metavar="SIZE", help="Largest body of a request.")
    ] = "16MiB",
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long a request may wait for its vectors.")
    ] = 60.0,
    auto_truncate: Annotated[
        bool, typer.Option(help="Cut texts that are too long where /embed does not say.")
    ] = True,
) -> None:
    """Serve OpenAI's and TEI's APIs in front of a running server, until Ctrl-C or SIGTERM."""
    with exits():
        with needs("gateway"):
            from headrace_launcher.gateway.run import run_gateway
            from headrace_launcher.gateway.settings import GatewaySettings
        host_of(server)  # it is tried later, and again and again
        settings = GatewaySettings(
            server=server,
            model=model,
            api_key=api_key,
            max_concurrent=max_concurrent,
            max_inputs=max_inputs,
            max_body_bytes=size_in_bytes("--max-body", max_body) or 0,
            timeout=timeout,
            auto_truncate=auto_truncate,
        )
        if not api_key:
            _warn_if_open(listen, "key")

        def ready(url: str) -> None:
            typer.echo(f"gateway {url}")
            sys.stdout.flush()

        run_gateway(settings, host=listen, port=port, ready=ready)
        say("headrace: stopped")


@app.command()
def doctor() -> None:
    """Show what was found on this machine, and the remedy for each thing that is missing."""
    with exits():
        from headrace_launcher.doctor import examine

        checks = examine()
        for check in checks:
            typer.echo(f"{check.mark:7} {check.name:12} {check.found}")
            if check.remedy:
                typer.echo(f"{'':20} -> {check.remedy}")
        if any(check.mark == "missing" for check in checks):
            raise typer.Exit(EXIT_ENVIRONMENT)


app.command(context_settings=PASSED_ON)(verify)
app.add_typer(bench, name="bench")


def _warn_if_open(listen: str, missing: str) -> None:
    if not is_loopback(listen):
        say(f"headrace: warning: {listen} is open to other machines, and no {missing} is asked")
