/* Pretends to be cuBLASLt: multiplies in memory of the process, in columns as the real one does, and writes down what it
   is asked in the file that DRIVER_LOG names. It refuses descriptors that are gone and attributes of a wrong size.
   PRODUCTS_* in the environment make it fail. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint32_t Status;
enum { INVALID_VALUE = 7, NOT_SUPPORTED = 15, COMPUTE_32F = 68, R_32F = 0, R_16F = 2, R_16BF = 14 };
enum { HANDLE = 0x1001, OPERATION, LAYOUT, PREFERENCE };

static int setting(const char* name, int usual) { return getenv(name) ? atoi(getenv(name)) : usual; }

#define LOG(...) (fprintf(log_file(), __VA_ARGS__), fputc('\n', log_file()))
static FILE* log_file(void) {
  static FILE* file;
  if (!file) file = fopen(getenv("DRIVER_LOG"), "a"), setvbuf(file, NULL, _IOLBF, 0);
  return file;
}

/* All descriptors begin with what they are; those that are gone are nothing. */
typedef struct { int kind, turned[2]; int type; uint64_t rows, columns; int64_t stride; uint64_t bytes; uint32_t aligned[4]; } Object;
static int alive;
static Status make(Object** object, int kind) {
  *object = calloc(1, sizeof **object);
  return (*object)->kind = kind, alive++, 0;
}
static Status destroy(Object* object, int kind) {
  if (!object || object->kind != kind) return INVALID_VALUE;
  return object->kind = 0, alive--, 0; /* leaked, so that whoever uses it is found out */
}
#define NEEDS(object, what) if (!(object) || (object)->kind != (what)) return INVALID_VALUE

const char* cublasLtGetStatusName(Status status) { return status == 777 ? NULL : "CUBLAS_STATUS_PRETENDED"; }
Status cublasLtCreate(Object** handle) {
  if (setting("PRODUCTS_START", 0)) return setting("PRODUCTS_START", 0);
  return LOG("start products"), make(handle, HANDLE);
}
Status cublasLtDestroy(Object* handle) { return destroy(handle, HANDLE) || (LOG("end products, %d descriptors left", alive), 0); }

Status cublasLtMatmulDescCreate(Object** operation, int compute, int scale) {
  return compute == COMPUTE_32F && scale == R_32F ? make(operation, OPERATION) : NOT_SUPPORTED;
}
Status cublasLtMatmulDescSetAttribute(Object* operation, int attribute, const void* value, size_t bytes) {
  NEEDS(operation, OPERATION);
  if ((attribute != 3 && attribute != 4) || bytes != 4 || *(const uint32_t*)value > 1) return INVALID_VALUE;
  return operation->turned[attribute - 3] = *(const int*)value, 0;
}
Status cublasLtMatmulDescDestroy(Object* operation) { return destroy(operation, OPERATION); }

Status cublasLtMatrixLayoutCreate(Object** layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
  if (stride < (int64_t)rows) return INVALID_VALUE;
  make(layout, LAYOUT);
  return (*layout)->type = type, (*layout)->rows = rows, (*layout)->columns = columns, (*layout)->stride = stride, 0;
}
Status cublasLtMatrixLayoutDestroy(Object* layout) { return destroy(layout, LAYOUT); }

Status cublasLtMatmulPreferenceCreate(Object** preference) { return make(preference, PREFERENCE); }
Status cublasLtMatmulPreferenceSetAttribute(Object* preference, int attribute, const void* value, size_t bytes) {
  NEEDS(preference, PREFERENCE);
  if (attribute == 1 && bytes == 8) return preference->bytes = *(const uint64_t*)value, 0;
  if (attribute < 5 || attribute > 8 || bytes != 4) return INVALID_VALUE;
  return preference->aligned[attribute - 5] = *(const uint32_t*)value, 0;
}
Status cublasLtMatmulPreferenceDestroy(Object* preference) { return destroy(preference, PREFERENCE); }

