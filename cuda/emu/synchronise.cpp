// Block barriers, and operations in which the lanes of a warp meet.
#include <algorithm>

#include "runtime.h"

namespace emu {

// ---- barriers ---------------------------------------------------------------------------------
static void release(Block* b, Barrier& barrier) {
  barrier.used = false;
  b->barrier_epoch++;
  for (Fiber* f : barrier.waiting) {
    f->barrier_result = barrier.population | int(barrier.all) << 16;
    f->barrier_epoch = b->barrier_epoch;
    make_ready(f);
  }
  barrier.waiting.clear();
  if (shuffled()) shuffle_order(b);
}

int barrier(int id, int count, int predicate, Combine combine, Place place) {
  Fiber* f = launch->running;
  Block* b = f->owner;
  Barrier& barrier = b->barriers[id & 15];
  launch->stats.barriers++;
  if (!barrier.used) {
    barrier.used = true, barrier.arrived = 0, barrier.population = 0, barrier.all = true, barrier.place = place;
  } else if (id == 0 && (barrier.place.line != place.line || barrier.place.file != place.file)) {
    report("threads of block (%u,%u,%u) meet at different __syncthreads(): %s:%d and %s:%d (%s)", b->id.x, b->id.y,
           b->id.z, barrier.place.file, barrier.place.line, place.file, place.line, describe(f).c_str());
    suspend(f);
  }
  barrier.arrived++;
  barrier.population += predicate != 0;
  barrier.all &= predicate != 0;
  barrier.waiting.push_back(f);
  if (barrier.arrived == (count ? count : int(b->live))) {
    release(b, barrier);
    if (shuffled()) suspend(f);  // the last one to arrive is not the first one to go on
  } else {
    park(f, id ? "a named barrier" : "__syncthreads()", place);
  }
  const int population = f->barrier_result & 0xffff;
  switch (combine) {
    case COUNT: return population;
    case AND: return f->barrier_result >> 16;
    default: return population != 0;
  }
}

void thread_ended(Fiber* f) {
  Block* b = f->owner;
  b->live--;
  if (f->open) {
    const Place place = f->copies[f->copies.size() - f->open].place;
    report("%s ended with asynchronous copies that were never committed (%s:%d)", describe(f).c_str(), place.file,
           place.line);
  }
  Barrier& all = b->barriers[0];  // which no longer waits for this thread
  if (all.used && b->live && all.arrived == int(b->live)) release(b, all);
}

// ---- warps ------------------------------------------------------------------------------------
void collective(unsigned mask, Operation operation, int variant, void* slot, void (*body)(unsigned, void**, int),
                Place place) {
  static const char* const NAMES[] = {"a shuffle", "a vote", "__syncwarp()", "mma.sync"};
  Fiber* f = launch->running;
  Block* b = f->owner;
  auto& meetings = b->meetings[f->warp];
  launch->stats.collectives++;
  const unsigned in_warp = std::min(32u, b->threads - f->warp * 32);
  const unsigned full = in_warp == 32 ? ~0u : (1u << in_warp) - 1;
  Fiber* lanes = &b->fiber[f->warp * 32];
  if (!(mask >> f->lane & 1)) fail("warp operation called by a lane that is not in its mask", place);
  if (operation == MMA && full != ~0u) fail("matrix operation in a warp of fewer than 32 threads", place);
  mask &= full;
  if (mask & b->ended[f->warp]) fail("warp operation waits for a lane that has ended", place);

  auto meeting = std::find_if(meetings.begin(), meetings.end(), [&](const Rendezvous& m) { return m.mask & mask; });
  if (meeting == meetings.end()) {
    meetings.push_back(Rendezvous{mask, 0, operation, variant, {}, place});
    meeting = meetings.end() - 1;
  } else if (meeting->mask != mask || meeting->operation != operation || meeting->variant != variant) {
    report("lanes of one warp meet at different operations: %s at %s:%d (mask %08x) and %s at %s:%d (mask %08x), %s",
           NAMES[meeting->operation], meeting->place.file, meeting->place.line, meeting->mask, NAMES[operation],
           place.file, place.line, mask, describe(f).c_str());
    suspend(f);
  }
  meeting->arrived |= 1u << f->lane;
  meeting->slot[f->lane] = slot;
  if (meeting->arrived != mask) return park(f, NAMES[operation], place);

  Rendezvous done = *meeting;
  meetings.erase(meeting);
  if (body) body(mask, done.slot, variant);
  if (operation == SYNCWARP && launch->config->race_check) race_syncwarp(b, f->warp, mask);
  for (unsigned i = 0; i < in_warp; i++)
    if ((mask >> i & 1) && &lanes[i] != f) make_ready(&lanes[i]);
}

void shuffle_all(unsigned mask, void** slots, int mode) {
  for (int lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    Shuffle& mine = *static_cast<Shuffle*>(slots[lane]);
    const int base = lane & ~(mine.width - 1), end = base + mine.width;
    int source = lane;
    switch (mode) {
      case INDEX: source = base + (mine.argument & (mine.width - 1)); break;
      case UP: source = lane - mine.argument < base ? lane : lane - mine.argument; break;
      case DOWN: source = lane + mine.argument >= end ? lane : lane + mine.argument; break;
      case XOR: source = (lane ^ mine.argument) >= end ? lane : lane ^ mine.argument; break;
    }
    mine.bad = !(mask >> source & 1);
    if (!mine.bad) std::memcpy(mine.out, static_cast<Shuffle*>(slots[source])->in, mine.size);
  }
}

void vote_all(unsigned mask, void** slots, int) {
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) ballot |= static_cast<Vote*>(slots[lane])->in << lane;
  for (unsigned lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) static_cast<Vote*>(slots[lane])->out = ballot;
}

template <class T> static float widened(uint32_t bits) {
  if constexpr (std::is_same_v<T, __half>) return __half2float({uint16_t(bits)});
  else return __bfloat162float({uint16_t(bits)});
}

// D[16,8] += A[16,16] B[16,8]; fragments as the PTX ISA lays them out (mma.m16n8k16, 16-bit types).
// Products are summed in ascending order of k in f32: a GPU's order and rounding are its own.
template <class T> static void multiply(void** slots) {
  typedef float Row __attribute__((vector_size(32)));
  float a[16][16];
  Row b[16], d[16];
  for (int lane = 0; lane < 32; lane++) {
    const Mma& m = *static_cast<Mma*>(slots[lane]);
    const int group = lane / 4, column = lane % 4 * 2;
    for (int i = 0; i < 4; i++) {
      float* pair = &a[group + i % 2 * 8][column + i / 2 * 8];
      pair[0] = widened<T>(m.a[i]), pair[1] = widened<T>(m.a[i] >> 16);
    }
    for (int i = 0; i < 2; i++)
      b[column + i * 8][group] = widened<T>(m.b[i]), b[column + i * 8 + 1][group] = widened<T>(m.b[i] >> 16);
    for (int i = 0; i < 4; i++) d[group + i / 2 * 8][column + i % 2] = m.d[i];
  }
  for (int i = 0; i < 16; i++) {
    Row sum = d[i];
    for (int k = 0; k < 16; k++) sum += a[i][k] * b[k];
    d[i] = sum;
  }
  for (int lane = 0; lane < 32; lane++) {
    const Mma& m = *static_cast<Mma*>(slots[lane]);
    for (int i = 0; i < 4; i++) m.d[i] = d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
  }
}

void mma_m16n8k16(unsigned, void** slots, int type) {
  type == BF16 ? multiply<__nv_bfloat16>(slots) : multiply<__half>(slots);
}

}  // namespace emu
