"""A classifier from an ONNX file, asked through ONNX Runtime's C API without the GIL.

M1  What the file must say about itself (its card, see :mod:`hftpipe.card`) is checked when it
    is loaded; a model that was made for other features cannot be asked.
M2  The session was made from the same bytes whose sha256 is `id`.
M3  Input and output are two buffers of this object, bound once: an inference gathers the
    model's features out of the vector by index, normalises them if the card says so, runs,
    copies the probabilities out, and allocates nothing of ours.
M4  One thread at a time may ask; a stage owns its model.
M5  The probabilities that leave are finite; anything else is an error (MODEL_NOT_FINITE).
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "_ort.h" nogil:
    const int HP_ORT_API_VERSION
    enum:
        HP_ORT_LOG_FATAL
        HP_ORT_SEQUENTIAL
        HP_ORT_OPTIMIZE_ALL
        HP_ORT_TYPE_TENSOR
        HP_ORT_ELEMENT_FLOAT
        HP_ORT_DEVICE_ALLOCATOR
        HP_ORT_MEMORY_DEFAULT
    ctypedef struct OrtEnv:
        pass
    ctypedef struct OrtStatus:
        pass
    ctypedef struct OrtMemoryInfo:
        pass
    ctypedef struct OrtSession:
        pass
    ctypedef struct OrtValue:
        pass
    ctypedef struct OrtRunOptions:
        pass
    ctypedef struct OrtTypeInfo:
        pass
    ctypedef struct OrtTensorTypeAndShapeInfo:
        pass
    ctypedef struct OrtSessionOptions:
        pass
    ctypedef struct OrtIoBinding:
        pass
    ctypedef struct OrtAllocator:
        pass
    ctypedef struct hp_ort_api_t:
        const char *(*GetErrorMessage)(const OrtStatus *) noexcept nogil
        OrtStatus *(*CreateEnv)(int, const char *, OrtEnv **) noexcept nogil
        OrtStatus *(*CreateSessionFromArray)(
            const OrtEnv *, const void *, size_t, const OrtSessionOptions *,
            OrtSession **) noexcept nogil
        OrtStatus *(*CreateSessionOptions)(OrtSessionOptions **) noexcept nogil
        OrtStatus *(*SetSessionExecutionMode)(OrtSessionOptions *, int) noexcept nogil
        OrtStatus *(*EnableMemPattern)(OrtSessionOptions *) noexcept nogil
        OrtStatus *(*DisableCpuMemArena)(OrtSessionOptions *) noexcept nogil
        OrtStatus *(*SetSessionLogSeverityLevel)(OrtSessionOptions *, int) noexcept nogil
        OrtStatus *(*SetSessionGraphOptimizationLevel)(OrtSessionOptions *, int) noexcept nogil
        OrtStatus *(*SetIntraOpNumThreads)(OrtSessionOptions *, int) noexcept nogil
        OrtStatus *(*SetInterOpNumThreads)(OrtSessionOptions *, int) noexcept nogil
        OrtStatus *(*SessionGetInputCount)(const OrtSession *, size_t *) noexcept nogil
        OrtStatus *(*SessionGetOutputCount)(const OrtSession *, size_t *) noexcept nogil
        OrtStatus *(*SessionGetInputTypeInfo)(
            const OrtSession *, size_t, OrtTypeInfo **) noexcept nogil
        OrtStatus *(*SessionGetOutputTypeInfo)(
            const OrtSession *, size_t, OrtTypeInfo **) noexcept nogil
        OrtStatus *(*SessionGetInputName)(
            const OrtSession *, size_t, OrtAllocator *, char **) noexcept nogil
        OrtStatus *(*SessionGetOutputName)(
            const OrtSession *, size_t, OrtAllocator *, char **) noexcept nogil
        OrtStatus *(*CreateTensorWithDataAsOrtValue)(
            const OrtMemoryInfo *, void *, size_t, const int64_t *, size_t, int,
            OrtValue **) noexcept nogil
        OrtStatus *(*CastTypeInfoToTensorInfo)(
            const OrtTypeInfo *, const OrtTensorTypeAndShapeInfo **) noexcept nogil
        OrtStatus *(*GetOnnxTypeFromTypeInfo)(const OrtTypeInfo *, int *) noexcept nogil
        OrtStatus *(*GetTensorElementType)(
            const OrtTensorTypeAndShapeInfo *, int *) noexcept nogil
        OrtStatus *(*GetDimensionsCount)(
            const OrtTensorTypeAndShapeInfo *, size_t *) noexcept nogil
        OrtStatus *(*GetDimensions)(
            const OrtTensorTypeAndShapeInfo *, int64_t *, size_t) noexcept nogil
        OrtStatus *(*CreateCpuMemoryInfo)(int, int, OrtMemoryInfo **) noexcept nogil
        OrtStatus *(*AllocatorFree)(OrtAllocator *, void *) noexcept nogil
        OrtStatus *(*GetAllocatorWithDefaultOptions)(OrtAllocator **) noexcept nogil
        void (*ReleaseEnv)(OrtEnv *) noexcept nogil
        void (*ReleaseStatus)(OrtStatus *) noexcept nogil
        void (*ReleaseMemoryInfo)(OrtMemoryInfo *) noexcept nogil
        void (*ReleaseSession)(OrtSession *) noexcept nogil
        void (*ReleaseValue)(OrtValue *) noexcept nogil
        void (*ReleaseTypeInfo)(OrtTypeInfo *) noexcept nogil
        void (*ReleaseSessionOptions)(OrtSessionOptions *) noexcept nogil
        OrtStatus *(*RunWithBinding)(
            OrtSession *, const OrtRunOptions *, const OrtIoBinding *) noexcept nogil
        OrtStatus *(*CreateIoBinding)(OrtSession *, OrtIoBinding **) noexcept nogil
        void (*ReleaseIoBinding)(OrtIoBinding *) noexcept nogil
        OrtStatus *(*BindInput)(OrtIoBinding *, const char *, const OrtValue *) noexcept nogil
        OrtStatus *(*BindOutput)(OrtIoBinding *, const char *, const OrtValue *) noexcept nogil
    ctypedef struct hp_ort_base_t:
        const hp_ort_api_t *(*GetApi)(uint32_t) noexcept nogil
        const char *(*GetVersionString)() noexcept nogil
    ctypedef const hp_ort_base_t *(*hp_ort_get_t)() noexcept nogil
    hp_ort_get_t hp_ort_get(void *) noexcept nogil

cdef enum:
    MODEL_OK = 0
    MODEL_FAILED = -1           # the runtime refused; Model.error says why
    MODEL_NOT_FINITE = -2       # a probability is NaN or infinite

cdef enum:
    MODEL_CLASSES = 3           # down, flat, up


cdef class Model:
    cdef readonly uint64_t id           # first 8 bytes of the file's sha256, little-endian
    cdef readonly int count             # inputs
    cdef readonly int width             # floats of the vector they are gathered from
    cdef readonly str path
    cdef readonly str sha256
    cdef readonly str backend           # "c" or "python"
    cdef readonly str fallback          # why not "c", or empty
    cdef readonly str runtime           # version of ONNX Runtime
    cdef readonly double deviation      # of the parity outputs, at most
    cdef readonly dict card             # what the file says about itself
    cdef float *_input                  # count floats, 64-byte aligned
    cdef float *_output                 # MODEL_CLASSES floats, 64-byte aligned
    cdef float *_warm                   # what warm() asks: the first parity vector
    cdef float *_mean                   # count floats each; used when _normalise
    cdef float *_scale
    cdef int *_index                    # where in the vector each input stands
    cdef bint _normalise                # (x - mean) / scale is ours to do, not the graph's
    cdef float _clip                    # of a normalised input; 0 = none
    cdef OrtEnv *_env
    cdef OrtSession *_session
    cdef OrtIoBinding *_binding
    cdef OrtValue *_values[2]
    cdef object _python                 # (session, io_binding) of the Python backend, or None
    cdef object _error                  # the exception that its last failure was, or None
    cdef char _message[240]             # what the C API said when it failed last

    # Ask once.  *vector*: the catalogue's floats; *probabilities*: down, flat, up.  MODEL_*.
    cdef int infer(self, const float *vector, float *probabilities) noexcept nogil

    # Ask *n* times what does not matter, to keep code and weights in the cache while idle.
    cdef int touch(self, int n) noexcept nogil

    cdef void _put(self, const float *inputs) noexcept nogil
    cdef int _run(self) noexcept nogil
    cdef int _run_python(self) except -1
    cdef int _prepare(self, order) except -1
    cdef int _bind(self, source, result) except -1
    cdef int _bind_python(self, source, result) except -1
