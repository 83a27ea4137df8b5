"""The local exchange: a matching engine, simulated traders, and the broker's protocol."""
from __future__ import annotations

from .server import Config, Venue, run, spawn
from .state import read_log

__all__ = ["Config", "Venue", "read_log", "run", "spawn"]
