"""From configuration to stages: the one place that knows what each stage is made of.

The live process host, the backtest and the benches all build through here, so they run the
same stages joined by the same links; only where the rings lie and what stands behind the
gateway differ.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy

from hftpipe import _clock, _ring, schema, topology
from hftpipe._day import Days
from hftpipe._gate import Risk
from hftpipe._ledger import Ledger
from hftpipe._order import Orders
from hftpipe._stage import Stage
from hftpipe._stage_book import BookStage
from hftpipe._stage_feed import FeedStage, Source
from hftpipe._stage_figure import FigureStage
from hftpipe._stage_gateway import GatewayStage
from hftpipe._stage_ledger import LedgerStage
from hftpipe._stage_risk import RiskStage
from hftpipe._stage_signal import SignalStage
from hftpipe._stage_updates import UpdatesStage
from hftpipe.config import Config

if TYPE_CHECKING:
    from hftpipe._board import Board
    from hftpipe._control import Control
    from hftpipe._ring import Ring
    from hftpipe._strategy import Strategy
    from hftpipe._wire import Wire


class Links(Protocol):
    """Where the rings of a run come from."""

    def producer(self, name: str) -> Ring | None:
        """The writing end of a link."""

    def consumer(self, name: str) -> Ring | None:
        """The reading end of a link."""


class Past(Protocol):
    """What a run takes over; :class:`hftpipe.recovery.books.Books` is it."""

    @property
    def rows(self) -> Mapping[str, Any]:
        """By symbol: qty (nanoqty) and mark (nanoprice) at least."""

    def ledger(self, symbols: Sequence[str], fees: Mapping[str, int]) -> Ledger:
        """A ledger with these books."""

    def holdings(self, symbols: Sequence[str], utc_offset: int) -> dict[int, dict[str, Any]]:
        """What strategies are told of."""


class PrivateLinks:
    """Rings in this process's own memory, for a run in one thread.

    Parameters
    ----------
    capacity : mapping, optional
        Records by link name, over the topology's.
    store : bool
        Whether there are store links at all; without, events are counted, not kept.
    """

    def __init__(self, capacity: Mapping[str, int] | None = None, store: bool = True) -> None:
        self._ends: dict[str, tuple[Ring, Ring]] = {}
        for link in topology.links(capacity):
            # Nobody asks a venue that runs in the same thread what it has.
            if (store or link.consumer != "store") and link.name != "gateway.updates":
                record = schema.BY_NAME[link.record]
                self._ends[link.name] = _ring.pair(record, link.capacity)

    def producer(self, name: str) -> Ring | None:
        ends = self._ends.get(name)
        return ends[0] if ends else None

    def consumer(self, name: str) -> Ring | None:
        ends = self._ends.get(name)
        return ends[1] if ends else None


def instruments(config: Config) -> numpy.ndarray[Any, Any]:
    """The instrument table of *config*: (n,) structured array, dtype of INSTRUMENT."""
    out = numpy.zeros(len(config.instruments), schema.dtype(schema.INSTRUMENT))
    for row, item in zip(out, config.instruments, strict=True):
        row["symbol"] = item.symbol.encode()
        row["tick"], row["lot"], row["min_qty"] = item.tick, item.lot, item.min_qty
        row["base_price"] = item.base_price
        row["flags"] = ((1 if item.fractional else 0) | (2 if item.shortable else 0)
                        | (0 if "/" in item.symbol else 4))     # a pair is crypto: no cents there
    return out


def stages(names: tuple[str, ...], links: Links, config: Config,
           table: numpy.ndarray[Any, Any], *, control: Control | None = None,
           strategies: Callable[[], list[Strategy]] | None = None,
           wire: Callable[[list[Stage]], Wire] | None = None,
           source: Callable[[], Source] | None = None,
           board: Board | None = None, gate: Mapping[str, Any] | None = None,
           durable: bool = False, past: Past | None = None) -> list[Stage]:
    """Make the stages *names*, in that order.

    Parameters
    ----------
    names : tuple of str
        Of ``topology.STAGES``; the cold ones (store, monitor) are not made here.
    links : Links
    config : Config
    table : (n,) structured array, dtype of INSTRUMENT
    control : Control, optional
    strategies, wire, source : callables
        Make what a signal, gateway and feed stage needs; only called when asked for.
        *wire* gets the stages made before it, *source* gives None for a feed that is
        filled from outside.
    board : Board, optional
        Where ledger and risk show what they have.
    gate : mapping, optional
        What runs before left of the gate: arguments of ``Risk.restore``, the time if it is not
        now.
    durable : bool
        An order waits until a journal has on disk what led to it.
    past : Past, optional
        Positions and P&L that ledger, risk and strategies go on with.
    """
    out: list[Stage] = []
    need = _needed
    symbols = [row["symbol"].decode() for row in table]
    for name in names:
        index = topology.INDEX[name]
        store = links.producer(f"{name}.store")
        common: dict[str, Any] = {"store": store, "control": control, "index": index}
        stage: Stage
        if name == "feed":
            stage = FeedStage(need(links.producer("feed.book")), **common,
                              source=source() if source else None)
        elif name == "book":
            stage = BookStage(need(links.consumer("feed.book")),
                              [need(links.producer(f"book.{to}"))
                               for to in ("risk", "ledger", "signal")], table, **common)
        elif name == "signal":
            stage = SignalStage(need(links.consumer("book.signal")),
                                need(links.consumer("gateway.signal")),
                                need(links.producer("signal.risk")),
                                strategies() if strategies else [], table, **common,
                                bar=config.features.window)
            if past is not None and control is not None:
                stage.restore(past.holdings(symbols, control.utc_offset))
        elif name == "risk":
            risk = Risk(config.risk, table, control, len(topology.STAGES))
            if gate is not None:
                risk.restore(**{"now": _clock.now_ns(), **gate})
            if past is not None:
                for i, symbol in enumerate(symbols):
                    row = past.rows.get(symbol)
                    if row is not None and row.qty:
                        risk.seed(i, row.qty, row.mark)
            stage = RiskStage(need(links.consumer("signal.risk")),
                              need(links.consumer("book.risk")),
                              need(links.consumer("gateway.risk")),
                              need(links.consumer("ledger.risk")),
                              need(links.producer("risk.gateway")),
                              risk, **common, updates=topology.INDEX["updates"],
                              figures=[ring for source in ("analyst", "supervisor")
                                       if (ring := links.consumer(f"{source}.risk")) is not None])
            if board is not None:
                stage.show_on(board)
        elif name == "gateway":
            if wire is None:
                raise ValueError("a gateway stage needs a wire")
            stage = GatewayStage(need(links.consumer("risk.gateway")),
                                 need(links.consumer("updates.gateway")),
                                 [need(links.producer(f"gateway.{to}"))
                                  for to in ("risk", "ledger", "signal")]
                                 + [ring for ring in (links.producer("gateway.updates"),)
                                    if ring is not None],
                                 Orders(), wire(out), **common,
                                 max_age=config.gateway.max_age,
                                 max_unknown=config.gateway.max_unknown,
                                 durable=topology.INDEX["risk"] if durable else -1)
        elif name == "updates":
            stage = UpdatesStage(need(links.producer("updates.gateway")),
                                 links.consumer("gateway.updates"), **common)
        elif name == "ledger":
            stage = LedgerStage(need(links.consumer("gateway.ledger")),
                                need(links.consumer("book.ledger")),
                                need(links.producer("ledger.risk")),
                                past.ledger(symbols, config.fees.schedule)
                                if past is not None else
                                Ledger(len(table), config.account.equity, config.fees.schedule),
                                len(table), **common, board=board,
                                days=Days(zone(config.account.zone)))
        elif name in ("analyst", "supervisor"):
            stage = FigureStage(name, topology.stream(name), need(links.producer(f"{name}.risk")),
                                **common)
        else:
            raise ValueError(f"stage {name} is not made of records and rings")
        out.append(stage)
    return out


@cache
def zone(name: str) -> list[tuple[int, int]]:
    """From when on the clocks of a time zone stand how far before UTC.

    Parameters
    ----------
    name : str
        As the time zone database has it, such as ``"America/New_York"``.

    Returns
    -------
    list of (UTC ns, ns)
        Ascending, from 1970 to 2100; the clocks change between two of them never.
    """
    import datetime
    import zoneinfo

    place = zoneinfo.ZoneInfo(name)

    def offset(hour: int) -> int:
        at = datetime.datetime.fromtimestamp(hour * 3600, datetime.UTC).astimezone(place)
        found = at.utcoffset()
        assert found is not None
        return int(found.total_seconds())

    # Hours; nowhere do clocks change and back within a step.
    step, end = 24 * 28, 24 * (365 * 130 + 32)
    out = [(0, offset(0))]
    for start in range(0, end, step):
        low, high = start, start + step
        if offset(high) == out[-1][1]:
            continue
        while high - low > 1:                       # clocks change at whole hours of UTC
            middle = (low + high) // 2
            low, high = (middle, high) if offset(middle) == out[-1][1] else (low, middle)
        out.append((high * 3600, offset(high)))
    return [(at * 10**9, ahead * 10**9) for at, ahead in out]


def _needed(ring: Ring | None) -> Ring:
    if ring is None:
        raise ValueError("a link that is not a store link is missing")
    return ring
