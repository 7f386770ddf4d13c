"""Finds a model and reads everything that is said about it beside its weights."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.contract import MOST_NUMBERS, TOKENIZER_FILE, is_utf8
from headrace.errors import UsageError
from headrace_launcher.locate import SAFETENSORS_FAMILIES, Located, locate
from headrace_launcher.modelfiles import as_object, inside, is_count, read_object, read_tokenizer
from headrace_launcher.modules import Dense, read_chain
from headrace_launcher.onnxfile import external_files

__all__ = ["SAFETENSORS_FAMILIES", "Dense", "Model", "find_model"]

# Families that count positions from the padding id plus one (fairseq's make_positions), so that a
# table of 514 rows takes 512 tokens.
OFFSET_FAMILIES = frozenset(
    {"roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl", "roberta-prelayernorm"}
)
# The names that sentence-transformers has given to the file over the years.
TRANSFORMER_CONFIGS = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# transformers writes 1e30 where a tokenizer knows no limit.
UNLIMITED = 1_000_000
CHUNK = 1 << 20  # bytes read at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model in a local folder.

    Attributes:
        model_id: the model as a person would name it.
        revision: commit on the hub, or "" where it came from elsewhere.
        folder: the encoder's local folder.
        config: its ``config.json``.
        weights: its safetensors files, in a stable order; empty where there are none.
        onnx: the ``onnx/model.onnx`` that it ships, or None.
        tokenizer: its ``tokenizer.json``.
        pooling: ``mean``, ``cls`` or ``last``.
        dense: the dense layers after pooling, in order.
        normalized: whether the model's own last step is L2 normalisation.
        max_length: tokens that a row is cut to, special tokens included.
        max_positions: most tokens that the encoder can take, special tokens included.
        pad_id: token id that fills a batch's shorter rows.
        prompts: named prefixes that the model was trained with.
        default_prompt: name of the prompt that is used where none is chosen, or None.
    """

    model_id: str
    revision: str
    folder: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    onnx: Path | None
    tokenizer: Path
    pooling: str
    dense: tuple[Dense, ...]
    normalized: bool
    max_length: int
    max_positions: int
    pad_id: int
    prompts: Mapping[str, str]
    default_prompt: str | None

    @property
    def dimension(self) -> int:
        """Length of a vector.

        Raises:
            UsageError: ``config.json`` does not say how wide the encoder is, or nonsense.
        """
        if self.dense:
            return self.dense[-1].out_features
        file = self.folder / "config.json"
        for name in ("hidden_size", "dim", "d_model", "n_embd"):
            if (width := self.config.get(name)) is None:
                continue
            if is_count(width, most=MOST_NUMBERS):
                return width
            raise UsageError(
                f"{file}: {name} is {str(width)[:100]!r}; it must be a number from 1 to "
                f"{MOST_NUMBERS}: download or export the model again"
            )
        raise UsageError(
            f"{file} has no hidden_size, so the length of its vectors is not known; add it"
        )

    @property
    def family(self) -> str:
        """The architecture: ``model_type`` of ``config.json``."""
        return str(self.config["model_type"])

    @property
    def from_safetensors(self) -> bool:
        """Whether the graph is written from the safetensors files, else the ONNX file is taken."""
        # A model with code of its own may compute anything, whatever it calls its type.
        own_code = "AutoModel" in as_object(self.config.get("auto_map"))
        return bool(self.weights) and self.family in SAFETENSORS_FAMILIES and not own_code

    def weights_hash(self) -> str:
        """Returns the SHA-256 (hex) over the bytes of the weight files that the graph is made from.

        In this order: the safetensors files, or the ONNX file and its external data; then each
        dense layer's. For a model of one file it is that file's own SHA-256.

        Raises:
            UsageError: the ONNX file cannot be read.
        """
        if self.from_safetensors or self.onnx is None:
            files = list(self.weights)
        else:
            files = [self.onnx, *external_files(self.onnx)]
        digest = hashlib.sha256()
        for file in (*files, *(layer.weights for layer in self.dense)):
            with file.open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    digest.update(chunk)
        return digest.hexdigest()


