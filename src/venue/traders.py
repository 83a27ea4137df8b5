"""What is traded: the instruments of the local venue, and where their prices begin."""
from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import dataclass

from hftpipe.errors import UsageError

NANO = 1_000_000_000
STOCK = re.compile(r"[A-Z][A-Z.]{0,9}")
PAIR = re.compile(r"[A-Z]{2,7}/[A-Z]{2,5}")
NAMESPACE = uuid.UUID("6b1f1f0e-2f0a-5e0e-9f6c-1d9a5f0c7d11")     # of asset ids; any fixed one


@dataclass(frozen=True)
class Instrument:
    """One tradable symbol.

    Attributes
    ----------
    price : int, nanoprice
        Where the traders' value begins.
    tick : int, nanoprice
    unit : int, nanoqty
        The traders' sizes are multiples of it: a round lot.
    deep : bool
        Whether price levels are published: crypto, as at the broker.
    """

    symbol: str
    price: int
    tick: int
    unit: int
    deep: bool

    @property
    def crypto(self) -> bool:
        return self.deep

    @property
    def asset_id(self) -> str:
        return str(uuid.uuid5(NAMESPACE, self.symbol))

    @property
    def plain(self) -> str:
        """The symbol as positions write it: BTCUSD for BTC/USD."""
        return self.symbol.replace("/", "")


def instrument(symbol: str, price: int = 0) -> Instrument:
    """The instrument called *symbol*; a pair ``AAA/BBB`` is crypto, anything else a stock.

    Without a *price* (nanoprice) it begins at one that follows from the symbol alone.
    """
    digest = hashlib.sha256(symbol.encode()).digest()
    if PAIR.fullmatch(symbol):
        price = price or (10_000 + int.from_bytes(digest[:2])) * NANO
        return Instrument(symbol, price, NANO // 100, NANO // 100, True)
    if not STOCK.fullmatch(symbol):
        raise UsageError(f"symbol must be like ACME, BRK.B or BTC/USD, was {symbol!r}")
    price = price or (50 + int.from_bytes(digest[:2]) % 150) * NANO
    return Instrument(symbol, price, NANO // 100, 100 * NANO, False)


def instruments(symbols: tuple[str, ...], prices: dict[str, int]) -> tuple[Instrument, ...]:
    """All of *symbols*, beginning at *prices* (nanoprice) where known."""
    if not symbols or len(set(symbols)) != len(symbols):
        raise UsageError(f"symbols must be one or more, each once, were {','.join(symbols)!r}")
    return tuple(instrument(s, prices.get(s, 0)) for s in symbols)
