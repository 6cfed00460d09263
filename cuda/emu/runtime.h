// What the parts of the runtime share: threads, blocks, the launch in progress.
#pragma once
#include <array>
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
  void* fake_stack;        // AddressSanitizer's
  unsigned barrier_epoch;  // race check: the last block barrier
  // Asynchronous copies in order: those of each committed group, and then those of none yet.
  std::vector<Copy> copies;
  std::vector<size_t> groups;
  size_t open;
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
// kept by lane while they are all of one warp, else only that there are several. What another block
// left counts as nothing.
struct Shadow {
  uint64_t block;
  bool written, several_warps, atomic;
  uint16_t writer, reader_warp;
  uint32_t write_epoch, write_time, read_epoch, readers, read_time[32];
  const void *write_pc, *read_pc;
};

struct Block {
  uint3 id;
  unsigned threads, live, warps;
  std::unique_ptr<Fiber[]> fiber;              // as many as in every block of the launch
  std::vector<unsigned> ended;                 // per warp, the lanes that have
  std::vector<unsigned> rank_of, at_rank;      // order in which ready threads are picked
  std::vector<uint64_t> ready, yielded;        // bit sets by rank
  std::vector<std::vector<Rendezvous>> meetings;  // per warp
  Barrier barriers[16];
  char* arena;
  size_t arena_used;
  std::vector<Variable> variables;
  unsigned char* dynamic;
  size_t dynamic_bytes;
  // Race check. Per lane and other lane of its warp: the last __syncwarp that they shared.
  Shadow* shadow;
  uint64_t number;
  unsigned barrier_epoch;
  std::vector<unsigned> warp_time;
  std::vector<std::array<unsigned, 32>> synced;
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
char* take_arena();
void give_arena(char*);
Shadow* take_shadow();                      // as it was given back, or zero
void give_shadow(Shadow*);
void give_stack(Fiber*);
void prepare(Fiber*, void (*entry)());      // takes a stack if it has none yet
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
void end_shared(Block*);

// race.cpp
void race_access(const Fiber*, const void*, size_t, bool write, bool atomic, const void* pc);
void race_syncwarp(Block*, unsigned warp, unsigned mask);

}  // namespace emu

// Where kernels are instrumented, the emulator is not, but tells AddressSanitizer of stacks and shared memory.
#if defined(EMU_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMU_POISON(p, n) __asan_poison_memory_region(p, n)
#define EMU_UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define EMU_POISON(p, n) (void)0
#define EMU_UNPOISON(p, n) (void)0
#endif
