/* The entries of ONNX Runtime's C API that _model.pyx calls, and nothing else.
 *
 * The onnxruntime wheel ships libonnxruntime.so and no headers.  Its only export is
 * OrtGetApiBase(); everything else hangs off a struct of function pointers whose order is
 * frozen: entries are only ever appended.  Order and signatures are those of
 * include/onnxruntime/core/session/onnxruntime_c_api.h (MIT) at ORT_API_VERSION 7, the
 * anchor 101 one of those of the runtime's own static_asserts in
 * core/session/onnxruntime_c_api.cc.  A runtime older than 1.7 answers GetApi(7) with NULL.
 *
 * Calls that can fail return NULL or a status that the caller releases.
 */
#ifndef HFTPIPE_ORT_H
#define HFTPIPE_ORT_H
#include <stddef.h>
#include <stdint.h>

#define HP_ORT_API_VERSION 7

enum { HP_ORT_LOG_FATAL = 4, HP_ORT_SEQUENTIAL = 0, HP_ORT_OPTIMIZE_ALL = 99,
       HP_ORT_TYPE_TENSOR = 1, HP_ORT_ELEMENT_FLOAT = 1,
       HP_ORT_DEVICE_ALLOCATOR = 0, HP_ORT_MEMORY_DEFAULT = 0 };

typedef struct OrtEnv OrtEnv;
typedef struct OrtStatus OrtStatus;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtSession OrtSession;
typedef struct OrtValue OrtValue;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtIoBinding OrtIoBinding;
typedef struct OrtAllocator OrtAllocator;

typedef struct {
  void *pad0[2];
  const char *(*GetErrorMessage)(const OrtStatus *);                                /* 2 */
  OrtStatus *(*CreateEnv)(int level, const char *name, OrtEnv **);                  /* 3 */
  void *pad4[4];
  OrtStatus *(*CreateSessionFromArray)(const OrtEnv *, const void *, size_t,
                                       const OrtSessionOptions *, OrtSession **);   /* 8 */
  void *pad9[1];
  OrtStatus *(*CreateSessionOptions)(OrtSessionOptions **);                         /* 10 */
  void *pad11[2];
  OrtStatus *(*SetSessionExecutionMode)(OrtSessionOptions *, int);                  /* 13 */
  void *pad14[2];
  OrtStatus *(*EnableMemPattern)(OrtSessionOptions *);                              /* 16 */
  void *pad17[2];
  OrtStatus *(*DisableCpuMemArena)(OrtSessionOptions *);                            /* 19 */
  void *pad20[2];
  OrtStatus *(*SetSessionLogSeverityLevel)(OrtSessionOptions *, int);               /* 22 */
  OrtStatus *(*SetSessionGraphOptimizationLevel)(OrtSessionOptions *, int);         /* 23 */
  OrtStatus *(*SetIntraOpNumThreads)(OrtSessionOptions *, int);                     /* 24 */
  OrtStatus *(*SetInterOpNumThreads)(OrtSessionOptions *, int);                     /* 25 */
  void *pad26[4];
  OrtStatus *(*SessionGetInputCount)(const OrtSession *, size_t *);                 /* 30 */
  OrtStatus *(*SessionGetOutputCount)(const OrtSession *, size_t *);                /* 31 */
  void *pad32[1];
  OrtStatus *(*SessionGetInputTypeInfo)(const OrtSession *, size_t, OrtTypeInfo **);  /* 33 */
  OrtStatus *(*SessionGetOutputTypeInfo)(const OrtSession *, size_t, OrtTypeInfo **); /* 34 */
  void *pad35[1];
  OrtStatus *(*SessionGetInputName)(const OrtSession *, size_t, OrtAllocator *, char **);  /* 36 */
  OrtStatus *(*SessionGetOutputName)(const OrtSession *, size_t, OrtAllocator *, char **); /* 37 */
  void *pad38[11];
  OrtStatus *(*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo *, void *data, size_t size,
                                               const int64_t *shape, size_t rank, int element,
                                               OrtValue **);                        /* 49 */
  void *pad50[5];
  OrtStatus *(*CastTypeInfoToTensorInfo)(const OrtTypeInfo *,
                                         const OrtTensorTypeAndShapeInfo **);       /* 55 */
  OrtStatus *(*GetOnnxTypeFromTypeInfo)(const OrtTypeInfo *, int *);                /* 56 */
  void *pad57[3];
  OrtStatus *(*GetTensorElementType)(const OrtTensorTypeAndShapeInfo *, int *);     /* 60 */
  OrtStatus *(*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo *, size_t *);    /* 61 */
  OrtStatus *(*GetDimensions)(const OrtTensorTypeAndShapeInfo *, int64_t *, size_t); /* 62 */
  void *pad63[6];
  OrtStatus *(*CreateCpuMemoryInfo)(int allocator, int memory, OrtMemoryInfo **);   /* 69 */
  void *pad70[6];
  OrtStatus *(*AllocatorFree)(OrtAllocator *, void *);                              /* 76 */
  void *pad77[1];
  OrtStatus *(*GetAllocatorWithDefaultOptions)(OrtAllocator **);                    /* 78 */
  void *pad79[13];
  void (*ReleaseEnv)(OrtEnv *);                                                     /* 92 */
  void (*ReleaseStatus)(OrtStatus *);                                               /* 93 */
  void (*ReleaseMemoryInfo)(OrtMemoryInfo *);                                       /* 94 */
  void (*ReleaseSession)(OrtSession *);                                             /* 95 */
  void (*ReleaseValue)(OrtValue *);                                                 /* 96 */
  void *pad97[1];
  void (*ReleaseTypeInfo)(OrtTypeInfo *);                                           /* 98 */
  void *pad99[1];
  void (*ReleaseSessionOptions)(OrtSessionOptions *);                               /* 100 */
  void *pad101[32];
  OrtStatus *(*RunWithBinding)(OrtSession *, const OrtRunOptions *, const OrtIoBinding *); /* 133 */
  OrtStatus *(*CreateIoBinding)(OrtSession *, OrtIoBinding **);                     /* 134 */
  void (*ReleaseIoBinding)(OrtIoBinding *);                                         /* 135 */
  OrtStatus *(*BindInput)(OrtIoBinding *, const char *, const OrtValue *);          /* 136 */
  OrtStatus *(*BindOutput)(OrtIoBinding *, const char *, const OrtValue *);         /* 137 */
} hp_ort_api_t;

