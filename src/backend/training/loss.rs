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

/// Memory for one row at a time.
#[derive(Default)]
pub struct Scratch<R> {
    teacher: Vec<R>,
    p: Vec<R>,
    q: Vec<R>,
    soft_p: Vec<R>,
    soft_q: Vec<R>,
}

/// The loss of one position times `weight`; turns `student` `[draft vocabulary]` from logits of the tokens of `vocab`
/// into that loss's gradient in them. `teacher` `[vocabulary]`.
pub fn lose<R: Real>(
    student: &mut [R],
    teacher: &[f32],
    token: TokenId,
    weight: f64,
    vocab: DraftVocab<'_>,
    options: &LossOptions,
    scratch: &mut Scratch<R>,
) -> LossSum {
    let drafted = student.len();
    let one = R::of(1.0);
    let Scratch { teacher: wide, p, q, soft_p, soft_q } = scratch;
    wide.clear();
    wide.extend(teacher.iter().map(|&x| R::of(x.into())));
    let (of_q, of_p) = (softmax(student, one, q), softmax(wide, one, p));
    let likeliest = first(wide, of_p.max);
    // From here on the first elements are those of the tokens that can be drafted. These ascend, so that none is
    // overwritten before it is read.
    for (column, &id) in vocab.ids.unwrap_or(&[]).iter().enumerate() {
        (wide[column], p[column]) = (wide[id as usize], p[id as usize]);
    }
    let drawn = &wide[..drafted];
    // At temperature 1, and with a student of the whole vocabulary, the softened distributions are these.
    let inverse = R::of(options.temperature.recip());
    let softened = options.temperature != 1.0;
    let (of_soft_q, soft_q) = if softened { (softmax(student, inverse, soft_q), &soft_q[..]) } else { (of_q, &q[..]) };
    let (of_soft_p, soft_p) =
        if softened || drafted < p.len() { (softmax(drawn, inverse, soft_p), &soft_p[..]) } else { (of_p, &p[..]) };

    let agreement = likeliest == first(student, of_q.max).map(|column| vocab.token(column) as usize);
    let overlap = fold(&p[..drafted], q, |p, q| if p < q { p } else { q }).wide();
    // -Σ p ln softmax(x), from logits and not from the logarithms of probabilities that may be zero.
    let cross = |p: &[R], x: &[R], inverse: R, log_total: f64| log_total - (inverse * fold(p, x, |p, x| p * x)).wide();
    let soft = cross(soft_p, student, inverse, of_soft_q.log_total);
    let divergence = if softened {
        let seen = fold(&p[..drafted], &p[..drafted], |p, _| p).wide();
        let [by_student, by_teacher] = [&*student, drawn].map(|x| fold(&p[..drafted], x, |p, x| p * x).wide() / seen);
        of_q.log_total - by_student - (of_p.log_total + seen.ln() - by_teacher)
    } else {
        soft - cross(soft_p, drawn, inverse, of_soft_p.log_total)
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
        let (mean, by) = (fold(&p[..drafted], q, |p, q| q * sign(p, q)), R::of(options.variation * weight));
        for ((gradient, &p), &q) in student.iter_mut().zip(&*p).zip(&*q) {
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
