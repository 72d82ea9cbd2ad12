"""Options that several recipes have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dittools.options import AUTO, option
from dittools.orders.named import ORDERS
from dittools.selection.budget import SCOPES

__all__ = ["AUTO", "option", "order_option", "scope_option", "share_option"]


def scope_option(default: str, choices: Sequence[str] = SCOPES) -> Any:
    """Which query blocks share one budget."""
    return option(default, "who shares a budget", choices=choices)


def order_option(default: str) -> Any:
    """A static token order by name."""
    return option(default, "token order", choices=ORDERS)


def share_option(help: str) -> Any:
    """A share above 0 that decides what is kept in place of the sparsity; None leaves it to the sparsity."""
    return option(None, help, kind="number", above=0, max=1)
