//! What a student's logits cost against the teacher's, and the gradient in them (EESD's self-distillation).
//!
//! For a position with teacher logits `t`, student logits `s`, next token `y`, with `p = softmax(t)` and
//! `q = softmax(s)`:
//!
//! ```text
//! soft · τ² · CE(softmax(t / τ), softmax(s / τ))  +  hard · CE(y, q)  +  variation · TV(p, q)
//! ```
//!
//! The soft term is the paper's; τ² keeps its gradient's size whatever τ is (Hinton et al., arXiv 1503.02531). The
//! total variation is the chance that rejection sampling refuses the draft, and is this project's own. A student of a part
//! of the vocabulary is taught the teacher's distribution over that; its total variation counts the other tokens as
//! missed, and a token that it cannot draft has no hard term.

use super::real::Real;
use crate::TokenId;
use crate::model::DraftVocab;

/// Weights of the loss's terms.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LossOptions {
    /// Of the cross-entropy to the teacher's distribution.
    pub soft: f64,
    /// τ, above 0.
    pub temperature: f64,
    /// Of the cross-entropy to the token that follows.
    pub hard: f64,
    /// Of the total variation between both distributions.
    pub variation: f64,
}

impl Default for LossOptions {
    fn default() -> Self {
        Self { soft: 1.0, temperature: 1.0, hard: 0.0, variation: 0.0 }
    }
}

/// Sums over positions, each times its weight.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossSum {
    /// Of the weights.
    pub weight: f64,
    /// Of the loss.
    pub loss: f64,
    /// Of the divergence `KL(p, q)` in nats, over the tokens that the student can draft.
    pub divergence: f64,
    /// Of `1 - TV(p, q)`: the chance that rejection sampling accepts the draft at temperature 1.
    pub overlap: f64,
    /// Positions where both have the same likeliest token.
    pub agreement: f64,
}

impl LossSum {
    /// Adds another sum.
    pub fn add(&mut self, other: &Self) {
        self.weight += other.weight;
        self.loss += other.loss;
        self.divergence += other.divergence;
        self.overlap += other.overlap;
        self.agreement += other.agreement;
    }

    /// The means.
    #[must_use]
    pub fn mean(&self) -> Self {
        let by = if self.weight > 0.0 { self.weight.recip() } else { 0.0 };
        let Self { loss, divergence, overlap, agreement, .. } = *self;
        Self {
            weight: 1.0,
            loss: loss * by,
            divergence: divergence * by,
            overlap: overlap * by,
            agreement: agreement * by,
        }
    }
}

/// Sums or means by step of the chains.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Losses {
    /// One for each step.
    pub steps: Vec<LossSum>,
}

impl Losses {
    /// Nothing yet, of so many steps.
    pub fn of_steps(steps: usize) -> Self {
        Self { steps: vec![LossSum::default(); steps] }
    }

    /// Adds other sums.
    pub fn add(&mut self, other: &Self) {
        self.steps.resize(self.steps.len().max(other.steps.len()), LossSum::default());
        self.steps.iter_mut().zip(&other.steps).for_each(|(sum, other)| sum.add(other));
    }

    /// The sums of all steps together.
    pub fn all(&self) -> LossSum {
        let mut all = LossSum::default();
        self.steps.iter().for_each(|sum| all.add(sum));
        all
    }

    /// Those of a round's drafts, one after the other. The first step of a recurrent block gives the state that a round's
    /// first draft continues, and drafts nothing.
    pub fn drafts(&self) -> &[LossSum] {
        &self.steps[usize::from(self.steps.len() > 1)..]
    }

    /// The sums of first drafts.
    pub fn first(&self) -> LossSum {
        self.drafts().first().copied().unwrap_or_default()
    }
}

/// What the teacher says at one position, of the tokens that a student drafts.
#[derive(Default)]
pub struct Taught<R> {
    /// Logits.
    logits: Vec<R>,
    /// Probabilities, those of other tokens left out.
    p: Vec<R>,
    /// The distribution over these tokens alone, softened; empty where it is `p`.
    soft: Vec<R>,
    /// The entropy of that distribution, as the loss counts it.
    own: f64,
    /// The logarithm of the sum of exponentials of all tokens' logits.
    log_total: f64,
    /// Of all tokens, the likeliest.
    likeliest: TokenId,
}

