"""A file system that is small enough to be filled."""
import contextlib
import subprocess

import pytest


@contextlib.contextmanager
def small_disk(path, megabytes):
    """A file system of so many MiB at *path*; skips the test where mounting is not permitted."""
    path.mkdir()
    found = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)],
                           capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"mount is not permitted here: {found.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)     # a failed test's run lives on
