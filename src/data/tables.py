"""The tables of a dataset: exact integers, no floats.

Times are UTC nanoseconds, prices and sizes 1e-9 of their unit (nanoprice, nanoqty), all int64.

======  ==================================================================================
bars    ts open high low close volume trades vwap      ts is the begin of the bar
trades  ts price qty id exchange conditions update     update: "", corrected, canceled ...
quotes  ts bid bid_qty ask ask_qty bid_exchange ask_exchange conditions
market  ts_recv ts_venue kind side flags price qty ref  the MARKET records of a recording
======  ==================================================================================

Each row has its symbol too.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hftpipe.errors import ConfigError

N, T = "int64", "string"
COLUMNS: dict[str, dict[str, str]] = {
    "bars": {"symbol": T, "ts": N, "open": N, "high": N, "low": N, "close": N, "volume": N,
             "trades": N, "vwap": N},
    "trades": {"symbol": T, "ts": N, "price": N, "qty": N, "id": T, "exchange": T,
               "conditions": T, "update": T},
    "quotes": {"symbol": T, "ts": N, "bid": N, "bid_qty": N, "ask": N, "ask_qty": N,
               "bid_exchange": T, "ask_exchange": T, "conditions": T},
    "market": {"symbol": T, "ts_recv": N, "ts_venue": N, "kind": N, "side": N, "flags": N,
               "price": N, "qty": N, "ref": N},
}
TIME = {"bars": "ts", "trades": "ts", "quotes": "ts", "market": "ts_recv"}


def arrow() -> Any:
    """The library that reads and writes Parquet.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("Parquet needs pyarrow: pip install 'hftpipe[data]'") from None
    return pyarrow


def write(path: Path, kind: str, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write one part."""
    pa = arrow()
    schema = pa.schema([(name, pa.int64() if type_ == N else pa.string())
                        for name, type_ in COLUMNS[kind].items()],
                       metadata={"hftpipe.kind": kind, "hftpipe.unit": "1e-9, UTC ns"})
    pa.parquet.write_table(pa.table(dict(columns), schema=schema), path, compression="zstd")


def read(path: Path) -> tuple[str, Any]:
    """Kind and table of a part.

    Raises
    ------
    ConfigError
        If it is not one of ours.
    """
    pa = arrow()
    try:
        found = pa.parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{path}: wanted a Parquet part, found: "
                          f"{str(error).splitlines()[0]}") from None
    kind = (found.schema.metadata or {}).get(b"hftpipe.kind", b"").decode()
    if kind not in COLUMNS or found.column_names != list(COLUMNS[kind]):
        raise ConfigError(f"{path}: wanted a table of {', '.join(COLUMNS)}, found columns "
                          f"{', '.join(found.column_names[:6])}")
    return kind, found
