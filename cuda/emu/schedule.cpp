// Which thread runs next, and a launch from beginning to end.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "runtime.h"

namespace emu {

__thread Lane* current;
thread_local Launch* launch;
Entry* registry;

uint64_t random_word() {  // xorshift64
  uint64_t& x = launch->random_state;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return x;
}

void report(const char* format, ...) {
  char line[512];
  va_list list;
  va_start(list, format);
  std::vsnprintf(line, sizeof line, format, list);
  va_end(list);
  if (launch->error.size() < 4000) launch->error.append(line).append("\n");
  launch->failed = true;
}

std::string describe(const Fiber* f) {
  char text[96];
  std::snprintf(text, sizeof text, "thread %u of block (%u,%u,%u)", f->index, f->block.x, f->block.y, f->block.z);
  return text;
}

void fail(const char* what, Place place) {
  report("%s at %s:%d, %s", what, place.file, place.line, describe(launch->running).c_str());
  suspend(launch->running);
  std::abort();  // a failed launch resumes nobody
}

// ---- order of threads -------------------------------------------------------------------------
static void set(std::vector<uint64_t>& bits, unsigned rank) { bits[rank >> 6] |= 1ull << (rank & 63); }
static void clear(std::vector<uint64_t>& bits, unsigned rank) { bits[rank >> 6] &= ~(1ull << (rank & 63)); }

static Fiber* pick(Block* b) {
  for (size_t w = 0; w < b->ready.size(); w++)
    if (b->ready[w]) return &b->fiber[b->at_rank[w * 64 + size_t(__builtin_ctzll(b->ready[w]))]];
  return nullptr;
}

void make_ready(Fiber* f) {
  f->state = READY;
  set(f->owner->ready, f->owner->rank_of[f->index]);
}

void park(Fiber* f, const char* waits_for, Place place) {
  f->state = WAITING, f->waits_for = waits_for, f->waits_at = place;
  clear(f->owner->ready, f->owner->rank_of[f->index]);
#ifndef EMU_ASAN  // which must be told of every stack: there the scheduler is always in between
  if (!launch->config->coresident)
    if (Fiber* next = launch->failed ? nullptr : pick(f->owner)) return hand_over(f, next);
#endif
  suspend(f);
}

void yield() {
  Fiber* f = launch->running;
  const unsigned rank = f->owner->rank_of[f->index];
  clear(f->owner->ready, rank);
  set(f->owner->yielded, rank);
  suspend(f);
}

// Random orders are of single threads or of whole warps, half of the time each: bugs between warps
// and bugs within one show under different orders. Drawn anew at each block barrier.
void shuffle_order(Block* b) {
  const unsigned n = b->threads;
  const auto swap_all = [](std::vector<unsigned>& v) {
    for (size_t i = v.size(); i > 1; i--) std::swap(v[i - 1], v[random_word() % i]);
  };
  for (unsigned i = 0; i < n; i++) b->at_rank[i] = launch->config->seed == 1 ? n - 1 - i : i;
  if (shuffled() && (random_word() & 1)) {
    swap_all(b->at_rank);
  } else if (shuffled()) {
    std::vector<unsigned> warps(b->warps);
    for (unsigned i = 0; i < b->warps; i++) warps[i] = i;
    swap_all(warps);
    const bool backwards = random_word() & 1;
    unsigned rank = 0;
    for (unsigned warp : warps) {
      const unsigned first = warp * 32, end = std::min(n, first + 32);
      for (unsigned i = first; i < end; i++) b->at_rank[rank++] = backwards ? end - 1 - (i - first) : i;
    }
  }
  std::fill(b->ready.begin(), b->ready.end(), 0);
  for (unsigned rank = 0; rank < n; rank++) {
    b->rank_of[b->at_rank[rank]] = rank;
    if (b->fiber[b->at_rank[rank]].state == READY) set(b->ready, rank);
  }
}

// ---- blocks -----------------------------------------------------------------------------------
static void thread_main() {
  Fiber* f = launch->running;
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &launch->main_stack_bottom, &launch->main_stack_bytes);
#endif
  launch->run(launch->arguments);
  f->state = DONE;
  f->owner->ended[f->warp] |= 1u << f->lane;
  clear(f->owner->ready, f->owner->rank_of[f->index]);
  thread_ended(f);
  suspend(f, true);
}

static void start_block(Block* b, uint3 id) {
  const emu_launch_config& c = *launch->config;
  b->id = id;
  b->threads = b->live = c.block;
  b->warps = (b->threads + 31) / 32;
  if (!b->fiber) b->fiber = std::make_unique<Fiber[]>(b->threads);
  b->ended.assign(b->warps, 0);
  b->rank_of.resize(b->threads);
  b->at_rank.resize(b->threads);
  b->ready.assign((b->threads + 63) / 64, 0);
  b->yielded = b->ready;
  b->meetings.assign(b->warps, {});
  if (c.race_check) {
    b->warp_time.assign(b->warps, 0);
    b->synced.assign(b->threads, {});
  }
  b->barrier_epoch = 0;
  for (Barrier& barrier : b->barriers) barrier = Barrier{};
  start_shared(b, c.shared_bytes);
  for (unsigned i = 0; i < b->threads; i++) {
    Fiber& f = b->fiber[i];
    f.thread = {i, 0, 0}, f.block = id, f.block_size = {c.block, 1, 1};
    f.grid_size = {c.grid[0], c.grid[1], c.grid[2]};
    f.lane = i & 31, f.warp = i >> 5, f.index = i, f.owner = b, f.state = READY;
    f.barrier_epoch = 0, f.open = 0;
    f.copies.clear();
    f.groups.clear();
    prepare(&f, thread_main);
  }
  shuffle_order(b);
}

