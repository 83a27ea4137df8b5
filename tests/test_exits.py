"""Stops and targets fire when the rules say, once, and never close more than is held."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftpipe import schema
from hftpipe.errors import ConfigError
from hftpipe.strategies._exits import DEFAULTS, Exits
from hftpipe.strategies._probe import Probe
from tests.chain import NANO, Chain, quote
from tests.chain import table as chain_table
from tests.models.exits import NaiveExits

E, FLAG = schema.ORDER_EVENT_KIND, schema.BOOK_FLAG
OTHERS = 7                              # index of the strategy that opens positions
OFF = {name: 0 for name in DEFAULTS if name not in ("atr_bars", "atr_bar")} | {
    "break_even": False, "market": True}


def table(lot=NANO, tick=NANO // 100, flags=0):
    out = np.zeros(1, schema.dtype(schema.INSTRUMENT))
    out["symbol"], out["tick"], out["lot"], out["flags"] = b"SYM0", tick, lot, flags
    return out


class Desk:
    """The strategy between a scripted market and scripted answers."""

    def __init__(self, lot=NANO, price=0, tick=NANO // 100, flags=0, **rules):
        given_prices = {"price": {"SYM0": price}} if price else {}
        specs = table(lot, tick, flags)
        self.probe = Probe(Exits.from_config({**OFF, **rules, **given_prices}, specs), specs)
        self.qty, self.number, self.event, self.now = 0, 0, 0, 1000
        self.bid = self.ask = 0
        self.open = {1: 0, -1: 0}

    def book(self, bid, ask=None, now=None, flags=0):
        """A state of the book; what the strategy wants, at most one order."""
        self.now = self.now + 1 if now is None else now
        self.bid, self.ask = bid, bid + NANO // 100 if ask is None else ask
        intents, signal = self.probe.ask(self.row(flags), qty=self.qty, open_buy=self.open[1],
                                         open_sell=self.open[-1])
        assert signal is None and len(intents) <= 1
        return intents[0] if len(intents) else None

    def row(self, flags=0):
        row = np.zeros(1, schema.dtype(schema.BOOK))
        row["ts_recv"], row["flags"], row["bid"], row["ask"] = self.now, flags, self.bid, self.ask
        return row

    def step(self, kind, number, side=1, qty=0, price=0, strategy=0):
        """An order event; exits never answer one."""
        self.event += 1
        row = np.zeros(1, schema.dtype(schema.ORDER_EVENT))
        row["event"], row["order"], row["kind"] = self.event, number, kind
        row["side"], row["qty"], row["price"], row["strategy"] = side, qty, price, strategy
        if kind in (E.FILL, E.PARTIAL_FILL):
            self.qty += side * qty
        intents, _ = self.probe.ask(self.row(), qty=self.qty, order_event=row)
        assert not len(intents)

    def trade(self, signed, price):
        """Somebody else's order, filled at once."""
        self.number += 1
        self.step(E.FILL, self.number, 1 if signed > 0 else -1, abs(signed), price, OTHERS)

    def fill(self, intent, qty=None, price=None):
        self.number += 1
        self.step(E.FILL, self.number, int(intent["side"]),
                  int(intent["qty"]) if qty is None else qty, price or self.bid)


def why(intent):
    return None if intent is None else schema.EXIT.label(int(intent["tag"]))


def cents(value):
    return value * NANO // 100


# ---------------------------------------------------------------- the twin

moves = st.one_of(st.integers(-30, 30), st.sampled_from((-400, -250, 250, 400, 700)))
steps = st.lists(st.tuples(
    st.sampled_from(("tick", "tick", "tick", "tick", "trade", "answer", "dead")), moves,
    st.integers(-3, 3), st.sampled_from(("fill", "part", "deny", "reject", "wait", "late")),
    st.sampled_from((0, 1, 40 * 10**9, 400 * 10**9))), max_size=60)
