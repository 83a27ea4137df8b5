"""Load an ONNX classifier, refuse what does not fit, ask it in microseconds; see ``_model.pxd``."""
cimport cython
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset, strncpy
from posix.dlfcn cimport RTLD_LOCAL, RTLD_NOW, dlerror, dlopen, dlsym
from posix.stdlib cimport posix_memalign

from ._clock cimport hp_read_monotonic

import hashlib
import importlib.util
from pathlib import Path

import numpy

from hftpipe import schema
from hftpipe.card import CLASSES, TOLERANCE, check, metadata, parse
from hftpipe.errors import ConfigError, HftpipeError

cdef const hp_ort_api_t *api = NULL         # of this process, once loaded
cdef str api_version = ""


def library() -> Path:
    """The shared library of the installed onnxruntime package.

    Raises
    ------
    ConfigError
        If the package is not installed.
    FileNotFoundError
        If it holds no such library.
    """
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("a model needs the package onnxruntime, which is not installed")
    capi = Path(spec.submodule_search_locations[0]) / "capi"
    found = sorted(capi.glob("libonnxruntime.so*"))
    if not found:
        raise FileNotFoundError(f"no libonnxruntime.so in {capi}")
    return found[0]


cdef int _load() except -1:
    """Open the runtime's C API once per process; it is never closed again."""
    global api, api_version
    if api != NULL:
        return 0
    path = str(library())
    encoded = path.encode()
    cdef void *handle = dlopen(encoded, RTLD_NOW | RTLD_LOCAL)
    if handle == NULL:
        raise OSError((<bytes>dlerror()).decode())
    cdef void *symbol = dlsym(handle, b"OrtGetApiBase")
    if symbol == NULL:
        raise OSError(f"{path} does not export OrtGetApiBase")
    cdef const hp_ort_base_t *base = hp_ort_get(symbol)()
    version = (<bytes>base.GetVersionString()).decode()
    cdef const hp_ort_api_t *found = base.GetApi(HP_ORT_API_VERSION)
    if found == NULL:
        raise OSError(f"{path} {version} lacks version {HP_ORT_API_VERSION} of the C API")
    api_version, api = version, found
    return 0


cdef int _check(OrtStatus *status) except -1:
    if status == NULL:
        return 0
    text = (<bytes>api.GetErrorMessage(status)).decode("utf-8", "replace")
    api.ReleaseStatus(status)
    raise RuntimeError(" ".join(text.split()))


cdef str _take(OrtAllocator *allocator, char *text):
    """A string of the runtime's as ours; None for NULL."""
    if text == NULL:
        return None
    try:
        return (<bytes>text).decode("utf-8", "replace")
    finally:
        _check(api.AllocatorFree(allocator, text))


cdef tuple _shape(OrtTypeInfo *info):
    """``("f32", dims)`` of a tensor of float; dims are -1 where the file leaves them open."""
    cdef int kind = 0, element = 0
    cdef size_t rank = 0, i
    cdef int64_t dims[8]
    cdef const OrtTensorTypeAndShapeInfo *tensor = NULL
    try:
        _check(api.GetOnnxTypeFromTypeInfo(info, &kind))
        if kind != HP_ORT_TYPE_TENSOR:
            return f"ONNX type {kind}", ()
        _check(api.CastTypeInfoToTensorInfo(info, &tensor))
        _check(api.GetTensorElementType(tensor, &element))
        _check(api.GetDimensionsCount(tensor, &rank))
        if rank > 8:
            return f"rank {rank}", ()
        _check(api.GetDimensions(tensor, dims, rank))
        name = "f32" if element == HP_ORT_ELEMENT_FLOAT else f"element type {element}"
        return name, tuple([dims[i] for i in range(rank)])
    finally:
        api.ReleaseTypeInfo(info)


def _describe(kind, dims):
    return f"{kind}[{', '.join('?' if d < 0 else str(d) for d in dims)}]"


