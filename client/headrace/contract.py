"""What a model repository promises and a client relies on; standard library only.

The launcher writes a :class:`Contract` as JSON into ``parameters["headrace"]`` of a model's
``config.pbtxt``; the client reads it back from the server. Nothing else passes between the two.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
PARAMETER = "headrace"
INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
EMBEDDING = "embedding"
TEXT = "text"
TOKENS = "tokens"
TEXT_PARAMETER = "headrace_text"
TOKENIZER_FILE = "tokenizer.json"
ALONE = "alone"
"""Parameter of a request that is to be computed as it was sent, with no other's rows."""
SERVER_NAME = r"headrace-.*?(-http-(?P<http>\d+))?(-gpus-(?P<gpus>[^ ]+))?"
"""What a Triton server that headrace has started is called: a pattern.

``http`` is the port of its HTTP endpoint; ``gpus`` are the UUIDs of its GPUs, with commas between,
in the order in which its process numbers them.
"""
LONGEST_NAME = 255
"""Of a model, in characters: what a folder may be called."""
MOST_ROWS, MOST_TOKENS, MOST_NUMBERS = 1 << 16, 1 << 22, 1 << 20
"""Of a batch, of a batch with padding, of a vector: a client has memory for them."""
_LONGEST_SLUG = 100
_MOST_IN_FLIGHT = 1 << 10
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?")
BUILT_FOR = r"(openvino|tensorrt(-rtx)?-[0-9a-z.]+-sm\d+)"
"""What the name of an entry ends with that lies beside one of another engine or GPU: a pattern."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A range of sequence lengths that are batched together.

    Attributes:
        max_length: longest padded row of the bucket, in tokens; the range begins after the
            previous bucket's.
        max_batch: largest number of rows in one batch of the bucket.
    """

    max_length: int
    max_batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """The settings of one model in a repository.

    Attributes:
        name: name of the model in Triton.
        model_id: where the weights came from, as a person would name it.
        revision: commit of the model on its hub, or "" where there is none.
        weights_hash: SHA-256 (hex) over the weight files.
        tokenizer_hash: SHA-256 (hex) of ``tokenizer.json``.
        max_length: tokens a row is cut to by default, special tokens included.
        vocab_size: token ids are below this number.
        pad_id: token id that fills a batch's shorter rows.
        pad_multiple: padded lengths are rounded up to a multiple of this many tokens.
        pooling: ``mean``, ``cls`` or ``last``.
        normalized: whether the engine divides each vector by its L2 norm.
        dimension: length of a vector.
        prompts: named prefixes that the model was trained with.
        default_prompt: name of the prompt that the model demands where none is chosen, or None.
        precision: ``fp32``, ``bf16`` or ``fp16``: what the engine computes in.
        dtype: what the engine answers: ``float32`` or ``float16``.
        buckets: disjoint, ascending; the last one's ``max_length`` is the hard limit of a row.
        token_budget: most padded tokens in one batch.
        in_flight: batches that keep one instance of the model busy; a client keeps at least so
            many running.
        engine: ``openvino``, ``tensorrt``, ``tensorrt-rtx``, or ``null`` (which answers at once,
            for measuring all the rest).
        engine_version: version of that engine's library.
        capability: CUDA compute capability that a plan is for, as ``9.0``; "" on a CPU.
    """

    name: str
    model_id: str
    revision: str
    weights_hash: str
    tokenizer_hash: str
    max_length: int
    vocab_size: int
    pad_id: int
    pad_multiple: int
    pooling: str
    normalized: bool
    dimension: int
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    precision: str
    dtype: str
    buckets: tuple[Bucket, ...]
    token_budget: int
    in_flight: int
    engine: str
    engine_version: str
    capability: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def max_batch(self) -> int:
        """The most rows of any batch: what Triton calls ``max_batch_size``."""
        return max(bucket.max_batch for bucket in self.buckets)

    @property
    def built_for(self) -> str:
        """Where the engine runs, as :data:`BUILT_FOR` has it: ``tensorrt-10.16.1.11-sm90``.

        A plan is bound to TensorRT's version and to the GPU's capability; the other engines are
        known by their names alone.
        """
        if not self.capability:
            return self.engine
        return f"{self.engine}-{self.engine_version}-sm{self.capability.replace('.', '')}"

    @property
    def length_limit(self) -> int:
        """The longest row that the engine takes, in tokens."""
        return self.buckets[-1].max_length

    def to_json(self) -> str:
        """Returns the contract as one line of JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """Reads what :meth:`to_json` wrote.

        Raises:
            ValueError: the text is not a contract of this schema version.
        """
        remedy = "rebuild the entry with this version's 'headrace build'"
        try:
            raw = json.loads(text)
            version = raw["schema_version"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"the model's headrace settings are unreadable; {remedy}") from error
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"the model's headrace settings are of schema {version}, "
                f"this client reads schema {SCHEMA_VERSION}; {remedy}"
            )
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(raw) - known):
            raise ValueError(f"unknown headrace settings {unknown}; {remedy}")
        try:
            raw["buckets"] = tuple(Bucket(**bucket) for bucket in raw["buckets"])
            contract = cls(**raw)
        except (TypeError, KeyError) as error:
            raise ValueError(f"the model's headrace settings are incomplete; {remedy}") from error
        if (wrong := next(_faults(contract), None)) is not None:
            raise ValueError(f"the model's headrace settings have an impossible {wrong}; {remedy}")
        return contract


def is_utf8(text: str) -> bool:
    """Returns whether a text can be written as UTF-8: one with lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_name(name: str) -> str:
    """Returns the name of the model that takes texts, of an entry of that name."""
    return f"{name}-text"


