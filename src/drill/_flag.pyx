"""How long after the halt word is raised a gate still passes: two threads, nothing else in between.

One thread is the gate: it asks :c:func:`control_armed`, as the gateway does before each send, and
notes the time of each pass.  The other raises the word and notes when it began to.
"""
cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free

from .._atomic cimport hp_fetch_add, hp_load_acquire, hp_pause, hp_store_release
from .._clock cimport hp_read_monotonic
from .._control cimport Control, control_armed
from .._memory cimport hp_lines


cdef struct shared_t:           # one line each
    uint64_t ready              # rounds the gate is in
    uint64_t pad0[7]
    uint64_t done               # rounds the gate has seen the halt of
    int64_t last                # ns, of its last pass
    uint64_t passes
    uint64_t pad1[5]
    uint64_t stop
    uint64_t pad2[7]


@cython.final
cdef class Flag:
    """A control page's halt word between two cores.

    Parameters
    ----------
    control : Control
        A page that nobody else uses.
    """

    cdef Control control
    cdef shared_t *shared

    def __cinit__(self, Control control not None):
        self.control = control
        self.shared = <shared_t *>hp_lines(1, sizeof(shared_t))
        if self.shared == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.shared)

    def gate(self, uint64_t rounds):
        """Pass while armed, *rounds* times; returns the passes of all."""
        cdef shared_t *s = self.shared
        cdef int64_t last
        cdef uint64_t n, passes = 0
        with nogil:
            for n in range(1, rounds + 1):
                while not control_armed(self.control.header):
                    hp_pause()
                    if hp_load_acquire(&s.stop):
                        break
                hp_store_release(&s.ready, n)
                last = 0
                while control_armed(self.control.header):
                    last = hp_read_monotonic()
                    passes += 1
                s.last = last
                hp_store_release(&s.done, n)
                if hp_load_acquire(&s.stop):
                    break
        return passes

    def halter(self, uint64_t rounds, int64_t[::1] out, int64_t hold):
        """Arm, let pass for about *hold* ns, halt; ``out[n]``: ns until the last pass, or 0.

        Counted from before the addition, so what the addition itself takes is in it.
        """
        cdef shared_t *s = self.shared
        cdef uint64_t n
        cdef int64_t began
        if <uint64_t>out.shape[0] < rounds:
            raise ValueError(f"wanted room for {rounds} figures, found {out.shape[0]}")
        with nogil:
            for n in range(1, rounds + 1):
                hp_store_release(&self.control.header.armed_epoch,
                                 hp_load_acquire(&self.control.header.halt_epoch))
                while hp_load_acquire(&s.ready) != n:
                    hp_pause()
                began = hp_read_monotonic()
                while hp_read_monotonic() - began < hold + <int64_t>(n * 7919 % 4096):
                    hp_pause()
                began = hp_read_monotonic()
                hp_fetch_add(&self.control.header.halt_epoch, 1)
                while hp_load_acquire(&s.done) != n:
                    hp_pause()
                out[n - 1] = max(s.last - began, 0)
            hp_store_release(&s.stop, 1)
