"""Where the recorded market data lies; it is never part of the repository."""
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _find() -> Path:
    named = os.environ.get("HFTPIPE_DATA")
    if named:
        return Path(named)
    for parent in ROOT.parents:             # beside the checkout, or beside what it lies in
        if (parent / "shared/data").is_dir():
            return parent / "shared/data"
    return ROOT.parent / "shared/data"


DATA = _find()
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no recorded data in {DATA} (set HFTPIPE_DATA)")


def recording(*names: str) -> Path:
    """Path of a recording; skips the test, saying so, when it is absent."""
    path = DATA.joinpath(*names)
    if not path.exists():
        pytest.skip(f"no recorded data in {path} (set HFTPIPE_DATA)")
    return path
