"""Drift of a model: accuracy and distance from training, against a naive twin over the history."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftpipe import schema
from hftpipe._drift import Drift

TICK = 10**7
ROLL, BLOCK, LEAST, PENDING = 100, 8192, 1000, 256      # as _drift.pxd promises
CATALOGUE = [f.name for f in schema.CATALOGUE]


def card(horizon=None, features=("spread_bps",), edges=None, counts=None):
    found = None if edges is None else {"edges": edges, "counts": counts}
    return {"features": list(features), "horizon": horizon, "distribution": found}


def states(seed, count, instruments=1):
    random = np.random.default_rng(seed)
    out = np.zeros(count, schema.dtype(schema.BOOK))
    out["instrument"] = random.integers(0, instruments, count)
    mid = 1000 + np.cumsum(random.integers(-2, 3, count))
    half = random.integers(0, 3, count)                 # sometimes locked
    out["bid"], out["ask"] = (mid - half) * TICK, (mid + half) * TICK
    out["ts_recv"] = 10**12 + np.cumsum(random.integers(0, 4, count)) * 10**6
    return out


def naive_accuracy(horizon, books, p, asked):
    """Outcomes of all predictions in the order they come due; from the definition."""
    due = []                                            # (when it is seen, made at, came true)
    for i in np.unique(books["instrument"]):
        rows = np.flatnonzero(books["instrument"] == i)
        open_until = []
        for n, row in enumerate(rows):
            open_until = [m for m in open_until if m > n]
            b = books[row]
            if not asked[row] or len(open_until) >= PENDING:
                continue
            spread, mid2 = int(b["ask"]) - int(b["bid"]), int(b["ask"]) + int(b["bid"])
            if "spreads" in horizon and spread <= 0:
                continue
            said = 0
            if p[row][0] > max(p[row][1], p[row][2]) or (
                    p[row][0] > p[row][1] and p[row][0] >= p[row][2]):
                said = -1
            elif p[row][2] > p[row][1]:
                said = 1
            if "states" in horizon:
                seen = n + horizon["states"]
            else:
                later = np.flatnonzero(books["ts_recv"][rows[n + 1:]]
                                       - int(b["ts_recv"]) >= horizon["ns"])
                seen = n + 1 + later[0] if len(later) else len(rows)
            open_until.append(seen)
            if seen >= len(rows):
                continue
            other = books[rows[seen]]
            change = int(other["ask"]) + int(other["bid"]) - mid2
            move = (horizon["spreads"] * 2 * spread if "spreads" in horizon
                    else horizon["bps"] * 1e-4 * mid2)
            came = 1 if change >= move else -1 if change <= -move else 0
            due.append((rows[seen], row, came == said))
    return [came for *_, came in sorted(due)]


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 3), st.sampled_from([
    {"states": 1, "spreads": 0.5}, {"states": 32, "spreads": 0.5}, {"states": 300, "bps": 2.0},
    {"ns": 5 * 10**6, "spreads": 0.5}, {"ns": 10**9, "bps": 1.0}]))
def test_accuracy_is_that_of_the_definition(seed, instruments, horizon):
    random = np.random.default_rng(seed)
    books = states(seed, 600, instruments)
    p = random.dirichlet((1, 1, 1), len(books)).astype(np.float32)
    asked = random.random(len(books)) < 0.8
    drift = Drift(card(horizon), instruments)
    drift.feed(books, np.zeros((len(books), len(CATALOGUE))), p, asked)
    outcomes = naive_accuracy(horizon, books, p, asked)
    assert drift.matured == len(outcomes)
    wanted = None if len(outcomes) < ROLL else sum(outcomes[-ROLL:]) / ROLL
    assert drift.accuracy == wanted


def test_a_model_that_is_always_right_and_one_that_never_is():
    books = states(1, 2000)
    books["ask"] = books["bid"] + 2 * TICK
    mid2 = books["bid"] + books["ask"]
    change = np.sign(np.roll(mid2, -1).astype(np.int64) - mid2.astype(np.int64))
    for said, wanted in ((change, 1.0), (np.where(change == 1, -1, 1), 0.0)):
        p = np.full((len(books), 3), 0.1, np.float32)
        p[np.arange(len(books)), said + 1] = 0.8
        drift = Drift(card({"states": 1, "spreads": 0.5}), 1)
        drift.feed(books, np.zeros((len(books), len(CATALOGUE))), p)
        assert drift.accuracy == wanted


def test_no_more_predictions_are_followed_than_there_is_room_for():
    books = states(3, 1000)
    books["ask"] = books["bid"] + 2 * TICK
    drift = Drift(card({"states": 600, "spreads": 0.5}), 1)
    drift.feed(books, np.zeros((1000, len(CATALOGUE))), np.full((1000, 3), 1 / 3))
    assert drift.matured == PENDING                     # of states 0 to 255, due from 600 on
    assert drift.skipped == 600 - PENDING + (1000 - 600 - PENDING)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(LEAST - 1, 3 * BLOCK), st.floats(-2, 2))
def test_shift_is_that_of_the_definition(seed, count, off):
    """Kolmogorov-Smirnov over the deciles and the stability index, of the newest blocks."""
    random = np.random.default_rng(seed)
    features = ("spread_bps", "imbalance_top")
    where = schema.feature_index(features)
    train = random.standard_normal((5000, 2))
    edges = np.quantile(train, np.arange(1, 10) / 10, axis=0).T.astype(np.float32)
    tally = [np.bincount(np.searchsorted(e, train[:, k].astype(np.float32), "right"),
                         minlength=10).tolist() for k, e in enumerate(edges)]
    seen = random.standard_normal((count, 2)).astype(np.float32)
    seen[:, 0] += np.float32(off)
    vectors = np.zeros((count, len(CATALOGUE)), np.float32)
    vectors[:, where] = seen
    drift = Drift(card(None, features, edges.tolist(), tally), 1)
    drift.feed(states(1, count), vectors, np.full((count, 3), 1 / 3))
    found = drift.settle()
    if count < LEAST:
        assert found is None and drift.shift is None
        return
    full = count // BLOCK * BLOCK
    newest = seen[max(full - BLOCK, 0):]
    assert drift.vectors == len(newest)
    distances, indices = [], []
    for k, e in enumerate(edges):
        bins = np.bincount(np.searchsorted(e, newest[:, k], "right"), minlength=10)
        p, q = bins / bins.sum(), np.array(tally[k]) / sum(tally[k])
        distances.append(abs(np.cumsum(p) - np.cumsum(q)).max())
        p, q = np.maximum(p, 1e-4), np.maximum(q, 1e-4)
        indices.append(((p - q) * np.log(p / q)).sum())
    distance, feature, index = found
    assert distance == pytest.approx(max(distances), rel=1e-9)
    assert feature == int(np.argmax(distances)) or distances[feature] == pytest.approx(distance)
    assert index == pytest.approx(max(indices), rel=1e-9)


def test_a_card_that_knows_nothing_keeps_nothing():
    drift = Drift(card(), 1)
    drift.feed(states(1, 2000), np.zeros((2000, len(CATALOGUE))), np.full((2000, 3), 1 / 3))
    assert (drift.accuracy, drift.settle(), drift.matured, drift.features) == (None, None, 0, 0)


@pytest.mark.parametrize(("books", "rows", "message"), [
    (np.zeros(2, schema.dtype(schema.BOOK)), 3, "as many BOOK records as vectors"),
    (np.zeros(2, schema.dtype(schema.MARKET)), 2, "as many BOOK records as vectors")])
def test_what_does_not_belong_together_is_refused(books, rows, message):
    with pytest.raises(ValueError, match=message):
        Drift(card(), 1).feed(books, np.zeros((rows, len(CATALOGUE))), np.zeros((rows, 3)))


def test_an_instrument_outside_the_table_is_refused():
    books = states(1, 2)
    books["instrument"] = 1
    with pytest.raises(ValueError, match="instrument must be below 1"):
        Drift(card(), 1).feed(books, np.zeros((2, len(CATALOGUE))), np.zeros((2, 3)))
