"""headrace: files of text in, files of embeddings out: exact, row for row.

:func:`embed` does a whole run; every setting is a field of :class:`EmbedConfig`; what was done is
a :class:`Report`; everything that can go wrong is in :mod:`headrace.errors`.
"""

from __future__ import annotations

from headrace.api import embed
from headrace.config import EmbedConfig
from headrace.report import Report

__all__ = ["EmbedConfig", "Report", "embed"]