@cython.final
cdef class Model:
    """An ONNX classifier over named features: down, flat or up.

    Parameters
    ----------
    path : str or Path
    sha256 : str, optional
        Refuse any other file.
    backend : {"auto", "c", "python"}
        How to reach ONNX Runtime.  "auto" uses its C API, and its Python package when the
        library cannot be opened; `backend` and `fallback` say which and why.
    bar : str, optional
        Window of bars that the features here are made from; a model made for bars of another
        one is refused.  None: not checked.
    catalogue : sequence of schema.Feature, default ``schema.CATALOGUE``
        What the vector that :meth:`infer` gathers from holds, in its order.

    Attributes
    ----------
    id : int
        First 8 bytes of the file's sha256, little-endian; SIGNAL.model.
    count : int
        Inputs of the model.
    card : dict
        What the file says about itself; see :mod:`hftpipe.card`.
    runtime : str
        Version of ONNX Runtime.
    deviation : float
        By how much its parity outputs are off at most.
    fallback : str
        Why the C API is not used; empty when it is, or when "python" was asked for.
    error : str or None
        What the runtime said when it last failed.

    Raises
    ------
    ConfigError
        One line with what was wanted and what was found: no such file, another sha256, not an
        ONNX model, another shape or type, a card that is missing or does not fit (features, their
        order or definitions, bars, classes, normalisation), outputs that are not those of
        training.
    """

    def __cinit__(self):
        self._python = self._error = None
        self._message[0] = 0

    def __init__(self, path, sha256=None, backend="auto", bar=None, catalogue=None):
        if self._input != NULL:
            raise ValueError("a model is loaded once")
        if backend not in ("auto", "c", "python"):
            raise ValueError(f"backend must be auto, c or python, was {backend!r}")
        self.path = str(path)
        catalogue = schema.CATALOGUE if catalogue is None else catalogue
        self.width = len(catalogue)
        data = self._read(sha256)
        try:
            self.card = parse(metadata(data))
            check(self.card, bar, catalogue)
        except ConfigError as error:
            raise ConfigError(f"model {self.path}: {error}") from None
        self.count = len(self.card["features"])
        self._prepare(schema.feature_index(self.card["features"], catalogue))
        self.backend, self.fallback = "c", ""
        if backend != "python":
            try:
                _load()
            except OSError as error:
                if backend == "c":
                    raise ConfigError(f"ONNX Runtime's C API: {error}") from None
                self.backend, self.fallback = "python", str(error)
        else:
            self.backend = "python"
        try:
            if self.backend == "c":
                names, source, result = self._open(data)
            else:
                names, source, result = self._open_python(data)
            chosen = self._fits(source, result)
            if self.backend == "c":
                self._bind(names[0][0], names[1][chosen])
            else:
                self._bind_python(names[0][0], names[1][chosen])
        except RuntimeError as error:       # the runtime's own words, from _check
            raise ConfigError(f"model {self.path}: wanted an ONNX model, found: {error}") from None
        self._parity()

    cdef int _prepare(self, order) except -1:
        """Memory, and how the card says an input is made of a vector."""
        cdef size_t lines = (self.count * sizeof(float) + 63) // 64
        cdef void *memory = NULL
        cdef int i
        # Input and output on lines of their own, the question that warm() asks, normalisation.
        if posix_memalign(&memory, 64, 64 * (4 * lines + 1)):
            raise MemoryError
        memset(memory, 0, 64 * (4 * lines + 1))
        self._input = <float *>memory
        self._output = self._input + 16 * lines
        self._warm = self._output + 16
        self._mean = self._warm + 16 * lines
        self._scale = self._mean + 16 * lines
        self._index = <int *>calloc(self.count, sizeof(int))
        if self._index == NULL:
            raise MemoryError
        normal = self.card["normalisation"]
        self._normalise = normal["where"] == "input"
        self._clip = normal.get("clip") or 0
        for i in range(self.count):
            self._index[i] = order[i]
            self._mean[i] = normal["mean"][i] if self._normalise else 0
            self._scale[i] = normal["scale"][i] if self._normalise else 1
            if self._normalise and not 0 < self._scale[i] < 3.4e38:
                raise ConfigError(
                    f"model {self.path}: wanted normalisation.scale of "
                    f"{self.card['features'][i]} within f32, found {normal['scale'][i]!r}")
        return 0

    def __dealloc__(self):
        if api != NULL:
            if self._binding != NULL:
                api.ReleaseIoBinding(self._binding)
            for i in range(2):
                if self._values[i] != NULL:
                    api.ReleaseValue(self._values[i])
            if self._session != NULL:
                api.ReleaseSession(self._session)
            if self._env != NULL:
                api.ReleaseEnv(self._env)
        free(self._input)
        free(self._index)

    def __repr__(self):
        return f"<Model {self.path} {self.sha256[:12]} {self.backend} {self.runtime}>"

    # ------------------------------------------------------------ loading

    def _read(self, wanted):
        try:
            data = Path(self.path).read_bytes()
        except FileNotFoundError:
            raise ConfigError(f"model {self.path}: no such file") from None
        except OSError as error:
            raise ConfigError(f"model {self.path}: {error.strerror or error}") from None
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.id = int.from_bytes(bytes.fromhex(self.sha256)[:8], "little")
        if wanted is not None and wanted.lower() != self.sha256:
            raise ConfigError(
                f"model {self.path}: wanted sha256 {wanted}, found {self.sha256}")
        if not data:
            raise ConfigError(f"model {self.path}: wanted an ONNX model, found an empty file")
        return data

    def _open(self, const unsigned char[::1] data):
        """Make the session; names and shapes of what goes in and comes out."""
        self.runtime = api_version
        cdef OrtSessionOptions *options = NULL
        cdef OrtAllocator *allocator = NULL
        cdef OrtTypeInfo *info = NULL
        cdef OrtStatus *status
        cdef char *text = NULL
        cdef size_t n = 0, i
        _check(api.CreateEnv(HP_ORT_LOG_FATAL, b"hftpipe", &self._env))
        _check(api.CreateSessionOptions(&options))
        try:
            # One thread: ours.  A remembered memory pattern without the arena is the fastest
            # of the four combinations: bench/bench_model.py.
            _check(api.SetSessionExecutionMode(options, HP_ORT_SEQUENTIAL))
            _check(api.SetIntraOpNumThreads(options, 1))
            _check(api.SetInterOpNumThreads(options, 1))
            _check(api.EnableMemPattern(options))
            _check(api.DisableCpuMemArena(options))
            _check(api.SetSessionGraphOptimizationLevel(options, HP_ORT_OPTIMIZE_ALL))
            _check(api.SetSessionLogSeverityLevel(options, HP_ORT_LOG_FATAL))
            with nogil:                     # milliseconds: others go on meanwhile
                status = api.CreateSessionFromArray(
                    self._env, &data[0], data.shape[0], options, &self._session)
            _check(status)
        finally:
            api.ReleaseSessionOptions(options)
        _check(api.GetAllocatorWithDefaultOptions(&allocator))
        shapes = [[], []]
        names = [[], []]
        _check(api.SessionGetInputCount(self._session, &n))
        for i in range(n):
            _check(api.SessionGetInputName(self._session, i, allocator, &text))
            names[0].append(_take(allocator, text))
            _check(api.SessionGetInputTypeInfo(self._session, i, &info))
            shapes[0].append(_shape(info))
        _check(api.SessionGetOutputCount(self._session, &n))
        for i in range(n):
            _check(api.SessionGetOutputName(self._session, i, allocator, &text))
            names[1].append(_take(allocator, text))
            _check(api.SessionGetOutputTypeInfo(self._session, i, &info))
            shapes[1].append(_shape(info))
        return names, shapes[0], shapes[1]

    def _open_python(self, bytes data):
        import onnxruntime
        self.runtime = onnxruntime.__version__
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.enable_cpu_mem_arena = False
        options.log_severity_level = HP_ORT_LOG_FATAL
        try:
            session = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"])
        except Exception as error:          # its exceptions share no base class of their own
            raise RuntimeError(" ".join(str(error).split())) from None
        self._python = (session, session.io_binding())
        ends = session.get_inputs(), session.get_outputs()
        shapes = [[("f32" if a.type == "tensor(float)" else a.type,
                    tuple(d if isinstance(d, int) else -1 for d in a.shape)) for a in end]
                  for end in ends]
        return ([[a.name for a in end] for end in ends], *shapes)

    def _fits(self, source, result):
        """Which output is the probabilities: exactly one must look like it."""
        def shaped(end, width):
            kind, dims = end
            return kind == "f32" and len(dims) == 2 and dims[0] in (1, -1) and dims[1] == width

        wanted = f"one input f32[1 or ?, {self.count}]"
        if len(source) != 1:
            raise ConfigError(f"model {self.path}: wanted {wanted}, found {len(source)}")
        if not shaped(source[0], self.count):
            raise ConfigError(f"model {self.path}: wanted {wanted}, found {_describe(*source[0])}")
        fitting = [i for i, end in enumerate(result) if shaped(end, MODEL_CLASSES)]
        if len(fitting) != 1:
            found = ", ".join(_describe(*end) for end in result)
            raise ConfigError(f"model {self.path}: wanted one output f32[1 or ?, {MODEL_CLASSES}] "
                              f"({', '.join(CLASSES)}), found {found}")
        return fitting[0]

    cdef int _bind(self, source, result) except -1:
        cdef OrtMemoryInfo *memory = NULL
        cdef int64_t[2] shape
        encoded = source.encode(), result.encode()
        _check(api.CreateCpuMemoryInfo(HP_ORT_DEVICE_ALLOCATOR, HP_ORT_MEMORY_DEFAULT, &memory))
        try:
            shape[0], shape[1] = 1, self.count
            _check(api.CreateTensorWithDataAsOrtValue(
                memory, self._input, self.count * sizeof(float), shape, 2, HP_ORT_ELEMENT_FLOAT,
                &self._values[0]))
            shape[1] = MODEL_CLASSES
            _check(api.CreateTensorWithDataAsOrtValue(
                memory, self._output, MODEL_CLASSES * sizeof(float), shape, 2,
                HP_ORT_ELEMENT_FLOAT, &self._values[1]))
        finally:
            api.ReleaseMemoryInfo(memory)
        _check(api.CreateIoBinding(self._session, &self._binding))
        _check(api.BindInput(self._binding, <bytes>encoded[0], self._values[0]))
        _check(api.BindOutput(self._binding, <bytes>encoded[1], self._values[1]))
        return 0

    cdef int _bind_python(self, source, result) except -1:
        binding = self._python[1]
        binding.bind_input(source, "cpu", 0, numpy.float32, [1, self.count],
                           <size_t>self._input)
        binding.bind_output(result, "cpu", 0, numpy.float32, [1, MODEL_CLASSES],
                            <size_t>self._output)
        return 0

    def _parity(self):
        """Ask what training asked, and compare."""
        parity = self.card["parity"]
        try:
            inputs = numpy.array(parity["inputs"], numpy.float32)
            outputs = numpy.array(parity["outputs"], numpy.float64)
        except (TypeError, KeyError, ValueError):
            inputs = outputs = numpy.zeros(0)
        if (inputs.ndim != 2 or outputs.shape != (len(inputs), MODEL_CLASSES)
                or inputs.shape[1] != self.count or not len(inputs)):
            raise ConfigError(
                f"model {self.path}: wanted parity vectors of {self.count} inputs and "
                f"{MODEL_CLASSES} outputs, found {inputs.shape} and {outputs.shape}")
        found = self.predict(inputs)
        error = abs(found - outputs).max(axis=1)
        worst = int(numpy.argmax(numpy.where(numpy.isnan(error), numpy.inf, error)))
        self.deviation = float(error[worst])
        if not self.deviation <= TOLERANCE:
            raise ConfigError(
                f"model {self.path}: parity vector {worst}: wanted {outputs[worst].tolist()}, "
                f"found {found[worst].tolist()} (tolerance {TOLERANCE:g})")
        for i in range(self.count):
            self._warm[i] = inputs[0, i]

    # ------------------------------------------------------------ asking

    cdef int _run(self) noexcept nogil:
        cdef OrtStatus *status
        cdef int i
        if self._binding != NULL:
            status = api.RunWithBinding(self._session, NULL, self._binding)
            if status != NULL:
                strncpy(self._message, api.GetErrorMessage(status), sizeof(self._message) - 1)
                api.ReleaseStatus(status)
                return MODEL_FAILED
        else:
            with gil:
                try:
                    self._run_python()
                except BaseException as error:      # noexcept: nothing may escape from here
                    self._error = error
                    return MODEL_FAILED
        for i in range(MODEL_CLASSES):
            if self._output[i] - self._output[i] != 0:                          # M5
                return MODEL_NOT_FINITE
        return MODEL_OK

    cdef int _run_python(self) except -1:
        session, binding = self._python
        session.run_with_iobinding(binding)
        return 0

    cdef void _put(self, const float *inputs) noexcept nogil:
        """Put raw inputs, in the model's order, where the session reads them."""
        cdef int i
        cdef float x, clip = self._clip
        if not self._normalise:
            memcpy(self._input, inputs, self.count * sizeof(float))
            return
        for i in range(self.count):
            x = (inputs[i] - self._mean[i]) / self._scale[i]
            if clip > 0:                    # NaN stays NaN: it must not look like a number
                x = -clip if x < -clip else clip if x > clip else x
            self._input[i] = x

    cdef int infer(self, const float *vector, float *probabilities) noexcept nogil:
        cdef int i, code
        cdef float x, clip = self._clip
        if self._normalise:
            for i in range(self.count):
                x = (vector[self._index[i]] - self._mean[i]) / self._scale[i]
                if clip > 0:
                    x = -clip if x < -clip else clip if x > clip else x
                self._input[i] = x
        else:
            for i in range(self.count):
                self._input[i] = vector[self._index[i]]
        code = self._run()
        memcpy(probabilities, self._output, MODEL_CLASSES * sizeof(float))
        return code

    cdef int touch(self, int n) noexcept nogil:
        cdef int _i, code = MODEL_OK
        self._put(self._warm)
        for _i in range(n):
            code |= self._run()
        return code

    @property
    def error(self):
        if self._error is not None:
            return " ".join(f"{type(self._error).__name__}: {self._error}".split())
        return (<bytes>self._message).decode("utf-8", "replace") or None

    def warm(self, int n=100):
        """Ask *n* times what does not matter, so that code and weights are in the cache."""
        cdef int code
        with nogil:
            code = self.touch(n)
        if code != MODEL_OK:
            raise HftpipeError(f"model {self.path}: {self.error or 'output is not finite'}")

    def predict(self, features):
        """Probabilities of down, flat and up.

        Parameters
        ----------
        features : (count,) or (n, count) array, taken as float32
            As they are before normalisation, in the order of ``card["features"]``.

        Returns
        -------
        (3,) or (n, 3) float32 array

        Raises
        ------
        ValueError
            If the last axis is not `count` long.
        HftpipeError
            If the runtime fails, or a probability is not finite.
        """
        rows = numpy.ascontiguousarray(features, numpy.float32)
        if rows.ndim not in (1, 2) or rows.shape[rows.ndim - 1] != self.count:
            raise ValueError(f"wanted (n, {self.count}) features, found {rows.shape}")
        cdef const float[:, ::1] source = rows.reshape(-1, self.count)
        out = numpy.zeros((source.shape[0], MODEL_CLASSES), numpy.float32)
        cdef float[:, ::1] target = out
        cdef Py_ssize_t i
        cdef int code = MODEL_OK
        with nogil:
            for i in range(source.shape[0]):
                self._put(&source[i, 0])
                code = self._run()
                memcpy(&target[i, 0], self._output, MODEL_CLASSES * sizeof(float))
                if code != MODEL_OK:
                    break
        if code == MODEL_NOT_FINITE:
            raise HftpipeError(f"model {self.path}: output {out[i].tolist()} is not finite")
        if code != MODEL_OK:
            raise HftpipeError(f"model {self.path}: {self.error}")
        return out if rows.ndim == 2 else out[0]

    def ask(self, vector):
        """Probabilities of down, flat and up, gathering the inputs out of a whole vector.

        Parameters
        ----------
        vector : (len(catalogue),) array, taken as float32

        Returns
        -------
        (3,) float32 array

        Raises
        ------
        ValueError
            If it has another length.
        HftpipeError
            As :meth:`predict`.
        """
        row = numpy.ascontiguousarray(vector, numpy.float32)
        if row.shape != (self.width,):
            raise ValueError(f"wanted a vector of {self.width}, found {row.shape}")
        cdef const float[::1] source = row
        out = numpy.zeros(MODEL_CLASSES, numpy.float32)
        cdef float[::1] target = out
        if self.infer(&source[0], &target[0]) != MODEL_OK:
            raise HftpipeError(f"model {self.path}: "
                               f"{self.error or f'output {out.tolist()} is not finite'}")
        return out

    def measure(self, int n=10_000):
        """Time *n* inferences of the first parity vector, one by one.

        Returns
        -------
        (n,) int64 array, ns; one clock read is in each

        Raises
        ------
        HftpipeError
            If the runtime fails.
        """
        out = numpy.zeros(n, numpy.int64)
        cdef int64_t[::1] times = out
        cdef int64_t before, now
        cdef int i, code = MODEL_OK
        with nogil:
            before = hp_read_monotonic()
            for i in range(n):
                code |= self.touch(1)
                now = hp_read_monotonic()
                times[i] = now - before
                before = now
        if code != MODEL_OK:
            raise HftpipeError(f"model {self.path}: {self.error or 'output is not finite'}")
        return out


def runtime() -> str:
    """Version of the ONNX Runtime library behind the C API; loads it if need be."""
    _load()
    return api_version
