// What a student's logits cost against the teacher's, and the gradient in them: self-distillation's losses.
//
// For teacher logits t, student logits s, next token y, p = softmax(t) and q = softmax(s):
//   soft temperature^2 CE(softmax(t / temperature), softmax(s / temperature)) + hard CE(y, q) + variation TV(p, q)
// Both are of the tokens that the student can draft. Where those are a part of the vocabulary, the student learns the
// teacher's distribution over that part; TV is of p over all tokens, of which the others count as missed, and a y among
// them has no hard term. Terms as in src/backend/training/loss.rs.
//
// in     student [rows, vocab] f32; positions [rows]: what each row drafts. By position: teacher [.., vocab] f32; columns:
//        y's among the vocab, vocab or more where it has none; weights; log_totals: log of the sum of exp(t) over all tokens, and
//        likeliest: the column of the largest t of all tokens, as columns. Without log_totals these tokens are all
// out    losses [rows]: each times its position's weight; with `gradient`, student becomes the loss's gradient in it
// grid   (rows), 256 threads: a block takes a row
// order  every sum: a thread's columns ascending, every 256th, then threads as a tree (common/reduce.cuh)
// bytes  both rows three times, all but the first time from L2 where that holds the rows in flight (two a block); 4 written
//        per token of the student
#include "common/reduce.cuh"

constexpr int LOSS_THREADS = 256;

struct PositionLoss { double loss, divergence, overlap, agreement; };

struct DistillLossArgs {
  float* student;
  const float* teacher;
  const unsigned* positions;
  const float* log_totals;
  const unsigned* likeliest;
  const unsigned* columns;
  const double* weights;
  PositionLoss* losses;
  double soft, temperature, hard, variation;
  int vocab;
  int gradient;
  unsigned rows;
  unsigned padding;
};

// The largest of some numbers, the first column that has it, and the sum of exp(x - max).
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
  Normaliser d, q, soft_d, soft_q;
  __device__ __forceinline__ void merge(const Normalisers& other) {
    d.merge(other.d);
    q.merge(other.q);
    soft_d.merge(other.soft_d);
    soft_q.merge(other.soft_q);
  }
};

// The teacher's distribution over these tokens is d, p is d times the part of its whole distribution that they have.
struct LossTerms {
  double overlap;   // min(p, q)
  double soft_dot;  // soft_d s
  double gap;       // d (t - s)
  double slope;     // q times the derivative of TV in q
  __device__ __forceinline__ void merge(const LossTerms& other) {
    overlap += other.overlap;
    soft_dot += other.soft_dot;
    gap += other.gap;
    slope += other.slope;
  }
};

__device__ __forceinline__ float variation_slope(float p, float q) { return q > p ? 0.5f : -0.5f; }

__device__ __forceinline__ void lose(const DistillLossArgs& args) {
  const int row = blockIdx.x, vocab = args.vocab;
  const unsigned position = args.positions[row];
  float* student = args.student + size_t(row) * vocab;
  const float* teacher = args.teacher + size_t(position) * vocab;
  const float inverse = float(1.0 / args.temperature);
  const bool softened = args.temperature != 1.0;

  const Normaliser none = {NEGATIVE_INFINITY, 0, -1};
  Normalisers of = {none, none, none, none};
  for (int i = threadIdx.x; i < vocab; i += LOSS_THREADS) {
    const float t = teacher[i], s = student[i];
    of.d.add(t, i);
    of.q.add(s, i);
    if (softened) of.soft_d.add(t * inverse, i), of.soft_q.add(s * inverse, i);
  }
  of = block_merge<LOSS_THREADS>(of);
  if (!softened) of.soft_d = of.d, of.soft_q = of.q;
  // Rounded, so the total might be a little less than what is known to be in it.
  const double drafted = of.d.log_total();
  const float seen = args.log_totals ? float(exp(fmin(drafted - double(args.log_totals[position]), 0.0))) : 1.0f;

  float overlap = 0, soft_dot = 0, gap = 0, slope = 0;
  for (int i = threadIdx.x; i < vocab; i += LOSS_THREADS) {
    const float t = teacher[i], s = student[i], d = of.d.probability(t), q = of.q.probability(s), p = d * seen;
    overlap += p < q ? p : q;
    soft_dot += (softened ? of.soft_d.probability(t * inverse) : d) * s;
    gap += d * (t - s);
    slope += q * variation_slope(p, q);
  }
  const LossTerms sum = block_merge<LOSS_THREADS>(LossTerms{overlap, soft_dot, gap, slope});

  const double weight = args.weights[position];
  const unsigned column = args.columns[position];
  const bool own = column < unsigned(vocab);
  if (threadIdx.x == 0) {
    const double soft = of.soft_q.log_total() - double(inverse) * sum.soft_dot;
    const double divergence = of.q.log_total() - drafted + sum.gap;
    const double hard = own ? of.q.log_total() - double(student[column]) : 0;
    const double loss = args.soft * args.temperature * args.temperature * soft + args.hard * hard +
                        args.variation * (1.0 - sum.overlap);
    const int likeliest = args.log_totals ? int(args.likeliest[position]) : of.d.at;
    const bool agreement = of.q.at >= 0 && of.q.at == likeliest;
    args.losses[row] = {loss * weight, divergence * weight, sum.overlap * weight, agreement ? weight : 0.0};
  }
  if (!args.gradient) return;
  __syncthreads();  // y's logit has been read
  const float soft_by = float(args.soft * args.temperature * weight), hard_by = own ? float(args.hard * weight) : 0.0f;
  const float variation_by = float(args.variation * weight), mean = float(sum.slope);
  for (int i = threadIdx.x; i < vocab; i += LOSS_THREADS) {
    const float t = teacher[i], s = student[i], d = of.d.probability(t), q = of.q.probability(s), p = d * seen;
    const float soft_d = softened ? of.soft_d.probability(t * inverse) : d;
    const float soft_q = softened ? of.soft_q.probability(s * inverse) : q;
    float gradient = soft_by * (soft_q - soft_d) + hard_by * q;
    if (own && i == int(column)) gradient -= hard_by;
    student[i] = gradient + variation_by * q * (variation_slope(p, q) - mean);
  }
}

KERNEL(distill_loss, LOSS_THREADS, 1, DistillLossArgs, lose(args))
