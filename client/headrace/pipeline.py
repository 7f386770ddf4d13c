"""Wires the stages of one run: a config and a server in, a report out.

A thread reads and prepares blocks ahead (one ready, one in the making), the caller's thread keeps
the server busy and writes. Everything else is a stage with a file of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from headrace.config import EmbedConfig
from headrace.contract import Contract
from headrace.errors import DamagedInputError, UsageError
from headrace.feeder import Feeder
from headrace.inputs import Input, total_bytes
from headrace.output import Output
from headrace.prefetch import Prefetch
from headrace.progress import Counters, ProgressLine
from headrace.report import Report
from headrace.tokenizer import TextTokenizer
from headrace.transport import Connection, Transport

_VERSIONS_OF = ("headrace", "numpy", "pyarrow", "tokenizers", "tritonclient")


def run(
    config: EmbedConfig,
    connection: Connection,
    tokenizer: Path,
    inputs: list[Input],
    *,
    counters: Counters | None = None,
) -> tuple[Report, DamagedInputError | None]:
    """Embeds the inputs through a running server.

    Args:
        config: the run's settings.
        connection: the model on its server.
        tokenizer: the model's ``tokenizer.json``.
        inputs: what to read, as found by :func:`headrace.sources.find_inputs`.
        counters: where to count; may hold the seconds that came before.

    Returns:
        The report, and the damage that ended the reading early, if there was some: the rows
        before it are written.

    Raises:
        UsageError: the settings do not fit the model or the inputs.
        BadRowError: a bad row was met with ``on_error="fail"``.
        MachineError: the server, an input or the output failed; nothing is written then.
    """
    contract = connection.contract
    check_settings(config, contract)
    prompt, prompt_source = choose_prompt(config, contract)
    max_length = config.max_length or contract.max_length
    counters = counters or Counters()
    encoder = TextTokenizer(
        tokenizer, max_length=max_length, prompt=prompt, expected_hash=contract.tokenizer_hash
    )
    start = time.perf_counter()
    transport, why = connection.open_transport(config.transport)
    with _closing(transport):
        feeder = Feeder(config, contract, encoder, transport, counters)
        output = Output(config, contract)
        line = ProgressLine(total_bytes(inputs), quiet=config.quiet)
        try:
            with Prefetch(config, inputs, feeder, counters) as prefetch:
                for embedded in feeder.run(prefetch.blocks(), lambda: line.update(counters)):
                    with counters.timed("write"):
                        output.write(embedded, prefetch.id_type)
                    line.update(counters)
                with counters.timed("write"):
                    output.commit(prefetch.id_type)
        except BaseException:
            output.abort()
            raise
        finally:
            line.close()
    seconds = time.perf_counter() - start
    report = Report(
        output=str(config.output),
        errors_file=output.errors_file,
        rows=output.rows,
        bad_rows=counters.bad_rows,
        truncated_rows=counters.truncated_rows,
        tokens=counters.tokens,
        padding=counters.padding,
        batches=counters.batches,
        seconds=seconds,
        rows_per_second=output.rows / seconds,
        stage_seconds=dict(counters.seconds),
        model=contract.name,
        model_id=contract.model_id,
        precision=contract.precision,
        engine=f"{contract.engine} {contract.engine_version}",
        dimension=config.truncate_dim or contract.dimension,
        dtype=config.dtype,
        max_length=max_length,
        prompt=prompt,
        prompt_source=prompt_source,
        transport=transport.name,
        transport_reason=why,
        server=connection.server,
        inputs=tuple(each.name for each in inputs),
        damage=str(prefetch.damage) if prefetch.damage else None,
        versions=_versions(),
    )
    return report, prefetch.damage


def check_settings(config: EmbedConfig, contract: Contract) -> None:
    """Checks that a model can do what the config asks for.

    Raises:
        UsageError: it cannot; the message says which setting and why.
    """
    if config.max_length is not None and config.max_length > contract.length_limit:
        raise UsageError(
            f"--max-length {config.max_length}: {contract.model_id} takes at most "
            f"{contract.length_limit} tokens"
        )
    if config.truncate_dim is not None and config.truncate_dim > contract.dimension:
        raise UsageError(
            f"--truncate-dim {config.truncate_dim}: vectors of {contract.name} have only "
            f"{contract.dimension} dimensions"
        )
    if config.normalize != contract.normalized:
        have, want = ("does", "--no-normalize") if contract.normalized else ("does not", "")
        raise UsageError(
            f"the model {contract.name} on the server {have} normalise its vectors; "
            f"build a variant with: headrace build MODEL {want}".rstrip()
        )
    if config.engine not in {"auto", contract.engine}:
        raise UsageError(
            f"--engine {config.engine}: the model {contract.name} on the server is computed by "
            f"{contract.engine}; leave --engine out, or name another model"
        )
    if config.precision not in {"auto", contract.precision}:
        raise UsageError(
            f"--precision {config.precision}: the model {contract.name} on the server computes in "
            f"{contract.precision}; build a variant with: headrace build MODEL --precision "
            f"{config.precision}"
        )


def choose_prompt(config: EmbedConfig, contract: Contract) -> tuple[str, str]:
    """Returns the text to put in front of every row, and why it is that.

    Raises:
        UsageError: the model has no prompt of that name.
    """
    if config.prompt is not None:
        return config.prompt, "--prompt"
    if config.prompt_name is not None:
        if config.prompt_name not in contract.prompts:
            known = ", ".join(sorted(contract.prompts)) or "none at all"
            raise UsageError(
                f"--prompt-name {config.prompt_name}: {contract.model_id} has no such prompt; "
                f"it has: {known}"
            )
        return contract.prompts[config.prompt_name], f"--prompt-name {config.prompt_name}"
    if contract.default_prompt is not None:
        name = contract.default_prompt
        return contract.prompts[name], f"the model's default, {name!r}; --prompt '' for none"
    return "", "none asked for"


@contextmanager
def _closing(transport: Transport) -> Iterator[None]:
    try:
        yield
    finally:
        transport.close()


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _VERSIONS_OF}
