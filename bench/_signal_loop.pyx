"""Time feature updates and inferences one by one, as the signal stage makes them."""
from libc.stdint cimport int64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

import numpy

from hftpipe._clock cimport hp_read_monotonic
from hftpipe._feature cimport feature_init, feature_t, feature_update
from hftpipe._memory cimport hp_lines
from hftpipe._model cimport Model
from hftpipe._schema cimport hp_book_t, hp_features_t
from hftpipe._study cimport study_t


def features(books):
    """ns of each update, one clock read included; ns per update of the bare loop; last vector.

    *books*: BOOK records of one instrument.
    """
    cdef const unsigned char[::1] source = numpy.ascontiguousarray(books).view(numpy.uint8)
    cdef Py_ssize_t n = len(books), i
    times = numpy.zeros(n, numpy.int64)
    cdef int64_t[::1] t = times
    cdef hp_book_t book
    cdef hp_features_t out
    cdef feature_t f
    cdef study_t *study = <study_t *>hp_lines(1, sizeof(study_t))
    cdef int64_t before, after, whole
    if study == NULL:
        raise MemoryError
    memset(&out, 0, sizeof(out))
    with nogil:
        feature_init(&f, study, 60_000_000_000)
        before = hp_read_monotonic()
        for i in range(n):
            memcpy(&book, &source[i * sizeof(hp_book_t)], sizeof(hp_book_t))
            feature_update(&f, &book, &out)
        whole = hp_read_monotonic() - before
        feature_init(&f, study, 60_000_000_000)
        before = hp_read_monotonic()
        for i in range(n):
            memcpy(&book, &source[i * sizeof(hp_book_t)], sizeof(hp_book_t))
            feature_update(&f, &book, &out)
            after = hp_read_monotonic()
            t[i] = after - before
            before = after
    last = numpy.zeros(sizeof(hp_features_t) // sizeof(float), numpy.float32)
    cdef float[::1] v = last
    memcpy(&v[0], &out, sizeof(out))
    free(study)
    return times, whole / n, last


def clock(Py_ssize_t n):
    """ns of one clock read."""
    cdef Py_ssize_t _i
    cdef int64_t before = hp_read_monotonic(), after = 0
    for _i in range(n):
        after = hp_read_monotonic()
    return (after - before) / n


def infer(Model model, rows):
    """ns of each inference over *rows*, one clock read included; the probabilities."""
    cdef const float[:, ::1] source = numpy.ascontiguousarray(rows, numpy.float32)
    cdef Py_ssize_t n = source.shape[0], i
    if source.shape[1] != model.width:
        raise ValueError(f"wanted {model.width} features, found {source.shape[1]}")
    times, out = numpy.zeros(n, numpy.int64), numpy.zeros((n, 3), numpy.float32)
    cdef int64_t[::1] t = times
    cdef float[:, ::1] p = out
    cdef int64_t before, after
    cdef int code = 0
    with nogil:
        before = hp_read_monotonic()
        for i in range(n):
            code |= model.infer(&source[i, 0], &p[i, 0])
            after = hp_read_monotonic()
            t[i] = after - before
            before = after
    if code:
        raise RuntimeError(f"inference failed: {code} {model.error}")
    return times, out
