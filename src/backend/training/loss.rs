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
//! total variation is the chance that rejection sampling refuses the draft, and is [ours]. A student of the first
//! tokens of the vocabulary alone is taught the teacher's distribution over those; its total variation counts the
//! others as missed, and a token that it cannot draft has no hard term.

use super::real::Real;

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
    p: Vec<R>,
    q: Vec<R>,
    soft_p: Vec<R>,
    soft_q: Vec<R>,
}

/// The loss of one position times `weight`; turns `student` `[draft vocabulary]` from logits into that loss's gradient
/// in them. `teacher` `[vocabulary]`.
pub fn lose<R: Real>(
    student: &mut [R],
    teacher: &[f32],
    token: u32,
    weight: f64,
    options: &LossOptions,
    scratch: &mut Scratch<R>,
) -> LossSum {
    let Scratch { p, q, soft_p, soft_q } = scratch;
    let drafted = student.len();
    let teacher_of = |x: &f32| R::of(f64::from(*x));
    let log_q_total = softmax(student.iter().copied(), R::of(1.0), q);
    softmax(teacher.iter().map(teacher_of), R::of(1.0), p);
    let inverse = R::of(options.temperature.recip());
    softmax(teacher[..drafted].iter().map(teacher_of), inverse, soft_p);
    let log_soft_total = softmax(student.iter().copied(), inverse, soft_q);

    let agreement = argmax(teacher.iter().copied()) == argmax(student.iter().copied());
    let overlap: f64 = p.iter().zip(&*q).map(|(&p, &q)| p.wide().min(q.wide())).sum();
    // Cross-entropies from logits, not from the logarithms of probabilities that may be zero.
    let cross = |p: &[R], total: R, inverse: R| -> f64 {
        p.iter().zip(&*student).map(|(&p, &s)| p.wide() * (total - s * inverse).wide()).sum()
    };
    let entropy = |p: &[R]| -> f64 { p.iter().map(|p| p.wide()).filter(|&p| p > 0.0).map(|p| -p * p.ln()).sum() };
    let soft = cross(soft_p, log_soft_total, inverse);
    // At temperature 1 the divergence needs no sums of its own.
    let seen: f64 = p[..drafted].iter().map(|p| p.wide()).sum();
    let divergence = if options.temperature == 1.0 {
        soft - entropy(soft_p)
    } else {
        (cross(&p[..drafted], log_q_total, R::of(1.0)) - entropy(&p[..drafted])) / seen + seen.ln()
    };
    let own = (token as usize) < drafted;
    let hard = if own { (log_q_total - student[token as usize]).wide() } else { 0.0 };
    let loss =
        options.soft * options.temperature.powi(2) * soft + options.hard * hard + options.variation * (1.0 - overlap);

    // dTV/dq = sign(q - p) / 2, through the softmax.
    let sign = |p: R, q: R| R::of(if q > p { 0.5 } else { -0.5 });
    let mean_sign: R = p.iter().zip(&*q).map(|(&p, &q)| q * sign(p, q)).sum();
    let [soft_by, hard_by, variation_by] =
        [options.soft * options.temperature, if own { options.hard } else { 0.0 }, options.variation]
            .map(|term| R::of(term * weight));
    for (i, gradient) in student.iter_mut().enumerate() {
        *gradient =
            soft_by * (soft_q[i] - soft_p[i]) + hard_by * q[i] + variation_by * q[i] * (sign(p[i], q[i]) - mean_sign);
    }
    if own {
        student[token as usize] += -hard_by;
    }
    LossSum {
        weight,
        loss: loss * weight,
        divergence: divergence * weight,
        overlap: overlap * weight,
        agreement: if agreement { weight } else { 0.0 },
    }
}

/// `softmax(inverse · logits)`; returns the logarithm of the exponentials' sum.
fn softmax<R: Real>(logits: impl Iterator<Item = R>, inverse: R, into: &mut Vec<R>) -> R {
    into.clear();
    into.extend(logits.map(|logit| logit * inverse));
    let max = into.iter().fold(R::of(f64::NEG_INFINITY), |max, &x| max.max(x));
    let mut sum = R::default();
    for x in into.iter_mut() {
        *x = (*x - max).exp();
        sum += *x;
    }
    let factor = R::of(1.0) / sum;
    into.iter_mut().for_each(|x| *x *= factor);
    max + R::of(sum.wide().ln())
}

/// The lowest index of the largest value.
fn argmax<R: PartialOrd>(values: impl Iterator<Item = R>) -> Option<usize> {
    let mut best: Option<(usize, R)> = None;
    for (i, value) in values.enumerate() {
        if best.as_ref().is_none_or(|(_, most)| value > *most) {
            best = Some((i, value));
        }
    }
    best.map(|(i, _)| i)
}
