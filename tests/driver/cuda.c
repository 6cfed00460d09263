/* Pretends to be the CUDA driver: its memory is the process's own, it runs no kernels, and it writes down what it is
   asked in the file that DRIVER_LOG names. It refuses what the real one refuses: calls without a current context, and
   calls that would spoil a recording. DRIVER_* in the environment make it another driver or GPU. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef uint32_t Result;
typedef uint64_t Address;
typedef void* Handle;
enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, ILLEGAL_STATE = 401,
       NOT_SUPPORTED = 801, NOT_FOUND = 500, CAPTURE_IMPLICIT = 906, UNKNOWN_CODE = 777, RELAXED = 2 };

static char context_object, stream_object, graph_object, body_stream, body_graph, copy_node, loop_node;
static __thread Handle current;
static __thread int capture_mode;
static int recording, recording_body, body_recorded, overlapping_in_body;

static int setting(const char* name, int usual) { return getenv(name) ? atoi(getenv(name)) : usual; }

#define LOG(...) (fprintf(log_file(), __VA_ARGS__), fputc('\n', log_file()))
static FILE* log_file(void) {
  static FILE* file;
  if (!file) file = fopen(getenv("DRIVER_LOG"), "a"), setvbuf(file, NULL, _IOLBF, 0);
  return file;
}
#define NEEDS_CONTEXT if (current != &context_object) return INVALID_CONTEXT
#define NOT_WHILE_RECORDING if (recording && capture_mode != RELAXED) return CAPTURE_IMPLICIT

Result cuInit(unsigned flags) { return flags ? INVALID_VALUE : setting("DRIVER_INIT", 0); }
Result cuDriverGetVersion(int* version) { return *version = setting("DRIVER_VERSION", 13000), 0; }
Result cuGetErrorName(Result code, const char** text) {
  static char name[32];
  snprintf(name, sizeof name, "CUDA_ERROR_%u", code);
  return *text = code == UNKNOWN_CODE ? NULL : name, code == UNKNOWN_CODE;
}
Result cuGetErrorString(Result code, const char** text) {
  return *text = code == UNKNOWN_CODE ? NULL : "text", code == UNKNOWN_CODE;
}

/* Devices: two, whose handles are not their numbers. */
Result cuDeviceGetCount(int* count) { return *count = 2, 0; }
Result cuDeviceGet(int* device, int ordinal) { return *device = ordinal + 40, 0; }
Result cuDeviceGetName(char* name, int bytes, int device) { return snprintf(name, bytes, "Pretended"), device < 40; }
Result cuDeviceGetAttribute(int* value, int attribute, int device) {
  const int capability = setting("DRIVER_CAPABILITY", 90);
  if (attribute != 75 && attribute != 76) return INVALID_VALUE;
  return *value = attribute == 75 ? capability / 10 : capability % 10, device < 40;
}
Result cuDeviceTotalMem_v2(size_t* bytes, int device) { return *bytes = (size_t)80 << 30, device < 40; }
Result cuDevicePrimaryCtxRetain(Handle* context, int device) {
  LOG("retain context");
  return *context = &context_object, device < 40;
}
Result cuDevicePrimaryCtxRelease_v2(int device) { return LOG("release context"), device < 40; }
Result cuCtxSetCurrent(Handle context) { return current = context, 0; }

/* Kernels: each module has those whose names begin like the file that it was made of, the n-th of DRIVER_FILES. */
static int modules;
static char* file_of_module(int number) {
  char* file = strdup(getenv("DRIVER_FILES"));
  int files = 1;
  for (char* c = file; *c; c++)
    if (*c == ',') *c = 0, files++;
  for (number %= files; number; number--) file += strlen(file) + 1;
  return file;
}
Result cuModuleLoadData(Handle* module, const void* image) {
  NEEDS_CONTEXT;
  NOT_WHILE_RECORDING;
  if (setting("DRIVER_LOAD", 0)) return setting("DRIVER_LOAD", 0);
  if (*(const uint32_t*)image != 0xBA55ED50) return INVALID_IMAGE; /* a fat binary */
  if ((uintptr_t)image % 16) return INVALID_IMAGE;
  char* file = file_of_module(modules++);
  if (getenv("DRIVER_REFUSES") && !strcmp(file, getenv("DRIVER_REFUSES"))) return NOT_FOUND;
  LOG("load");
  return *module = file, 0;
}
Result cuModuleUnload(Handle module) {
  NEEDS_CONTEXT;
  return LOG("unload"), module == NULL;
}
Result cuModuleGetFunction(Handle* function, Handle module, const char* name) {
  const char* file = module;
  NEEDS_CONTEXT;
  NOT_WHILE_RECORDING;
  if (strncmp(file, name, strlen(file))) return NOT_FOUND;
  return *function = strdup(name), 0;
}
Result cuFuncGetAttribute(int* value, int attribute, Handle function) {
  if (attribute != 1 && attribute != 5) return INVALID_VALUE;
  return *value = attribute == 1 ? 1000 : setting("DRIVER_PTX", 90), function == NULL;
}
Result cuFuncSetAttribute(Handle function, int attribute, int value) {
  NOT_WHILE_RECORDING;
  if (attribute != 8) return INVALID_VALUE;
  return LOG("allow %s %d bytes", (char*)function, value), 0;
}

