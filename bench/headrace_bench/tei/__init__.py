"""Hugging Face Text Embeddings Inference (TEI): found, started in containers, and driven."""
