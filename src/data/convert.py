"""Other people's files into datasets: whatever the backtest reads, Databento's DBN, CSV.

A dataset appears whole or not at all: it is written beside its place and moved there at the end.
"""
from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from hftpipe.alpaca._codec import parse_time
from hftpipe.backtest.readers import open_recording
from hftpipe.data import tables
from hftpipe.data.dataset import Dataset
from hftpipe.data.download import nano
from hftpipe.errors import ConfigError, DataError, UsageError

ROWS = 500_000                  # of a part
UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
Batch = tuple[str, dict[str, list[Any]]]                # kind, columns


def convert(files: list[Path], target: Path, batches: Callable[[Path], Iterator[Batch]],
            request: dict[str, Any],
            tell: Callable[[int], object] = lambda rows: None) -> Dataset:
    """Make the dataset *target* of *files*.

    Raises
    ------
    ConfigError
        If *target* exists.
    DataError
        If a file is malformed, by file and place; nothing is left then.
    """
    if target.exists():
        raise ConfigError(f"{target}: wanted a new dataset, found one")
    work = target.with_name(f".{target.name}.{os.getpid()}")
    data: Dataset | None = None
    try:
        for path in files:
            for kind, columns in batches(path):
                if data is None:
                    data = Dataset(work, kind, request)
                    work.mkdir(parents=True)
                elif data.kind != kind:
                    raise DataError(f"{path}: wanted {data.kind} as in the files before, "
                                    f"found {kind}")
                data.add("", columns)
                tell(data.rows)
        if data is None or not data.rows:
            raise DataError(f"{files[0]}: wanted rows, found none")
        data.complete = True
        data.commit()
        os.rename(work, target)
    except BaseException:               # interrupted too: nothing half-made stays; it goes on up
        shutil.rmtree(work, ignore_errors=True)
        raise
    return Dataset.load(target)


def recordings(path: Path) -> Iterator[Batch]:
    """MARKET records of a file that the backtest reads."""
    reader = open_recording(path)
    symbols = [row["symbol"].decode() for row in reader.instruments]
    names = list(tables.COLUMNS["market"])[1:]
    held: dict[str, list[Any]] = {name: [] for name in tables.COLUMNS["market"]}
    for records in reader:
        held["symbol"] += [symbols[i] for i in records["instrument"].tolist()]
        for name in names:
            values = records[name]
            held[name] += (values.view("i8") if name == "ref" else values).tolist()
        if len(held["symbol"]) >= ROWS:
            yield "market", held
            held = {name: [] for name in held}
    yield "market", held


def dbn(path: Path) -> Iterator[Batch]:
    """Trades, best prices and bars of a Databento file (DBN, plain or zstd).

    Raises
    ------
    ConfigError
        If ``databento-dbn`` is not installed.
    """
    try:
        import databento_dbn as db
    except ImportError:
        raise ConfigError("DBN needs databento-dbn: pip install 'hftpipe[data]'") from None
    decoder = db.DBNDecoder()
    names: dict[int, str] = {}
    held: dict[str, list[Any]] | None = None
    kind = ""
    undefined = int(db.UNDEF_PRICE)

    def price(value: int) -> int:
        return 0 if value == undefined else int(value)

    def side_of(level: Any, side: str) -> tuple[int, int]:
        return price(getattr(level, f"{side}_px")), int(getattr(level, f"{side}_sz")) * 10**9

    try:
        raw = path.read_bytes()
        if raw[:4] == b"\x28\xb5\x2f\xfd":
            import pyarrow
            raw = pyarrow.input_stream(pyarrow.BufferReader(raw), compression="zstd").read()
        decoder.write(raw)
        records = decoder.decode()
    except OSError as error:
        raise DataError(f"{path}: wanted a readable file, found: {error.strerror}") from None
    except Exception as error:          # the library raises its own and ValueError
        raise DataError(f"{path}: wanted DBN, found: {error}") from None
    for number, record in enumerate(records):
        if isinstance(record, db.Metadata):
            for symbol, spans in record.mappings.items():
                for span in spans:
                    text = span["symbol"] if isinstance(span, dict) else span.symbol
                    if str(text).isdigit():
                        names[int(text)] = symbol
            continue
        head = {"symbol": names.get(record.instrument_id, str(record.instrument_id)),
                "ts": int(record.ts_event)}
        if isinstance(record, db.TradeMsg):
            found, row = "trades", {
                **head, "price": price(record.price), "qty": int(record.size) * 10**9, "id": "",
                "exchange": str(record.publisher_id), "conditions": "", "update": ""}
        elif isinstance(record, db.OHLCVMsg):
            found, row = "bars", {
                **head, **{n: price(getattr(record, n)) for n in ("open", "high", "low", "close")},
                "volume": int(record.volume) * 10**9, "trades": 0, "vwap": 0}
        elif hasattr(record, "levels") and record.levels:
            bid, bid_qty = side_of(record.levels[0], "bid")
            ask, ask_qty = side_of(record.levels[0], "ask")
            found, row = "quotes", {
                **head, "bid": bid, "bid_qty": bid_qty, "ask": ask, "ask_qty": ask_qty,
                "bid_exchange": str(record.publisher_id), "ask_exchange": "", "conditions": ""}
        else:
            raise DataError(f"{path}: record {number}: wanted trades, best prices or bars, found "
                            f"{type(record).__name__}")
        if kind and found != kind:
            raise DataError(f"{path}: record {number}: wanted {kind} as before, found {found}")
        kind = found
        if held is None:
            held = {name: [] for name in tables.COLUMNS[kind]}
        for name, value in row.items():
            held[name].append(value)
        if len(held["symbol"]) >= ROWS:
            yield kind, held
            held = {name: [] for name in held}
    if held is not None:
        yield kind, held


