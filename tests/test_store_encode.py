"""Every bit of every record survives COPY into PostgreSQL and back."""
import random
import struct

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hftpipe import schema
from hftpipe._ring import pair
from hftpipe.errors import MismatchError
from hftpipe.store import encode, layout, verify
from hftpipe.store.encode import HEADER, TRAILER, Encoder, body_words, encoder

from .models import store as naive
from .models.database import fresh, server

RUN = 1_700_000_000_123_456_789


@pytest.fixture(scope="module")
def connection():
    with server() as p, psycopg.connect(fresh(p)) as c:
        yield c


def slots_of(raws, record=schema.STORED):
    """The raw slots as a ring hands them out: in its memory, without link_seq."""
    producer, consumer = pair(record, max(1, 1 << (len(raws) - 1).bit_length()))
    for raw in raws:
        assert producer.push(raw)
    return consumer.peek(len(raws))


def copied(c, e, slots):
    """What PostgreSQL gives back, as slots, and the rows as it understood them."""
    with c.transaction(force_rollback=True):
        with c.cursor().copy(layout.copy_in(e.record)) as copy:
            copy.write(HEADER)
            copy.write(e.encode(slots, RUN))
            copy.write(TRAILER)
        rows = c.execute(f"SELECT {layout.column_list(e.record)} FROM {layout.table(e.record)} "
                         "ORDER BY seq").fetchall()
        stream = rows[0][1]
        with c.cursor().copy(layout.copy_out(e.record, RUN, stream, 0, len(slots) + 1)) as copy:
            return e.decode(b"".join(copy)), rows


def expected_values(record, raw):
    """The columns of one slot, read with struct."""
    out = {}
    for prefix, rec in ((0, schema.ENVELOPE), (schema.ENVELOPE.size, record)):
        for f in rec.fields:
            code = {"u64": "q"}.get(f.type, naive.CODES[f.type])     # 64 bits, signed
            (out[f.name],) = struct.unpack_from("<" + code, raw, prefix + rec.offsets[f.name])
    return out


bits = st.integers(0, (1 << 64) - 1)


