"""Encoders of a given size with random weights: how fast one is does not depend on its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer

VOCABULARY = 30_522
POSITIONS = 512
_SPREAD = 0.02  # BERT's initializer_range
_TYPES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The size of a BERT encoder.

    Attributes:
        name: of the model that has it.
        layers: number of layers.
        hidden: width of a token's vector.
        heads: attention heads.
        wide: width between the two products of the feed-forward part.
        vocabulary: rows of the table of words.
        positions: tokens of the longest row.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    wide: int
    vocabulary: int = VOCABULARY
    positions: int = POSITIONS

    @property
    def matrix_weights(self) -> int:
        """Numbers in the matrices that every token is multiplied with.

        Query, key, value and output, and the two of the feed-forward part. Tables are looked up,
        and vectors (biases, LayerNorm) are left out.
        """
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.wide)

    def flops(self, padded: int, squares: int) -> int:
        """Returns the floating-point operations that embed some batches.

        ``2 W`` a padded token for the matrices (a multiplication and an addition each) and
        ``4 S hidden`` a padded token and layer for the attention over ``S`` padded tokens: the
        forward part of Chowdhery et al. 2022 (PaLM, https://arxiv.org/abs/2204.02311, appendix
        B), ``2 N + 4 L H Q T``. Softmax, LayerNorm, GELU and pooling are left out, as there.

        Args:
            padded: tokens of all batches, padding included.
            squares: sum over all rows of their padded length squared.
        """
        return 2 * self.matrix_weights * padded + 4 * self.layers * self.hidden * squares

    def describe(self) -> str:
        """Returns its numbers for a person."""
        return f"{self.layers} layers x {self.hidden}, {self.heads} heads, {self.wide}"


GEOMETRIES = {
    geometry.name: geometry
    for geometry in (
        Geometry(name="e5-small", layers=12, hidden=384, heads=12, wide=1536),
        Geometry(name="e5-base", layers=12, hidden=768, heads=12, wide=3072),
        Geometry(name="e5-large", layers=24, hidden=1024, heads=16, wide=4096),
    )
}
"""Those of intfloat's E5 (Wang et al. 2022, https://arxiv.org/abs/2212.03533), English."""


def write_model(geometry: Geometry, folder: Path, tokenizer: Tokenizer) -> None:
    """Writes a model as sentence-transformers saves one: mean pooling, normalised vectors.

    Args:
        geometry: its size.
        folder: where to; made.
        tokenizer: a BERT one, of no more tokens than the vocabulary has.
    """
    pooling = folder / "1_Pooling"
    pooling.mkdir(parents=True)
    (folder / "2_Normalize").mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(_weights(geometry), folder / "model.safetensors", metadata={"format": "pt"})
    for path, content in (
        (
            "config.json",
            {
                "architectures": ["BertModel"],
                "hidden_act": "gelu",
                "hidden_size": geometry.hidden,
                "intermediate_size": geometry.wide,
                "layer_norm_eps": 1e-12,
                "max_position_embeddings": geometry.positions,
                "model_type": "bert",
                "num_attention_heads": geometry.heads,
                "num_hidden_layers": geometry.layers,
                "pad_token_id": 0,
                "type_vocab_size": _TYPES,
                "vocab_size": geometry.vocabulary,
            },
        ),
        (
            "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": geometry.positions,
                "pad_token": "[PAD]",
                "unk_token": "[UNK]",
                "cls_token": "[CLS]",
                "sep_token": "[SEP]",
                "mask_token": "[MASK]",
            },
        ),
        ("sentence_bert_config.json", {"max_seq_length": geometry.positions}),
        (
            "modules.json",
            [
                {
                    "idx": at,
                    "name": str(at),
                    "path": path,
                    "type": f"sentence_transformers.models.{kind}",
                }
                for at, (path, kind) in enumerate(
                    (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
                )
            ],
        ),
        (
            "1_Pooling/config.json",
            {"word_embedding_dimension": geometry.hidden, "pooling_mode_mean_tokens": True},
        ),
    ):
        (folder / path).write_text(json.dumps(content, indent=2) + "\n")


def _weights(geometry: Geometry) -> dict[str, NDArray[np.float16]]:
    """Returns a BERT's tensors by the names of transformers, always the same ones."""
    random = np.random.default_rng(0)
    hidden, wide = geometry.hidden, geometry.wide
    found: dict[str, NDArray[np.float16]] = {}

    def table(name: str, rows: int) -> None:
        numbers = random.standard_normal((rows, hidden), np.float32) * np.float32(_SPREAD)
        found[f"embeddings.{name}_embeddings.weight"] = numbers.astype(np.float16)

    def linear(name: str, into: int, out: int) -> None:
        numbers = random.standard_normal((out, into), np.float32) * np.float32(_SPREAD)
        found[f"{name}.weight"] = numbers.astype(np.float16)
        found[f"{name}.bias"] = np.zeros(out, np.float16)

    def norm(name: str) -> None:
        found[f"{name}.LayerNorm.weight"] = np.ones(hidden, np.float16)
        found[f"{name}.LayerNorm.bias"] = np.zeros(hidden, np.float16)

    table("word", geometry.vocabulary)
    table("position", geometry.positions)
    table("token_type", _TYPES)
    norm("embeddings")
    for layer in range(geometry.layers):
        prefix = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            linear(f"{prefix}.attention.self.{part}", hidden, hidden)
        linear(f"{prefix}.attention.output.dense", hidden, hidden)
        norm(f"{prefix}.attention.output")
        linear(f"{prefix}.intermediate.dense", hidden, wide)
        linear(f"{prefix}.output.dense", wide, hidden)
        norm(f"{prefix}.output")
    linear("pooler.dense", hidden, hidden)  # not used, but transformers misses it
    return found
