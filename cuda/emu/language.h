// The CUDA device language on the host, for testing kernels without a GPU.
//
// One CUDA thread is one fiber (schedule.cpp); fibers switch only where threads synchronise. A kernel
// file reaches this header through common/device.cuh and is compiled as plain C++17.
//
// The emulator does not see: missing memory fences (one OS thread runs everything), the rounding
// inside tensor cores, speed.
#pragma once
#include <cmath>
#include <cstddef>
#include <type_traits>
#include <utility>

#include "numbers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict

// ---- mathematics -----------------------------------------------------------------------------
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
// Bytes of the eight in (high:low) chosen by the low three bits of each nibble of the selector.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = uint64_t(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) result |= unsigned(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return result;
}
inline void __threadfence() {}

namespace emu {

// Where a device function was called, for reports.
struct Place { const char* file; int line; };
inline Place caller(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
#define EMU_HERE ::emu::Place here = ::emu::caller()  // as a default argument: the place of the call

// The part of a fiber that kernels read.
struct Lane {
  uint3 thread, block;
  dim3 block_size, grid_size;
  unsigned lane;
};
extern __thread Lane* current;

// ---- services of the runtime (*.cpp), never instrumented by sanitisers of kernels -------------
[[noreturn]] void fail(const char* what, Place);
enum Operation { SHUFFLE, VOTE, SYNCWARP, MMA };
// Rendezvous of the lanes in `mask`; the last one to arrive runs `body` over every lane's slot.
void collective(unsigned mask, Operation, int variant, void* slot, void (*body)(unsigned, void**, int), Place);
enum Combine { PLAIN, COUNT, AND, OR };
// __syncthreads and its variants (id 0, count 0), or a named barrier of `count` threads.
int barrier(int id, int count, int predicate, Combine, Place);
void* shared_variable(const void* id, size_t size, size_t align);
unsigned char* dynamic_shared();
void copy_async(void* target, const void* source, int bytes, int source_bytes, Place);
void commit_copies();
void wait_copies(int leave);
void yield();
void note_atomic(const void*, size_t);

struct Shuffle {
  unsigned char in[16], out[16];
  int argument, width;
  unsigned size;
  bool bad;
};
enum ShuffleMode { INDEX, UP, DOWN, XOR };
void shuffle_all(unsigned mask, void** slots, int mode);
template <class T> T shuffle(unsigned mask, T value, int argument, int width, ShuffleMode mode, Place place) {
  static_assert(sizeof(T) <= 16 && std::is_trivially_copyable<T>::value, "shuffle type");
  Shuffle s{};
  std::memcpy(s.in, &value, sizeof value);
  s.argument = argument, s.width = width, s.size = sizeof value;
  collective(mask, SHUFFLE, mode, &s, shuffle_all, place);
  if (s.bad) fail("shuffle reads a lane that is not in the mask", place);
  T result;
  std::memcpy(&result, s.out, sizeof result);
  return result;
}

struct Vote { unsigned in, out; };
void vote_all(unsigned mask, void** slots, int mode);
inline unsigned vote(unsigned mask, unsigned value, Place place) {
  Vote v{value, 0};
  collective(mask, VOTE, 0, &v, vote_all, place);
  return v.out;
}

struct Mma { const uint32_t *a, *b; float* d; };
enum MmaType { BF16, F16 };
void mma_m16n8k16(unsigned, void** slots, int type);

template <class T, class Tag> T& shared(Tag) {
  static char id;  // one per place in the source: Tag is that place's own lambda type
  return *static_cast<T*>(shared_variable(&id, sizeof(T), alignof(T) < 16 ? 16 : alignof(T)));
}

// ---- registry of kernels: each takes one structure by value -----------------------------------
struct Entry {
  const char* name;
  void (*run)(const void*);
  size_t argument_bytes;
  Entry* next;
};
extern Entry* registry;
template <auto F> struct Kernel;
template <class A, void (*F)(A)> struct Kernel<F> {
  static constexpr size_t bytes = sizeof(A);
  static void run(const void* arguments) { F(*static_cast<const std::remove_cv_t<A>*>(arguments)); }
};
struct Register {
  Entry entry;
  Register(const char* name, void (*run)(const void*), size_t bytes) : entry{name, run, bytes, registry} {
    registry = &entry;
  }
};

}  // namespace emu

#define threadIdx (::emu::current->thread)
#define blockIdx (::emu::current->block)
#define blockDim (::emu::current->block_size)
#define gridDim (::emu::current->grid_size)

// ---- synchronisation -------------------------------------------------------------------------
inline void __syncthreads(EMU_HERE) { ::emu::barrier(0, 0, 0, ::emu::PLAIN, here); }
inline int __syncthreads_count(int p, EMU_HERE) { return ::emu::barrier(0, 0, p, ::emu::COUNT, here); }
inline int __syncthreads_and(int p, EMU_HERE) { return ::emu::barrier(0, 0, p, ::emu::AND, here); }
inline int __syncthreads_or(int p, EMU_HERE) { return ::emu::barrier(0, 0, p, ::emu::OR, here); }
inline void __syncwarp(unsigned mask = ~0u, EMU_HERE) {
  ::emu::collective(mask, ::emu::SYNCWARP, 0, nullptr, nullptr, here);
}
template <class T> T __shfl_sync(unsigned mask, T v, int lane, int width = 32, EMU_HERE) {
  return ::emu::shuffle(mask, v, lane, width, ::emu::INDEX, here);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, EMU_HERE) {
  return ::emu::shuffle(mask, v, int(by), width, ::emu::UP, here);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, EMU_HERE) {
  return ::emu::shuffle(mask, v, int(by), width, ::emu::DOWN, here);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int with, int width = 32, EMU_HERE) {
  return ::emu::shuffle(mask, v, with, width, ::emu::XOR, here);
}
inline unsigned __ballot_sync(unsigned mask, int p, EMU_HERE) { return ::emu::vote(mask, p != 0, here); }
inline int __any_sync(unsigned mask, int p, EMU_HERE) { return ::emu::vote(mask, p != 0, here) != 0; }
inline int __all_sync(unsigned mask, int p, EMU_HERE) { return ::emu::vote(mask, p == 0, here) == 0; }

// ---- atomics: one OS thread runs a launch, so plain operations are atomic ----------------------
// Not instrumented: the race check must not take them for plain accesses; note_atomic tells it.
#define EMU_ATOMIC(name, expression)                                                                  \
  template <class T>                                                                                  \
  __attribute__((no_sanitize("thread"))) T name(T* p, std::common_type_t<T> value) {                  \
    ::emu::note_atomic(p, sizeof(T));                                                                 \
    const T old = *p;                                                                                 \
    *p = (expression);                                                                                \
    return old;                                                                                       \
  }
EMU_ATOMIC(atomicAdd, T(old + value))
EMU_ATOMIC(atomicMax, old > value ? old : value)
EMU_ATOMIC(atomicMin, old < value ? old : value)
EMU_ATOMIC(atomicExch, value)
EMU_ATOMIC(atomicOr, T(old | value))
#undef EMU_ATOMIC
