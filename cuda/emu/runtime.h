// What the parts of the runtime share: threads, blocks, the launch in progress.
#pragma once
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "host.h"
#include "language.h"

namespace emu {

constexpr size_t STACK_BYTES = 128 << 10;
constexpr size_t ARENA_BYTES = 256 << 10;   // shared memory of a block: 227 KiB and gaps between variables
constexpr size_t ARENA_GAP = 64;            // poisoned under AddressSanitizer
constexpr size_t DYNAMIC_OFFSET = 1024;     // where dynamic shared memory begins in the arena
constexpr unsigned MAX_DYNAMIC = 227 << 10;

struct Block;
struct Copy {
  void* target;
  const void* source;
  int bytes, source_bytes;
  Place place;
};

enum State : uint8_t { READY, WAITING, DONE };
struct Fiber : Lane {
  Block* owner;
  unsigned index, warp;
  State state;
  const char* waits_for;
  Place waits_at;
  int barrier_result;
  void* stack_pointer;
  char* stack;
  void* fake_stack;  // AddressSanitizer's
  // Race check: the last block barrier, and per lane of the warp the last __syncwarp shared with it.
  unsigned barrier_epoch, synced[32];
  std::deque<std::vector<Copy>> committed;
  std::vector<Copy> open;
};

struct Rendezvous {
  unsigned mask, arrived;
  Operation operation;
  int variant;
  void* slot[32];
  Place place;
};
struct Barrier {
  bool used;
  int arrived, population;
  bool all;
  Place place;
  std::vector<Fiber*> waiting;
};
struct Variable { const void* id; char* at; size_t bytes; };

// Race check, per two bytes of shared memory: the last write and the reads since. The readers are
// kept by lane while they are all of one warp, else only that there are several.
struct Shadow {
  bool written, several_warps, atomic;
  uint16_t writer, reader_warp;
  uint32_t write_epoch, write_time, read_epoch, readers, read_time[32];
  const void *write_pc, *read_pc;
};

struct Block {
  uint3 id;
  unsigned threads, live, warps;
  std::unique_ptr<Fiber[]> fiber;
  std::vector<unsigned> rank_of, at_rank;      // order in which ready threads are picked
  std::vector<uint64_t> ready, yielded;        // bit sets by rank
  std::vector<std::vector<Rendezvous>> meetings;  // per warp
  Barrier barriers[16];
  char* arena;
  size_t arena_used;
  std::vector<Variable> variables;
  unsigned char* dynamic;
  size_t dynamic_bytes;
  std::vector<Shadow> shadow;
  unsigned barrier_epoch;
  std::vector<unsigned> warp_time;
};

struct Launch {
  const emu_launch_config* config;
  void (*run)(const void*);
  const void* arguments;
  uint64_t random_state;
  void* main_stack_pointer;
  void* main_fake_stack;
  const void* main_stack_bottom;
  size_t main_stack_bytes;
  Fiber* running;
  std::string error;
  bool failed;
  emu_launch_stats stats;
};
extern thread_local Launch* launch;

uint64_t random_word();
inline bool shuffled() { return launch->config->seed > 1; }
void report(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string describe(const Fiber*);

// fiber.cpp
char* take_stack();
char* take_arena();
void give_stack(char*);
void give_arena(char*);
void prepare(Fiber*, void (*entry)());
void resume(Fiber*);                        // scheduler to thread
void suspend(Fiber*, bool last = false);    // thread to scheduler
void hand_over(Fiber* from, Fiber* to);     // thread to thread

// schedule.cpp
void make_ready(Fiber*);
void park(Fiber*, const char* waits_for, Place);
void shuffle_order(Block*);
void run_blocks(std::vector<Block*>&);

// synchronise.cpp
void thread_ended(Fiber*);

// shared.cpp
void start_shared(Block*, unsigned dynamic_bytes);

// race.cpp
void race_access(const Fiber*, const void*, size_t, bool write, bool atomic, const void* pc);
void race_syncwarp(Block*, unsigned warp, unsigned mask);

}  // namespace emu

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMU_ASAN 1
#define EMU_POISON(p, n) __asan_poison_memory_region(p, n)
#define EMU_UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define EMU_POISON(p, n) (void)0
#define EMU_UNPOISON(p, n) (void)0
#endif
