"""headrace: files of text in, files of embeddings out: exact, row for row.

:func:`embed` does a whole run; every setting is a field of :class:`EmbedConfig`; what was done is
a :class:`Report`; everything that can go wrong is in :mod:`headrace.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.api import embed
    from headrace.config import EmbedConfig
    from headrace.report import Report

__all__ = ["EmbedConfig", "Report", "embed"]


def __getattr__(name: str) -> Any:
    # Loaded when first used: the launcher needs only the contract, and a Ctrl-C in the third of
    # a second that loading takes must find somebody who answers it.
    if name not in __all__:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    from headrace import api, config, report

    return {"embed": api.embed, "EmbedConfig": config.EmbedConfig, "Report": report.Report}[name]


def __dir__() -> list[str]:
    return __all__
