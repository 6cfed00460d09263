// SiLU(gate) * up and its gradients, for training.
//
// in     gate, up [count] f32; backward: dgated [count]
// out    forward: gated [count] = gate s up, s the sigmoid of gate
//        backward, in place: gate becomes dgated up s (1 + gate (1 - s)), up becomes dgated gate s
// grid   (count / 256), 256 threads: a thread takes an element
// bytes  forward 8 read, 4 written; backward 12 read, 8 written per element
#include "common/device.cuh"

constexpr int SWIGLU_THREADS = 256;

struct SwigluArgs {
  float* gate;
  float* up;
  float* gated;  // read in the backward pass: its gradient
  uint64_t count;
};

template <bool BACK> __device__ __forceinline__ void swiglu_element(const SwigluArgs& args) {
  const uint64_t at = uint64_t(blockIdx.x) * SWIGLU_THREADS + threadIdx.x;
  if (at >= args.count) return;
  const float gate = args.gate[at], up = args.up[at], sigmoid = 1.0f / (1.0f + expf(-gate));
  if constexpr (BACK) {
    const float dgated = args.gated[at];
    args.gate[at] = dgated * up * sigmoid * (1.0f + gate * (1.0f - sigmoid));
    args.up[at] = dgated * gate * sigmoid;
  } else {
    args.gated[at] = gate * sigmoid * up;
  }
}

KERNEL(swiglu, SWIGLU_THREADS, 1, SwigluArgs, swiglu_element<false>(args))
KERNEL(swiglu_backward, SWIGLU_THREADS, 1, SwigluArgs, swiglu_element<true>(args))
