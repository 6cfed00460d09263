// Loads with cache hints, asynchronous copies, and the order between blocks and between kernels.
#pragma once
#include "device.cuh"

#ifdef __CUDACC__
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// For data read once in a pass: weights must not push the cache and the activations out of L2.
__device__ __forceinline__ uint64_t streaming_policy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ uint4 load_streaming(const uint4* p, uint64_t policy) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0,%1,%2,%3}, [%4], %5;"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p), "l"(policy));
  return v;
}
__device__ __forceinline__ uint2 load_streaming(const uint2* p, uint64_t policy) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v2.u32 {%0,%1}, [%2], %3;"
               : "=r"(v.x), "=r"(v.y)
               : "l"(p), "l"(policy));
  return v;
}

__device__ __forceinline__ void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// 16 bytes into shared memory; zeros where `on` is false (the source is not read then).
__device__ __forceinline__ void copy_async(void* target, const void* source, bool on) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(target)), "l"(source),
               "r"(on ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEAVE> __device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEAVE) : "memory");
}

// Programmatic dependent launch: what comes before this may run while the kernel before this one still does; it must
// read nothing that a kernel writes. Once all blocks are here the next kernel may begin, up to its own call of this.
__device__ __forceinline__ void await_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
#else
inline uint64_t streaming_policy() { return 0; }
inline uint4 load_streaming(const uint4* p, uint64_t) { return *p; }
inline uint2 load_streaming(const uint2* p, uint64_t) { return *p; }
inline void prefetch_l2(const void*) {}
inline void copy_async(void* target, const void* source, bool on, EMU_HERE) {
  ::emu::copy_async(target, source, 16, on ? 16 : 0, here);
}
inline void commit_copies() { ::emu::commit_copies(); }
template <int LEAVE> void wait_copies() { ::emu::wait_copies(LEAVE); }
inline void await_previous_kernel() {}
#endif

// Called by all threads of a block once its results are in global memory. True in the block that
// comes last of `blocks`; that block sees what all others wrote, and leaves the counter at 0.
__device__ __forceinline__ bool last_block(unsigned* counter, unsigned blocks) {
  SHARED(unsigned, arrived);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    arrived = atomicAdd(counter, 1u) + 1;
    if (arrived == blocks) *counter = 0;
  }
  __syncthreads();
  __threadfence();
  return arrived == blocks;
}
