// What a kernel tells the graph that it runs in.
#pragma once
#include "device.cuh"

// Sets the value of a conditional node (CUDA 12.4). The function is the driver's own, found when a kernel that calls
// it is loaded, as printf's is: there is nothing to link.
#ifdef __CUDACC__
#if __CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 4)
#define HAS_GRAPH_CONDITIONS 1
__device__ __forceinline__ void set_graph_condition(uint64_t handle, uint32_t value) {
  cudaGraphSetConditional(handle, value);
}
#endif
#else
#define HAS_GRAPH_CONDITIONS 1
// The emulated device's handle is the address of the value.
inline void set_graph_condition(uint64_t handle, uint32_t value) { *reinterpret_cast<uint32_t*>(handle) = value; }
#endif
