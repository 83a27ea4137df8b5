"""Python's handle on the control page; the layout is ``_control.pxd``."""
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer

cdef uint64_t MAGIC = 0x316c727463706668        # b"hfpctrl1"

if sizeof(control_header_t) > CONTROL_HEADER_SIZE:
    raise ImportError(f"control header is {sizeof(control_header_t)} bytes, "
                      f"expected at most {CONTROL_HEADER_SIZE}")

SIZE = CONTROL_HEADER_SIZE + CONTROL_STAGES * sizeof(stage_block_t)


cdef class Control:
    """The control page of one run."""

    def __init__(self, memory):
        cdef Py_buffer view
        PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.header = <control_header_t *>view.buf
        self.blocks = <stage_block_t *>(<char *>view.buf + CONTROL_HEADER_SIZE)
        self._memory = memory
        PyBuffer_Release(&view)         # self._memory keeps it mapped

    cdef stage_block_t *block(self, int index) except NULL:
        if not 0 <= index < CONTROL_STAGES:
            raise IndexError(f"stage index must be below {CONTROL_STAGES}, was {index}")
        return &self.blocks[index]
