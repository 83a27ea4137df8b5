"""Fault points of the processes that are Python; see ``_fault.h``."""

cdef extern from *:
    """
    #include "_fault.h"
    #ifdef HP_FAULTS
    #define HP_FAULTS_BUILT 1
    #else
    #define HP_FAULTS_BUILT 0
    #endif
    """
    const int HP_FAULTS_BUILT


import os

BUILT = bool(HP_FAULTS_BUILT)

#: Every point, by the process that passes it; the drill takes them from here.
POINTS = {
    "feed": ("feed.recorded", "feed.passed"),
    "book": ("book.passed",),
    "signal": ("signal.recorded", "signal.passed"),
    "risk": ("risk.reserved", "risk.recorded", "risk.passed"),
    "gateway": ("gateway.created", "gateway.sent", "gateway.recorded",
                "gateway.heard", "gateway.applied", "gateway.told"),
    "updates": ("updates.recorded", "updates.passed"),
    "ledger": ("ledger.booked", "ledger.published", "ledger.opening", "ledger.opened"),
    "journal": ("journal.writing", "journal.written", "journal.durable"),
    "store": ("store.begun", "store.marked", "store.copied", "store.committed"),
    "supervisor": ("start.stored", "start.settled", "start.told", "start.recorded"),
}


#: Mistakes that a build with faults makes when HFT_BUG names them: the drill must find each.
BUGS = {
    "store.mark_first": "the mark is committed before the rows it speaks of",
    "books.no_realised": "what was realised before is forgotten at a start",
    "settle.no_fills": "executions that only the venue knows of are not booked",
    "settle.no_cancel": "orders that were left open stay open",
}


def bug(str name) -> bool:
    """Whether to make the mistake *name*; never in a build without fault points."""
    if HP_FAULTS_BUILT:
        assert name in BUGS
        return os.environ.get("HFT_BUG") == name
    return False


def point(str name):
    """Pass a point; nothing happens unless this build has them and the environment names it."""
    if HP_FAULTS_BUILT:
        raw = name.encode()
        hp_fault(raw)