rules_of = st.fixed_dictionaries({
    "stop": st.sampled_from((0, 50, 200)), "trailing": st.sampled_from((0, 75, 150)),
    "trailing_from": st.sampled_from((0, 100, 200)),
    "atr_times": st.sampled_from((0, 10**9, 5 * 10**8 * 5)), "atr_bars": st.integers(1, 3),
    "atr_bar": st.just(60 * 10**9), "hold": st.sampled_from((0, 900 * 10**9)),
    "loss": st.sampled_from((0, 3 * NANO, 1)), "target": st.sampled_from((0, 300, 500)),
    "first": st.sampled_from((0, 200, 300)), "first_share": st.sampled_from((1000, 5000, 10_000)),
    "break_even": st.booleans(), "pause": st.sampled_from((0, 30 * 10**9))})


@settings(max_examples=300, deadline=None)
@given(rules_of, steps, st.sampled_from((0, 9900)))
def test_agrees_with_the_plain_rules(rules, script, absolute):
    desk = Desk(price=cents(absolute), **rules)
    naive = NaiveExits({**OFF, **rules}, NANO, cents(absolute))
    mid, alive, ended = 10_000, None, []
    for what, move, lots, answer, wait in script:
        if what == "trade":
            if desk.qty * lots < 0 and abs(lots) * NANO > abs(desk.qty) - desk.open[-1 if desk.qty
                                                                                    > 0 else 1]:
                continue                        # the gate lets nobody cross zero
            if lots:
                desk.trade(lots * NANO, cents(mid))
                naive.fill(desk.now, lots * NANO, cents(mid))
        elif what == "answer" and alive:
            number, side, qty = alive
            if answer == "late" and ended:      # a fill of an order that ended long ago
                before, part_side = ended[-1]
                if desk.qty * part_side < 0 and abs(desk.qty) - desk.open[part_side] >= NANO:
                    desk.step(E.PARTIAL_FILL, before, part_side, NANO, cents(mid))
                    naive.exit_fill(desk.now, before, part_side * NANO, cents(mid))
                continue
            part = {"fill": qty, "part": qty // 2 // NANO * NANO}.get(answer, 0)
            if answer == "wait" or answer == "late":
                continue
            if part:
                desk.open[side] -= part
                desk.step(E.FILL if part == qty else E.PARTIAL_FILL, number, side, part,
                          cents(mid))
                naive.exit_fill(desk.now, number, side * part, cents(mid))
            if part != qty:
                desk.step({"part": E.CANCELED, "deny": E.DENIED}.get(answer, E.REJECTED), number,
                          side, qty)
            desk.open[side] = 0
            naive.exit_end(desk.now, number, part == qty)
            ended.append((number, side))
            alive = None
        elif what == "dead":                    # a book that cannot be traded says nothing
            assert desk.book(cents(1), flags=FLAG.STALE) is None
        else:
            mid = max(mid + move, 100)
            held = desk.qty
            intent = desk.book(cents(mid), now=desk.now + 1 + wait)
            wanted = naive.tick(desk.now, desk.bid, desk.ask, desk.open[-1 if held > 0 else 1])
            found = None if intent is None else (
                why(intent), int(intent["side"]), int(intent["qty"]))
            assert found == wanted
            if intent is not None:
                assert alive is None                            # E1
                assert 0 < found[2] <= abs(held) and found[1] * held < 0        # E2
                assert intent["type"] == schema.ORDER_TYPE.MARKET and intent["price"] == 0
                desk.number += 1
                alive = (desk.number, found[1], found[2])
                desk.open[found[1]] += found[2]


# ---------------------------------------------------------------- by hand

def test_a_static_stop_fires_at_its_price_and_not_one_unit_before():
    desk = Desk(stop=200)
    desk.trade(3 * NANO, 100 * NANO)
    assert desk.book(98 * NANO + 1) is None
    intent = desk.book(98 * NANO)
    assert (why(intent), intent["side"], intent["qty"]) == ("stop", -1, 3 * NANO)
    short = Desk(stop=200)
    short.trade(-3 * NANO, 100 * NANO)
    assert short.book(101 * NANO, ask=102 * NANO - 1) is None
    assert why(short.book(101 * NANO, ask=102 * NANO)) == "stop"


def test_a_gap_through_the_stop_fires_at_the_first_price_beyond():
    desk = Desk(stop=200)
    desk.trade(NANO, 100 * NANO)
    assert desk.book(99 * NANO) is None
    assert why(desk.book(42 * NANO)) == "stop"


def test_the_trailing_stop_waits_for_its_activation_and_only_rises():
    desk = Desk(trailing=150, trailing_from=200)
    desk.trade(NANO, 100 * NANO)
    assert desk.book(cents(10_199)) is None
    assert desk.book(cents(9_000)) is None              # not active: nothing to fall from
    assert desk.book(cents(10_200)) is None             # active: 102 - 1.53 = 100.47
    assert desk.book(cents(10_048)) is None
    assert desk.book(cents(10_400)) is None             # 104 - 1.56 = 102.44
    assert desk.book(cents(10_245)) is None
    assert why(desk.book(cents(10_244))) == "trailing"


def test_half_at_the_first_target_then_break_even_or_the_rest_at_the_second():
    for last, wanted in ((cents(10_000), "break_even"), (cents(10_500), "target")):
        desk = Desk(first=300, first_share=5000, target=500, break_even=True, stop=200)
        desk.trade(5 * NANO, 100 * NANO)
        assert desk.book(cents(10_299)) is None
        intent = desk.book(cents(10_300))
        assert (why(intent), intent["qty"]) == ("first", 2 * NANO)      # half, in whole lots
        desk.fill(intent)
        assert desk.book(cents(10_400)) is None                         # once
        assert desk.book(cents(10_001)) is None
        intent = desk.book(last)
        assert (why(intent), intent["qty"]) == (wanted, 3 * NANO)


def test_an_exit_that_ends_unfilled_fires_again_after_the_pause_and_never_twice_at_once():
    # The earlier stop was removed when it fired and installed anew by the next tick: it sold
    # again and again until the first sale was filled.
    desk = Desk(stop=200, pause=1000)
    desk.trade(4 * NANO, 100 * NANO)
    assert why(desk.book(cents(9_700))) == "stop"
    for price in (9_600, 9_500, 9_400):
        assert desk.book(cents(price)) is None
    desk.number += 1
    desk.step(E.ACKED, desk.number, -1, 4 * NANO)
    desk.step(E.PARTIAL_FILL, desk.number, -1, NANO, cents(9_400))
    assert desk.book(cents(9_300)) is None
    desk.step(E.CANCELED, desk.number, -1, 4 * NANO)
    start = desk.now
    assert desk.book(cents(9_300), now=start + 999) is None
    intent = desk.book(cents(9_950), now=start + 1000)      # it goes on although the price is back
    assert (why(intent), intent["qty"]) == ("stop", 3 * NANO)
    desk.fill(intent)
    assert desk.qty == 0 and desk.book(cents(5_000)) is None
    desk.trade(NANO, 50 * NANO)                             # a new position knows nothing of it
    assert desk.book(cents(5_000)) is None


def test_what_other_orders_offer_is_not_sold_a_second_time():
    desk = Desk(stop=200)
    desk.trade(3 * NANO, 100 * NANO)
    desk.open[-1] = 2 * NANO
    assert desk.book(cents(9_000))["qty"] == NANO
    desk = Desk(stop=200)
    desk.trade(3 * NANO, 100 * NANO)
    desk.open[-1] = 3 * NANO
    assert desk.book(cents(9_000)) is None


def test_time_loss_and_absolute_price():
    desk = Desk(hold=10**12)
    desk.trade(NANO, 100 * NANO)
    opened = desk.now
    assert desk.book(cents(10_000), now=opened + 10**12 - 1) is None
    assert why(desk.book(cents(10_000), now=opened + 10**12)) == "time"
    desk = Desk(loss=5 * NANO)
    desk.trade(10 * NANO, 100 * NANO)
    assert desk.book(cents(9_950) + 1) is None
    assert why(desk.book(cents(9_950))) == "loss"
    desk = Desk(price=cents(9_990))
    desk.trade(NANO, 100 * NANO)
    assert desk.book(cents(9_991)) is None
    assert why(desk.book(cents(9_990))) == "absolute"


def test_a_limit_exit_stays_within_its_tolerance_on_the_grid():
    desk = Desk(stop=200, market=False, tolerance=50)
    desk.trade(NANO, 100 * NANO)
    intent = desk.book(cents(9_777))
    assert intent["type"] == schema.ORDER_TYPE.LIMIT and intent["tif"] == schema.TIF.IOC
    assert intent["price"] == cents(9_777 - 48)             # 48.885 ticks, rounded down


@pytest.mark.parametrize(("side", "touch", "tolerance", "wanted"), [
    (1, "9.7", 50, "9.66"),                 # 9.6515 in whole cents
    (-1, "10.3", 50, "10.35"),              # 10.3515
    (1, "9.7001", 0, "9.70"),               # a bid between two cents: below it, not above
    (-1, "10.3001", 0, "10.31"),
    (1, "0.97", 50, "0.9652"),              # 0.96515: below a dollar in hundredths of a cent
    (-1, "0.999", 50, "1.00"),              # 1.003995: beyond it in whole cents again
])
def test_a_limit_exit_of_a_share_is_in_whole_cents_from_a_dollar_on(side, touch, tolerance, wanted):
    """A tick of a hundredth of a cent, as a stock below a dollar has it."""
    touch, wanted = (round(float(x) * NANO) for x in (touch, wanted))
    entry = NANO if touch < 2 * NANO else 10 * NANO
    if touch < NANO and side < 0:
        entry = NANO // 2
    desk = Desk(stop=200, market=False, tolerance=tolerance, tick=NANO // 10**4, flags=4)
    desk.trade(side * NANO, entry)
    assert desk.book(touch, touch)["price"] == wanted


def test_bad_parameters_are_refused():
    for params, words in (({"stop": -1}, "stop must not be negative, was -1"),
                          ({"stop": 10_001}, "at most 100 %"),
                          ({"stp": 1}, "unknown parameter 'stp', did you mean stop"),
                          ({"price": {"NONE": 1}}, "names NONE, which is no instrument")):
        with pytest.raises(ConfigError, match=words):
            Exits.from_config(params, table())


# ---------------------------------------------------------------- through the pipeline

def test_a_stop_closes_the_position_through_the_whole_pipeline():
    bought = []

    def buy(c, add):
        if c.event == 1 and not bought:
            bought.append(1)
            add(side=1, type=2, tif=3, action=1, qty=10 * NANO, price=int(c.book["ask"]))

    chain = Chain([buy, Exits.from_config({"stop": 100, "pause": 0}, chain_table())])
    start = 10**12
    for i, bid in enumerate((10_000, 9_950, 9_920, 9_895, 9_895, 9_890)):
        chain.inline.run(quote(start + i * 10**9, bid, bid + 1, bid_qty=4))
    chain.inline.finish()
    chain.inline.close()
    events = chain.bodies("gateway", schema.ORDER_EVENT)
    sold = sum(int(e["qty"]) for e in events
               if e["side"] < 0 and e["kind"] in (E.FILL, E.PARTIAL_FILL))
    assert sold == 10 * NANO and chain.signal.holding(0)["qty"] == 0
    intents = chain.bodies("signal", schema.INTENT)
    assert why(intents[0]) == "none"
    assert {why(i) for i in intents[1:]} == {"stop"}
    assert all(i["side"] == -1 for i in intents[1:])
