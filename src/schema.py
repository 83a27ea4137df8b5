"""Every record, enumeration, feature and metric hftpipe writes down, declared once.

A record is a fixed-size, padding-free, little-endian struct made of whole
64-byte lines.  From this file come, by ``python src/schema.py --write``:

* ``src/_schema.h``    the C structs, each with its layout asserted, and the enumerations;
* ``src/_schema.pxd``  the Cython view of both;

and, at run time, the numpy dtypes (:func:`dtype`), the ``COPY`` column lists
(:func:`columns`), the descriptors that recordings carry (:func:`descriptor`),
each record's :attr:`Record.fingerprint` and the Prometheus names.
``--check`` fails when a generated file is not what this file says.

Conventions
-----------
* Money is ``i64``: prices in 1e-9 of the quote currency ("nanoprice"), quantities
  in 1e-9 of the unit ("nanoqty"), amounts in 1e-9 of the quote currency ("nanocash").
* The identity of an event is ``(run, stream, seq)``.  Inside a run it is one word,
  ``event = stream << 56 | seq``; ``seq`` starts at 1 and grows by one per store link.
* ``ts`` fields without further words are host-monotonic nanoseconds; ``ts_venue`` is UTC.
* The first word of a record that travels on a ring is ``link_seq``.  It belongs to the
  ring, means nothing outside it and is never stored.

This module imports nothing of hftpipe, so it runs before anything is built.
"""
from __future__ import annotations

import difflib
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

ROOT = Path(__file__).resolve().parent.parent
LINE = 64                       # bytes of one cache line
SEQ_BITS = 56                   # of an event identity; the stream is above


# type:  C type, bytes, numpy code, default SQL type
TYPES = {
    "u8": ("uint8_t", 1, "u1", "smallint"),
    "i8": ("int8_t", 1, "i1", "smallint"),
    "u16": ("uint16_t", 2, "<u2", "integer"),
    "u32": ("uint32_t", 4, "<u4", "bigint"),
    "i64": ("int64_t", 8, "<i8", "bigint"),
    "u64": ("uint64_t", 8, "<u8", "bigint"),     # stored as the same 64 bits, signed
    "f32": ("float", 4, "<f4", "real"),
    "f64": ("double", 8, "<f8", "double precision"),
    "s16": ("char", 16, "S16", "text"),
}


@dataclass(frozen=True, slots=True)
class Enum:
    """A closed set of small numbers; C sees ``HP_<NAME>_<MEMBER>``."""

    name: str
    doc: str
    members: tuple[tuple[str, int, str], ...]    # (member, value, doc)

    def __post_init__(self) -> None:
        values = [v for _, v, _ in self.members]
        if len(set(values)) != len(values):
            raise ValueError(f"enum {self.name}: a value stands twice")

    def __getattr__(self, member: str) -> int:
        for name, value, _ in self.members:
            if name == member:
                return value
        raise AttributeError(f"enum {self.name} has no member {member}")

    def label(self, value: int) -> str:
        """Lower-case name of *value*, or ``"<enum>(<value>)"`` when it is none of ours."""
        for name, v, _ in self.members:
            if v == value:
                return name.lower()
        return f"{self.name}({value})"


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    type: str
    unit: str               # "ns", "nanoprice", "nanoqty", or "" for a plain number
    doc: str
    sql: str | None = ""    # column type; "" = the type's default, None = not stored
    enum: Enum | None = None

    @property
    def size(self) -> int:
        return TYPES[self.type][1]

    @property
    def align(self) -> int:
        return 1 if self.type == "s16" else self.size

    @property
    def column(self) -> str | None:
        return TYPES[self.type][3] if self.sql == "" else self.sql


