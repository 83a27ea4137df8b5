"""Where recorded data lies: beside the checkout, or where HFTPIPE_DATA says."""
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("HFTPIPE_DATA", ROOT.parent / "shared/data"))


def recorded(name: str) -> Path:
    """Path of a recorded file; the test is skipped, saying so, when there is none."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no recorded data: {name} (set HFTPIPE_DATA)")
    return path
