// What is kept of 32 neighbouring logits.
#pragma once
#include "reduce.cuh"

struct HeadPartial {
  float max;       // minus infinity where all are
  unsigned column;  // lowest one that has it
  float sum;       // of exp(logit - max); 0 where max is minus infinity
};

// Whole warp: one logit per lane, of column `column`. The result is the same in all lanes.
__device__ __forceinline__ HeadPartial head_partial(float logit, unsigned column) {
  const float value = logit != logit ? NEGATIVE_INFINITY : logit;
  const float max = warp_max(value);
  const unsigned first = __ffs(__ballot_sync(ALL_LANES, value == max)) - 1;
  const unsigned lowest = __shfl_sync(ALL_LANES, column, first);
  const float sum = warp_sum(value == NEGATIVE_INFINITY ? 0.0f : value == max ? 1.0f : expf(value - max));
  return {max, lowest, sum};
}