static void report_stuck(const Block* b) {
  report("deadlock in block (%u,%u,%u): %u of %u threads have ended, the others wait:", b->id.x, b->id.y, b->id.z,
         b->threads - b->live, b->threads);
  struct Group { Place place; const char* what; unsigned count, first, last; };
  std::vector<Group> groups;
  for (unsigned i = 0; i < b->threads; i++) {
    const Fiber& f = b->fiber[i];
    if (f.state == DONE) continue;
    const auto same = [&](const Group& g) {
      return g.place.line == f.waits_at.line && g.place.file == f.waits_at.file;
    };
    const auto found = std::find_if(groups.begin(), groups.end(), same);
    if (found == groups.end()) groups.push_back({f.waits_at, f.waits_for, 1, i, i});
    else found->count++, found->last = i;
  }
  for (const Group& g : groups)
    report("  %u threads (%u..%u) at %s:%d in %s", g.count, g.first, g.last, g.place.file, g.place.line, g.what);
}

// Runs blocks that are alive together, until they end or something fails.
void run_blocks(std::vector<Block*>& blocks) {
  constexpr size_t IDLE_ROUNDS = 1000000;
  for (size_t idle = 0;;) {
    bool alive = false, progress = false;
    for (Block* b : blocks) {
      // Blocks that are alone run until they wait; others take turns of random length.
      size_t turns = blocks.size() > 1 && shuffled() ? 1 + random_word() % 64 : SIZE_MAX;
      for (Fiber* f; turns-- && !launch->failed && (f = pick(b));) resume(f), progress = true;
      if (launch->failed) return;
      for (size_t w = 0; w < b->ready.size(); w++) {
        progress |= b->yielded[w] != 0;
        b->ready[w] |= b->yielded[w];
        b->yielded[w] = 0;
      }
      alive |= b->live != 0;
    }
    if (!alive) return;
    if (!progress) {
      for (Block* b : blocks)
        if (b->live) return report_stuck(b);
    }
    if (++idle > IDLE_ROUNDS) return report("no end in sight: threads spin on a value that nothing writes");
  }
}

static void run_grid(const emu_launch_config& c) {
  const size_t blocks = size_t(c.grid[0]) * c.grid[1] * c.grid[2];
  std::vector<size_t> order(blocks);
  for (size_t i = 0; i < blocks; i++) order[i] = c.seed == 1 ? blocks - 1 - i : i;
  if (shuffled())
    for (size_t i = blocks; i > 1; i--) std::swap(order[i - 1], order[random_word() % i]);
  const size_t together = c.coresident ? blocks : 1;
  std::vector<std::unique_ptr<Block>> pool(together);
  for (auto& b : pool) b = std::make_unique<Block>();
  for (size_t first = 0; first < blocks && !launch->failed; first += together) {
    std::vector<Block*> running;
    for (size_t i = 0; i < together; i++) {
      const size_t at = order[first + i];
      const size_t x = at % c.grid[0], y = at / c.grid[0] % c.grid[1], z = at / c.grid[0] / c.grid[1];
      start_block(pool[i].get(), {unsigned(x), unsigned(y), unsigned(z)});
      running.push_back(pool[i].get());
    }
    run_blocks(running);
    for (Block* b : running) end_shared(b);
  }
  for (auto& b : pool)
    for (unsigned i = 0; b->fiber && i < c.block; i++) give_stack(&b->fiber[i]);
}

}  // namespace emu

using namespace emu;

const char* emu_kernel_name(unsigned index) {
  Entry* e = registry;
  while (e && index--) e = e->next;
  return e ? e->name : nullptr;
}

int emu_launch(const char* kernel, const emu_launch_config* config, const void* arguments, size_t argument_bytes,
               char* error, size_t error_bytes, emu_launch_stats* stats) {
  const Entry* e = registry;
  while (e && std::strcmp(e->name, kernel)) e = e->next;
  Launch here{};
  launch = &here;
  here.config = config, here.arguments = arguments;
  here.random_state = config->seed * 0x9E3779B97F4A7C15ull + 88172645463325252ull;
  const bool some_blocks = config->grid[0] && config->grid[1] && config->grid[2];
  const bool sane = some_blocks && config->block > 0 && config->block <= 1024 && config->shared_bytes <= MAX_DYNAMIC;
  if (!e) report("no kernel named %s", kernel);
  else if (e->argument_bytes != argument_bytes)
    report("%s takes %zu bytes of arguments, got %zu", kernel, e->argument_bytes, argument_bytes);
  else if (!sane)
    report("bad launch of %s: %u threads, grid (%u,%u,%u), %u bytes of shared memory", kernel, config->block,
           config->grid[0], config->grid[1], config->grid[2], config->shared_bytes);
  else here.run = e->run, run_grid(*config);
  if (stats) *stats = here.stats;
  if (error && error_bytes) std::snprintf(error, error_bytes, "%s", here.error.c_str());
  launch = nullptr;
  current = nullptr;
  return here.failed;
}
