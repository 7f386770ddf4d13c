"""What it costs: a machine's price an hour against its speed, and an API's price for its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SECONDS_AN_HOUR = 3600


def per_million_rows(price_per_hour: float, rows_per_second: float) -> float:
    """Returns the price of a million rows: ``price / 3600 s / (rows/s) * 1e6``."""
    return price_per_hour / SECONDS_AN_HOUR / rows_per_second * 1e6


def per_billion_tokens(
    price_per_hour: float, rows_per_second: float, tokens_per_row: float
) -> float:
    """Returns the price of 10^9 tokens: ``price / 3600 s / (rows/s * tokens/row) * 1e9``."""
    return price_per_hour / SECONDS_AN_HOUR / (rows_per_second * tokens_per_row) * 1e9


def cost(
    rates: Mapping[str, float],
    tokens_per_row: float,
    *,
    price_per_hour: float | None,
    api_price_per_million_tokens: float | None,
) -> dict[str, Any] | None:
    """Returns the prices of each way and of an API, with the arithmetic in words.

    Args:
        rates: rows a second by way.
        tokens_per_row: mean tokens a row, special tokens included.
        price_per_hour: of the machine, in any currency; None leaves the machine out.
        api_price_per_million_tokens: in the same currency; None leaves the API out.

    Returns:
        ``ways`` and ``api``, each with ``per_million_rows`` and ``per_billion_tokens``; None where
        no price is given.
    """
    if price_per_hour is None and api_price_per_million_tokens is None:
        return None
    ways: dict[str, Any] = {}
    arithmetic: list[str] = []
    if price_per_hour is not None:
        for name, rate in rates.items():
            rows = per_million_rows(price_per_hour, rate)
            tokens = per_billion_tokens(price_per_hour, rate, tokens_per_row)
            ways[name] = {"per_million_rows": rows, "per_billion_tokens": tokens}
            arithmetic.append(
                f"{name}: {price_per_hour:,g} / 3,600 s / {rate:,.1f} rows/s x 1,000,000 rows = "
                f"{money(rows)}; / {tokens_per_row:,.2f} tokens a row x 1,000 = {money(tokens)} "
                f"for 10^9 tokens"
            )
    api: dict[str, float] | None = None
    if api_price_per_million_tokens is not None:
        api = {
            "per_million_rows": api_price_per_million_tokens * tokens_per_row,
            "per_billion_tokens": api_price_per_million_tokens * 1000,
        }
        arithmetic.append(
            f"API: {api_price_per_million_tokens:,g} for 10^6 tokens x {tokens_per_row:,.2f} "
            f"tokens a row = {money(api['per_million_rows'])} for 10^6 rows; x 1,000 = "
            f"{money(api['per_billion_tokens'])} for 10^9 tokens (tokens of this model, special "
            f"ones included and rows cut to its limit; an API counts its own, of the whole text)"
        )
    return {
        "price_per_hour": price_per_hour,
        "api_price_per_million_tokens": api_price_per_million_tokens,
        "tokens_per_row": tokens_per_row,
        "ways": ways,
        "api": api,
        "arithmetic": arithmetic,
    }


def money(amount: float) -> str:
    """Returns an amount with as many digits as tell something."""
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.3g}"
