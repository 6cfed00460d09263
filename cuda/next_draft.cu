// Between two draft passes of a loop that stays on the device, for one sequence: whether another draft follows, by
// the round's plan (src/control/plan.rs), and the pass's inputs moved on to it.
//
// in     choices: the draft just sampled at the row's destination; the plan: edges, rules [limit - 1, edges + 1] where
//        it has any, end tokens
// out    loop: drafted, survival, go_on; and where that is not 0, the inputs of the next pass: ids, start, keep, row,
//        the drafts before it (recent, null without penalties and biases)
// grid   1 block of one warp: a lane for each edge and for each end token
// bytes  a few words
#include "common/memory.cuh"
#include "common/sampling.cuh"

struct DraftLoop {
  double survival;    // chance that all drafts so far are accepted, if they go by the plan
  uint32_t limit;     // most drafts
  uint32_t drafted;   // so far
  uint32_t edges;     // upper edges of bins of confidence, at most 32
  uint32_t has_rules; // 0: drafting goes on to the limit
  uint32_t ends;      // end tokens, at most 32
  uint32_t go_on;
};

struct DraftRule {
  double kept;   // what a draft in this bin makes of survival
  double worth;  // times survival, above 1: go on
};

struct NextDraftArgs {
  const RowChoice* choices;
  DraftLoop* loop;
  const float* edges;  // ascending
  const DraftRule* rules;
  const uint32_t* ends;
  uint32_t* ids;
  int* start;
  uint32_t* keep;
  SamplingRow* row;
  uint32_t* recent;
};

__device__ __forceinline__ void next(const NextDraftArgs& args) {
  const uint32_t lane = threadIdx.x;
  await_previous_kernel();
  DraftLoop loop = *args.loop;
  SamplingRow row = *args.row;
  const RowChoice draft = args.choices[row.destination];
  const bool reached = lane < loop.edges && draft.confidence >= args.edges[lane];
  const int bin = __popc(__ballot_sync(ALL_LANES, reached));
  const bool ended = __any_sync(ALL_LANES, lane < loop.ends && args.ends[lane] == draft.token);
  if (lane == 0) {
    loop.drafted++;
    loop.go_on = loop.drafted < loop.limit && !ended;
    if (loop.go_on && loop.has_rules) {
      const DraftRule rule = args.rules[(loop.drafted - 1) * (loop.edges + 1) + bin];
      loop.survival *= rule.kept;
      loop.go_on = loop.survival * rule.worth > 1;
    }
    *args.loop = loop;
    if (loop.go_on) {
      *args.ids = draft.token;
      *args.start += 1;
      *args.keep += 1;
      if (args.recent) args.recent[row.drafted] = draft.token;
      row.position++, row.drafted++, row.destination++;
      *args.row = row;
    }
  }
}

KERNEL(next_draft, WARP, 1, NextDraftArgs, next(args))
