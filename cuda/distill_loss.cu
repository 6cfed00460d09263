// What a student's logits cost against the teacher's, and the gradient in them: self-distillation's losses.
//
// For teacher logits t, student logits s, next token y, p = softmax(t), q = softmax(s):
//   soft temperature^2 CE(softmax(t / temperature), softmax(s / temperature)) + hard CE(y, q) + variation TV(p, q)
// A student of a part of the vocabulary learns the teacher's distribution over that; the other tokens count as missed in
// TV, and a y among them has no hard term. Terms as in src/backend/training/loss.rs.
//
// in     student [rows, vocab] f32; teacher [rows, teacher_vocab] f32; draft_ids [vocab]: the token of each logit of the
//        student, ascending, null where that is its column; columns [rows]: y's in the student's row, vocab or more
//        where it has none; weights [rows]
// out    losses [rows]: each times the row's weight; with `gradient`, student becomes the loss's gradient in it
// grid   (rows), 256 threads: a block takes a row
// order  every sum: a thread's tokens ascending, every 256th, then threads as a tree (common/reduce.cuh)
// bytes  both rows three times (the teacher's four times where its softened distribution is another), all but the first
//        time from L2 where that holds the rows in flight (two a block); 4 written per token of the student
#include "common/reduce.cuh"

constexpr int LOSS_THREADS = 256;

struct PositionLoss { double loss, divergence, overlap, agreement; };

struct DistillLossArgs {
  float* student;
  const float* teacher;
  const unsigned* draft_ids;
  const unsigned* columns;
  const double* weights;
  PositionLoss* losses;
  int vocab;
  int teacher_vocab;
  double soft, temperature, hard, variation;
  int gradient;
  unsigned padding;
};

// The largest of some numbers, the first token that has it, and the sum of exp(x - max).
struct Normaliser {
  float max, sum;
  int at;
  __device__ __forceinline__ void add(float x, int i) {
    if (x > max) {
      sum = sum * expf(max - x) + 1.0f;
      max = x;
      at = i;
    } else {
      sum += expf(x - max);
    }
  }
  __device__ __forceinline__ void merge(const Normaliser& other) {
    if (other.at < 0 && other.sum == 0) return;  // nothing was added; a NaN was
    if (at < 0 && sum == 0) {
      *this = other;
      return;
    }
    const float both = fmaxf(max, other.max);
    sum = sum * expf(max - both) + other.sum * expf(other.max - both);
    if (other.max > max || (other.max == max && other.at < at)) at = other.at;
    max = both;
  }
  __device__ __forceinline__ float probability(float x) const { return expf(x - max) * (1.0f / sum); }
  __device__ __forceinline__ double log_total() const { return double(max) + log(double(sum)); }
};

struct Normalisers {
  Normaliser p, q, soft_p, soft_q;
  __device__ __forceinline__ void merge(const Normalisers& other) {
    p.merge(other.p);
    q.merge(other.q);
    soft_p.merge(other.soft_p);
    soft_q.merge(other.soft_q);
  }
};

// Over the tokens that the student can draft.
struct LossTerms {
  double overlap;   // min(p, q)
  double soft_dot;  // soft_p s
  double seen;      // p
  double gap;       // p (t - s)
  double slope;     // q times the derivative of TV in q
  __device__ __forceinline__ void merge(const LossTerms& other) {
    overlap += other.overlap;
    soft_dot += other.soft_dot;
    seen += other.seen;
    gap += other.gap;
    slope += other.slope;
  }
};

__device__ __forceinline__ float variation_slope(float p, float q) { return q > p ? 0.5f : -0.5f; }

__device__ __forceinline__ void lose(const DistillLossArgs& args) {
  const int row = blockIdx.x, vocab = args.vocab;
  float* student = args.student + size_t(row) * vocab;
  const float* teacher = args.teacher + size_t(row) * args.teacher_vocab;
  const float inverse = float(1.0 / args.temperature);
  // At temperature 1 the softened q is q, and so is p with a student of the whole vocabulary.
  const bool softened = args.temperature != 1.0, apart = softened || vocab < args.teacher_vocab;

  const auto token_of = [&](int column) { return args.draft_ids ? int(args.draft_ids[column]) : column; };

  const Normaliser none = {NEGATIVE_INFINITY, 0, -1};
  Normalisers of = {none, none, none, none};
  for (int token = threadIdx.x; token < args.teacher_vocab; token += LOSS_THREADS) of.p.add(teacher[token], token);
  for (int i = threadIdx.x; i < vocab; i += LOSS_THREADS) {
    const int token = token_of(i);
    const float s = student[i];
    of.q.add(s, token);
    if (apart) of.soft_p.add(teacher[token] * inverse, token);
    if (softened) of.soft_q.add(s * inverse, token);
  }
  of = block_merge<LOSS_THREADS>(of);
  if (!apart) of.soft_p = of.p;
  if (!softened) of.soft_q = of.q;

  float overlap = 0, soft_dot = 0, seen = 0, gap = 0, slope = 0;
  for (int i = threadIdx.x; i < vocab; i += LOSS_THREADS) {
    const float t = teacher[token_of(i)], s = student[i], p = of.p.probability(t), q = of.q.probability(s);
    const float soft_p = apart ? of.soft_p.probability(t * inverse) : p;
    overlap += p < q ? p : q;
    soft_dot += soft_p * s;
    seen += p;
    gap += p * (t - s);
    slope += q * variation_slope(p, q);
  }
  const LossTerms sum = block_merge<LOSS_THREADS>(LossTerms{overlap, soft_dot, seen, gap, slope});

  const double weight = args.weights[row];
  const unsigned column = args.columns[row];
  const bool own = column < unsigned(vocab);
  if (threadIdx.x == 0) {
    const double soft = of.soft_q.log_total() - double(inverse) * sum.soft_dot;
    const double divergence = of.q.log_total() - of.p.log_total() - log(sum.seen) + sum.gap / sum.seen;
    const double hard = own ? of.q.log_total() - double(student[column]) : 0;
    const double loss = args.soft * args.temperature * args.temperature * soft + args.hard * hard +
                        args.variation * (1.0 - sum.overlap);
    args.losses[row] = {loss * weight, divergence * weight, sum.overlap * weight, of.p.at == of.q.at ? weight : 0.0};
  }
  if (!args.gradient) return;
  __syncthreads();  // y's logit has been read
  const float soft_by = float(args.soft * args.temperature * weight), hard_by = own ? float(args.hard * weight) : 0.0f;
  const float variation_by = float(args.variation * weight), mean = float(sum.slope);
  for (int i = threadIdx.x; i < vocab; i += LOSS_THREADS) {
    const float t = teacher[token_of(i)], s = student[i], p = of.p.probability(t), q = of.q.probability(s);
    const float soft_p = apart ? of.soft_p.probability(t * inverse) : p;
    const float soft_q = softened ? of.soft_q.probability(s * inverse) : q;
    float gradient = soft_by * (soft_q - soft_p) + hard_by * q;
    if (own && i == int(column)) gradient -= hard_by;
    student[i] = gradient + variation_by * q * (variation_slope(p, q) - mean);
  }
}

KERNEL(distill_loss, LOSS_THREADS, 1, DistillLossArgs, lose(args))