def find_model(model: str, *, revision: str | None = None) -> Model:
    """Finds a model and reads its settings.

    Args:
        model: a folder, the name of an installed package that carries a model, or a Hugging Face
            id; they are tried in this order (:func:`headrace_launcher.locate.locate`).
        revision: branch, tag or commit on the hub; None takes ``main``.

    Raises:
        UsageError: there is no such model, a file of it is missing or malformed, or one of its
            settings cannot be followed.
        MissingDependencyError: it must be downloaded, and huggingface_hub is not installed.
    """
    located = locate(model, revision=revision)
    chain = read_chain(located.folder)
    folder = chain.encoder
    config = read_object(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise UsageError(
            f"{folder / 'config.json'} is missing or has no model_type; name the folder that a "
            "transformers or sentence-transformers model was saved to"
        )
    tokenizer = folder / TOKENIZER_FILE
    if not tokenizer.is_file():
        path = shlex.quote(str(folder))
        raise UsageError(
            f"{folder} has no tokenizer.json; make one with transformers: from transformers import "
            f"AutoTokenizer; AutoTokenizer.from_pretrained({path!r}).save_pretrained({path!r})"
        )
    weights, onnx = _weight_files(located, folder)
    settings = _transformer_settings(folder)
    _check_lowercasing(settings, tokenizer)
    pad_id = _pad_id(config, tokenizer)
    max_length, max_positions = _lengths(folder, config, settings, pad_id)
    prompts, default_prompt = _prompts(located.folder)
    # A folder's name may hold bytes that are no text; what stands in a config must be.
    model_id = located.model_id.encode(errors="backslashreplace").decode()
    return Model(
        model_id=model_id,
        revision=located.revision,
        folder=folder,
        config=config,
        weights=weights,
        onnx=onnx,
        tokenizer=tokenizer,
        pooling=chain.pooling,
        dense=chain.dense,
        normalized=chain.normalized,
        max_length=max_length,
        max_positions=max_positions,
        pad_id=pad_id,
        prompts=prompts,
        default_prompt=default_prompt,
    )


def _weight_files(located: Located, folder: Path) -> tuple[tuple[Path, ...], Path | None]:
    """Returns the safetensors files, and the ONNX file."""
    candidates = [root / "onnx" / "model.onnx" for root in (folder, located.folder)]
    onnx = next((file for file in candidates if file.is_file()), None)
    single = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    if single.is_file():
        return (single,), onnx
    if index.is_file():
        shards = read_object(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise UsageError(f"{index} has no weight_map; download or export the model again")
        files = tuple(
            inside(folder, name, named_in=index) for name in sorted(set(map(str, shards.values())))
        )
        if missing := [file.name for file in files if not file.is_file()]:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise UsageError(
                f"{folder} lacks {', '.join(missing[:3])}{more}, which {index.name} names; "
                "download it again"
            )
        return files, onnx
    if onnx is None:
        path = str(folder) if located.revision == "" else located.model_id
        raise UsageError(
            f"{path} has neither model.safetensors nor onnx/model.onnx (a pytorch_model.bin is not "
            "read: it can run code); convert it with transformers: from transformers import "
            f"AutoModel; AutoModel.from_pretrained({path!r}).save_pretrained('converted'), and put "
            "the other files beside it"
        )
    return (), onnx


def _transformer_settings(folder: Path) -> dict[str, Any]:
    """Returns the settings that sentence-transformers keeps for the encoder."""
    file = next((folder / n for n in TRANSFORMER_CONFIGS if (folder / n).is_file()), None)
    if file is None:
        return {}
    settings = read_object(file)
    expected = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
    for key, value in expected.items():
        if settings.get(key, value) != value:
            raise UsageError(
                f"{file}: {key} {settings[key]!r} is not supported, only {value!r}; "
                "choose another model"
            )
    for key in ("processing_kwargs", "tokenizer_name_or_path", "query_expansion"):
        if settings.get(key):
            raise UsageError(f"{file}: {key} is not supported; choose another model")
    return settings


def _check_lowercasing(settings: Mapping[str, Any], tokenizer: Path) -> None:
    """Refuses ``do_lower_case`` where the tokenizer does not do it by itself.

    sentence-transformers then puts a Lowercase normalizer in front of the tokenizer's own, unless
    that one lowercases already; here ``tokenizer.json`` is used as it is.
    """
    if not settings.get("do_lower_case"):
        return
    normalizer = as_object(read_tokenizer(tokenizer).get("normalizer"))
    parts = normalizer.get("normalizers")
    steps = [normalizer, *map(as_object, parts if isinstance(parts, list) else ())]
    if not any(step.get("type") == "Lowercase" or step.get("lowercase") for step in steps):
        raise UsageError(
            f"{tokenizer.parent}: do_lower_case is true, but tokenizer.json does not lowercase; "
            "load the model with sentence-transformers, save_pretrained it, and use that folder"
        )


def _pad_id(config: Mapping[str, Any], tokenizer: Path) -> int:
    for value in (
        config.get("pad_token_id"),
        1 if config["model_type"] in OFFSET_FAMILIES else None,  # the default of their classes
        as_object(read_tokenizer(tokenizer).get("padding")).get("pad_id"),
    ):
        if is_count(value, least=0):
            return value
        if isinstance(value, int | float) and value > 0:
            raise UsageError(
                f"{tokenizer.parent}: rows would be padded with the token {str(value)[:100]}, "
                "which is none; correct pad_token_id in config.json or padding in tokenizer.json"
            )
    return 0


def _lengths(
    folder: Path, config: Mapping[str, Any], settings: Mapping[str, Any], pad_id: int
) -> tuple[int, int]:
    """Returns the default and the largest length of a row, in tokens."""
    positions = config.get("max_position_embeddings")
    limit = UNLIMITED
    if positions is not None:
        offset = pad_id + 1 if config["model_type"] in OFFSET_FAMILIES else 0
        # Some configurations have -1 or 0 where there is no limit.
        if is_count(positions, least=offset + 1):
            limit = positions - offset
        elif not is_count(positions, least=-1, most=0):
            raise UsageError(
                f"{folder / 'config.json'}: max_position_embeddings is {str(positions)[:100]!r}, "
                "which leaves no room for a row; download or export the model again"
            )
    wanted = settings.get("max_seq_length")
    if wanted is None:
        wanted = read_object(folder / "tokenizer_config.json").get("model_max_length", UNLIMITED)
    if isinstance(wanted, bool) or not isinstance(wanted, int | float) or not wanted >= 1:
        raise UsageError(
            f"{folder}: the longest row is {str(wanted)[:100]!r}; set max_seq_length to a number"
        )
    length = int(min(wanted, limit))
    if length >= UNLIMITED:
        raise UsageError(
            f"{folder} does not say how long a row may be; set max_seq_length in "
            f"{TRANSFORMER_CONFIGS[0]}"
        )
    return length, limit if limit < UNLIMITED else length


def _prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    file = folder / "config_sentence_transformers.json"
    config = read_object(file)
    prompts = config.get("prompts") or {}
    default = config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise UsageError(f"{file}: prompts is not a map of names to texts; correct it")
    if not is_utf8("".join((*prompts, *prompts.values()))):
        raise UsageError(f"{file}: a prompt holds a lone surrogate, which is no text; correct it")
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise UsageError(
            f"{file}: default_prompt_name {str(default)[:100]!r} is none of its prompts"
        )
    return prompts, default
