"""Models that travel in the wheel: ``demo.onnx`` and its card ``demo.json``.

``research/train_demo.py`` of the source tree writes both.
"""
from __future__ import annotations

from pathlib import Path

DEMO = Path(__file__).parent / "demo.onnx"