@pytest.mark.db
@settings(max_examples=15, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("number", schema.BODIES, ids=lambda n: schema.BODIES[n].name)
@given(seed=st.integers(0, 1 << 32), count=st.integers(1, 9), stream=st.integers(0, 127),
       first=st.integers(1, (1 << 56) - 10), words=st.tuples(bits, bits, bits, bits))
def test_round_trip(connection, number, seed, count, stream, first, words):
    record, rng = schema.BODIES[number], random.Random(seed)
    fitting = [slot for slot in schema.SLOTS if slot.size >= 64 + record.size]
    inside = fitting[seed % len(fitting)]
    ts, ts_in, cause, aux = words
    raws = [naive.slot(number, stream, first + i, naive.random_body(record, rng), inside=inside,
                       ts=ts >> 1, ts_in=-(ts_in >> 1), cause=cause, aux=aux,
                       instrument=rng.getrandbits(16)) for i in range(count)]
    slots = slots_of(raws, inside)
    back, rows = copied(connection, encoder(number, inside), slots)
    kept = [c for c in layout.columns(record) if c.field is not None]
    for raw, found, row in zip(raws, back, rows, strict=True):
        mine = found["slot"].tobytes()
        assert naive.body_of(mine[:48] + raw[48:64] + mine[64:]) == naive.body_of(raw)
        for c in kept:
            assert mine[c.at:c.at + c.field.size] == raw[c.at:c.at + c.field.size], c.name
        assert found["event_seq"] == row[2] and row[0] == RUN and row[1] == stream
        values = expected_values(record, raw)
        for c, value in zip(layout.columns(record)[3:], row[3:], strict=True):
            if c.field.type == "f32" and values[c.name] != values[c.name]:
                assert value != value                   # NaN; its bits were compared above
            elif c.field.type == "f32":
                assert struct.pack("<f", value) == struct.pack("<f", values[c.name])
            else:
                assert value == values[c.name], c.name
    sums = verify.checksum(encoder(number, inside).words(back))
    assert sums.tolist() == [naive.checksum(naive.body_of(r)) for r in raws]


@given(st.lists(st.binary(min_size=128, max_size=128), min_size=1, max_size=8), st.booleans())
def test_checksum_is_the_naive_one(bodies, short):
    bodies = [b[:64] if short else b for b in bodies]
    words = np.frombuffer(b"".join(bodies), "<u8").reshape(len(bodies), -1)
    assert verify.checksum(words).tolist() == [naive.checksum(b) for b in bodies]
    assert verify.total(verify.checksum(words)) == sum(map(naive.checksum, bodies)) % 2**64


def test_checksum_of_a_known_body():
    """Pinned: the compiled twin and old databases depend on it."""
    words = np.arange(8, dtype="<u8").reshape(1, 8)
    assert naive.checksum(words.tobytes()) == int(verify.checksum(words)[0])
    assert f"{naive.checksum(words.tobytes()):016x}" == "193082923090f226"


def test_checksum_sees_order_and_every_bit():
    rng = np.random.default_rng(1)
    body = rng.integers(0, 1 << 63, (1, 8), np.uint64)
    one = verify.checksum(body)[0]
    for i in range(8):
        for bit in range(64):
            changed = body.copy()
            changed[0, i] ^= np.uint64(1 << bit)
            assert verify.checksum(changed)[0] != one
    assert verify.checksum(body[:, ::-1])[0] != one


def test_body_words_of_a_ring_view_and_of_whole_slots_agree():
    raws = [naive.random_slot(6, n) for n in range(1, 9)]
    whole = np.frombuffer(b"".join(raws), schema.dtype(schema.STORED_WIDE))
    held = slots_of(raws, schema.STORED_WIDE)
    for part in (whole, held, whole[::2], slots_of(raws, schema.STORED_WIDE)[1::3]):
        words = body_words(part, schema.STORED_WIDE, 16)
        assert verify.checksum(words).tolist() == part["checksum"].tolist()
        e = encoder(schema.RECORD.UPDATE, schema.STORED_WIDE)
        again = e.decode(HEADER + bytes(e.encode(part, RUN)) + TRAILER)
        assert verify.checksum(e.words(again)).tolist() == part["checksum"].tolist()


TEXT = schema.Record("text_like", 64, "Holds a symbol.", (
    schema.LINK, schema.Field("symbol", "s16", "", "Symbol."),
    *(schema.Field(f"v{i}", "u64", "", "Value.") for i in range(5))))


@pytest.mark.db
def test_text_columns_lose_their_padding(connection):
    names = [b"", b"A", b"AAPL", b"BTC/USD", b"0123456789ABCDEF"]
    raws = [naive.slot(1, 1, i + 1, naive.pack(TEXT, {"symbol": n, "v0": i}))
            for i, n in enumerate(names)]
    e = Encoder(TEXT, schema.STORED)
    with connection.transaction(force_rollback=True):
        columns = ", ".join(f"{c.quoted} {c.sql}" for c in layout.columns(TEXT))
        connection.execute(f"CREATE TEMP TABLE text_like ({columns})")
        with connection.cursor().copy("COPY text_like FROM STDIN (FORMAT BINARY)") as copy:
            copy.write(HEADER)
            copy.write(e.encode(slots_of(raws), RUN))
            copy.write(TRAILER)
        found = connection.execute("SELECT symbol, v0 FROM text_like ORDER BY seq").fetchall()
    assert found == [(n.decode(), i) for i, n in enumerate(names)]
    for bad in (b"A\0B", b"\xff"):
        with pytest.raises(MismatchError, match="zero-padded ASCII"):
            e.encode(slots_of([naive.slot(1, 1, 1, naive.pack(TEXT, {"symbol": bad}))]), RUN)


def test_what_cannot_be_is_refused():
    with pytest.raises(MismatchError, match="record 0"):
        encoder(0, schema.STORED)
    with pytest.raises(MismatchError, match="update of 128 B does not fit into stored"):
        encoder(schema.RECORD.UPDATE, schema.STORED)
    e = encoder(schema.RECORD.MARKET, schema.STORED)
    good = HEADER + bytes(e.encode(slots_of([naive.random_slot(1, 1)]), RUN)) + TRAILER
    assert len(e.decode(good)) == 1 and len(e.decode(HEADER + TRAILER)) == 0
    for bad in (good[:-1], good[1:], HEADER + good[len(HEADER) + 1:],
                good[:len(HEADER) + 5] + b"\x09" + good[len(HEADER) + 6:]):
        with pytest.raises(MismatchError):
            e.decode(bad)
    assert encode.WIRE.keys() == schema.TYPES.keys()