impl<R: Real> Taught<R> {
    /// By logits of the whole vocabulary.
    pub fn whole(&mut self, logits: &[f32], vocab: DraftVocab<'_>, options: &LossOptions) {
        let Self { logits: drawn, p, .. } = self;
        drawn.clear();
        drawn.extend(logits.iter().map(|&x| R::of(x.into())));
        let of = softmax(drawn, R::of(1.0), p);
        (self.likeliest, self.log_total) = (first(drawn, of.max).unwrap_or(0) as TokenId, of.log_total);
        // These ascend, so that none is overwritten before it is read.
        for (column, &id) in vocab.ids.unwrap_or(&[]).iter().enumerate() {
            (drawn[column], p[column]) = (drawn[id as usize], p[id as usize]);
        }
        let partial = vocab.size < drawn.len();
        drawn.truncate(vocab.size);
        p.truncate(vocab.size);
        self.soften(partial, options);
    }

    /// By logits of the drafted tokens; `rest` is what [`log_total`](Self::log_total) and [`likeliest`](Self::likeliest)
    /// say of all tokens, where these are not all.
    pub fn part(&mut self, logits: &[R], rest: Option<(f32, TokenId)>, options: &LossOptions) {
        let Self { logits: drawn, p, .. } = self;
        drawn.clear();
        drawn.extend_from_slice(logits);
        let of = softmax(drawn, R::of(1.0), p);
        (self.likeliest, self.log_total) = (first(drawn, of.max).unwrap_or(0) as TokenId, of.log_total);
        let Some((log_total, likeliest)) = rest else { return self.soften(false, options) };
        // Rounded, so it might be a little less than what is known to be in it.
        (self.likeliest, self.log_total) = (likeliest, f64::from(log_total).max(of.log_total));
        let seen = R::of((of.log_total - self.log_total).exp());
        if options.temperature == 1.0 {
            self.soft.clone_from(p);
            self.own = cross(p, drawn, R::of(1.0), of.log_total);
        }
        p.iter_mut().for_each(|p| *p *= seen);
        if options.temperature != 1.0 {
            self.soften(true, options);
        }
    }

    /// The logarithm of the sum of exponentials of all tokens' logits.
    pub fn log_total(&self) -> f64 {
        self.log_total
    }

    /// Of all tokens, the likeliest; of several, the lowest.
    pub fn likeliest(&self) -> TokenId {
        self.likeliest
    }

    fn soften(&mut self, partial: bool, options: &LossOptions) {
        let Self { logits, p, soft, .. } = self;
        let inverse = R::of(options.temperature.recip());
        // At temperature 1, and with a student of the whole vocabulary, the softened distribution is this one.
        self.own = if partial || options.temperature != 1.0 {
            let of = softmax(logits, inverse, soft);
            cross(soft, logits, inverse, of.log_total)
        } else {
            soft.clear();
            cross(p, logits, inverse, self.log_total)
        };
    }
}

/// `-Σ p ln softmax(x)`, from logits and not from the logarithms of probabilities that may be zero.
fn cross<R: Real>(p: &[R], x: &[R], inverse: R, log_total: f64) -> f64 {
    log_total - (inverse * fold(p, x, |p, x| p * x)).wide()
}

/// Memory for one row at a time.
#[derive(Default)]
pub struct Scratch<R> {
    q: Vec<R>,
    soft_q: Vec<R>,
}