def tokenize_name(name: str) -> str:
    """Returns the name of the model that tokenizes for :func:`text_name`."""
    return f"{name}-tokenize"


def is_name(text: str) -> bool:
    """Returns whether a model of a repository may be called so.

    Letters, digits, ``.``, ``_`` and ``-``, none of the last two at either end but ``_``: a name
    is a folder's, and stands in requests.
    """
    return len(text) <= LONGEST_NAME and _NAME.fullmatch(text) is not None


def _faults(contract: Any) -> Iterator[str]:
    """Yields the settings that no launcher writes: they come from a server, which may be anyone's.

    A name becomes part of paths, and sizes become memory.
    """
    if not isinstance(contract.name, str) or (contract.name and not is_name(contract.name)):
        yield "name"
    for kind, names in _TEXTS.items():
        yield from (name for name in names if not _is_text(getattr(contract, name), kind))
    for name, (least, most) in _RANGES.items():
        if not _is_number(getattr(contract, name), least, most):
            yield name
    if not isinstance(contract.normalized, bool):
        yield "normalized"
    prompts, default = contract.prompts, contract.default_prompt
    if not isinstance(prompts, dict) or not all(isinstance(one, str) for one in prompts.values()):
        yield "prompts"
    elif default is not None and (not isinstance(default, str) or default not in prompts):
        yield "default_prompt"
    lengths = [bucket.max_length for bucket in contract.buckets]
    if (
        not all(_is_number(length, 1, MOST_TOKENS) for length in lengths)
        or not all(_is_number(bucket.max_batch, 1, MOST_ROWS) for bucket in contract.buckets)
        or not lengths
        or lengths != sorted(set(lengths))
    ):
        yield "buckets"


_TEXTS: dict[str, tuple[str, ...]] = {
    r".*": ("model_id", "revision", "pooling", "engine", "engine_version"),
    r"[0-9a-f]{64}": ("weights_hash", "tokenizer_hash"),
    r"fp32|bf16|fp16": ("precision",),
    r"float32|float16": ("dtype",),
    r"(\d{1,2}\.\d)?": ("capability",),
}
_RANGES = {
    "max_length": (1, MOST_TOKENS),
    "vocab_size": (1, (1 << 31) - 1),
    "pad_id": (0, (1 << 31) - 1),
    "pad_multiple": (1, MOST_TOKENS),
    "dimension": (1, MOST_NUMBERS),
    "token_budget": (1, MOST_TOKENS),
    "in_flight": (1, _MOST_IN_FLIGHT),
}


