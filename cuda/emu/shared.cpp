// Shared memory and asynchronous copies into it.
//
// Fresh shared memory is all ones, which is NaN in bf16, f16 and f32: reading what nobody wrote shows.
// Under AddressSanitizer, what lies between variables is poisoned.
#include "runtime.h"

namespace emu {

void start_shared(Block* b, unsigned dynamic_bytes) {
  b->arena = take_arena();
  EMU_POISON(b->arena, ARENA_BYTES);
  b->arena_used = ARENA_GAP;
  b->variables.clear();
  b->dynamic = nullptr;
  b->dynamic_bytes = dynamic_bytes;
  static thread_local uint64_t blocks;
  b->number = ++blocks;
  b->shadow = launch->config->race_check ? take_shadow() : nullptr;
  if (dynamic_bytes == 0) return;
  b->dynamic = reinterpret_cast<unsigned char*>(b->arena + DYNAMIC_OFFSET);
  b->arena_used = DYNAMIC_OFFSET + dynamic_bytes;
  EMU_UNPOISON(b->dynamic, dynamic_bytes);
  std::memset(b->dynamic, 0xff, dynamic_bytes);
}

void end_shared(Block* b) {
  give_arena(b->arena);
  if (b->shadow) give_shadow(b->shadow);
}

void* shared_variable(const void* id, size_t bytes, size_t align) {
  Block* b = launch->running->owner;
  for (const Variable& v : b->variables)
    if (v.id == id) return v.at;
  b->arena_used = (b->arena_used + ARENA_GAP + align - 1) & ~(align - 1);
  char* at = b->arena + b->arena_used;
  b->arena_used += bytes;
  if (b->arena_used + ARENA_GAP > ARENA_BYTES)
    fail("the block's shared variables need more memory than there is", {"", 0});
  EMU_UNPOISON(at, bytes);
  std::memset(at, 0xff, bytes);
  b->variables.push_back({id, at, bytes});
  return at;
}

unsigned char* dynamic_shared() {
  Block* b = launch->running->owner;
  if (!b->dynamic) fail("dynamic shared memory used in a launch that gives none", {"", 0});
  return b->dynamic;
}

static void check_target(const void* p, size_t bytes, Place place) {
  const Block* b = launch->running->owner;
  const char* at = static_cast<const char*>(p);
  if (reinterpret_cast<uintptr_t>(p) % bytes) fail("asynchronous copy: target not aligned", place);
  const auto within = [&](const void* start, size_t size) {
    const char* first = static_cast<const char*>(start);
    return start && at >= first && at + bytes <= first + size;
  };
  bool inside = within(b->dynamic, b->dynamic_bytes);
  for (const Variable& v : b->variables) inside |= within(v.at, v.bytes);
  if (!inside) fail("asynchronous copy: target outside the block's shared memory", place);
}

static void copy_now(const Fiber* f, const Copy& c) {
  if (launch->config->race_check) race_access(f, c.target, size_t(c.bytes), true, false, nullptr);
  std::memcpy(c.target, c.source, size_t(c.source_bytes));
  std::memset(static_cast<char*>(c.target) + c.source_bytes, 0, size_t(c.bytes - c.source_bytes));
}

// A copy may land at any time up to its wait: here at once or at the wait, by the seed.
void copy_async(void* target, const void* source, int bytes, int source_bytes, Place place) {
  Fiber* f = launch->running;
  check_target(target, size_t(bytes), place);
  if (reinterpret_cast<uintptr_t>(source) % uintptr_t(bytes)) fail("asynchronous copy: source not aligned", place);
  char probe[16];
  std::memcpy(probe, source, size_t(source_bytes));  // a bad source is seen here, where it was given
  asm volatile("" ::"r"(probe) : "memory");
  if (launch->config->race_check) race_access(f, target, size_t(bytes), true, false, nullptr);
  const Copy copy{target, source, bytes, source_bytes, place};
  if (shuffled() && (random_word() & 1)) copy_now(f, copy);
  else f->copies.push_back(copy), f->open++;
}

void commit_copies() {
  Fiber* f = launch->running;
  f->groups.push_back(f->open);
  f->open = 0;
}

void wait_copies(int leave) {
  Fiber* f = launch->running;
  size_t done = 0, landed = 0;
  for (; int(f->groups.size() - done) > leave; done++)
    for (size_t i = 0; i < f->groups[done]; i++) copy_now(f, f->copies[landed++]);
  f->groups.erase(f->groups.begin(), f->groups.begin() + ptrdiff_t(done));
  f->copies.erase(f->copies.begin(), f->copies.begin() + ptrdiff_t(landed));
}

}  // namespace emu
