// Verification's verdict, per sequence: how many drafts are kept, and what follows them.
//
// GREEDY, COUPLED  a draft is kept while it is the token that sample.cu chose for the target's row.
// REJECTION        draft d is kept iff u q(d) <= p(d); the first one that is not is replaced by a draw from
//                  max(p - q, 0); after k kept drafts a draw from p follows (Leviathan et al. 2023, Chen
//                  et al. 2023). Without any residual p and q differ by rounding only: then p is drawn from.
//
// in     a sequence's target rows first_row .. first_row + drafts; its drafts, as choices and weights, at
//        slot * most_drafts ..
// out    verdicts [sequences]; counts (adjust.cu) of the tokens emitted: the drafts kept, then `next`
// grid   (sequences), 512 threads
// order  sums are of integers
// bytes  a few words; for a replacement the rows of p and q twice, for what follows k drafts p twice
#include "common/memory.cuh"
#include "common/sampling.cuh"

struct VerifiedSequence {
  uint32_t slot;       // row of drafts and counts
  uint32_t first_row;  // of the target's logits
  uint32_t committed;  // tokens before the drafts
  uint32_t drafts;
};

struct Verdict {
  uint32_t accepted;
  uint32_t next;
};

struct AcceptArgs {
  const VerifiedSequence* sequences;
  const SamplingParams* params;  // [sequences]
  const RowChoice* target;       // [rows]
  const uint64_t* target_weights;  // [rows, vocab]
  const RowChoice* draft;          // [slots, most_drafts]
  const uint64_t* draft_weights;   // [slots, most_drafts, vocab]
  uint32_t* counts;                // [slots, vocab], or null where no request has penalties
  Verdict* verdicts;
  int vocab;
  int most_drafts;
};

// What the target has beyond the draft: p - q of one token, as an integer like a weight.
struct Residual {
  const uint64_t *p, *q;
  double p_total, q_total;
  __device__ __forceinline__ uint64_t operator()(int token) const {
    const double beyond = double(p[token]) / p_total - double(q[token]) / q_total;
    return beyond > 0 ? uint64_t(beyond * WEIGHT_ONE + 0.5) : 0;
  }
};

__device__ __forceinline__ Verdict judge(const AcceptArgs& args, const VerifiedSequence& about,
                                         const SamplingParams& params) {
  const RowChoice* drafts = args.draft + size_t(about.slot) * args.most_drafts;
  const RowChoice* target = args.target + about.first_row;
  uint32_t accepted = 0;
  if (params.rule != REJECTION) {
    while (accepted < about.drafts && drafts[accepted].token == target[accepted].token) accepted++;
    return {accepted, target[accepted].token};
  }
  for (; accepted < about.drafts; accepted++) {
    const uint64_t* p = args.target_weights + size_t(about.first_row + accepted) * args.vocab;
    const uint64_t* q = args.draft_weights + (size_t(about.slot) * args.most_drafts + accepted) * args.vocab;
    const uint32_t token = drafts[accepted].token, position = about.committed + accepted;
    const double p_total = double(target[accepted].total), q_total = double(drafts[accepted].total);
    const double u = unit(Philox(params.seed, position, ACCEPT, 0).block(0).x);
    if (p[token] && u * (double(q[token]) / q_total) <= double(p[token]) / p_total) continue;
    const Residual residual{p, q, p_total, q_total};
    const double uniform = fine_uniform(Philox(params.seed, position, RESIDUAL, 0));
    uint64_t sum = 0;
    for (int t = threadIdx.x; t < args.vocab; t += SAMPLING_THREADS) sum += residual(t);
    sum = block_sum(sum);
    if (sum) return {accepted, pick(uniform, sum, args.vocab, residual)};
    return {accepted, pick(uniform, target[accepted].total, args.vocab, [=](int t) { return p[t]; })};
  }
  const uint64_t* p = args.target_weights + size_t(about.first_row + accepted) * args.vocab;
  const double uniform = fine_uniform(Philox(params.seed, about.committed + accepted, BONUS, 0));
  return {accepted, pick(uniform, target[accepted].total, args.vocab, [=](int t) { return p[t]; })};
}

__device__ __forceinline__ void accept(const AcceptArgs& args) {
  await_previous_kernel();
  const VerifiedSequence about = args.sequences[blockIdx.x];
  const Verdict verdict = judge(args, about, args.params[blockIdx.x]);
  if (threadIdx.x == 0) {
    args.verdicts[blockIdx.x] = verdict;
    if (args.counts) {
      const RowChoice* drafts = args.draft + size_t(about.slot) * args.most_drafts;
      uint32_t* counts = args.counts + size_t(about.slot) * args.vocab;
      for (uint32_t i = 0; i < verdict.accepted; i++) counts[drafts[i].token]++;
      counts[verdict.next]++;
    }
  }
  allow_next_kernel();
}

KERNEL(accept_drafts, SAMPLING_THREADS, 1, AcceptArgs, accept(args))