struct Attribute { int id; char pad[4]; union { char pad[64]; int allowed; } value; };
struct Config { unsigned grid[3], block[3], shared_bytes; Handle stream; struct Attribute* attributes; unsigned count; };
Result cuLaunchKernelEx(const struct Config* config, Handle function, void** parameters, void** extra) {
  const struct Attribute* a = config->attributes;
  NEEDS_CONTEXT;
  if (config->stream != (recording_body ? &body_stream : &stream_object) || extra || (uintptr_t)parameters[0] % 16 || config->block[1] != 1) return INVALID_VALUE;
  if (config->count > 1 || (config->count && (a->id != 6 || a->value.allowed != 1))) return INVALID_VALUE;
  overlapping_in_body |= recording_body && config->count;
  return LOG("launch %s %s %s", (char*)function, config->count ? "overlaps" : "waits",
             recording_body ? "looped" : recording ? "recorded" : "queued"), 0;
}

Result cuStreamCreate(Handle* stream, unsigned flags) {
  NEEDS_CONTEXT;
  NOT_WHILE_RECORDING;
  if (!recording) LOG("stream %p", (void*)&stream_object);
  return *stream = recording ? &body_stream : &stream_object, flags != 1; /* non-blocking */
}
Result cuStreamDestroy_v2(Handle stream) {
  NEEDS_CONTEXT;
  NOT_WHILE_RECORDING;
  if (stream == &body_stream) return LOG("destroy body's stream"), recording_body;
  return LOG("destroy stream"), stream != &stream_object;
}
Result cuStreamSynchronize(Handle stream) {
  NEEDS_CONTEXT;
  return recording ? CAPTURE_IMPLICIT : stream != &stream_object;
}

Result cuProfilerStart(void) {
  NEEDS_CONTEXT;
  return LOG("profiler starts"), 0;
}
Result cuProfilerStop(void) {
  NEEDS_CONTEXT;
  return LOG("profiler stops"), 0;
}

/* Copies and zeroing are done at once, or recorded. */
static struct Work { void* to; const void* from; size_t bytes; } recorded[100];
static int works;
static void do_work(struct Work work) {
  if (work.from) memcpy(work.to, work.from, work.bytes);
  else memset(work.to, 0, work.bytes);
}
static Result queue(void* to, const void* from, size_t bytes) {
  const struct Work work = {to, from, bytes};
  NEEDS_CONTEXT;
  if (!bytes) return INVALID_VALUE;
  if (recording) recorded[works++] = work;
  else do_work(work);
  return 0;
}
Result cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, Handle stream) { return queue((void*)to, from, bytes); }
Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Handle stream) { return queue((void*)to, (void*)from, bytes); }
Result cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, Handle stream) { return queue(to, (void*)from, bytes); }
Result cuMemsetD8Async(Address to, unsigned char value, size_t bytes, Handle stream) { return queue((void*)to, NULL, bytes); }

Result cuThreadExchangeStreamCaptureMode(int* mode) {
  const int before = capture_mode;
  return capture_mode = *mode, *mode = before, 0;
}
Result cuStreamBeginCapture_v2(Handle stream, int mode) {
  NEEDS_CONTEXT;
  if (recording || mode != 1) return ILLEGAL_STATE;
  return works = 0, overlapping_in_body = 0, recording = 1, 0;
}
Result cuStreamEndCapture(Handle stream, Handle* graph) {
  NEEDS_CONTEXT;
  *graph = recording ? &graph_object : NULL;
  if (stream == &body_stream && recording_body) body_recorded = 1;
  if (stream == &stream_object && body_recorded && setting("DRIVER_CRASHES", 0)) abort();
  while (stream == &stream_object && body_recorded && setting("DRIVER_HANGS", 0)) pause();
  if (stream == &body_stream && recording_body) return *graph = &body_graph, recording_body = 0;
  if (!recording || stream != &stream_object) return ILLEGAL_STATE;
  return recording = 0, 0;
}

