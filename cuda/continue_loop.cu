// The end of a loop's body in a graph: tells the graph whether the body is to be run once more.
//
// in     condition: one word, not zero to go on
// out    the value of the conditional node that `handle` names
// grid   1 block of 1 thread
// bytes  4
#include "common/graph.cuh"

struct ContinueLoopArgs {
  uint64_t handle;
  const uint32_t* condition;
};

#ifdef HAS_GRAPH_CONDITIONS
KERNEL(continue_loop, 1, 1, ContinueLoopArgs, set_graph_condition(args.handle, *args.condition != 0))
#endif
