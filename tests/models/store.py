"""Stored events made slowly and plainly: one body, one envelope, one checksum at a time."""
import random
import struct

from hftpipe import schema, topology

CODES = {"u8": "B", "i8": "b", "u16": "H", "u32": "I", "i64": "q", "u64": "Q", "f32": "f",
         "f64": "d", "s16": "16s"}
WORD = (1 << 64) - 1


def checksum(body: bytes) -> int:
    h = 0x9E3779B97F4A7C15
    for (w,) in struct.iter_unpack("<Q", body):
        h = (h ^ w) * 0xFF51AFD7ED558CCD & WORD
        h ^= h >> 32
    return h


def pack(record: schema.Record, values: dict) -> bytes:
    return struct.pack("<" + "".join(CODES[f.type] for f in record.fields),
                       *(values.get(f.name, b"" if f.type == "s16" else 0)
                         for f in record.fields))


def slot(number: int, stream: int, seq: int, body: bytes, *,
         inside: schema.Record = schema.STORED, **envelope: int) -> bytes:
    """One slot of a store link as its bytes, link_seq zero."""
    head = {"event": schema.event_id(stream, seq), "checksum": checksum(body), "record": number,
            "lines": len(body) // 64} | envelope
    return (pack(schema.ENVELOPE, head) + body).ljust(inside.size, b"\0")


def random_body(record: schema.Record, rng: random.Random) -> bytes:
    """Any bits in every stored field, zero in link_seq and padding."""
    raw = bytearray(rng.randbytes(record.size))
    for f in record.fields:
        if f.column is None:
            at = record.offsets[f.name]
            raw[at:at + f.size] = bytes(f.size)
    return bytes(raw)


STREAM_OF = {"market": 1, "book_status": 2, "features": 3, "signal": 3, "intent": 3, "take": 3,
             "reload": 3, "turn": 5,
             "figure": 8, "verdict": 4, "risk_event": 4, "checks": 4, "order_event": 5, "update": 6,
             "position": 7, "opening": 7, "account": 7, "resolved": 7}
KINDS = {s: [n for n, r in schema.BODIES.items() if STREAM_OF[r.name] == s] for s in range(1, 9)}


def slot_record(stream: int) -> schema.Record:
    """What a slot of the stream's store link is."""
    return next(schema.BY_NAME[link.record] for link in topology.LINKS
                if link.consumer == "store" and topology.stream(link.producer) == stream)


def random_slot(stream: int, seq: int, seed: int = 0) -> bytes:
    """The seq-th event of a stream: always the same for the same seed."""
    rng = random.Random(seed << 64 | stream << 56 | seq)
    number = rng.choice(KINDS[stream])
    record = schema.BODIES[number]
    body = random_body(record, rng)
    if "event" in record.offsets and record.name not in ("book_status", "signal"):
        at = record.offsets["event"]                # its own identity
        body = body[:at] + schema.event_id(stream, seq).to_bytes(8, "little") + body[at + 8:]
    return slot(number, stream, seq, body, inside=slot_record(stream),
                ts=rng.getrandbits(62), ts_in=rng.getrandbits(62), cause=rng.getrandbits(63),
                aux=rng.getrandbits(64), instrument=rng.getrandbits(16))


def body_of(raw: bytes) -> bytes:
    lines = raw[schema.ENVELOPE.offsets["lines"]]
    return raw[schema.ENVELOPE.size:schema.ENVELOPE.size + 64 * lines]
