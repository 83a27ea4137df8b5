"""schema.py is the one source: generated files, compiled structs and dtypes all agree with it."""
import re
from pathlib import Path

import pytest

from hftpipe import schema

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("path", schema.outputs(), ids=lambda p: p.name)
def test_generated_file_is_fresh(path):
    assert path.read_text() == schema.outputs()[path], "run `make schema`"


@pytest.mark.parametrize("record", schema.RECORDS, ids=lambda r: r.name)
def test_dtype_has_the_struct_offsets(record):
    header = (ROOT / "src/_schema.h").read_text()
    dtype = schema.dtype(record)
    found = re.findall(rf"offsetof\(hp_{record.name}_t, (\w+)\) == (\d+)", header)
    assert len(found) == len(record.fields)
    for name, offset in found:
        assert dtype.fields[name][1] == int(offset)
    assert dtype.itemsize == record.size


def test_record_with_a_hole_is_refused():
    with pytest.raises(ValueError, match="aligned"):
        schema.Record("bad", 64, "", tuple(schema.Field(t, t, "", "") for t in ("u8", "u64")))


def test_fingerprints_differ_and_move_with_units_and_enums():
    prints = {r.fingerprint for r in schema.RECORDS}
    assert len(prints) == len(schema.RECORDS)
    base = schema.Record("r", 64, "", tuple(schema.Field(f"f{i}", "u64", "", "") for i in range(8)))
    unit = schema.Record("r", 64, "", (schema.Field("f0", "u64", "ns", ""), *base.fields[1:]))
    assert base.fingerprint != unit.fingerprint


def test_every_body_that_is_stored_fits_its_slot():
    for record in schema.BODIES.values():
        slot = schema.slot_of(record)
        assert record.size <= slot.size - schema.ENVELOPE.size
        wide = record in (schema.INTENT, schema.UPDATE, schema.CHECKS, schema.POSITION,
                          schema.OPENING, schema.ACCOUNT, schema.RESOLVED)
        assert slot is (schema.STORED_VECTOR if record is schema.FEATURES else
                        schema.STORED_WIDE if wide else schema.STORED)


def test_a_check_is_found_by_counting_reasons():
    first = 8
    for name, value, _ in schema.REASON.members:
        if 0 < value <= schema.CHECK_CELLS:
            assert schema.CHECKS.offsets[name.lower()] == first + 2 * (value - 1)
    assert first + 2 * schema.CHECK_CELLS == schema.CHECKS.size


def test_identity_round_trip():
    assert schema.split_event(schema.event_id(schema.STREAM.GATEWAY, 77)) == (5, 77)


BOOK = schema.FEATURE_SETS["book"]


def test_feature_hash_is_of_the_names_their_order_and_their_meaning(monkeypatch):
    base = schema.feature_hash(BOOK)
    assert 0 < base < 2**64 and base == schema.feature_hash(list(BOOK))
    swapped = (BOOK[1], BOOK[0], *BOOK[2:])
    assert len({base, schema.feature_hash(swapped), schema.feature_hash(BOOK[:-1])}) == 3
    changed = schema.Feature(BOOK[0], "something else")
    monkeypatch.setattr(schema, "CATALOGUE", (changed, *schema.CATALOGUE[1:]))
    assert schema.feature_hash(BOOK) != base


def test_feature_hash_holds_the_window_of_bars_when_it_matters(monkeypatch):
    assert schema.feature_hash(BOOK, "1min") == schema.feature_hash(BOOK)      # none is from bars
    first = schema.CATALOGUE[0]
    monkeypatch.setattr(schema, "CATALOGUE", (
        schema.Feature(first.name, first.doc, bars=True), *schema.CATALOGUE[1:]))
    assert len({schema.feature_hash(BOOK, bar) for bar in schema.BARS}) == len(schema.BARS) == 11
    with pytest.raises(ValueError, match="wanted a window of bars, found '1m': did you mean '1min"):
        schema.feature_hash(BOOK, "1m")


@pytest.mark.parametrize(("names", "message"), [
    (["mid_retrn"], "wanted a feature, found 'mid_retrn': did you mean 'mid_return'?"),
    (["arrival", "arrival"], "wanted each feature once, found 'arrival' twice"),
    ([], "wanted at least one feature, found none")])
def test_features_that_are_not_are_refused(names, message):
    with pytest.raises(ValueError) as caught:
        schema.feature_hash(names)
    assert str(caught.value) == message


def test_feature_sets_are_of_the_catalogue():
    for names in schema.FEATURE_SETS.values():
        assert [schema.FEATURES.fields[i].name for i in schema.feature_index(names)] == list(names)