@dataclass(frozen=True)
class Record:
    name: str
    size: int               # bytes; the sum of the fields, never padded by the compiler
    doc: str
    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        at = 0
        for f in self.fields:
            if at % f.align:
                raise ValueError(f"{self.name}.{f.name}: offset {at} is not {f.align}-aligned")
            at += f.size
        if at != self.size or self.size % LINE:
            raise ValueError(f"{self.name}: fields add up to {at} bytes, declared {self.size}")

    @property
    def offsets(self) -> dict[str, int]:
        at, out = 0, {}
        for f in self.fields:
            out[f.name] = at
            at += f.size
        return out

    @property
    def linked(self) -> bool:
        """Whether the record may be a slot of a ring (its first word is the ring's)."""
        return self.fields[0].name == "link_seq"

    @cached_property
    def fingerprint(self) -> int:
        """64 bits that change with any name, type, unit or enumeration of the record."""
        text = json.dumps(descriptor(self), sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


@dataclass(frozen=True, slots=True)
class Feature:
    """One number a model or strategy may look at; *doc* is its whole definition."""

    name: str
    doc: str
    bars: bool = False      # computed from bars, so the window is part of its meaning


# What Prometheus wants for a unit of ours, and how many of ours are one of it.
PROMETHEUS_UNITS = {"ns": ("seconds", 10**9), "ppb": ("ratio", 10**9), "bps": ("ratio", 10**4)}


@dataclass(frozen=True, slots=True)
class Metric:
    name: str               # subject, then action: ring_push, order_reject
    kind: str               # "counter" | "gauge" | "histogram"
    unit: str               # on the page; "bps" also ends the name
    doc: str
    labels: tuple[str, ...] = ("stage",)

    @property
    def exported_unit(self) -> str:
        """Unit in what Prometheus reads: seconds and ratios, never parts of them."""
        return PROMETHEUS_UNITS.get(self.unit, (self.unit, 1))[0]

    @property
    def prometheus(self) -> str:
        """Name there."""
        parts = ["hftpipe", self.name.removesuffix("_bps"), self.exported_unit,
                 "total" if self.kind == "counter" else ""]
        return "_".join(p for p in parts if p)

    def exported(self, value: int) -> float:
        """A value of the page in :attr:`exported_unit`."""
        scale = PROMETHEUS_UNITS.get(self.unit, ("", 1))[1]
        return value if scale == 1 else value / scale


# ---------------------------------------------------------------- enumerations

STREAM = Enum("stream", "Who made an event; the top byte of its identity.", (
    ("NONE", 0, "No event."),
    ("FEED", 1, "Market data as normalised off the socket."),
    ("BOOK", 2, "Changes of a book's state (stale, crossed)."),
    ("SIGNAL", 3, "Intents, and what they were made from."),
    ("RISK", 4, "Verdicts, halts and limits."),
    ("GATEWAY", 5, "The life of each order."),
    ("UPDATES", 6, "What the venue said about our orders."),
    ("LEDGER", 7, "Positions and P&L."),
    ("ANALYST", 8, "Figures that the cold path computes for risk."),
    ("OPERATOR", 9, "What people ask of a running gate: pause, limits, breaker."),
))

RECORD = Enum("record", "What the body of a stored event is.", (
    ("MARKET", 1, "market"), ("BOOK_STATUS", 2, "book_status"), ("FEATURES", 3, "features"),
    ("SIGNAL", 4, "signal"), ("INTENT", 5, "intent"), ("VERDICT", 6, "verdict"),
    ("ORDER_EVENT", 7, "order_event"), ("UPDATE", 8, "update"), ("POSITION", 9, "position"),
    ("RISK_EVENT", 10, "risk_event"), ("TAKE", 11, "take"), ("FIGURE", 12, "figure"),
    ("CHECKS", 13, "checks"), ("RELOAD", 14, "reload"), ("OPENING", 15, "opening"),
    ("ACCOUNT", 16, "account"), ("RESOLVED", 17, "resolved"),
    ("TURN", 18, "turn"),
))

MARKET_KIND = Enum("market", "What a market record says.", (
    ("TRADE", 1, "A print; ref is the venue's trade id."),
    ("QUOTE", 2, "Best price of one side, replacing that whole side (L1)."),
    ("LEVEL", 3, "Total quantity at a price, 0 deletes it (L2)."),
    ("CLEAR", 4, "Forget both sides: a snapshot follows, its last record has LAST."),
    ("ADD", 5, "New order at the back of its level; ref is its reference (L3)."),
    ("EXECUTE", 6, "qty of order ref traded; price 0 = at the order's price (L3)."),
    ("CANCEL", 7, "Order ref lost qty (L3)."),
    ("DELETE", 8, "Order ref is gone (L3)."),
    ("REPLACE_FROM", 9, "Order ref is replaced by the next record's (L3)."),
    ("REPLACE_TO", 10, "The replacing order: ref, price, qty; side is inherited (L3)."),
    ("STATUS", 11, "Trading status of the instrument; ref 1 = trading, 0 = halted."),
    ("GAP", 12, "Messages were lost: the book is stale until a CLEAR and its snapshot."),
    ("TIMER", 13, "Time passed; ts_recv is the new time."),
    ("BUST", 14, "The trade with this ref, price and qty is void; a FIX may follow."),
    ("FIX", 15, "What stands in the place of the trade that the BUST before it names."),
    ("BAND", 16, "Price band: side +1 the highest price, -1 the lowest; 0 = none.  ref is the "
     "venue's indicator, a character."),
    ("BAR_OPEN", 17, "A bar of the venue: its first price, qty its volume, ref its trades."),
    ("BAR_HIGH", 18, "Its highest price; ref is the character b minute, u minute again, d day."),
    ("BAR_LOW", 19, "Its lowest price."),
    ("BAR_CLOSE", 20, "Its last price; ref is its average by volume, nanoprice."),
))

MARKET_FLAG = Enum("market_flag", "Bit set of a market record.", (
    ("LAST", 1, "Last record of the venue's message: the book is consistent after it."),
    ("SNAPSHOT", 2, "Part of a snapshot."),
    ("HIDDEN", 4, "Trade against an order that was never displayed."),
    ("UNPRINTABLE", 8, "Not to be counted into volume."),
    ("BACKFILLED", 16, "Asked for after a gap: it happened while nobody listened, and is not "
     "fresh.  Recorded and counted, never a reason to trade."),
))

BOOK_FLAG = Enum("book_flag", "Bit set: what is wrong or special about a book.", (
    ("STALE", 1, "A gap was seen and no snapshot since, or nothing was ever received."),
    ("CROSSED", 2, "Best bid above best ask; never repaired."),
    ("LOCKED", 4, "Best bid equals best ask."),
    ("HALTED", 8, "The venue halted the instrument."),
    ("TRADE", 16, "This state was caused by a trade: last_price and last_qty are new."),
    ("EMPTY", 32, "A side has no level."),
    ("LIMITED", 64, "The best bid is at the upper price band, or the best ask at the lower."),
))

SIGNAL_FLAG = Enum("signal_flag", "Bit set of a signal.", (
    ("LATE", 1, "The inference took longer than its budget."),
    ("UNUSED", 2, "Late, and so no decision came of it."),
    ("SHADOW", 4, "The strategy sees everything and trades nothing."),
))

TURN_KIND = Enum("turn", "What a turn of a stage was.", (
    ("NONE", 0, "The record had no more turns."),
    ("GATE", 1, "Risk: first, second, third, fourth are the order events, positions, figures of "
     "the analyst and figures of people that it took, `many` the marks, `rest` the open orders "
     "looked at for a withdrawal; `flags` TURN_FLAG_*."),
    ("ORDER", 2, "Gateway: an order.  `many` is the halt epoch, first to fourth the version of "
     "the limits (both modulo 2**32, the lowest byte first), `rest` what the wire said."),
    ("ANSWER", 3, "Gateway: an answer to a request, in the UPDATE of this stream before it."),
    ("UPDATE", 4, "Gateway: an update of the venue's stream."),
    ("FILL", 5, "Ledger: an execution."),
    ("MARKS", 6, "Ledger: `many` marks."),
))

TURN_FLAG = Enum("turn_flag", "Bit set of a turn.", (
    ("INTENT", 1, "Risk: an intent was judged, after everything else."),
    ("UNSETTLED", 2, "Risk: updates are down, or not settled."),
    ("ARMED", 4, "Gateway: trading was armed."),
    ("WAITED", 8, "Gateway: the order had been taken up before, and could not leave."),
    ("STORED", 16, "Risk: something was stored in it."),
))

UPDATE_FLAG = Enum("update_flag", "Bit set of an update.", (
    ("RECONCILED", 1, "Asked for by REST, not sent by the stream.  A fill counts only if cum_qty - "
     "qty is what was filled so far; executions up to cum_qty are counted with it."),
))

SIDE = Enum("side", "Buyer or seller.", (
    ("SELL", -1, "Ask side."), ("NONE", 0, "Unknown."), ("BUY", 1, "Bid side."),
))

ORDER_TYPE = Enum("order_type", "How the price binds.", (
    ("MARKET", 1, "At any price."), ("LIMIT", 2, "At price or better."),
    ("STOP", 3, "A market order once the last trade reaches `stop`."),
    ("STOP_LIMIT", 4, "A limit order at price once the last trade reaches `stop`."),
    ("TRAILING_STOP", 5, "A stop that follows the best trade at a distance of `trail` or "
     "`trail_share`."),
))

TIF = Enum("tif", "Time in force.", (
    ("DAY", 1, "Until the session ends."), ("GTC", 2, "Until cancelled."),
    ("IOC", 3, "At once, the rest is cancelled."), ("FOK", 4, "All at once or nothing."),
    ("OPG", 5, "In the opening auction only."), ("CLS", 6, "In the closing auction only."),
))

ACTION = Enum("action", "What is asked of the next stage.", (
    ("NEW", 1, "Send a new order."), ("CANCEL", 2, "Cancel order `target`."),
    ("DENIED", 3, "Risk refused it: the gateway only tells everybody."),
))

REASON = Enum("reason", "Why risk or the gateway refused; 0 = it did not.", (
    ("NONE", 0, "Approved."),
    ("HALTED", 1, "Kill switch engaged, or trading never armed."),
    ("STALE_DATA", 2, "No price, or the newest one is too old, or the book is stale."),
    ("INVALID_ORDER", 3, "Field out of range: side, type, quantity or price."),
    ("UNKNOWN_INSTRUMENT", 4, "Instrument index is not in the table."),
    ("ORDER_SIZE", 5, "Quantity of one order above its limit."),
    ("ORDER_NOTIONAL", 6, "Value of one order above its limit."),
    ("POSITION_SIZE", 7, "Worst-case position in shares above its limit."),
    ("POSITION_NOTIONAL", 8, "Worst-case position value of one instrument above its limit."),
    ("TOTAL_NOTIONAL", 9, "Worst-case value of all positions above its limit."),
    ("OPEN_POSITIONS", 10, "One more instrument held than allowed."),
    ("DAILY_LOSS", 11, "Realised plus unrealised loss of the day at or above its limit."),
    ("PRICE_COLLAR", 12, "Limit price too far from the reference price."),
    ("ORDER_RATE", 13, "More orders per minute than allowed."),
    ("DUPLICATE", 14, "The same intent a second time."),
    ("CROSSES_ZERO", 15, "Order would turn a position around; split it at flat."),
    ("SHORT_NOT_ALLOWED", 16, "Selling more than is held is switched off."),
    ("OVERFLOW", 17, "A product does not fit 64 bits: cannot be evaluated."),
    ("TABLE_FULL", 18, "No free slot for an order's reservation."),
    ("STORE_FULL", 19, "A store link is full: nothing may happen that cannot be recorded."),
    ("TOKEN", 20, "Gateway: the verdict's token does not match the order."),
    ("EXPIRED", 21, "Gateway: the intent is older than max_age."),
    ("BUSY", 22, "Gateway: no free connection or rate-limit token within max_age."),
    ("DISCONNECTED", 23, "Gateway: no order connection."),
    ("NOT_OPEN", 24, "Cancel of an order that is not open."),
    ("VENUE", 25, "The venue refused the order."),
    ("WASH_TRADE", 26, "Would trade against an open order of ours."),
    ("PENDING", 27, "Too many orders of this instrument are open."),
    ("BREAKER", 28, "The circuit breaker is open; detail is its cause."),
    ("PAUSED", 29, "Somebody paused the instrument."),
    ("RESTRICTED", 30, "The instrument is on the restricted list."),
    ("NO_FIGURE", 31, "A figure that a check needs never came, or is unusable; detail is its "
     "kind."),
    ("OLD_FIGURE", 32, "A figure that a check needs is too old; detail is its kind."),
    ("DUPLICATE_ORDER", 33, "Instrument, side, price and quantity of an order just approved."),
    ("PRICE_RANGE", 34, "Price outside what is ever traded."),
    ("ORDER_SMALL", 35, "Value of one order below its limit."),
    ("ORDERS_PER_DAY", 36, "More orders per trading day than allowed."),
    ("REPEATED", 37, "The strategy executed too often; a person must enable it again."),
    ("WEEKLY_LOSS", 38, "Loss of the week at or above its limit."),
    ("MONTHLY_LOSS", 39, "Loss of the month at or above its limit."),
    ("TRADE_LOSS", 40, "What the position has lost, or would at its stop, above its limit."),
    ("CONCENTRATION", 41, "Worst-case value of one instrument above its share of the equity."),
    ("SECTOR", 42, "Worst-case value of one sector above its share of the equity."),
    ("VAR_95", 43, "Value at risk, 95 %, above its limit."),
    ("VAR_99", 44, "Value at risk, 99 %, above its limit."),
    ("DRAWDOWN", 45, "Equity too far below its peak."),
    ("CORRELATION", 46, "Moves too much like instrument `detail`, which is held or ordered."),
    ("VOLATILITY", 47, "Average true range above its limit."),
    ("LEVERAGE", 48, "Worst-case value of all positions above what the equity allows."),
    ("HOURS", 49, "Outside trading hours, in a blackout, or the session is unknown."),
    ("LAST_COLLAR", 50, "Price too far from the last trade."),
    ("ORDER_VOLUME", 51, "Quantity of one order above its share of the daily volume."),
    ("POSITION_VOLUME", 52, "Worst-case position above its share of the daily volume."),
    ("SPREAD", 53, "Spread above its limit."),
    ("VOLUME_RATIO", 54, "Volume of late too low."),
    ("LIMITS", 55, "Gateway: approved under limits that have been changed since."),
    ("TRADING_HALT", 56, "The venue halted or paused the instrument."),
    ("PRICE_BAND", 57, "The instrument is at its price band (limit up, limit down)."),
    ("UNSETTLED", 58, "Order updates are down, or what happened meanwhile is not known yet."),
    ("UNRESOLVED", 59, "An order of the instrument has had no answer yet."),
    ("INCREMENT", 60, "Price or quantity between two increments, or a price in fractions of a cent "
     "that the venue takes in cents."),
    ("ABSENT", 63, "The venue was asked often enough and never had the order."),
    ("VENUE_FUNDS", 70, "The venue refused the order: not enough buying power."),
    ("VENUE_QUANTITY", 71, "The venue refused the order: less is held, or free, than it sells."),
    ("VENUE_WASH", 72, "The venue refused the order: it could trade with an open one of ours."),
    ("VENUE_DAY_TRADES", 73, "The venue refused the order: pattern day trading protection."),
    ("VENUE_SHORT", 74, "The venue refused the order: account or asset cannot be short."),
    ("VENUE_ACCOUNT", 75, "The venue takes no order of this account; trading halts."),
    ("VENUE_RATE", 76, "The venue refused the order: more requests than it takes."),
))

ORDER_EVENT_KIND = Enum("order_event", "A step in the life of an order.", (
    ("DENIED", 1, "Risk refused the intent; terminal."),
    ("DROPPED", 2, "The gateway refused to send it; terminal."),
    ("SENT", 3, "Handed to the socket."),
    ("ACKED", 4, "The venue has it."),
    ("PARTIAL_FILL", 5, "qty traded at price; more is open."),
    ("FILL", 6, "qty traded at price; nothing is open; terminal."),
    ("CANCELED", 7, "The rest was cancelled; terminal."),
    ("REJECTED", 8, "The venue refused it; terminal."),
    ("EXPIRED", 9, "Time in force ended; terminal."),
    ("CANCEL_SENT", 10, "A cancel was handed to the socket."),
    ("CANCEL_REJECTED", 11, "The venue refused the cancel."),
    ("UNKNOWN", 12, "No answer came: exposure stays reserved until the venue tells."),
    ("REPLACED", 13, "The venue replaced it; terminal."),
))

ORDER_STATE = Enum("order_state", "State of an order in the gateway.", (
    ("FREE", 0, "Slot unused."), ("CREATED", 1, "Approved, not yet sent."),
    ("SENT", 2, "On the wire, no answer yet."), ("OPEN", 3, "The venue has it."),
    ("PARTIAL", 4, "Partly filled."), ("PENDING_CANCEL", 5, "A cancel is on the wire."),
    ("UNKNOWN", 6, "No answer came."), ("FILLED", 7, "Terminal."),
    ("CANCELED", 8, "Terminal."), ("REJECTED", 9, "Terminal."), ("EXPIRED", 10, "Terminal."),
    ("DROPPED", 11, "Terminal: never left."),
))

ACCOUNT_KIND = Enum("account", "What an account record is about.", (
    ("BEGIN", 1, "A run begins: everything before it in the stream belongs to it."),
    ("DAY", 2, "A trading day begins."),
))

RISK_EVENT_KIND = Enum("risk_event", "What happened to the gate.", (
    ("HALT_SEEN", 1, "Risk saw a new halt epoch; nothing passes after it."),
    ("RESUME_SEEN", 2, "Risk saw the epochs equal again."),
    ("LIMIT_BREACH", 3, "A limit was breached by the market, not by an order."),
    ("STORE_FULL", 4, "A store link filled up: gate closed."),
    ("STORE_OK", 5, "All store links have room again."),
    ("LIMIT_SET", 6, "Limit number `detail` is now `value`; it was `limit`."),
    ("BREAKER", 7, "The breaker is now `value`, BREAKER_*; it was `limit`; detail is the cause."),
    ("PAUSE", 8, "Somebody paused the instrument (value 1) or resumed it (0)."),
    ("RESTRICT", 9, "The instrument was put on the restricted list (1) or taken off (0)."),
    ("REARM", 10, "Strategy number `detail` was enabled again."),
    ("LATCHED", 11, "Strategy number `detail` executed too often and was disabled."),
    ("DRAWDOWN", 12, "Drawdown `value` reached level `detail` (1 warn, 2 act, 3 halt), `limit`."),
    ("CANCEL", 13, "The open breaker cancels order `cause`."),
    ("FIGURE_REFUSED", 14, "A figure of kind `detail` was out of range: what it told is unknown."),
    ("DAY", 15, "Trading day `value` began: the counts of the day are zero again.  Before it was "
     "`limit`; 0 = not known, so that all of the run is of this day."),
))

FIGURE_KIND = Enum("figure", "What a figure tells risk.", (
    ("SESSION", 1, "Trading session of `instrument`: value is SESSION_*, `other` the trading day "
     "in days since 1970; holds until `until`."),
    ("VAR_95", 2, "One-day value at risk of what is held, 95 %, nanocash."),
    ("VAR_99", 3, "The same at 99 %."),
    ("UNIT_VAR_95", 4, "One-day value at risk of the instrument, 95 %, in 1e-9 of its value."),
    ("UNIT_VAR_99", 5, "The same at 99 %."),
    ("VOLATILITY", 6, "Average true range in 1e-9 of the price."),
    ("CORRELATION", 7, "Of the returns of `instrument` and `other`, in 1e-9."),
    ("VOLUME", 8, "Average daily volume, nanoqty."),
    ("VOLUME_RATIO", 9, "Volume of late over its average, in 1e-9."),
    ("EQUITY", 10, "Equity of the account when the day began, nanocash."),
    ("WEEK_PNL", 11, "P&L of the week before this day, nanocash."),
    ("MONTH_PNL", 12, "P&L of the month before this day, nanocash."),
    ("PEAK", 13, "Highest equity before this day, nanocash."),
    ("SECTOR", 14, "Sector of `instrument`: a number from 1 to 255."),
    ("PAUSE", 20, "Trading of `instrument`: value 1 pauses it, 0 resumes it."),
    ("RESTRICT", 21, "Restricted list: value 1 puts `instrument` on it, 0 takes it off."),
    ("LIMIT", 22, "Limit number `other` is now `value`, in its own unit."),
    ("BREAKER", 23, "Circuit breaker: value is BREAKER_*, set by hand."),
    ("REARM", 24, "Strategy number `other` may execute again."),
))

SESSION = Enum("session", "Which part of the trading day it is.", (
    ("CLOSED", 0, "No trading."), ("OPEN", 1, "Regular hours."), ("PRE", 2, "Before the open."),
    ("AFTER", 3, "After the close."), ("BLACKOUT", 4, "Regular hours, in a blackout of ours."),
))

BREAKER = Enum("breaker", "State of the circuit breaker.", (
    ("CLOSED", 0, "Orders pass."), ("OPEN", 1, "Only orders that reduce a position pass."),
    ("HALF_OPEN", 2, "One test order may pass."),
))

BREAKER_CAUSE = Enum("breaker_cause", "What opened the circuit breaker.", (
    ("NONE", 0, "It is closed."),
    ("HAND", 1, "A person; released by hand only."),
    ("DAILY_LOSS", 2, "Loss of the day; released by hand only."),
    ("LOSSES", 3, "Too many losing trades in a row; released by hand only."),
    ("DRAWDOWN", 4, "Equity too far below its peak; released by hand only."),
    ("FAILURES", 5, "Orders in a row that did not reach the venue or got no answer."),
    ("REJECTS", 6, "Orders in a row that the venue refused."),
    ("LATENCY", 7, "Answers of the venue were too slow for too long."),
    ("TEST", 8, "The test order of the half-open breaker failed."),
    ("UNREADABLE", 9, "What the run before left could not be read; released by hand only."),
))

# What decides an order; units, defaults and ranges are in limits.py.  A number stays what it is.
LIMIT = Enum("limit", "Limits of the risk gate, by the number a LIMIT figure names.", (
    ("MAX_ORDER_SHARES", 0, "Quantity of one order."),
    ("MAX_ORDER_NOTIONAL", 1, "Value of one order."),
    ("MAX_POSITION_SHARES", 2, "Worst-case position of one instrument: what is held plus all open "
     "orders of a side."),
    ("MAX_POSITION_NOTIONAL", 3, "Worst-case value of one instrument."),
    ("MAX_TOTAL_NOTIONAL", 4, "Worst-case value of all instruments."),
    ("MAX_OPEN_POSITIONS", 5, "Instruments with a position or an open order."),
    ("MAX_DAILY_LOSS", 6, "Loss of the day, realised plus unrealised, at which only reducing "
     "orders pass."),
    ("PRICE_COLLAR_BPS", 7, "Distance of a limit price, or of the far touch for a market order, to "
     "the mid."),
    ("MAX_ORDERS_PER_MINUTE", 8, "Orders approved within any 60 seconds."),
    ("MAX_OPEN_ORDERS", 9, "Open orders of one instrument."),
    ("MAX_DATA_AGE_MS", 10, "Age of the newest state of the book."),
    ("ALLOW_SHORT", 11, "Whether more may be sold than is held (and the instrument is shortable)."),
    ("MIN_ORDER_NOTIONAL", 12, "Value of one order at least, unless it reduces."),
    ("MIN_PRICE", 13, "Lowest price of an order that does not reduce."),
    ("MAX_PRICE", 14, "Highest price of an order that does not reduce."),
    ("LAST_COLLAR_BPS", 15, "Distance of a limit price, or of the far touch for a market order, to "
     "the last trade."),
    ("MAX_ORDERS_PER_DAY", 16, "Orders approved on one trading day."),
    ("MAX_STRATEGY_ORDERS", 17, "Orders of one strategy on one trading day; beyond, it is disabled "
     "until a person enables it again."),
    ("DUPLICATE_WINDOW_MS", 18, "Within this time no second order of the same instrument, side, "
     "price and quantity passes."),
    ("MAX_WEEKLY_LOSS", 19, "Loss of the week at which only reducing orders pass."),
    ("MAX_MONTHLY_LOSS", 20, "Loss of the month at which only reducing orders pass."),
    ("MAX_TRADE_LOSS", 21, "Loss of one position: what it has lost, and what its worst-case value "
     "would lose at its stop."),
    ("STOP_DISTANCE_BPS", 22, "Distance of the stop that max_trade_loss counts with."),
    ("MAX_SYMBOL_SHARE_BPS", 23, "Worst-case value of one instrument as a share of the equity."),
    ("MAX_SECTOR_SHARE_BPS", 24, "Worst-case value of one sector as a share of the equity."),
    ("MAX_VAR_95", 25, "One-day value at risk, 95 %: of what is held, plus that of every open "
     "order and of every fill that the figure does not know yet."),
    ("MAX_VAR_99", 26, "The same at 99 %."),
    ("DRAWDOWN_WARN_BPS", 27, "Equity so far below its peak is recorded."),
    ("DRAWDOWN_ACT_BPS", 28, "Equity so far below its peak lets only reducing orders pass."),
    ("DRAWDOWN_HALT_BPS", 29, "Equity so far below its peak halts trading."),
    ("DRAWDOWN_CONFIRM", 30, "Marks in a row that must say so before a drawdown halts."),
    ("MAX_CORRELATION", 31, "Correlation, of either sign, with any other instrument that is held "
     "or ordered."),
    ("MAX_VOLATILITY_BPS", 32, "Average true range as a share of the price."),
    ("BASE_VOLATILITY_BPS", 33, "Above this volatility, the position limits shrink in proportion."),
    ("MAX_LEVERAGE", 34, "Worst-case value of all positions over the equity."),
    ("MARKET_HOURS", 35, "Whether orders pass in trading hours only."),
    ("ALLOW_PREMARKET", 36, "Whether trading hours begin before the open."),
    ("ALLOW_AFTERHOURS", 37, "Whether trading hours go on after the close."),
    ("MAX_ORDER_VOLUME_BPS", 38, "Quantity of one order as a share of the average daily volume."),
    ("MAX_POSITION_VOLUME_BPS", 39, "Worst-case position as a share of the average daily volume."),
    ("MAX_SPREAD_BPS", 40, "Spread as a share of the mid."),
    ("MIN_VOLUME_RATIO", 41, "Volume of late over its average at least."),
    ("MAX_FIGURE_AGE_MS", 42, "Age of a figure that names no end."),
    ("BREAKER_LOSSES", 43, "Losing trades in a row that open the breaker."),
    ("BREAKER_FAILURES", 44, "Orders in a row without an answer that open the breaker."),
    ("BREAKER_REJECTS", 45, "Orders in a row refused by the venue that open the breaker."),
    ("BREAKER_LATENCY_MS", 46, "An answer slower than this counts as slow."),
    ("BREAKER_SLOW_MS", 47, "Only slow answers for so long open the breaker."),
    ("BREAKER_COOLDOWN_MS", 48, "Open for a fault of the infrastructure, the breaker lets a test "
     "order pass after so long."),
    ("BREAKER_QUIET_MS", 49, "After a test order went well, it closes when so long nothing "
     "failed."),
    ("BREAKER_DAILY_LOSS", 50, "Loss of the day that opens the breaker."),
    ("BREAKER_DRAWDOWN_BPS", 51, "Equity so far below its peak opens the breaker."),
))

EXIT = Enum("exit", "Why an order closes a position.", (
    ("NONE", 0, "It is no exit of ours."), ("STOP", 1, "Static stop."),
    ("TRAILING", 2, "Trailing stop."), ("ABSOLUTE", 3, "Stop at a price."),
    ("ATR", 4, "Stop at a multiple of the average true range."),
    ("BREAK_EVEN", 5, "Back at the entry after the first target."),
    ("LOSS", 6, "Lost as much cash as a position may."), ("TIME", 7, "Held as long as it may be."),
    ("FIRST", 8, "First target: a part."), ("TARGET", 9, "Target: the rest."),
))

# ---------------------------------------------------------------- records

LINK = Field("link_seq", "u64", "", "The ring's own word.", None)


def _event(doc: str = "Identity of this event.") -> Field:
    return Field("event", "u64", "", doc)


CAUSE = Field("cause", "u64", "", "Identity of the market event that caused it; 0 = none.")
INSTRUMENT_INDEX = Field("instrument", "u16", "", "Index into the instrument table.")

MARKET = Record("market", 64, "One normalised step of market data.", (
    LINK, _event(),
    Field("ts_recv", "i64", "ns", "The frame's first byte was read, monotonic."),
    Field("ts_venue", "i64", "ns", "Venue timestamp, UTC since 1970; 0 when it sends none."),
    Field("price", "i64", "nanoprice", "Price in 1e-9 of the quote currency."),
    Field("qty", "i64", "nanoqty", "Quantity in 1e-9 of the unit; never negative."),
    Field("ref", "u64", "", "Order reference or trade id, by kind."),
    INSTRUMENT_INDEX,
    Field("kind", "u8", "", "MARKET_*.", enum=MARKET_KIND),
    Field("side", "i8", "", "+1 bid or buyer crossed, -1 ask or seller crossed, 0 unknown.",
          enum=SIDE),
    Field("flags", "u8", "", "Bit set of MARKET_FLAG_*.", enum=MARKET_FLAG),
    Field("pad0", "u8", "", "Zero.", None),
    Field("hop", "u16", "ns", "Published this long after ts_recv; saturates."),
))

BOOK = Record("book", 128, "State of one instrument's book after a venue message.", (
    LINK, _event("Identity of the market event that made this state."),
    Field("ts_recv", "i64", "ns", "Of that market event, monotonic."),
    Field("ts", "i64", "ns", "The book stage published this, monotonic."),
    Field("bid", "i64", "nanoprice", "Best bid; 0 = none."),
    Field("ask", "i64", "nanoprice", "Best ask; 0 = none."),
    Field("bid_qty", "i64", "nanoqty", "Quantity at the best bid."),
    Field("ask_qty", "i64", "nanoqty", "Quantity at the best ask."),
    Field("bid_depth", "i64", "nanoqty", "Quantity of the best DEPTH bid levels."),
    Field("ask_depth", "i64", "nanoqty", "Quantity of the best DEPTH ask levels."),
    Field("last_price", "i64", "nanoprice", "Price of the last trade; 0 = none yet."),
    Field("last_qty", "i64", "nanoqty", "Its quantity."),
    Field("volume", "i64", "nanoqty", "Quantity traded since the run began."),
    Field("ts_venue", "i64", "ns", "Of the market event, UTC."),
    INSTRUMENT_INDEX,
    Field("flags", "u8", "", "Bit set of BOOK_FLAG_*.", enum=BOOK_FLAG),
    Field("last_side", "i8", "", "Side that crossed in the last trade.", enum=SIDE),
    Field("pad0", "u32", "", "Zero.", None),
    Field("pad1", "u64", "", "Zero.", None),
))

BOOK_STATUS = Record("book_status", 64, "A book's flags changed.", (
    LINK, _event("Identity of the market event after which they changed."),
    Field("ts_venue", "i64", "ns", "Of that event, UTC."),
    Field("bid", "i64", "nanoprice", "Best bid then."),
    Field("ask", "i64", "nanoprice", "Best ask then."),
    Field("dropped", "u64", "", "No-op messages counted so far (unknown order or level)."),
    Field("pad0", "u64", "", "Zero.", None),
    INSTRUMENT_INDEX,
    Field("before", "u8", "", "BOOK_FLAG_* before.", enum=BOOK_FLAG),
    Field("after", "u8", "", "BOOK_FLAG_* after.", enum=BOOK_FLAG),
    Field("pad1", "u32", "", "Zero.", None),
))

# The definitions; src/_feature.pyx and src/_study.pyx are their arithmetic, tests/models/feature.py
# their naive twin.
#
# Of a book.  "State" is a usable state of this instrument's book: not stale, empty, crossed or
# malformed; others change nothing.  "Change" is against the state before, 0 at the first.
# mid = (bid + ask) / 2.  An EMA over n states weighs the newest value by 2 / (n + 1), takes it in
# before it is read, and starts at the first value (a mid, a size, a traded quantity) or at 0.
#
# Of bars.  "Bar" is the newest complete bar of the window in the configuration (`features.bar`),
# see src/_bars.pxd; they change when a bar is complete and are computed from prices in the quote
# currency and quantities in whole units.  Before the first bar every price, mean of prices and
# band is the mid of the state, so models may be asked at once; "before" says what stands while
# bars are too few.  Averages and oscillators are those of hftpipe.indicators.
CATALOGUE = (
    Feature("mid_return", "log(mid / mid of the state before)"),
    Feature("mid_momentum_fast", "log(mid / its EMA over 16 states)"),
    Feature("mid_momentum_slow", "log(mid / its EMA over 128 states)"),
    Feature("volatility", "square root of the EMA over 64 states of mid_return squared, from 0"),
    Feature("spread_bps", "(ask - bid) / mid * 1e4"),
    Feature("imbalance_top", "(bid_qty - ask_qty) / (bid_qty + ask_qty), 0 when both are 0"),
    Feature("imbalance_depth", "the same of bid_depth and ask_depth"),
    Feature("microprice_bps", "(microprice - mid) / mid * 1e4; microprice = (bid * ask_qty + ask "
            "* bid_qty) / (bid_qty + ask_qty), the mid when both are 0"),
    Feature("order_flow", "EMA over 16 states of Cont's order-flow imbalance, from 0, over the "
            "EMA over 16 states of (bid_qty + ask_qty) / 2; 0 when that is 0"),
    Feature("trade_flow", "EMA over 16 trades of last_side * last_qty over that of last_qty, "
            "states with the TRADE flag and last_qty > 0 only; in [-1, 1], 0 before the first"),
    Feature("last_offset_bps", "(last_price - mid) / mid * 1e4, 0 before the first trade"),
    Feature("bid_queue_change", "change of bid_qty over the larger of before and after; 0 when "
            "the bid moved"),
    Feature("ask_queue_change", "change of ask_qty over the larger of before and after; 0 when "
            "the ask moved"),
    Feature("depth_ratio", "log((1 + bid_depth) / (1 + ask_depth)), depths in whole units"),
    Feature("trade_rate", "EMA over 64 states of 1 with the TRADE flag, 0 without, from 0"),
    Feature("arrival", "log1p of milliseconds by ts_recv since the state before, 0 when not "
            "later, capped at 1 h"),
    Feature("best_bid", "best bid"),
    Feature("best_ask", "best ask"),
    Feature("mid", "(bid + ask) / 2"),
    Feature("spread", "ask - bid"),
    Feature("bid_depth", "quantity of the best 5 bid levels, whole units"),
    Feature("ask_depth", "quantity of the best 5 ask levels, whole units"),
    Feature("close", "last price of the bar", True),
    Feature("open", "first price of the bar", True),
    Feature("high", "highest price of the bar", True),
    Feature("low", "lowest price of the bar", True),
    Feature("rsi14", "Wilder's RSI of closes over 14 bars, percent; before 50", True),
    Feature("macd_line", "EMA 12 - EMA 26 of closes as TA-Lib seeds them; before 0", True),
    Feature("macd_signal", "its EMA over 9 bars; before 0", True),
    Feature("macd_histogram", "macd_line - macd_signal; before 0", True),
    Feature("ema9", "EMA of closes over 9 bars, seeded with their mean; before the close", True),
    Feature("ema21", "the same over 21 bars; before the close", True),
    Feature("ema_difference", "ema9 - ema21", True),
    Feature("sma50", "mean of 50 closes; before the close", True),
    Feature("sma50_distance", "(close / sma50 - 1) * 100; before 0", True),
    Feature("sma200", "mean of 200 closes; before the close", True),
    Feature("bollinger_lower", "mean of 20 closes less 2 population deviations; before the close",
            True),
    Feature("bollinger_middle", "mean of 20 closes; before the close", True),
    Feature("bollinger_upper", "mean of 20 closes plus 2 population deviations; before the close",
            True),
    Feature("bollinger_b", "where the close stands between the bands, 0 lower, 1 upper; 0.5 when "
            "they meet and before", True),
    Feature("volume", "quantity traded in the bar, whole units; before the first 0", True),
    Feature("volume_change", "volume over that of the bar before, less 1; at the first 0", True),
    Feature("log_return", "log(close / the close before); at the first 0", True),
    Feature("momentum10", "(close / the close 10 bars before - 1) * 100; before 0", True),
    Feature("ema12", "EMA of closes over 12 bars, seeded with their mean; before the close", True),
    Feature("ema26", "the same over 26 bars; before the close", True),
    Feature("wma20", "mean of 20 closes weighed 1 to 20, the newest most; before the close", True),
    Feature("rsi28", "Wilder's RSI of closes over 28 bars, percent; before 50", True),
    Feature("bollinger_width", "(upper - lower) / middle; before 0", True),
    Feature("atr14", "Wilder's mean of the true range over 14 bars; before 0", True),
    Feature("atr14_percent", "atr14 / close * 100; before 0", True),
    Feature("stochastic_k", "place of the close in the range of 14 bars, mean of 3, percent; "
            "before 50", True),
    Feature("stochastic_d", "mean of 3 of stochastic_k; before 50", True),
    Feature("obv", "on-balance volume since the first bar, whole units; before 0", True),
    Feature("mfi14", "money flow index over 14 bars, percent; before 50", True),
    Feature("vwap", "volume-weighted price of the bars since UTC midnight", True),
    Feature("vwap_distance", "(close / vwap - 1) * 100; before the first bar 0", True),
    Feature("realised20", "root mean square of 20 log returns; before 0", True),
    Feature("parkinson20", "Parkinson's volatility of 20 bars; before 0", True),
    Feature("volume_ratio20", "volume over its mean of 20 bars, this one included; before 1", True),
    Feature("bar_range", "(high - low) / close * 100; before the first bar 0", True),
    Feature("bar_vwap", "volume-weighted price of the bar", True),
    Feature("bar_trades", "trades in the bar; before the first 0", True),
    Feature("bars", "complete bars seen, at most 200", True),
)
FEATURES = Record("features", 256, "Every feature, in this order.", tuple(
    Field(f.name, "f32", "", f.doc[0].upper() + f.doc[1:] + ".") for f in CATALOGUE))
FEATURE_BY_NAME = {f.name: f for f in CATALOGUE}
# Named sets: what a configuration, a model or a research script may ask for in one word.
_BOOK = tuple(f.name for f in CATALOGUE[:16])
_CLASSIC = (
    "close", "open", "high", "low", "rsi14", "macd_line", "macd_signal", "macd_histogram", "ema9",
    "ema21", "ema_difference", "sma50", "sma50_distance", "sma200", "bollinger_lower",
    "bollinger_middle", "bollinger_upper", "bollinger_b", "volume", "volume_change", "best_bid",
    "best_ask", "mid", "spread", "spread_bps", "bid_depth", "ask_depth", "imbalance_depth",
    "log_return", "momentum10")
FEATURE_SETS: dict[str, tuple[str, ...]] = {
    "book": _BOOK,              # microstructure alone: needs no bars
    "classic": _CLASSIC,        # prices, indicators and the touch
    "default": (*_CLASSIC, *(name for name in _BOOK if name not in _CLASSIC)),
    "all": tuple(f.name for f in CATALOGUE),
}
# Windows of bars in ns.  Each begins at a multiple of its length since 1970-01-01T00:00 UTC.
BARS = {"1s": 10**9, "5s": 5 * 10**9, "15s": 15 * 10**9, "30s": 30 * 10**9,
        "1min": 60 * 10**9, "5min": 300 * 10**9, "15min": 900 * 10**9, "30min": 1800 * 10**9,
        "1h": 3600 * 10**9, "4h": 14400 * 10**9, "1d": 86400 * 10**9}

SIGNAL = Record("signal", 64, "What the model said.", (
    LINK, _event("Identity of the market event it was asked about."),
    Field("p_down", "f32", "", "Probability of a falling mid."),
    Field("p_flat", "f32", "", "Probability of neither."),
    Field("p_up", "f32", "", "Probability of a rising mid."),
    Field("confidence", "f32", "", "The largest of the three."),
    Field("model", "u64", "", "First 8 bytes of the model file's sha256."),
    Field("elapsed", "i64", "ns", "Time the inference took; not replayed."),
    INSTRUMENT_INDEX,
    Field("decision", "i8", "", "+1, 0 or -1.", enum=SIDE),
    Field("strategy", "u8", "", "Index of the strategy that asked."),
    Field("flags", "u8", "", "Bit set of SIGNAL_FLAG_*.", enum=SIGNAL_FLAG),
    Field("member", "u8", "", "Of an ensemble: 1 is the first; 0 = the strategy's own answer."),
    Field("pad0", "u16", "", "Zero.", None),
    Field("wanted", "i64", "nanoqty", "SHADOW: what it would have ordered, sells negative."),
))



def _triggers(*rest: Field) -> tuple[Field, ...]:
    """The second line of INTENT and ORDER: when an order becomes one; then *rest*."""
    return (
        Field("stop", "i64", "nanoprice", "STOP, STOP_LIMIT: the trade that makes it an order."),
        Field("trail", "i64", "nanoprice", "TRAILING_STOP: distance; 0 = trail_share counts."),
        Field("trail_share", "i64", "1e-9", "TRAILING_STOP: distance as a share of the price."),
        *rest, *(Field(f"pad{i}", "u64", "", "Zero.", None) for i in range(5 - len(rest))))


INTENT = Record("intent", 128, "What a strategy wants; not yet checked.", (
    LINK, _event("Identity of this intent; becomes the order's."), CAUSE,
    Field("ts_recv", "i64", "ns", "Of the market event that caused it, monotonic."),
    Field("price", "i64", "nanoprice", "Limit price; 0 for an order without."),
    Field("qty", "i64", "nanoqty", "Positive."),
    Field("target", "u32", "", "CANCEL: seq of the intent whose order to cancel; else 0."),
    Field("hop", "u32", "ns", "Published this long after ts_recv; saturates."),
    INSTRUMENT_INDEX,
    Field("side", "i8", "", "+1 buy, -1 sell.", enum=SIDE),
    Field("type", "u8", "", "ORDER_TYPE_*.", enum=ORDER_TYPE),
    Field("tif", "u8", "", "TIF_*.", enum=TIF),
    Field("action", "u8", "", "ACTION_NEW or ACTION_CANCEL.", enum=ACTION),
    Field("strategy", "u8", "", "Index of the strategy."),
    Field("tag", "u8", "", "EXIT_* when it closes a position by a rule of [exits].", enum=EXIT),
    # The quote it was decided on, for the record of best execution.
    *_triggers(
        Field("quoted", "i64", "ns", "When it was received, monotonic; 0 = there was none."),
        Field("bid", "i64", "nanoprice", "Best bid then; 0 = none."),
        Field("ask", "i64", "nanoprice", "Best ask then; 0 = none."),
        Field("bid_qty", "i64", "nanoqty", "Quantity at the best bid."),
        Field("ask_qty", "i64", "nanoqty", "Quantity at the best ask.")),
))

VERDICT = Record("verdict", 64, "What risk said about an intent.", (
    LINK, Field("order", "u64", "", "Identity of the intent."), CAUSE,
    Field("token", "u32", "", "Keyed hash over the order, its halt epoch and limits version."),
    Field("halt_epoch", "u32", "", "Low 32 bits of the halt epoch it was decided under."),
    Field("reference", "i64", "nanoprice", "Price the checks used; 0 = none."),
    Field("limit", "i64", "", "The limit that refused, in its own unit; 0 when approved."),
    Field("value", "i64", "", "What was held against it."),
    INSTRUMENT_INDEX,
    Field("reason", "u8", "", "REASON_*; 0 = approved.", enum=REASON),
    Field("action", "u8", "", "ACTION_* of the intent.", enum=ACTION),
    Field("detail", "u32", "", "What the reason is about: kind of figure, other instrument."),
))

# One cell per REASON, in order of its value, so that C finds the cell of a reason by counting;
# what is no check of risk may have a number beyond them.
CHECK_CELLS = 60


def _cells() -> tuple[Field, ...]:
    names = {value: (name.lower(), doc) for name, value, doc in REASON.members if value}
    return tuple(
        Field(names[value][0], "u16", "1e-3", f"Use of the limit behind it: {names[value][1]}")
        if value in names else Field(f"pad{value}", "u16", "", "Zero.", None)
        for value in range(1, CHECK_CELLS + 1))


# A cell is the use of a limit in 1/1000, rounded up, so that 1001 is beyond it.  0 = not looked
# at: an earlier check refused, or this one does not apply.  A yes/no check is 1 or 1001.
CHECK_LEAST, CHECK_LIMIT, CHECK_BEYOND, CHECK_MOST = 1, 1000, 1001, 65535
CHECKS = Record("checks", 128, "How near every check was to its limit; cause is the intent.", (
    LINK, *_cells()))

ORDER = Record("order", 128, "An order that risk lets go (or denied, for the books).", (
    LINK, Field("order", "u64", "", "Identity of the intent: the order's name in this run."),
    CAUSE,
    Field("ts_recv", "i64", "ns", "Of the market event that caused it, monotonic."),
    Field("price", "i64", "nanoprice", "Limit price; 0 for an order without."),
    Field("qty", "i64", "nanoqty", "Positive."),
    Field("token", "u32", "", "See VERDICT.token."),
    Field("hop", "u32", "ns", "Approved this long after ts_recv; saturates.", None),
    INSTRUMENT_INDEX,
    Field("side", "i8", "", "+1 buy, -1 sell.", enum=SIDE),
    Field("type", "u8", "", "ORDER_TYPE_*.", enum=ORDER_TYPE),
    Field("tif", "u8", "", "TIF_*.", enum=TIF),
    Field("action", "u8", "", "ACTION_*; for CANCEL, `order` is the order to cancel.",
          enum=ACTION),
    Field("strategy", "u8", "", "Index of the strategy."),
    Field("reason", "u8", "", "REASON_* when DENIED.", enum=REASON),
    *_triggers(),
))

UPDATE = Record("update", 128, "What the venue said about one of our orders.", (
    LINK, _event(), Field("order", "u64", "", "Our order; 0 = not one of ours."),
    Field("ts_recv", "i64", "ns", "Frame read, monotonic."),
    Field("ts_venue", "i64", "ns", "Venue timestamp, UTC."),
    Field("price", "i64", "nanoprice", "Of this execution."),
    Field("qty", "i64", "nanoqty", "Of this execution."),
    Field("cum_qty", "i64", "nanoqty", "Filled so far, as the venue says."),
    Field("execution", "u64", "", "First 8 bytes of the execution id's UUID; 0 = none."),
    Field("execution_low", "u64", "", "Its last 8 bytes."),
    Field("venue_id", "u64", "", "First 8 bytes of the venue's order id."),
    Field("venue_id_low", "u64", "", "Its last 8 bytes."),
    Field("position_qty", "i64", "nanoqty", "Position after it, as the venue says; fills only."),
    INSTRUMENT_INDEX,
    Field("kind", "u8", "", "ORDER_EVENT_*.", enum=ORDER_EVENT_KIND),
    Field("side", "i8", "", "+1 buy, -1 sell.", enum=SIDE),
    Field("reason", "u8", "", "REASON_* of a rejection, where more is known than that the venue "
          "refused; else 0.", enum=REASON),
    Field("flags", "u8", "", "UPDATE_FLAG_*.", enum=UPDATE_FLAG),
    Field("pad0", "u16", "", "Zero.", None),
    Field("pad1", "u64", "", "Zero.", None), Field("pad2", "u64", "", "Zero.", None),
))

ORDER_EVENT = Record("order_event", 64, "A step in the life of an order; the gateway's word.", (
    LINK, _event(), Field("order", "u64", "", "Identity of the intent it came from."), CAUSE,
    Field("price", "i64", "nanoprice", "Fills: of this execution; else the limit price."),
    Field("qty", "i64", "nanoqty", "Fills: of this execution; else the order's quantity."),
    Field("cum_qty", "i64", "nanoqty", "Filled so far."),
    INSTRUMENT_INDEX,
    Field("kind", "u8", "", "ORDER_EVENT_*.", enum=ORDER_EVENT_KIND),
    Field("side", "i8", "", "+1 buy, -1 sell.", enum=SIDE),
    Field("reason", "u8", "", "REASON_* when denied, dropped or rejected.", enum=REASON),
    Field("state", "u8", "", "ORDER_STATE_* after it.", enum=ORDER_STATE),
    Field("strategy", "u8", "", "Index of the strategy."),
    Field("type", "u8", "", "ORDER_TYPE_*.", enum=ORDER_TYPE),
))

POSITION = Record("position", 128, "One position and the account; the ledger's word.", (
    LINK, _event(), Field("qty", "i64", "nanoqty", "Held; negative = short."),
    Field("average", "i64", "nanoprice", "Average entry price, rounded half to even; 0 = flat."),
    Field("realised", "i64", "nanocash", "P&L realised on the instrument, before fees, since the "
          "books of the account were opened."),
    Field("unrealised", "i64", "nanocash", "Of the instrument, at the mark."),
    Field("mark", "i64", "nanoprice", "Price it is valued at; 0 = none yet."),
    INSTRUMENT_INDEX,
    Field("drawdown_bps", "u16", "", "(peak - equity) / peak, rounded up; saturates."),
    Field("day", "u32", "", "Trading day, days since 1970; 0 = not known."),
    Field("fee", "i64", "nanocash", "Charged for the fill that made this; 0 = no fill."),
    Field("fees", "i64", "nanocash", "Charged on the instrument since then."),
    Field("day_pnl", "i64", "nanocash", "Account: change of the equity since the day began."),
    Field("day_realised", "i64", "nanocash", "Account: realised since the day began, before fees."),
    Field("day_fees", "i64", "nanocash", "Account: charged since the day began."),
    Field("cash", "i64", "nanocash", "Account: opening equity and what trades left of it."),
    Field("equity", "i64", "nanocash", "Account: cash and positions at their marks."),
    Field("peak", "i64", "nanocash", "Account: highest equity, the opening one included."),
))

# What a run takes over from the one before, exactly: `x` nanocash and `x_rest` of 1e-18 above it.
OPENING = Record("opening", 128, "What the books of an instrument begin a run with.", (
    LINK, _event(), Field("qty", "i64", "nanoqty", "Held; negative = short."),
    Field("cost", "i64", "nanocash", "Paid for it, rounded down; sign of qty."),
    Field("realised", "i64", "nanocash", "Realised before fees, rounded down."),
    Field("fees", "i64", "nanocash", "Charged."),
    Field("mark", "i64", "nanoprice", "Price it was valued at last; 0 = none."),
    Field("fills", "u64", "", "Executions so far."),
    Field("cost_rest", "u32", "1e-18", "What cost lacks, 0 to 999,999,999."),
    Field("realised_rest", "u32", "1e-18", "What realised lacks."),
    INSTRUMENT_INDEX, Field("pad0", "u16", "", "Zero.", None),
    Field("pad1", "u32", "", "Zero.", None),
    Field("since", "i64", "ns", "The position is held since, UTC; 0 = flat."),
    Field("best", "i64", "nanoprice", "Best mark seen since then; 0 = none."),
    Field("first", "u8", "", "1 = its first target was taken."),
    Field("closing", "u8", "", "EXIT_* that fired and goes on until it is flat.", enum=EXIT),
    Field("pad5", "u16", "", "Zero.", None), Field("pad6", "u32", "", "Zero.", None),
    Field("pad2", "u64", "", "Zero.", None), Field("pad3", "u64", "", "Zero.", None),
    Field("pad4", "u64", "", "Zero.", None),
))

ACCOUNT = Record("account", 128, "What the account begins a run, or a trading day, with.", (
    LINK, _event(),
    Field("account", "u64", "", "First 8 bytes of the venue's account id, a UUID."),
    Field("account_low", "u64", "", "Its last 8 bytes."),
    Field("from_run", "u64", "", "Run whose books these are; 0 = new books."),
    Field("opening", "i64", "nanocash", "Equity the books were opened with."),
    Field("peak", "i64", "nanocash", "Highest equity so far."),
    Field("profit_then", "i64", "nanocash", "P&L after fees when the day began, rounded down."),
    Field("realised_then", "i64", "nanocash", "Realised before fees then, rounded down."),
    Field("fees_then", "i64", "nanocash", "Charged until then."),
    Field("elsewhere", "i64", "nanocash", "Realised on what is not traded any more, rounded "
          "down."),
    Field("elsewhere_fees", "i64", "nanocash", "Charged on it."),
    Field("profit_rest", "u32", "1e-18", "What profit_then lacks, 0 to 999,999,999."),
    Field("realised_rest", "u32", "1e-18", "What realised_then lacks."),
    Field("elsewhere_rest", "u32", "1e-18", "What elsewhere lacks."),
    Field("day", "u32", "", "Trading day, days since 1970; 0 = not known."),
    Field("resolved", "u32", "", "Orders of earlier runs that were resolved at this start."),
    Field("recovered", "u32", "", "Executions of theirs that only the venue knew of."),
    Field("kind", "u8", "", "ACCOUNT_*.", enum=ACCOUNT_KIND),
    Field("pad0", "u8", "", "Zero.", None), Field("pad1", "u16", "", "Zero.", None),
    Field("pad2", "u32", "", "Zero.", None),
))

RESOLVED = Record("resolved", 128, "What a start found out about an order of an earlier run.", (
    LINK, _event(),
    Field("order", "u64", "", "Identity of its intent, in of_run."),
    Field("of_run", "u64", "", "The run that sent it."),
    Field("price", "i64", "nanoprice", "Fills: of this execution; else the limit price."),
    Field("qty", "i64", "nanoqty", "Fills: of this execution; else the order's quantity."),
    Field("cum_qty", "i64", "nanoqty", "Filled so far."),
    Field("execution", "u64", "", "First 8 bytes of the execution id's UUID; 0 = none."),
    Field("execution_low", "u64", "", "Its last 8 bytes."),
    Field("venue_id", "u64", "", "First 8 bytes of the venue's order id; 0 = it never had it."),
    Field("venue_id_low", "u64", "", "Its last 8 bytes."),
    Field("ts_venue", "i64", "ns", "Venue timestamp, UTC; 0 = none."),
    Field("fee", "i64", "nanocash", "Fills: charged by our schedule."),
    INSTRUMENT_INDEX,
    Field("kind", "u8", "", "ORDER_EVENT_*.", enum=ORDER_EVENT_KIND),
    Field("side", "i8", "", "+1 buy, -1 sell.", enum=SIDE),
    Field("reason", "u8", "", "REASON_*.", enum=REASON),
    Field("state", "u8", "", "ORDER_STATE_* after it.", enum=ORDER_STATE),
    Field("pad0", "u16", "", "Zero.", None),
    Field("pad1", "u64", "", "Zero.", None), Field("pad2", "u64", "", "Zero.", None),
))

RISK_EVENT = Record("risk_event", 64, "Something happened to the gate.", (
    LINK, _event(), CAUSE,
    Field("halt_epoch", "u64", "", "Halt epoch seen."),
    Field("armed_epoch", "u64", "", "Armed epoch seen."),
    Field("limit", "i64", "", "Limit, in its own unit."),
    Field("value", "i64", "", "Value held against it."),
    INSTRUMENT_INDEX,
    Field("kind", "u8", "", "RISK_EVENT_*.", enum=RISK_EVENT_KIND),
    Field("reason", "u8", "", "REASON_*.", enum=REASON),
    Field("detail", "u32", "", "By kind."),
))

TAKE = Record("take", 64, "The signal stage took an order event: where, among the books.", (
    LINK, Field("taken", "u64", "", "Identity of the order event."),
    Field("after", "u64", "", "Book records taken before it in this run."),
    Field("room", "u64", "", "Intents that were allowed then."),
    Field("pad0", "u64", "", "Zero.", None), Field("pad1", "u64", "", "Zero.", None),
    Field("pad2", "u64", "", "Zero.", None), Field("pad3", "u64", "", "Zero.", None),
))

TURN = Record("turn", 64, "What a stage took from its links, in its order, and when.", (
    LINK, Field("began", "i64", "ns", "When the first turn was, monotonic."),
    Field("after_1", "u32", "ns", "Turn 1: when, after began."),
    Field("many_1", "u32", "", "By kind."),
    Field("first_1", "u8", "", "By kind."), Field("second_1", "u8", "", "By kind."),
    Field("third_1", "u8", "", "By kind."), Field("fourth_1", "u8", "", "By kind."),
    Field("kind_1", "u8", "", "TURN_*.", enum=TURN_KIND),
    Field("flags_1", "u8", "", "TURN_FLAG_*."), Field("rest_1", "u16", "", "By kind."),
    Field("after_2", "u32", "ns", "Turn 2: when, after began."),
    Field("many_2", "u32", "", "By kind."),
    Field("first_2", "u8", "", "By kind."), Field("second_2", "u8", "", "By kind."),
    Field("third_2", "u8", "", "By kind."), Field("fourth_2", "u8", "", "By kind."),
    Field("kind_2", "u8", "", "TURN_*.", enum=TURN_KIND),
    Field("flags_2", "u8", "", "TURN_FLAG_*."), Field("rest_2", "u16", "", "By kind."),
    Field("after_3", "u32", "ns", "Turn 3: when, after began."),
    Field("many_3", "u32", "", "By kind."),
    Field("first_3", "u8", "", "By kind."), Field("second_3", "u8", "", "By kind."),
    Field("third_3", "u8", "", "By kind."), Field("fourth_3", "u8", "", "By kind."),
    Field("kind_3", "u8", "", "TURN_*.", enum=TURN_KIND),
    Field("flags_3", "u8", "", "TURN_FLAG_*."), Field("rest_3", "u16", "", "By kind."),
))

RELOAD = Record("reload", 64, "A model was exchanged in the running signal stage.", (
    LINK, _event(),
    Field("model", "u64", "", "First 8 bytes of the new file's sha256."),
    Field("before", "u64", "", "The same of the old file."),
    Field("after", "u64", "", "Book records taken before it in this run."),
    Field("taken", "u64", "", "Order events taken before it in this run."),
    Field("pad0", "u64", "", "Zero.", None),
    Field("strategy", "u8", "", "Index of the strategy."),
    Field("member", "u8", "", "Of an ensemble: 1 is the first; 0 = the strategy itself."),
    Field("pad1", "u16", "", "Zero.", None), Field("pad2", "u32", "", "Zero.", None),
))

FIGURE = Record("figure", 64, "One value that risk takes from outside, with its age.", (
    LINK, _event(),
    Field("ts_computed", "i64", "ns", "When it was computed, monotonic."),
    Field("until", "i64", "ns", "It holds until then, monotonic; 0 = it ages from ts_computed."),
    Field("value", "i64", "", "By kind."),
    Field("basis", "u64", "", "VAR_*: newest order event whose fill the value knows; else 0."),
    Field("pad1", "u64", "", "Zero.", None),
    INSTRUMENT_INDEX,
    Field("other", "u16", "", "Second instrument, limit or strategy, by kind."),
    Field("kind", "u8", "", "FIGURE_*.", enum=FIGURE_KIND),
    Field("pad2", "u8", "", "Zero.", None), Field("pad3", "u16", "", "Zero.", None),
))

INSTRUMENT = Record("instrument", 64, "One row of the instrument table.", (
    Field("symbol", "s16", "", "Venue's symbol, zero-padded."),
    Field("tick", "i64", "nanoprice", "Price increment."),
    Field("lot", "i64", "nanoqty", "Quantity increment."),
    Field("min_qty", "i64", "nanoqty", "Smallest order."),
    Field("base_price", "i64", "nanoprice", "A typical price; only a hint for the book's pages."),
    Field("flags", "u64", "", "1 = fractional, 2 = shortable, 4 = US share: from 1.00 "
          "on prices are whole cents, below it hundredths of a cent."),
    Field("pad0", "u64", "", "Zero.", None),
))

BAR = Record("bar", 64, "Trades of one window; a window without trades has none.", (
    Field("start", "i64", "ns", "Where the window begins, UTC; a multiple of its length."),
    Field("open", "i64", "nanoprice", "First price."),
    Field("high", "i64", "nanoprice", "Highest price."),
    Field("low", "i64", "nanoprice", "Lowest price."),
    Field("close", "i64", "nanoprice", "Last price."),
    Field("volume", "i64", "nanoqty", "Quantity traded."),
    Field("vwap", "i64", "nanoprice", "Volume-weighted price, rounded half to even."),
    Field("count", "u64", "", "Trades."),
))

ENVELOPE = Record("envelope", 64, "What every stored event carries before its body.", (
    LINK, _event(), CAUSE,
    Field("ts", "i64", "ns", "Hop time: this stage published it, monotonic."),
    Field("ts_in", "i64", "ns", "Hop time of the stage before, or 0."),
    Field("checksum", "u64", "", "checksum() over the words of the body."),
    Field("record", "u8", "", "RECORD_*: what the body is.", enum=RECORD),
    Field("lines", "u8", "", "64-byte lines of the body: 1 to 4."),
    INSTRUMENT_INDEX,
    Field("pad0", "u32", "", "Zero.", None),
    Field("aux", "u64", "", "By record; INTENT: hop time of the book stage."),
))

# A slot of a store link: the envelope, then the body (its link_seq is zero).
STORED = Record("stored", 128, "One slot of a store link: envelope and a one-line body.", (
    *ENVELOPE.fields, *(Field(f"body{i}", "u64", "", "Body.") for i in range(8))))
STORED_WIDE = Record("stored_wide", 192, "The same for bodies of up to two lines.", (
    *ENVELOPE.fields, *(Field(f"body{i}", "u64", "", "Body.") for i in range(16))))
STORED_VECTOR = Record("stored_vector", 320, "The same for bodies of up to four lines.", (
    *ENVELOPE.fields, *(Field(f"body{i}", "u64", "", "Body.") for i in range(32))))
SLOTS = (STORED, STORED_WIDE, STORED_VECTOR)

RECORDS = (MARKET, BOOK, BOOK_STATUS, FEATURES, SIGNAL, INTENT, VERDICT, CHECKS, ORDER,
           UPDATE, ORDER_EVENT, POSITION, OPENING, ACCOUNT, RESOLVED, RISK_EVENT, TAKE, TURN,
           RELOAD, FIGURE, INSTRUMENT, BAR, ENVELOPE, STORED, STORED_WIDE, STORED_VECTOR)
BY_NAME = {r.name: r for r in RECORDS}
# What may stand in a store link, by the number in its envelope.
BODIES = {value: BY_NAME[name] for _, value, name in RECORD.members}

ENUMS = (STREAM, RECORD, MARKET_KIND, MARKET_FLAG, BOOK_FLAG, SIGNAL_FLAG, UPDATE_FLAG, TURN_KIND,
         TURN_FLAG, SIDE, ORDER_TYPE, TIF,
         ACTION, REASON, ORDER_EVENT_KIND, ORDER_STATE, ACCOUNT_KIND, RISK_EVENT_KIND, FIGURE_KIND,
         SESSION, BREAKER, BREAKER_CAUSE, LIMIT, EXIT)

DEPTH = 5                       # levels summed into BOOK.bid_depth and ask_depth

# ---------------------------------------------------------------- metrics

# Counters and gauges each stage keeps in its own block of the control page.
METRICS = (
    Metric("records_in", "counter", "", "Records taken from input links."),
    Metric("records_out", "counter", "", "Records put on output links, store links aside."),
    Metric("events_stored", "counter", "", "Events put on the store link."),
    Metric("events_checksum", "gauge", "", "Sum, modulo 2**64, of the checksums of those events."),
    Metric("credit_stalls", "counter", "", "Passes that found no credit on an output link."),
    Metric("gaps", "counter", "", "Gaps seen in what the venue or a link sent."),
    Metric("drops", "counter", "", "Messages without effect: unknown order, level or symbol."),
    Metric("errors", "counter", "", "Malformed messages and failed operations."),
    Metric("reconnects", "counter", "", "Connections made after the first."),
    Metric("ignored", "counter", "", "Messages of a kind that nobody here needs, such as news."),
    Metric("backfilled", "counter", "", "Records asked for after a gap in the data stream."),
    Metric("frames", "counter", "", "Frames read from a socket."),
    Metric("intents", "counter", "", "Intents published."),
    Metric("approved", "counter", "", "Intents approved by risk."),
    Metric("denied", "counter", "", "Intents refused by risk."),
    Metric("orders_sent", "counter", "", "Orders handed to the socket."),
    Metric("orders_dropped", "counter", "", "Orders the gateway refused to send."),
    Metric("orders_rejected", "counter", "", "Orders the venue refused."),
    Metric("fills", "counter", "", "Executions."),
    Metric("orders_open", "gauge", "", "Orders not yet in a terminal state."),
    Metric("orders_unknown", "gauge", "", "Orders without an answer."),
    Metric("day_pnl", "gauge", "nanocash", "Change of the equity since the day began."),
    Metric("realised_pnl", "gauge", "nanocash", "Realised P&L, before fees."),
    Metric("fees", "gauge", "nanocash", "Fees charged."),
    Metric("equity", "gauge", "nanocash", "Cash and positions at their marks."),
    Metric("drawdown", "gauge", "nanocash", "Highest equity of the run less equity."),
    Metric("gross_notional", "gauge", "nanocash", "Sum of absolute position values."),
    Metric("rows_stored", "counter", "", "Rows committed to PostgreSQL."),
    Metric("batches_stored", "counter", "", "Transactions committed to PostgreSQL."),
    Metric("store_lag", "gauge", "", "Events waiting in store links."),
    Metric("ack_epoch", "gauge", "", "Halt epoch this stage has acknowledged."),
    Metric("connected", "gauge", "", "1 while the stage's connection is authorised."),
    Metric("last_data", "gauge", "ns", "The host's monotonic clock at the last data message."),
    Metric("work_passes", "counter", "", "Passes of the duty cycle that found work."),
    Metric("idle_passes", "counter", "", "Passes that found none."),
    Metric("books", "gauge", "", "Instruments that ever had a fresh book."),
    Metric("books_stale", "gauge", "", "Of them, books that are stale."),
    Metric("books_crossed", "gauge", "", "Of them, books that are crossed or locked."),
    Metric("jump_bps", "gauge", "bps",
           "Largest distance of a mid from its mean of about a minute."),
    Metric("unsettled", "gauge", "", "1 while no new order may leave: updates are down, or what "
           "happened meanwhile is not known."),
    Metric("reconciliations", "counter", "", "Looks at the venue's orders or positions that "
           "found them equal to ours."),
    Metric("breaks", "counter", "", "Differences to the venue found, whether mended or not."),
    Metric("breaks_open", "gauge", "", "Of them, those that still stand."),
    Metric("orders_resolved", "counter", "", "Orders without an answer of which the venue told."),
    Metric("venue_orders", "gauge", "", "Open orders as the venue last said."),
    Metric("sweeps", "counter", "", "Times the venue was asked to cancel every open order."),
    Metric("swept", "counter", "", "Open orders that those found."),
    Metric("clear_epoch", "gauge", "", "Last halt after which the venue had no open order."),
    Metric("settled_epoch", "gauge", "", "Last halt after which it stayed so: none was under way."),
    Metric("venue_positions", "gauge", "", "Positions as the venue last said, when closing."),
    Metric("flat_epoch", "gauge", "", "Last halt whose closing of all positions is over."),
    Metric("alerts_sent", "counter", "", "Notifications delivered."),
    Metric("alerts_failed", "counter", "", "Notifications given up."),
    Metric("journal_records", "counter", "", "Records on disk in the journal."),
    Metric("journal_bytes", "counter", "", "Bytes of records written to it."),
    Metric("journal_commits", "counter", "", "Group commits."),
    Metric("journal_lag", "gauge", "", "Events in store links that are not on disk yet."),
    Metric("journal_segments", "gauge", "", "Segments that hold records."),
    Metric("journal_spares", "gauge", "", "Segments made ahead; at one, trading halts."),
    Metric("journal_stored", "gauge", "", "Records up to which PostgreSQL has every one."),
    Metric("realtime", "gauge", "", "1 while the process has real-time priority."),
)

# What the page tells of each strategy, and of each member of an ensemble; the signal stage's.
_OF_STRATEGIES = (
    Metric("strategy_answers", "counter", "", "Answers of the model or strategy."),
    Metric("strategy_late", "counter", "", "Of them over the budget."),
    Metric("strategy_orders", "counter", "", "Intents published; of a shadow, its wishes."),
    Metric("strategy_failures", "counter", "", "Times it gave up; a shadow is then asked no more."),
    Metric("strategy_halts", "counter", "", "Times it asked to stop trading."),
    Metric("strategy_reloads", "counter", "", "Models exchanged while running."),
    Metric("strategy_model", "gauge", "", "First 8 bytes of the model file's sha256."),
    Metric("strategy_predictions", "counter", "", "Predictions whose horizon has passed."),
    Metric("strategy_accuracy", "gauge", "ppb", "Of the last 100 of them, those that came true."),
    Metric("strategy_shift", "gauge", "ppb", "Largest Kolmogorov-Smirnov distance of a feature "
           "from training, over the deciles."),
    Metric("strategy_shift_feature", "gauge", "", "Which of the model's features that is, from 0."),
    Metric("strategy_stability", "gauge", "ppb",
           "Largest population stability index of a feature."),
)
STRATEGY_METRICS = tuple(
    replace(m, labels=("strategy", "model") if m.name == "strategy_model" else ("strategy",))
    for m in _OF_STRATEGIES)

# Latency histograms; each is written by the stage named first.
HISTOGRAMS = (
    Metric("feed", "histogram", "ns", "Frame read to market record published."),
    Metric("book", "histogram", "ns", "Market record published to book state published."),
    Metric("signal", "histogram", "ns", "Book state published to intent published."),
    Metric("model", "histogram", "ns", "One inference."),
    Metric("risk", "histogram", "ns", "Intent published to verdict."),
    Metric("gateway", "histogram", "ns", "Verdict to request handed to the socket."),
    Metric("tick_to_order", "histogram", "ns", "Frame read to request handed to the socket."),
    Metric("send", "histogram", "ns", "The send() call itself."),
    Metric("order_to_ack", "histogram", "ns", "Request handed to the socket to its answer."),
    Metric("order_to_fill", "histogram", "ns", "Request handed to the socket to the first fill."),
    Metric("journal_commit", "histogram", "ns", "One group of records written and on disk."),
)

# What belongs to the run, and what the page keeps of every stage beside its counters.
PAGE_METRICS = (
    Metric("armed", "gauge", "", "1 while orders may pass.", ()),
    Metric("halt_epoch", "gauge", "", "Halts so far.", ()),
    Metric("started", "gauge", "ns", "Start of the run, Unix time.", ()),
    Metric("stage_up", "gauge", "", "1 while the stage runs."),
    Metric("heartbeat_age", "gauge", "ns", "Time since the stage last beat."),
    Metric("store_full", "gauge", "", "1 while its store link has no room."),
)


# ---------------------------------------------------------------- derived

def event_id(stream: int, seq: int) -> int:
    """Identity of the *seq*-th event of *stream*."""
    return stream << SEQ_BITS | seq


def split_event(event: int) -> tuple[int, int]:
    """``(stream, seq)`` of an identity."""
    return event >> SEQ_BITS, event & ((1 << SEQ_BITS) - 1)


def nearest(what: str, name: str, known: Sequence[str]) -> ValueError:
    """The error of asking for *what* by a *name* that is not *known*; names the nearest."""
    near = difflib.get_close_matches(name, known, 1, 0)
    return ValueError(f"wanted {what}, found {name!r}: did you mean {near[0]!r}?")


def feature_names(choice: str | Sequence[str]) -> tuple[str, ...]:
    """Names of a set in FEATURE_SETS, or of a sequence of names.

    Raises
    ------
    ValueError
        If there is no such set (naming the nearest), or as :func:`feature_index`.
    """
    if isinstance(choice, str):
        if choice not in FEATURE_SETS:
            raise nearest("a set of features", choice, list(FEATURE_SETS))
        choice = FEATURE_SETS[choice]
    feature_index(choice)
    return tuple(choice)


def feature_index(names: Sequence[str],
                  catalogue: Sequence[Feature] | None = None) -> list[int]:
    """Where each of *names* stands in FEATURES, or in another *catalogue*.

    Raises
    ------
    ValueError
        If a name is not in the catalogue (naming the nearest) or stands twice, or there is none.
    """
    order = [f.name for f in (CATALOGUE if catalogue is None else catalogue)]
    for name in names:
        if name not in order:
            raise nearest("a feature", name, order)
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice or not names:
        raise ValueError(f"wanted each feature once, found {twice[0]!r} twice" if twice
                         else "wanted at least one feature, found none")
    return [order.index(name) for name in names]


def feature_hash(names: Sequence[str], bar: str = "",
                 catalogue: Sequence[Feature] | None = None) -> int:
    """64 bits that change with any name, its definition, the order, or the window of bars.

    Parameters
    ----------
    names : sequence of str
        Features in the order of the vector.
    bar : str
        One of BARS.  Needed when a feature is computed from bars; without effect otherwise.

    Raises
    ------
    ValueError
        As :func:`feature_index`, and if *bar* is needed and is no window (naming the nearest).
    """
    known = CATALOGUE if catalogue is None else catalogue
    chosen = [known[i] for i in feature_index(names, known)]
    if not any(f.bars for f in chosen):
        bar = ""
    elif bar not in BARS:
        raise nearest("a window of bars", bar, list(BARS))
    text = json.dumps([bar, [[f.name, f.doc] for f in chosen]])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def slot_of(record: Record) -> Record:
    """The smallest slot of a store link that holds a body of *record*."""
    return next(slot for slot in SLOTS if slot.size >= ENVELOPE.size + record.size)


def descriptor(record: Record) -> dict[str, Any]:
    """Everything a reader of stored bytes must know about *record*, JSON-ready."""
    return {"name": record.name, "size": record.size, "fields": [
        {"name": f.name, "type": f.type, "unit": f.unit, "at": record.offsets[f.name],
         "stored": f.column is not None,
         **({"enum": {m: v for m, v, _ in f.enum.members}} if f.enum else {})}
        for f in record.fields]}


def dtype_of(desc: dict[str, Any]) -> numpy.dtype[Any]:
    """The numpy dtype of a :func:`descriptor`, this version's or an older one's."""
    import numpy
    return numpy.dtype({
        "names": [f["name"] for f in desc["fields"]],
        "formats": [TYPES[f["type"]][2] for f in desc["fields"]],
        "offsets": [f["at"] for f in desc["fields"]], "itemsize": desc["size"]})


def dtype(record: Record) -> numpy.dtype[Any]:
    """The numpy dtype whose bytes are exactly the C struct's."""
    return dtype_of(descriptor(record))


def columns(record: Record) -> list[str]:
    """Stored fields in COPY order."""
    return [f.name for f in record.fields if f.column is not None]


# ---------------------------------------------------------------- generated text

def _c_name(e: Enum, member: str) -> str:
    return f"HP_{e.name.upper()}_{member}"


_METRIC_GROUPS = (("METRIC", METRICS), ("HISTOGRAM", HISTOGRAMS), ("PER", STRATEGY_METRICS))


def c_header() -> str:
    out = ["/* GENERATED by src/schema.py; edit that, then `make schema`. */",
           "#ifndef HFTPIPE_SCHEMA_H", "#define HFTPIPE_SCHEMA_H",
           "#include <stddef.h>", "#include <stdint.h>", "",
           f"#define HP_SEQ_BITS {SEQ_BITS}", f"#define HP_DEPTH {DEPTH}",
           f"#define HP_FEATURE_COUNT {len(FEATURES.fields)}", ""]
    for e in ENUMS:
        out += [f"/* {e.doc} */", "enum {"]
        out += [f"  {_c_name(e, m)} = {v}, /* {d} */" for m, v, d in e.members] + ["};", ""]
    for r in RECORDS:
        out += [f"#define HP_{r.name.upper()}_ID UINT64_C(0x{r.fingerprint:016x})",
                f"/* {r.doc} */", "typedef struct {"]
        for f in r.fields:
            unit = f" [{f.unit}]" if f.unit else ""
            name = f.name + ("[16]" if f.type == "s16" else "")
            decl, at = f"{TYPES[f.type][0]:<9}{name + ';':<14}", r.offsets[f.name]
            out.append(f"  {decl} /* {at:>3}{unit}: {f.doc} */")
        out.append(f"}} __attribute__((aligned(64))) hp_{r.name}_t;")
        out.append(f'_Static_assert(sizeof(hp_{r.name}_t) == {r.size}, "{r.name}: size");')
        out += [f'_Static_assert(offsetof(hp_{r.name}_t, {n}) == {o}, "{r.name}.{n}: offset");'
                for n, o in r.offsets.items()]
        out.append("")
    for kind, group in _METRIC_GROUPS:
        out.append("enum {")
        out += [f"  HP_{kind}_{m.name.upper()}, /* {m.prometheus}: {m.doc} */" for m in group]
        out += [f"  HP_{kind}_COUNT", "};"]
    return "\n".join([*out, "#endif", ""])


def pxd() -> str:
    out = ["# GENERATED by src/schema.py; edit that, then `make schema`.",
           "from libc.stdint cimport int8_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t", "",
           'cdef extern from "_schema.h" nogil:']
    for r in RECORDS:
        out.append(f"    const uint64_t HP_{r.name.upper()}_ID")
    out += ["", "    enum:", "        HP_SEQ_BITS", "        HP_DEPTH", "        HP_FEATURE_COUNT"]
    for e in ENUMS:
        out += ["", "    enum:"] + [f"        {_c_name(e, m)}" for m, _, _ in e.members]
    for r in RECORDS:
        out += ["", f"    ctypedef struct hp_{r.name}_t:"]
        out += [f"        {TYPES[f.type][0]}{'[16]' if f.type == 's16' else ''} {f.name}"
                for f in r.fields]
    for kind, group in _METRIC_GROUPS:
        out += ["", "    enum:"]
        out += [f"        HP_{kind}_{m.name.upper()}" for m in group] + [f"        HP_{kind}_COUNT"]
    return "\n".join(out) + "\n"


def metrics_page() -> str:
    """``docs/operate/metrics.md``: what ``/metrics`` shows."""
    out = ["# Metrics", "",
           "<!-- GENERATED by src/schema.py; edit that, then `make schema`. -->", "",
           "What `/metrics` of the monitor (`observe.prometheus`) shows. Times are seconds, shares",
           "are 0 to 1, nanocash is 1e-9 of the currency. A histogram has `_bucket`, `_sum` and",
           "`_count`; its bounds are (2^n - 1) ns, n = 6 to 34."]
    for title, group in (("The run", PAGE_METRICS), ("Stages", METRICS),
                         ("Latency", HISTOGRAMS), ("Strategies", STRATEGY_METRICS)):
        out += ["", f"## {title}", "", "| Name | Type | Unit | Labels | What |",
                "|---|---|---|---|---|"]
        out += [f"| `{m.prometheus}` | {m.kind} | {m.exported_unit or '-'} | "
                f"{', '.join(m.labels) or '-'} | {m.doc} |" for m in group]
    return "\n".join(out) + "\n"


def outputs() -> dict[Path, str]:
    return {ROOT / "src/_schema.h": c_header(), ROOT / "src/_schema.pxd": pxd(),
            ROOT / "docs/operate/metrics.md": metrics_page()}


def main(argv: list[str]) -> int:
    stale = [p for p, text in outputs().items() if not p.exists() or p.read_text() != text]
    if "--write" in argv:
        for p in stale:
            p.write_text(outputs()[p])
        return 0
    for p in stale:
        print(f"{p.relative_to(ROOT)} is stale: run `make schema`")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
