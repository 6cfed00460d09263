// What every kernel file includes: the words that nvcc and the host emulator (../emu) spell differently.
//
// A kernel is an `extern "C"` function made by KERNEL, with one structure for its parameters. PTX is
// found in this folder only.
#pragma once
#ifdef __CUDACC__
#include <stdint.h>

#define SHARED(T, name, ...) __shared__ T name __VA_ARGS__
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
#define KERNEL(name, threads, min_blocks, Arguments, body)                                                        \
  extern "C" __global__ void __launch_bounds__(threads, min_blocks) name(const __grid_constant__ Arguments args) { \
    body;                                                                                                         \
  }
#else
#include "../emu/language.h"

#define SHARED(T, name, ...) auto& name = ::emu::shared<T __VA_ARGS__>([] {})
#define DYNAMIC_SHARED(name) unsigned char* name = ::emu::dynamic_shared()
#define UNROLL
#define ROLLED
#define KERNEL(name, threads, min_blocks, Arguments, body)                                        \
  extern "C" void name(const Arguments args) { body; }                                            \
  static ::emu::Register register_##name(#name, &::emu::Kernel<&name>::run, ::emu::Kernel<&name>::bytes);
#endif

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr float NEGATIVE_INFINITY = -__builtin_huge_valf();
