"""What the cold path computes for the gate: tail risk, volatility, correlation, volume, session."""