#define HP_ORT_AT(entry, index) \
  _Static_assert(offsetof(hp_ort_api_t, entry) == (index) * sizeof(void *), #entry)
HP_ORT_AT(GetErrorMessage, 2);
HP_ORT_AT(CreateSessionFromArray, 8);
HP_ORT_AT(CreateSessionOptions, 10);
HP_ORT_AT(SetSessionExecutionMode, 13);
HP_ORT_AT(DisableCpuMemArena, 19);
HP_ORT_AT(SetInterOpNumThreads, 25);
HP_ORT_AT(SessionGetOutputCount, 31);
HP_ORT_AT(SessionGetOutputName, 37);
HP_ORT_AT(CreateTensorWithDataAsOrtValue, 49);
HP_ORT_AT(CastTypeInfoToTensorInfo, 55);
HP_ORT_AT(GetDimensions, 62);
HP_ORT_AT(CreateCpuMemoryInfo, 69);
HP_ORT_AT(AllocatorFree, 76);
HP_ORT_AT(GetAllocatorWithDefaultOptions, 78);
HP_ORT_AT(ReleaseEnv, 92);
HP_ORT_AT(ReleaseValue, 96);
HP_ORT_AT(ReleaseSessionOptions, 100);
HP_ORT_AT(pad101, 101);
HP_ORT_AT(RunWithBinding, 133);
HP_ORT_AT(BindOutput, 137);

typedef struct {
  const hp_ort_api_t *(*GetApi)(uint32_t version);
  const char *(*GetVersionString)(void);
} hp_ort_base_t;

typedef const hp_ort_base_t *(*hp_ort_get_t)(void);

/* A function pointer out of dlsym's void pointer, without a pedantic cast. */
static inline hp_ort_get_t hp_ort_get(void *symbol) {
  union { void *object; hp_ort_get_t function; } u = {symbol};
  return u.function;
}
#endif
