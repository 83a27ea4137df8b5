"""Drills: what is promised about halting, measured on real processes."""
