// Verification's verdict, per sequence: how many drafts are kept, and what follows them.
//
// GREEDY, COUPLED  a draft is kept while it is the token that sample.cu chose for the target's row.
// REJECTION        draft d is kept iff u q(d) <= p(d); the first one that is not is replaced by a draw from
//                  max(p - q, 0); after k kept drafts a draw from p follows (Leviathan et al. 2023, Chen
//                  et al. 2023). Without any residual p and q differ by rounding only: then p is drawn from.
//                  A proposed token was drawn from nothing: all of its q is at d, so it is kept iff u <= p(d), and
//                  replaced by a draw from p without d. What the exit block would have said of it plays no part.
//
// in     a sequence's target rows first_row .. first_row + drafts; its drafts: the sampled ones as choices and
//        weights, at slot * most_drafts .., those proposed after them as tokens, at ids[proposed] ..
// out    verdicts [sequences]; counts (adjust.cu) of the tokens emitted: the drafts kept, then `next`
// grid   (sequences), 512 threads
// order  sums are of integers
// bytes  a few words; for a replacement the rows of p and q twice, for that of a proposed token, or for what follows
//        k drafts, p twice
#include "common/memory.cuh"
#include "common/sampling.cuh"

struct VerifiedSequence {
  uint32_t slot;       // row of drafts and counts
  uint32_t first_row;  // of the target's logits
  uint32_t committed;  // tokens before the drafts
  uint32_t drafts;
  uint32_t sampled;    // the first ones; the others were proposed
  uint32_t proposed;   // where those begin among ids
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
  const uint32_t* ids;             // tokens of the pass's first rows: the proposed ones among them
  uint32_t* counts;                // [slots, vocab], or null where no request has penalties
  Verdict* verdicts;
  int vocab;
  int most_drafts;
};

__device__ __forceinline__ const RowChoice* sampled_drafts(const AcceptArgs& args, const VerifiedSequence& about) {
  return args.draft + size_t(about.slot) * args.most_drafts;
}

__device__ __forceinline__ uint32_t draft_token(const AcceptArgs& args, const VerifiedSequence& about, uint32_t i) {
  return i < about.sampled ? sampled_drafts(args, about)[i].token : args.ids[about.proposed + i - about.sampled];
}

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
  const RowChoice* target = args.target + about.first_row;
  uint32_t accepted = 0;
  if (params.rule != REJECTION) {
    while (accepted < about.drafts && draft_token(args, about, accepted) == target[accepted].token) accepted++;
    return {accepted, target[accepted].token};
  }
  for (; accepted < about.drafts; accepted++) {
    const uint64_t* p = args.target_weights + size_t(about.first_row + accepted) * args.vocab;
    const uint32_t token = draft_token(args, about, accepted), position = about.committed + accepted;
    const double p_total = double(target[accepted].total);
    const double u = unit(Philox(params.seed, position, ACCEPT, 0).block(0).x);
    const Philox random(params.seed, position, RESIDUAL, 0);
    if (accepted >= about.sampled) {
      if (p[token] && u <= double(p[token]) / p_total) continue;
      // Something is left: u is below 1, so a token that is all of p was kept.
      const uint64_t left = target[accepted].total - p[token];
      const auto others = [=](int t) { return uint32_t(t) == token ? 0 : p[t]; };
      return {accepted, pick(fine_uniform(random), left, args.vocab, others)};
    }
    const uint64_t* q = args.draft_weights + (size_t(about.slot) * args.most_drafts + accepted) * args.vocab;
    const double q_total = double(sampled_drafts(args, about)[accepted].total);
    if (p[token] && u * (double(q[token]) / q_total) <= double(p[token]) / p_total) continue;
    const Residual residual{p, q, p_total, q_total};
    const double uniform = fine_uniform(random);
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
      uint32_t* counts = args.counts + size_t(about.slot) * args.vocab;
      for (uint32_t i = 0; i < verdict.accepted; i++) counts[draft_token(args, about, i)]++;
      counts[verdict.next]++;
    }
  }
}

KERNEL(accept_drafts, SAMPLING_THREADS, 1, AcceptArgs, accept(args))
