// Race check of shared memory.
//
// Kernels (only they) are compiled with -fsanitize=thread and linked without its library: the
// compiler's hooks come here, and every access to the running block's shared memory is checked
// against the barriers passed since the last access by another thread.
#include <algorithm>

#include "runtime.h"

namespace emu {

void race_syncwarp(Block* b, unsigned warp, unsigned mask) {
  const unsigned now = ++b->warp_time[warp];
  auto* lanes = &b->synced[warp * 32];
  std::array<unsigned, 32> joined{};
  for (unsigned i = 0; i < 32; i++)
    if (mask >> i & 1)
      for (unsigned j = 0; j < 32; j++) joined[j] = std::max(joined[j], lanes[i][j]);
  for (unsigned j = 0; j < 32; j++)
    if (mask >> j & 1) joined[j] = now;
  for (unsigned i = 0; i < 32; i++)
    if (mask >> i & 1) lanes[i] = joined;
}

void race_access(const Fiber* f, const void* p, size_t bytes, bool write, bool atomic, const void* pc) {
  Block* b = f->owner;
  const size_t offset = size_t(static_cast<const char*>(p) - b->arena);
  if (offset >= ARENA_BYTES || launch->failed) return;  // not shared memory
  const unsigned now = b->warp_time[f->warp];
  const auto& synced = b->synced[f->index];
  for (size_t i = offset / 2; i < (offset + bytes + 1) / 2; i++) {
    Shadow& s = b->shadow[i];
    if (s.block != b->number) s = Shadow{}, s.block = b->number;
    // Ordered by a block barrier, or within the warp by a __syncwarp.
    const auto ordered = [&](unsigned thread, unsigned epoch, unsigned time) {
      const bool by_warp = thread / 32 == f->warp && time < synced[thread & 31];
      return thread == f->index || epoch < f->barrier_epoch || by_warp;
    };
    const char* kind = nullptr;
    int other = -1;
    const void* other_pc = nullptr;
    if (s.written && !(atomic && s.atomic) && !ordered(s.writer, s.write_epoch, s.write_time)) {
      kind = write ? "write after write" : "read after write", other = s.writer, other_pc = s.write_pc;
    } else if (write && s.readers && s.read_epoch >= f->barrier_epoch) {
      for (unsigned lane = 0; lane < 32 && !s.several_warps; lane++)
        if (s.readers >> lane & 1 && !ordered(s.reader_warp * 32u + lane, s.read_epoch, s.read_time[lane]))
          kind = "write after read", other = s.reader_warp * 32 + int(lane);
      if (s.several_warps) kind = "write after read by several warps";
      other_pc = s.read_pc;
    } else if ((!write || atomic) && !s.written) {
      kind = "read of shared memory that nothing wrote";
    }
    if (kind) {
      launch->stats.races++;
      return report("RACE, %s: %s and thread %d, shared byte %zu, code at %p and %p", kind, describe(f).c_str(), other,
                    offset, pc, other_pc);
    }
    if (write) {
      s.writer = uint16_t(f->index), s.write_epoch = f->barrier_epoch, s.write_time = now, s.write_pc = pc;
      s.written = true, s.atomic = atomic, s.readers = 0, s.several_warps = false;
    } else {
      if (!s.readers || s.read_epoch < f->barrier_epoch)
        s.readers = 0, s.several_warps = false, s.reader_warp = uint16_t(f->warp);
      s.several_warps |= s.reader_warp != f->warp;
      s.readers |= 1u << f->lane;
      s.read_time[f->lane] = now, s.read_epoch = f->barrier_epoch, s.read_pc = pc;
    }
  }
}

void note_atomic(const void* p, size_t bytes) {
  if (launch->config->race_check) race_access(launch->running, p, bytes, true, true, __builtin_return_address(0));
}

}  // namespace emu

#ifdef EMU_RACE_HOOKS
static void hook(const void* p, size_t bytes, bool write, const void* pc) {
  using emu::launch;
  if (launch && launch->running && launch->config->race_check)
    emu::race_access(launch->running, p, bytes, write, false, pc);
}

#define PC __builtin_return_address(0)
#define HOOKS(n)                                                                 \
  void __tsan_read##n(void* p) { hook(p, n, false, PC); }                   \
  void __tsan_write##n(void* p) { hook(p, n, true, PC); }                   \
  void __tsan_unaligned_read##n(void* p) { hook(p, n, false, PC); }         \
  void __tsan_unaligned_write##n(void* p) { hook(p, n, true, PC); }         \
  void __tsan_volatile_read##n(void* p) { hook(p, n, false, PC); }          \
  void __tsan_volatile_write##n(void* p) { hook(p, n, true, PC); }
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
void __tsan_read_range(void* p, size_t n) { hook(p, n, false, PC); }
void __tsan_write_range(void* p, size_t n) { hook(p, n, true, PC); }
void* __tsan_memcpy(void* d, const void* s, size_t n) {
  hook(s, n, false, PC);
  hook(d, n, true, PC);
  return __builtin_memcpy(d, s, n);
}
void* __tsan_memset(void* d, int c, size_t n) {
  hook(d, n, true, PC);
  return __builtin_memset(d, c, n);
}
}
#endif
