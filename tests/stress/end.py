"""One end of a ring in a process of its own: ``end.py produce|consume RUN LINK [HOW] [COUNT]``.

Says ``ready`` when it holds its end.  A record's every word but the first is its sequence
number, so whoever reads can tell torn, lost, repeated and reordered records apart.
"""
import os
import sys

import numpy as np

from hftpipe import schema, shm

R = schema.MARKET
BATCH = 37                                  # divides no power of two: batches cross the wrap


def produce(run: int, link: str, how: str, count: int) -> None:
    ring = shm.ring(run, link, R, producer=True)
    print("ready", flush=True)
    done, words = ring.published, np.empty((BATCH, 8), "<u8")
    while done < count:
        if ring.room == 0:
            os.sched_yield()                # full: let the other end run where cores are few
        n = min(BATCH, count - done)
        words[:] = np.arange(done + 1, done + BATCH + 1)[:, None]
        if how == "one":
            done += ring.push(words[0].tobytes())
        elif how == "many":
            done += ring.push_many(words[:n].reshape(-1).view(schema.dtype(R)))
        else:
            view = ring.claim(n)
            for name in ("event", "ts_recv", "ts_venue", "price", "qty", "ref"):
                view[name] = words[:len(view), 0]
            view["instrument"], view["hop"] = words[:len(view), 0], words[:len(view), 0]
            ring.publish(len(view))
            done += len(view)


def consume(run: int, link: str, how: str, count: int) -> None:
    """Check everything; print the last sequence seen, once at the end."""
    ring = shm.ring(run, link, R, producer=False)
    print("ready", flush=True)
    done = ring.taken
    out = np.empty(BATCH, schema.dtype(R))
    while done < count:
        if len(ring) == 0:
            os.sched_yield()
        if how == "one":
            record = ring.pop()
            if record is None:
                continue
            words = np.frombuffer(record, "<u8").reshape(1, 8)
        elif how == "many":
            words = out[:ring.pop_many(out)].view("<u8").reshape(-1, 8)
        else:
            view = ring.peek(BATCH)
            events, prices = view["event"].copy(), view["price"].copy()
            ring.release(len(view))
            expected = np.arange(done + 1, done + len(events) + 1)
            assert (events == expected).all() and (prices == expected).all(), (done, events)
            done += len(events)
            continue
        expected = np.arange(done + 1, done + len(words) + 1)[:, None]
        assert (words == expected).all(), (done, words)
        done += len(words)
    print(done, flush=True)


if __name__ == "__main__":
    {"produce": produce, "consume": consume}[sys.argv[1]](
        int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]))
