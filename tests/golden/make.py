"""Write the golden recording of this version: every record kind, every field its own value."""
import json
import sys
from pathlib import Path

import numpy

from hftpipe import recording, schema


def fill(record: schema.Record, count: int, salt: int) -> numpy.ndarray:
    """*count* records whose fields all differ and fit their types."""
    out = numpy.zeros(count, schema.dtype(record))
    for k, f in enumerate(record.fields):
        if f.column is None:
            continue
        base = numpy.arange(count) * 7 + k * 13 + salt
        if f.type == "s16":
            out[f.name] = [f"SYM{v}".encode() for v in base]
        elif f.type in ("f32", "f64"):
            out[f.name] = base / 8
        else:
            out[f.name] = base % 100
    return out


def make(path: Path) -> None:
    instruments = numpy.zeros(2, schema.dtype(schema.INSTRUMENT))
    instruments["symbol"] = [b"ACME", b"BOLT"]
    instruments["tick"], instruments["lot"] = 10_000_000, 1_000_000_000
    with recording.Writer(path, instruments, run=1234, utc_offset=99, profile="golden") as out:
        for number, record in schema.BODIES.items():
            slot = schema.slot_of(record)
            slots = numpy.zeros((3, slot.size), "u1")
            head = fill(schema.ENVELOPE, 3, number)
            head["record"], head["lines"] = number, record.size // 64
            head["event"] = [schema.event_id(1 + number % 7, i + 1) for i in range(3)]
            slots[:, :64] = head.view("u1").reshape(3, 64)
            slots[:, 64:64 + record.size] = fill(record, 3, number).view("u1").reshape(3, -1)
            out.write(1 + number % 7, slots)


def expected() -> dict[str, object]:
    """What :func:`make` wrote, field by field, for readers of later versions."""
    out = {}
    for number, record in schema.BODIES.items():
        rows = fill(record, 3, number)
        out[str(number)] = {"name": record.name, "fields": {
            f.name: rows[f.name].tolist() for f in record.fields if f.column is not None}}
    return out


if __name__ == "__main__":
    make(Path(sys.argv[1]))
    Path(sys.argv[1]).with_suffix(".json").write_text(json.dumps(expected(), indent=1) + "\n")