def table(kind: str, columns: Mapping[str, str], unit: str,
          symbol: str = "") -> Callable[[Path], Iterator[Batch]]:
    """A reader of CSV files with a header.

    Parameters
    ----------
    kind : str
        bars, trades or quotes.
    columns : mapping
        Column of ours to column of the file; the same name by default.
    unit : str
        Of times: s, ms, us, ns, or iso for RFC 3339.
    symbol : str
        Of all rows, when the file has no column for it.
    """
    wanted = tables.COLUMNS[kind]
    for name in columns:
        if name not in wanted:
            raise UsageError(f"column must be one of {', '.join(wanted)}, was {name!r}")

    def cell(name: str, text: str) -> Any:
        if name == "ts":
            return parse_time(text) if unit == "iso" else int(Decimal(text) * UNITS[unit])
        if wanted[name] == tables.T:
            return text
        return int(text) if name == "trades" else nano(Decimal(text))

    def rows(path: Path) -> Iterator[Batch]:
        try:
            file = path.open(newline="", encoding="utf-8")
        except OSError as error:
            raise DataError(f"{path}: wanted a readable file, found: {error.strerror}") from None
        with file:
            try:
                lines = csv.DictReader(file)
                source = {name: columns.get(name, name) for name in wanted}
                there = set(lines.fieldnames or ())
                absent = [name for name, of in source.items() if of not in there and (
                    name in columns or wanted[name] == tables.N) and name not in ("trades", "vwap")]
                if symbol == "" and source["symbol"] not in there:
                    absent.append("symbol")
                if absent:
                    raise DataError(f"{path}: line 1: wanted a column for {', '.join(absent)}, "
                                    f"found {', '.join(sorted(there)) or 'none'}")
                held: dict[str, list[Any]] = {name: [] for name in wanted}
                for line in lines:
                    for name, of in source.items():
                        if of in there and line[of] is None:
                            raise DataError(f"{path}: line {lines.line_num}: wanted "
                                            f"{len(there)} cells, found fewer")
                        text = str(line[of]) if of in there else ""
                        try:
                            value = (cell(name, text) if of in there else
                                     "" if wanted[name] == tables.T else 0)
                        except (ValueError, ArithmeticError, InvalidOperation, DataError):
                            raise DataError(f"{path}: line {lines.line_num}: {of} must be "
                                            f"{'a time' if name == 'ts' else 'a number'}, was "
                                            f"{text[:40]!r}") from None
                        held[name].append(symbol if name == "symbol" and symbol else value)
                    if len(held["symbol"]) >= ROWS:
                        yield kind, held
                        held = {name: [] for name in held}
                yield kind, held
            except (UnicodeDecodeError, csv.Error) as error:
                raise DataError(f"{path}: wanted CSV in UTF-8, found: {error}") from None

    return rows
