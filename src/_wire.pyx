"""Base class of the gateway's door to a venue; see ``_wire.pxd``."""


cdef class Wire:
    """A venue that is never connected; derive from it."""

    cdef int submit(self, const hp_order_t *order, int64_t now) noexcept nogil:
        return WIRE_DOWN

    cdef int cancel(self, uint64_t order, uint64_t venue_id, uint64_t venue_id_low,
                    int64_t now) noexcept nogil:
        return WIRE_DOWN

    cdef int poll(self, hp_update_t *out, int64_t now) noexcept nogil:
        return 0