/* Do the shapes go together? */
static int fits(const Object* operation, const Object* a, const Object* b, const Object* c) {
  const uint64_t m = operation->turned[0] ? a->columns : a->rows, k = operation->turned[0] ? a->rows : a->columns;
  const uint64_t n = operation->turned[1] ? b->rows : b->columns, l = operation->turned[1] ? b->columns : b->rows;
  return m == c->rows && n == c->columns && k == l && a->type == b->type;
}

/* An algorithm is told by its first word: the number of the choice. */
struct Found { uint64_t algorithm[8]; size_t bytes; Status state; float waves; int reserved[4]; };
static uint64_t choices;
Status cublasLtMatmulAlgoGetHeuristic(Object* handle, Object* operation, Object* a, Object* b, Object* c, Object* d,
                                      Object* preference, int asked, struct Found* found, int* count) {
  NEEDS(handle, HANDLE);
  NEEDS(operation, OPERATION);
  NEEDS(a, LAYOUT);
  NEEDS(b, LAYOUT);
  NEEDS(c, LAYOUT);
  NEEDS(preference, PREFERENCE);
  if (c != d || asked != 1 || !fits(operation, a, b, c)) return INVALID_VALUE;
  LOG("choose, %lu bytes of workspace, alignments %u %u %u %u", (unsigned long)preference->bytes, preference->aligned[0],
      preference->aligned[1], preference->aligned[2], preference->aligned[3]);
  *found = (struct Found){.algorithm = {++choices}, .bytes = preference->bytes, .state = setting("PRODUCTS_STATE", 0)};
  return *count = setting("PRODUCTS_FOUND", 1), setting("PRODUCTS_CHOOSE", 0);
}

static float load(const void* at, int type, uint64_t index) {
  if (type == R_32F) return ((const float*)at)[index];
  const uint32_t bits = (uint32_t)((const uint16_t*)at)[index] << 16;
  float x;
  return memcpy(&x, &bits, 4), x; /* bf16: products in f16 are only written down */
}
Status cublasLtMatmul(Object* handle, Object* operation, const float* alpha, const void* a, Object* of_a, const void* b,
                      Object* of_b, const float* beta, const void* c, Object* of_c, float* d, Object* of_d,
                      const uint64_t* algorithm, void* workspace, size_t bytes, void* stream) {
  NEEDS(handle, HANDLE);
  NEEDS(operation, OPERATION);
  NEEDS(of_a, LAYOUT);
  NEEDS(of_b, LAYOUT);
  NEEDS(of_c, LAYOUT);
  if (c != d || of_c != of_d || !fits(operation, of_a, of_b, of_c) || (uintptr_t)workspace % 256) return INVALID_VALUE;
  LOG("multiply %c%c types %d %d %d, %lu x %lu, strides %ld %ld %ld, choice %lu, %lu bytes, stream %p", "NT"[operation->turned[0]],
      "NT"[operation->turned[1]], of_a->type, of_b->type, of_c->type, (unsigned long)of_c->rows, (unsigned long)of_c->columns,
      (long)of_a->stride, (long)of_b->stride, (long)of_c->stride, (unsigned long)*algorithm, (unsigned long)bytes, stream);
  if (of_a->type == R_16F || of_c->type != R_32F) return setting("PRODUCTS_RUN", 0);
  for (uint64_t column = 0; column < of_c->columns; column++)
    for (uint64_t row = 0; row < of_c->rows; row++) {
      const uint64_t depth = operation->turned[0] ? of_a->rows : of_a->columns;
      float sum = 0;
      for (uint64_t i = 0; i < depth; i++)
        sum += load(a, of_a->type, operation->turned[0] ? row * of_a->stride + i : i * of_a->stride + row) *
               load(b, of_b->type, operation->turned[1] ? i * of_b->stride + column : column * of_b->stride + i);
      float* to = d + column * of_c->stride + row;
      *to = *alpha * sum + (*beta == 0 ? 0 : *beta * *to);
    }
  return setting("PRODUCTS_RUN", 0);
}
