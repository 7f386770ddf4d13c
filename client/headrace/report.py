"""What a run did: a value to read, a JSON file, a summary for a person."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from headrace.errors import OutputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The outcome of one run; times in seconds.

    Attributes:
        output: the file written.
        errors_file: where the bad rows are described, or None if there are none.
        rows: rows of the output; with ``on_error="skip"`` bad rows are not among them.
        resumed_rows: rows among them that earlier runs of the job have written. What follows up to
            ``batches`` is of the whole job, all else of this run.
        bad_rows: records that could not be embedded.
        truncated_rows: rows cut to ``max_length`` tokens.
        tokens: tokens embedded, special tokens included, padding not.
        padding: share of the computed tokens that was padding, 0 to 1.
        batches: batches sent to the server.
        seconds: from the first byte read to the output in place.
        rows_per_second: rows that this run has written over ``seconds``.
        stage_seconds: where the time went; ``build`` and ``start`` come before ``seconds`` begins,
            ``read``, ``parse`` and ``tokenize`` run beside the other stages, and the times of
            several feeders are added up.
        stage_cpu_seconds: what each stage's own thread computed meanwhile.
        cpu_seconds: processor time of all processes of the client during ``seconds``, threads of
            libraries included; the server's is not.
        memory_bytes: most memory that the client's processes may take together, by calculation; see
            :mod:`headrace.budget`.
        feeders: processes that tokenized and fed the server; 0 is this one.
        feeder_deaths: feeder processes that died and whose blocks others did.
        server_losses: how often the server was lost and got back.
        word_cache: how words were remembered, or why not.
        words: words that the tokenizer's cache was asked for.
        new_words: words among them that it did not know.
        plain_rows: rows tokenized without the cache.
        checked_rows: rows tokenized both ways and compared.
        model: name of the model in the repository.
        model_id: where its weights came from.
        precision: what the engine computed in.
        engine: what computed, and its version.
        dimension: length of a vector.
        dtype: type of the written numbers.
        max_length: tokens a row was cut to.
        prompt: text put in front of every row, "" for none.
        prompt_source: why that prompt.
        transport: how batches reached the server.
        transport_reason: why that way.
        server: ``HOST:PORT`` that answered.
        inputs: the files read, in order.
        damage: why reading stopped before the end of the inputs, or None.
        versions: of headrace and the libraries that matter to the result.
    """

    output: str
    errors_file: str | None
    rows: int
    resumed_rows: int
    bad_rows: int
    truncated_rows: int
    tokens: int
    padding: float
    batches: int
    seconds: float
    rows_per_second: float
    stage_seconds: dict[str, float]
    stage_cpu_seconds: dict[str, float]
    cpu_seconds: float
    memory_bytes: int
    feeders: int
    feeder_deaths: int
    server_losses: int
    word_cache: str
    words: int
    new_words: int
    plain_rows: int
    checked_rows: int
    model: str
    model_id: str
    precision: str
    engine: str
    dimension: int
    dtype: str
    max_length: int
    prompt: str
    prompt_source: str
    transport: str
    transport_reason: str
    server: str
    inputs: tuple[str, ...]
    damage: str | None
    versions: dict[str, str]

    def to_json(self) -> str:
        """Returns the report as indented JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def write(self, path: Path) -> None:
        """Writes the report as JSON.

        Raises:
            OutputError: the file cannot be written.
        """
        fresh = path.with_name(f".{path.name[:200]}.{os.getpid()}.new")
        data = f"{self.to_json()}\n".encode(errors="surrogateescape")
        try:
            if path.exists() and not path.is_file():  # a pipe, or /dev/stdout
                path.write_bytes(data)
                return
            try:
                fresh.write_bytes(data)
                fresh.replace(os.path.realpath(path))
            finally:
                fresh.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"the report {path} cannot be written ({error.strerror}); the output is complete"
            ) from error

    def summary(self) -> str:
        """Returns some lines for a person."""
        stages = ", ".join(
            f"{name} {seconds:.2f}s" for name, seconds in self.stage_seconds.items() if seconds
        )
        lines = [
            f"{self.rows:,} rows of {self.dimension} {self.dtype} -> {self.output}"
            + (f" ({self.resumed_rows:,} of them by earlier runs)" if self.resumed_rows else ""),
            f"  bad rows {self.bad_rows:,}"
            + (f" (see {self.errors_file})" if self.errors_file else ""),
            f"  truncated rows {self.truncated_rows:,} (to {self.max_length} tokens)",
            f"  tokens {self.tokens:,} · padding {self.padding:.1%} · batches {self.batches:,}",
            f"  {self.seconds:.2f} seconds · {self.rows_per_second:,.0f} rows/s",
            f"  time: {stages}",
            f"  words {self.words:,}, new {self.new_words:,} ({self.word_cache}) · rows tokenized "
            f"plainly {self.plain_rows:,} · checked {self.checked_rows:,}",
            f"  feeders {self.feeders}"
            + (f" ({self.feeder_deaths} died and were replaced)" if self.feeder_deaths else "")
            + (f" · server lost {self.server_losses} times" if self.server_losses else "")
            + f" · processor time {self.cpu_seconds:.2f}s · memory at most "
            f"{self.memory_bytes / 2**30:.1f} GiB",
            f"  model {self.model_id} · {self.precision} · {self.engine}",
            f"  transport {self.transport} ({self.transport_reason}) · server {self.server}",
        ]
        if self.prompt:
            lines.append(f"  prompt {self.prompt!r} ({self.prompt_source})")
        return "\n".join(lines)
