"""One run's settings, validated once; every default of an embedding run is written here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from headrace.contract import is_utf8
from headrace.errors import UsageError

Format = Literal["jsonl", "text", "parquet"]
FormatChoice = Literal["auto", "jsonl", "text", "parquet"]
Dtype = Literal["float32", "float16"]
OnError = Literal["null", "skip", "fail"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
TransportChoice = Literal["auto", "cuda", "system", "grpc"]
IdType = Literal["auto", "int64", "string"]
Engine = Literal["auto", "openvino", "tensorrt", "tensorrt-rtx", "null"]
WordCacheChoice = Literal["keep", "run", "off"]

MIB = 1 << 20
FEEDERS_MAX = 64
REQUEST_TIMEOUT = 120.0
LONGEST_TIMEOUT = 30 * 86400  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedConfig:
    """What one run reads, computes and writes.

    Attributes:
        inputs: files, folders, globs, URIs or ``-`` for standard input, in this order.
        output: the file to write; its ending (``.npy``, ``.parquet``) says the format.
        model: a folder, a Hugging Face id, an installed package that carries a model, or, with
            ``server``, the name of a model there.
        text_field: field or column that holds the text; dots descend into objects.
        id_field: field or column copied to the ``id`` column of a Parquet output; None takes
            ``id`` where the first record has it and the row number elsewhere.
        id_type: type of JSONL ids in the output; ``auto`` decides by the first block.
        format: format of the inputs; ``auto`` decides by content and name.
        dtype: type of the written vectors.
        prompt: text put in front of every row; excludes ``prompt_name``.
        prompt_name: name of one of the model's own prompts.
        max_length: tokens a row is cut to, special tokens included; None takes the model's own.
        truncate_dim: length that vectors are cut to (then normalised again); None keeps all.
        normalize: whether vectors have unit L2 norm.
        precision: what the engine computes in; ``auto`` takes fp16 on a GPU, and on a CPU bf16
            where the processor has it.
        engine: ``auto`` (TensorRT where a GPU is found, else OpenVINO), ``openvino``,
            ``tensorrt``, ``tensorrt-rtx``, or ``null``, which computes nothing (for measuring).
        transport: how batches reach the server: in a GPU's memory (``cuda``), in shared memory
            (``system``) or in messages (``grpc``); ``auto`` takes the first that works.
        server: ``HOST:PORT`` of a running server's gRPC endpoint; None starts one.
        repository: the model repository to build into and serve from.
        tokenizer: a ``tokenizer.json``; None takes the one in the repository.
        on_error: what becomes of a bad row.
        overwrite: whether an existing output may be replaced, and an unfinished job of that output
            is to begin anew.
        extend: whether inputs may be added to a job, finished or not.
        feeders: processes that tokenize and feed the server; 0 does all in this process, ``auto``
            decides by the engine, the cores and the size of the inputs.
        word_cache: which tokenized words are remembered: ``keep`` for later runs too, ``run`` for
            this run only, ``off`` none. The tokens are the same.
        quiet: whether the progress line and the summary stay silent.
        report: where to write the report as JSON, or None.
        share: part of the server's time that the run takes, above 0; below 1 callers come first.
        server_timeout: seconds to wait for a server elsewhere to come back, when it was lost.
        request_timeout: seconds within which a server is to answer a batch; one that does not
            counts as lost.
        memory_limit: bytes that the client's processes may take, together; None sets no limit.
        block_bytes: uncompressed bytes of input in one block, at most (one row may be longer).
        block_rows: rows in one block, at most; None takes what suits the model's batches.
    """

    inputs: tuple[str, ...]
    output: Path
    model: str
    text_field: str = "text"
    id_field: str | None = None
    id_type: IdType = "auto"
    format: FormatChoice = "auto"
    dtype: Dtype = "float32"
    prompt: str | None = None
    prompt_name: str | None = None
    max_length: int | None = None
    truncate_dim: int | None = None
    normalize: bool = True
    precision: Precision = "auto"
    engine: Engine = "auto"
    transport: TransportChoice = "auto"
    server: str | None = None
    repository: Path = Path("model_repository")
    tokenizer: Path | None = None
    on_error: OnError = "null"
    overwrite: bool = False
    extend: bool = False
    feeders: int | Literal["auto"] = "auto"
    word_cache: WordCacheChoice = "keep"
    quiet: bool = False
    report: Path | None = None
    share: float = 1.0
    server_timeout: float = 300.0
    request_timeout: float = REQUEST_TIMEOUT
    memory_limit: int | None = None
    block_bytes: int = 8 * MIB
    block_rows: int | None = None

    def __post_init__(self) -> None:
        if not self.inputs:
            raise UsageError("no input given; name a file, a folder, a glob, or '-' for stdin")
        if self.inputs.count("-") > 1:
            raise UsageError("standard input ('-') can be read only once")
        if self.prompt is not None and self.prompt_name is not None:
            raise UsageError("--prompt and --prompt-name exclude each other; give one of them")
        if self.overwrite and self.extend:
            raise UsageError("--overwrite and --extend exclude each other; give one of them")
        if not self.text_field:
            raise UsageError("--text-field must not be empty")
        if self.feeders != "auto" and not isinstance(self.feeders, int):
            raise UsageError(f"--feeders must be auto or a number, not {self.feeders!r}")
        if self.feeders != "auto" and self.feeders > FEEDERS_MAX:
            raise UsageError(f"--feeders must be at most {FEEDERS_MAX}, not {self.feeders}")
        for option, value, least in (
            ("--max-length", self.max_length, 1),
            ("--truncate-dim", self.truncate_dim, 1),
            ("--feeders", None if self.feeders == "auto" else self.feeders, 0),
            ("--server-timeout", self.server_timeout, 0),
            ("--request-timeout", self.request_timeout, 1),
            ("--memory-limit", self.memory_limit, 1),
            ("block size", self.block_bytes, 1),
            ("block rows", self.block_rows, 1),
        ):
            if value is not None and not value >= least:  # nor NaN
                raise UsageError(f"{option} must be at least {least}, not {value}")
        self._check_values()
        for option, chosen, choices in (
            ("--format", self.format, FormatChoice),
            ("--id-type", self.id_type, IdType),
            ("--dtype", self.dtype, Dtype),
            ("--precision", self.precision, Precision),
            ("--engine", self.engine, Engine),
            ("--transport", self.transport, TransportChoice),
            ("--on-error", self.on_error, OnError),
            ("--word-cache", self.word_cache, WordCacheChoice),
        ):
            if chosen not in get_args(choices):
                known = ", ".join(get_args(choices))
                raise UsageError(f"{option} must be one of {known}, not {chosen!r}")

    def _check_values(self) -> None:
        for option, seconds in (
            ("--server-timeout", self.server_timeout),
            ("--request-timeout", self.request_timeout),
        ):
            if seconds > LONGEST_TIMEOUT:
                raise UsageError(f"{option} must be at most {LONGEST_TIMEOUT}, not {seconds}")
        if not 0 < self.share <= 1:
            raise UsageError(f"--share must be above 0 and at most 1, not {self.share}")
        for option, text in (("--prompt", self.prompt), ("--text-field", self.text_field)):
            if text is not None and not is_utf8(text):
                raise UsageError(f"{option} must be UTF-8, not {os.fsencode(text)!r}")


def host_of(server: str) -> str:
    """Returns the host of ``HOST:PORT``, as ``--server`` has it.

    Raises:
        UsageError: it is something else.
    """
    host, _, port = server.rpartition(":")
    if not host or "/" in server or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(
            f"--server {server} (or HEADRACE_SERVER): expected HOST:PORT of a gRPC endpoint"
        )
    return host
