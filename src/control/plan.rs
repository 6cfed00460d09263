//! A round's draft length decided ahead, as far as it can be: a table that a device follows by itself, so that
//! the host need not be asked after every draft.

/// How a draft is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Way {
    /// Through the model's first layers and the exit block.
    #[default]
    FirstLayers,
    /// A round's first one by a recurrent exit block alone: from the hidden state that the verification before it left of
    /// the row before the pending token.
    Continued,
    /// By a recurrent exit block alone, from the draft before it.
    Recurrent,
}

impl Way {
    /// How many there are.
    pub const COUNT: usize = 3;

    /// Whether it leaves the row that it begins from without a hidden state.
    pub fn is_recurrent(self) -> bool {
        self != Self::FirstLayers
    }
}

/// When one round's draft ends. After each draft its confidence is looked up in a table.
///
/// A plan is made before anything is drafted, and uses of each draft what a controller may use: its confidence,
/// before it is verified. So it changes no output, only lengths.
#[derive(Debug, Clone, PartialEq)]
pub struct DraftPlan {
    /// Most drafts; 0: none at all.
    pub limit: usize,
    /// How all drafts but the round's first are made, which goes through the first layers.
    pub later: Way,
    /// Upper edges of all bins of confidence but the last, ascending: a confidence is in bin `n` if it reaches `n`
    /// of them, NaN in bin 0.
    pub edges: Vec<f32>,
    /// `[limit - 1, bins]`: what follows from a draft in each bin. Empty: drafting goes on to the limit.
    pub rules: Vec<Rule>,
}

/// What a draft says about the next one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// Chance that the draft is accepted, if all before it are: multiplies the round's survival, 1 at first.
    pub kept: f64,
    /// Chance of the next draft to be accepted, if all before it are, over the chance that would be worth its
    /// price. Drafting goes on where survival times this is above 1.
    pub worth: f64,
}

impl Rule {
    /// Stop, whatever came before.
    pub const STOP: Self = Self { kept: 1.0, worth: 0.0 };
    /// Go on, whatever came before.
    pub const GO: Self = Self { kept: 1.0, worth: f64::INFINITY };
}

impl DraftPlan {
    /// This many drafts, whatever their confidence.
    pub fn of_length(length: usize) -> Self {
        Self { limit: length, later: Way::default(), edges: Vec::new(), rules: Vec::new() }
    }

    /// How the draft after so many of the round is made.
    pub fn way(&self, drafted: usize) -> Way {
        if drafted == 0 { Way::FirstLayers } else { self.later }
    }

    /// Number of bins of confidence.
    pub fn bins(&self) -> usize {
        self.edges.len() + 1
    }

    /// What is left of the plan after its first draft, which had this confidence; `None`: no draft follows.
    pub fn rest(&self, confidence: f32) -> Option<Self> {
        let mut following = self.follow();
        if !following.goes_on(confidence) {
            return None;
        }
        let mut rules = self.rules.get(self.bins()..).unwrap_or_default().to_vec();
        rules.iter_mut().take(self.bins()).for_each(|rule| rule.kept *= following.survival);
        // No rules would mean to go on.
        let limit = if rules.len() < self.rules.len() && rules.is_empty() { 1 } else { self.limit - 1 };
        Some(Self { limit, rules, edges: self.edges.clone(), later: self.later })
    }

    /// A round under this plan, before its first draft.
    pub fn follow(&self) -> Following<'_> {
        Following { plan: self, survival: 1.0, drafts: 0 }
    }
}

/// A round that follows a plan. What a device does (`cuda/next_draft.cu`), for one that has no loop of its own.
#[derive(Debug, Clone)]
pub struct Following<'a> {
    plan: &'a DraftPlan,
    survival: f64,
    drafts: usize,
}

impl Following<'_> {
    /// Whether one more draft follows the one just made, which had this confidence.
    pub fn goes_on(&mut self, confidence: f32) -> bool {
        self.drafts += 1;
        if self.drafts >= self.plan.limit {
            return false;
        }
        if self.plan.rules.is_empty() {
            return true;
        }
        let bin = self.plan.edges.iter().filter(|&&edge| confidence >= edge).count();
        let Some(rule) = self.plan.rules.get((self.drafts - 1) * self.plan.bins() + bin) else { return false };
        self.survival *= rule.kept;
        self.survival * rule.worth > 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(plan: &DraftPlan, confidences: &[f32]) -> usize {
        let mut following = plan.follow();
        1 + confidences.iter().take_while(|&&confidence| following.goes_on(confidence)).count()
    }

    #[test]
    fn a_length_is_kept_whatever_the_confidence() {
        let plan = DraftPlan::of_length(3);
        assert_eq!(length(&plan, &[0.0, f32::NAN, 1.0, 1.0, 1.0]), 3);
        assert_eq!(length(&DraftPlan::of_length(1), &[1.0; 4]), 1);
    }

    /// Whatever is drafted, a plan and what is left of it after the first draft come to the same length.
    #[test]
    fn a_plan_in_two_parts_is_the_same_plan() {
        let rule = |kept, worth| Rule { kept, worth };
        let row = [rule(0.3, 1.0), rule(0.5, 3.0), rule(0.9, 2.5), Rule::GO];
        let plan = |limit: usize, rows: usize| DraftPlan {
            edges: vec![0.2, 0.5, 0.8],
            rules: row.repeat(rows),
            ..DraftPlan::of_length(limit)
        };
        let plans = [DraftPlan::of_length(1), DraftPlan::of_length(4), plan(2, 1), plan(5, 4), plan(5, 2), plan(1, 0)];
        let mut lengths = Vec::new();
        for (plan, number) in plans.iter().flat_map(|plan| (0..256).map(move |number| (plan, number))) {
            let confidences: Vec<f32> = (0..4).map(|draft| [0.1, 0.3, 0.6, 0.9][number >> (2 * draft) & 3]).collect();
            let rest = plan.rest(confidences[0]).map_or(0, |rest| self::length(&rest, &confidences[1..]));
            assert_eq!(1 + rest, self::length(plan, &confidences), "{plan:?}, {confidences:?}");
            lengths.push(rest);
        }
        assert!((0..4).all(|length| lengths.contains(&length)), "of all lengths");
    }

    #[test]
    fn survival_is_the_product_of_what_was_kept() {
        // A draft in bin 1 is kept half the time, and the next one is worth three times its price.
        let sure = Rule { kept: 0.5, worth: 3.0 };
        let plan = DraftPlan { edges: vec![0.25], rules: [Rule::STOP, sure].repeat(4), ..DraftPlan::of_length(5) };
        assert_eq!(length(&plan, &[0.25; 5]), 2, "1/2 × 3 > 1, 1/4 × 3 is not");
        assert_eq!(length(&plan, &[0.2499; 5]), 1);
        assert_eq!(length(&plan, &[f32::NAN; 5]), 1);
        let free = DraftPlan { rules: [Rule::STOP, Rule::GO].repeat(4), ..plan };
        assert_eq!(length(&free, &[0.3, 0.3, 0.1, 0.3]), 3);
        assert_eq!(length(&free, &[0.3; 9]), 5);
    }
}
