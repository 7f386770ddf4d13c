"""Shows for some queries the nearest passages of an embedded file.

    python examples/search.py PASSAGES.jsonl EMBEDDINGS.npy --model MODEL [QUERY]...

The queries are embedded by the same model, so query and passage vectors can be compared; all are
of unit length, so the dot product is the cosine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np

import headrace

QUERIES = (
    "Who invented the printing press?",
    "why do computers get 0.1 + 0.2 wrong?",
    "what happens inside a rechargeable battery",
)


def main() -> int:
    """Embeds the queries and prints the nearest passages of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("passages", type=Path)
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--nearest", type=int, default=3)
    parser.add_argument("queries", nargs="*", default=QUERIES)
    arguments = parser.parse_args()

    with arguments.passages.open(encoding="utf-8") as file:
        passages = [json.loads(line) for line in file if line.strip()]
    vectors = np.load(arguments.embeddings)
    assert len(passages) == len(vectors), "one vector for each passage"

    with tempfile.TemporaryDirectory() as folder:
        queries = Path(folder) / "queries.txt"
        queries.write_text("\n".join(arguments.queries) + "\n", encoding="utf-8")
        answer = Path(folder) / "queries.npy"
        headrace.embed(queries, answer, model=arguments.model)
        query_vectors = np.load(answer)

    scores = query_vectors @ vectors.T
    for query, row in zip(arguments.queries, scores, strict=True):
        print(f"\n{query}")
        for index in np.argsort(-row)[: arguments.nearest]:
            text = textwrap.shorten(passages[index]["text"], 96, placeholder=" …")
            print(f"  {row[index]:.3f}  {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
