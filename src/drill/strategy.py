"""The drill's strategy: orders that come to every state there is."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hftpipe import schema

if TYPE_CHECKING:
    from hftpipe._strategy import Context

GAP = 350_000_000               # ns between two orders: no more a minute than a broker allows
OPEN = 3                        # orders that may rest
LONG, SHORT = 300, 10           # lots: from here on it sells, and here it buys again
SEQ = (1 << schema.SEQ_BITS) - 1


class Mixed:
    """Buys and sells at the touch, on its own side of it, and far away; cancels what rests.

    Parameters are ``gap_ms``, ``long`` (lots), and ``seconds``: so long after its first look at a
    market it only cancels.
    """

    def __init__(self, params: Mapping[str, Any], instruments: Any) -> None:
        self._last = self._turn = self._first = 0
        self._gap = int(params.get("gap_ms", GAP // 1_000_000)) * 1_000_000
        self._long = int(params.get("long", LONG))
        self._life = int(float(params.get("seconds", 0)) * 1e9)
        self._open: dict[int, int] = {}         # order identity -> instrument
        self._selling: dict[int, bool] = {}     # by instrument

    def on_event(self, c: Context, add: Callable[..., bool]) -> None:
        """Follow its orders; every GAP do the next thing."""
        if c.event == 3:
            e = c.order_event
            if (e["state"] >= schema.ORDER_STATE.FILLED
                    or e["kind"] == schema.ORDER_EVENT_KIND.UNKNOWN):
                self._open.pop(int(e["order"]), None)   # until the venue tells of it
            elif e["kind"] in (schema.ORDER_EVENT_KIND.SENT, schema.ORDER_EVENT_KIND.ACKED):
                self._open[int(e["order"])] = c.instrument
            return
        if c.event != 1 or c.now - self._last < self._gap or not c.book["bid"] or not c.book["ask"]:
            return
        self._first = self._first or c.now
        over = 0 < self._life < c.now - self._first
        resting = next((o for o, i in self._open.items() if i == c.instrument), None)
        if over or len(self._open) >= OPEN:
            if resting is None:
                return                          # its instrument has the next event
            add(action=schema.ACTION.CANCEL, target=resting & SEQ)
            self._last = c.now
            return
        self._turn += 1
        selling = c.qty > (SHORT if self._selling.get(c.instrument) else self._long) * c.lot
        self._selling[c.instrument] = selling
        side = -1 if selling else 1
        touch, tick = int(c.book["ask" if side > 0 else "bid"]), c.tick
        kind, qty, price = self._turn % 3, c.lot, touch
        tif = schema.TIF.IOC
        if kind == 1:                           # far away: it rests
            price, tif = touch - side * 20 * tick, schema.TIF.DAY
        elif kind == 2:                         # large, and first in line: it fills in parts
            price = int(c.book["bid" if side > 0 else "ask"])
            qty, tif = (c.qty - c.open_sell if selling else self._long * c.lot), schema.TIF.DAY
        if qty <= 0:
            return
        if add(side=side, type=2, tif=tif, action=schema.ACTION.NEW, price=price, qty=qty):
            self._last = c.now