/* Loops: one in a recording, behind whatever was copied. */
struct NodeParameters {
  int type, reserved[3];
  uint64_t handle;
  int condition_type, size;
  Handle *bodies, context;
  uint64_t unused[25], reserved_2;
};
Result cuStreamGetCaptureInfo_v2(Handle stream, int* status, uint64_t* id, Handle* graph, const Handle** nodes, size_t* count) {
  static Handle before[] = {&copy_node};
  NEEDS_CONTEXT;
  return *status = recording, *graph = &graph_object, *nodes = before, *count = works > 0, stream != &stream_object || id;
}
Result cuGraphConditionalHandleCreate(uint64_t* handle, Handle graph, Handle context, unsigned value, unsigned flags) {
  NEEDS_CONTEXT;
  NOT_WHILE_RECORDING;
  if (setting("DRIVER_LOOP", 0)) return setting("DRIVER_LOOP", 0);
  return LOG("condition, %u at each launch", flags == 1 ? value : 7), *handle = 4711, graph != &graph_object || context != &context_object;
}
Result cuGraphAddNode_v2(Handle* node, Handle graph, const Handle* before, const void* edges, size_t count, struct NodeParameters* p) {
  static Handle bodies[] = {&body_graph};
  uint64_t unused = p->reserved_2 | p->reserved[0] | p->reserved[1] | p->reserved[2];
  NEEDS_CONTEXT;
  NOT_WHILE_RECORDING;
  for (int i = 0; i < 25; i++) unused |= p->unused[i];
  if (unused || p->type != 13 || p->handle != 4711 || p->condition_type != 1 || p->size != 1 || p->context != &context_object) return INVALID_VALUE;
  if (graph != &graph_object || edges || (count && before[0] != &copy_node)) return INVALID_VALUE;
  return LOG("loop behind %zu", count), *node = &loop_node, p->bodies = bodies, 0;
}
Result cuStreamBeginCaptureToGraph(Handle stream, Handle graph, const Handle* before, const void* edges, size_t count, int mode) {
  NEEDS_CONTEXT;
  if (recording_body || mode != 1 || stream != &body_stream || graph != &body_graph || before || edges || count) return ILLEGAL_STATE;
  return recording_body = 1, 0;
}
Result cuStreamUpdateCaptureDependencies(Handle stream, const Handle* nodes, size_t count, unsigned flags) {
  NEEDS_CONTEXT;
  if (stream != &stream_object || count != 1 || nodes[0] != &loop_node || flags != 1 || recording_body) return INVALID_VALUE;
  return LOG("go on behind the loop"), 0;
}
Result cuGraphInstantiateWithFlags(Handle* executable, Handle graph, unsigned long long flags) {
  NEEDS_CONTEXT;
  if (getenv("DRIVER_LOOPS_IN_ORDER") && overlapping_in_body) return NOT_SUPPORTED;
  return *executable = malloc(1), flags || graph != &graph_object;
}
Result cuGraphDestroy(Handle graph) { return LOG("destroy graph"), graph != &graph_object; }
Result cuGraphLaunch(Handle executable, Handle stream) {
  NEEDS_CONTEXT;
  for (int i = 0; i < works; i++) do_work(recorded[i]);
  return 0;
}
Result cuGraphExecDestroy(Handle executable) { return free(executable), LOG("destroy executable graph"), 0; }

Result cuEventCreate(Handle* event, unsigned flags) {
  NEEDS_CONTEXT;
  return *event = malloc(1), LOG("create event %u", flags), 0;
}
Result cuEventRecord(Handle event, Handle stream) {
  NEEDS_CONTEXT;
  return recording ? CAPTURE_IMPLICIT : event == NULL;
}
Result cuEventSynchronize(Handle event) {
  NEEDS_CONTEXT;
  return event == NULL;
}
Result cuEventElapsedTime(float* milliseconds, Handle start, Handle end) { return *milliseconds = 2.5f, start == end; }
Result cuEventDestroy_v2(Handle event) {
  NEEDS_CONTEXT;
  return free(event), LOG("destroy event"), 0;
}

/* Memory, filled with rubbish at first. */
static Result allocate(void** at, size_t bytes) {
  NEEDS_CONTEXT;
  NOT_WHILE_RECORDING;
  if (!bytes) return INVALID_VALUE;
  if (bytes >> 40) return OUT_OF_MEMORY;
  *at = aligned_alloc(256, (bytes + 255) / 256 * 256);
  return memset(*at, 0xA5, bytes), 0;
}
static Result give_back(void* at) {
  NEEDS_CONTEXT;
  return free(at), 0;
}
Result cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
  NEEDS_CONTEXT;
  return *free_bytes = 1, *total = 2, 0;
}
Result cuMemAlloc_v2(Address* at, size_t bytes) { return allocate((void**)at, bytes); }
Result cuMemFree_v2(Address at) { return give_back((void*)at); }
Result cuMemHostRegister_v2(void* at, size_t bytes, unsigned flags) { return !at || !bytes || flags != 3 ? INVALID_VALUE : 0; }
Result cuMemHostGetDevicePointer_v2(uint64_t* on_device, void* at, unsigned flags) {
  return *on_device = (uint64_t)at, flags ? INVALID_VALUE : 0;
}
Result cuMemHostAlloc(void** at, size_t bytes, unsigned flags) { return flags ? INVALID_VALUE : allocate(at, bytes); }
Result cuMemFreeHost(void* at) { return give_back(at); }