/// The loss of one position times `weight`; turns `student` `[draft vocabulary]` from logits of the tokens of `vocab`
/// into that loss's gradient in them.
pub fn lose<R: Real>(
    student: &mut [R],
    teacher: &Taught<R>,
    token: TokenId,
    weight: f64,
    vocab: DraftVocab<'_>,
    options: &LossOptions,
    scratch: &mut Scratch<R>,
) -> LossSum {
    let Scratch { q, soft_q } = scratch;
    let Taught { logits: drawn, p, .. } = teacher;
    let of_q = softmax(student, R::of(1.0), q);
    let softened = options.temperature != 1.0;
    let inverse = R::of(options.temperature.recip());
    let (of_soft_q, soft_q) = if softened { (softmax(student, inverse, soft_q), &soft_q[..]) } else { (of_q, &q[..]) };
    let soft_p = if teacher.soft.is_empty() { p } else { &teacher.soft };

    let drafted = first(student, of_q.max).map(|column| vocab.token(column));
    let agreement = drafted == Some(teacher.likeliest);
    let overlap = fold(p, q, |p, q| if p < q { p } else { q }).wide();
    let soft = cross(soft_p, student, inverse, of_soft_q.log_total);
    let divergence = if softened {
        let seen = fold(p, p, |p, _| p).wide();
        let [by_student, by_teacher] = [&*student, &drawn[..]].map(|x| fold(p, x, |p, x| p * x).wide() / seen);
        of_q.log_total - by_student - (teacher.log_total + seen.ln() - by_teacher)
    } else {
        soft - teacher.own
    };
    let own = vocab.column(token);
    let hard = own.map_or(0.0, |column| of_q.log_total - student[column].wide());
    let loss =
        options.soft * options.temperature.powi(2) * soft + options.hard * hard + options.variation * (1.0 - overlap);

    let hard_weight = if own.is_some() { options.hard * weight } else { 0.0 };
    let [soft_by, hard_by] = [options.soft * options.temperature * weight, hard_weight].map(R::of);
    for (((gradient, &soft_q), &soft_p), &q) in student.iter_mut().zip(soft_q).zip(soft_p).zip(&*q) {
        *gradient = soft_by * (soft_q - soft_p) + hard_by * q;
    }
    if let Some(column) = own {
        student[column] += -hard_by;
    }
    if options.variation > 0.0 {
        // dTV/dq = sign(q - p) / 2, through the softmax.
        let sign = |p: R, q: R| R::of(if q > p { 0.5 } else { -0.5 });
        let (mean, by) = (fold(p, q, |p, q| q * sign(p, q)), R::of(options.variation * weight));
        for ((gradient, &p), &q) in student.iter_mut().zip(p).zip(&*q) {
            *gradient += by * q * (sign(p, q) - mean);
        }
    }
    LossSum {
        weight,
        loss: loss * weight,
        divergence: divergence * weight,
        overlap: overlap * weight,
        agreement: if agreement { weight } else { 0.0 },
    }
}

/// What a softmax was made of.
#[derive(Clone, Copy)]
struct Normaliser<R> {
    /// The largest logit, times the inverse temperature.
    max: R,
    /// The logarithm of the sum of exponentials.
    log_total: f64,
}

/// `softmax(inverse · logits)`.
fn softmax<R: Real>(logits: &[R], inverse: R, into: &mut Vec<R>) -> Normaliser<R> {
    into.clear();
    into.extend(logits.iter().map(|&logit| logit * inverse));
    let max = lanes(into, into, R::of(f64::NEG_INFINITY), |max, x, _| if x > max { x } else { max }, R::max);
    R::exp_of_differences(into, max);
    let sum = fold(into, into, |x, _| x);
    let factor = R::of(1.0) / sum;
    into.iter_mut().for_each(|x| *x *= factor);
    Normaliser { max, log_total: max.wide() + sum.wide().ln() }
}

/// The lowest index of the largest value.
fn first<R: Real>(values: &[R], max: R) -> Option<usize> {
    values.iter().position(|&x| x == max)
}

/// `Σ term(a, b)`.
fn fold<R: Real>(a: &[R], b: &[R], term: impl Fn(R, R) -> R) -> R {
    lanes(a, b, R::default(), |sum, a, b| sum + term(a, b), |a, b| a + b)
}

/// Folds in sixteen lanes, by index modulo 16, and the lanes in their order: the same bits however the compiler
/// vectorises it.
fn lanes<R: Real>(a: &[R], b: &[R], start: R, step: impl Fn(R, R, R) -> R, join: impl Fn(R, R) -> R) -> R {
    const LANES: usize = 16;
    let mut sums = [start; LANES];
    let (whole_a, whole_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = whole_a.remainder().iter().zip(whole_b.remainder());
    for (a, b) in whole_a.zip(whole_b) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum = step(*sum, a, b);
        }
    }
    for (sum, (&a, &b)) in sums.iter_mut().zip(rest) {
        *sum = step(*sum, a, b);
    }
    sums.into_iter().reduce(join).unwrap_or(start)
}
