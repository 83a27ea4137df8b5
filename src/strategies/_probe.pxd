"""Ask a strategy from Python what a stage would ask it, one event at a time."""
from .._schema cimport hp_intent_t
from .._strategy cimport Strategy

cdef enum:
    PROBE_ROOM = 64             # intents that one call may add


cdef class Probe:
    cdef readonly Strategy strategy
    cdef object _instruments
    cdef hp_intent_t *_intents  # PROBE_ROOM of them, 64-byte aligned
