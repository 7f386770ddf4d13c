"""The commands that measure and compare; each reads its options, and tells of them, itself."""

from __future__ import annotations

import typer

from headrace.exits import exits, needs

bench = typer.Typer(help="Measure headrace on this machine.", no_args_is_help=True)

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def verify(context: typer.Context) -> None:
    """Compare a finished output with sentence-transformers; verify --help lists the options."""
    with exits():
        with needs():
            from headrace_bench.verify.run import main
        raise typer.Exit(main(context.args))


@bench.command(context_settings=PASSED_ON)
def feed(context: typer.Context) -> None:
    """Measure all but the encoder against `tokenizers` alone; feed --help lists the options."""
    with exits():
        with needs():
            from headrace_bench.feed import main
        raise typer.Exit(main(context.args))


@bench.command(context_settings=PASSED_ON)
def gpu(context: typer.Context) -> None:
    """Measure headrace on a GPU, against sentence-transformers; gpu --help lists the options."""
    with exits():
        with needs():
            from headrace_bench.gpu.run import main
        raise typer.Exit(main(context.args))


@bench.command(context_settings=PASSED_ON)
def peers(context: typer.Context) -> None:
    """Compare headrace with sentence-transformers, TEI and the engine alone; see peers --help."""
    with exits():
        with needs():
            from headrace_bench.peers.run import main
        raise typer.Exit(main(context.args))
