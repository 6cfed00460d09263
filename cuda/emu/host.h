// C interface of the emulator, for Rust.
#pragma once
#include <stddef.h>
#include <stdint.h>

extern "C" {
struct emu_launch_config {
  unsigned grid[3], block, shared_bytes;
  unsigned coresident;  // all blocks alive at once, their threads interleaved; else one block after another
  unsigned race_check;  // needs kernels compiled with -fsanitize=thread, see race.cpp
  unsigned padding;
  uint64_t seed;        // order of threads and blocks: 0 ascending, 1 descending, else random
};
struct emu_launch_stats { uint64_t switches, barriers, collectives, races; };

// 0, or 1 with a report in `error`. `arguments` points to the kernel's one parameter, a structure.
int emu_launch(const char* kernel, const emu_launch_config*, const void* arguments, size_t argument_bytes, char* error,
               size_t error_bytes, emu_launch_stats*);

// Null past the last kernel.
const char* emu_kernel_name(unsigned index);
}