def _is_text(value: Any, pattern: str) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value, re.DOTALL) is not None


def _is_number(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def model_slug(model: str) -> str:
    """Returns the name in a repository of a model given as a folder, a hub id or a name.

    The last part of the path in lower case, with everything but letters, digits, ``.``, ``_``
    and ``-`` turned into ``-``; never empty, never starting with a dot, of at most 100 characters.
    """
    last = model.rstrip("/").rsplit("/", 1)[-1].lower()
    slug = re.sub(r"[^a-z0-9._-]+", "-", last).strip("-.")
    return slug[:_LONGEST_SLUG].strip("-.") or "model"


def entry_name(
    model: str,
    *,
    precision: str = "auto",
    truncate_dim: int | None = None,
    normalize: bool = True,
    engine: str = "auto",
) -> str:
    """Returns the name of the repository entry for a model built with these settings.

    The defaults give the bare :func:`model_slug`; every other setting adds a suffix, so that
    variants lie beside each other: ``all-minilm-l6-v2-fp32-d128-raw``.
    """
    parts = [model_slug(model)]
    if engine == "null":
        parts.append("null")
    if precision != "auto":
        parts.append(precision)
    if truncate_dim is not None:
        parts.append(f"d{truncate_dim}")
    if not normalize:
        parts.append("raw")
    return "-".join(parts)


@functools.cache
def machine_tag() -> str:
    """Returns 12 hex digits that stand for this boot of this machine and this PID namespace.

    Shared memory of both sides is named after it and a process id, so that each can tell what a
    dead process has left from what lives elsewhere: in another container, or on another host.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    return hashlib.sha256(f"{boot}{namespace}".encode()).hexdigest()[:12]


def is_leftover(tag: str, pid: str) -> bool:
    """Returns whether something named after ``tag`` and ``pid`` belongs to a dead process of ours.

    Args:
        tag: what :func:`machine_tag` gave where the name was made.
        pid: process id, in decimal digits.
    """
    return tag == machine_tag() and pid.isdigit() and not Path(f"/proc/{pid}").exists()


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def try_tokenizer(path: Path) -> None:
    """Has another process load a ``tokenizer.json`` and use it, once for each content.

    ``tokenizers`` is compiled code that takes a good deal of the file at its word: what is wrong
    there can end the process that loads it, or take all of its memory. See
    :mod:`headrace.tokenizertrial`.

    Raises:
        ValueError: the file cannot be used; the message says why, in a few words.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError("it is no regular file")
    if size > MOST_TOKENIZER_BYTES:
        raise ValueError(f"it has {size} bytes, more than any tokenizer")
    digest = file_hash(path)
    if digest in _TRIED:
        return
    script = Path(__file__).with_name("tokenizertrial.py")
    with tempfile.TemporaryFile() as said:
        try:
            status = subprocess.run(
                [sys.executable, "-P", str(script), str(path.absolute())],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.DEVNULL,  # there a panic would tell of itself
                env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
                timeout=_TRIAL_SECONDS,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise ValueError(f"it did not tokenize a few words in {_TRIAL_SECONDS} s") from None
        said.seek(0)
        answer = said.read(1 << 12).decode(errors="replace").strip()
    if status == 0:
        _TRIED.add(digest)
    elif status > 0 and answer:
        raise ValueError(answer)
    else:
        raise ValueError("tokenizers breaks down over it, or wants more memory than it may have")


MOST_TOKENIZER_BYTES = 256 << 20
"""Several times the largest ``tokenizer.json`` in use."""
_TRIAL_SECONDS = 120
_TRIED: set[str] = set()
