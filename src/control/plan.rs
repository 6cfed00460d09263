//! A round's draft length decided ahead, as far as it can be: a table that a device follows by itself, so that
//! the host need not be asked after every draft.

/// When one round's draft ends. After each draft its confidence is looked up in a table.
///
/// A plan is made before anything is drafted, and uses of each draft what a controller may use: its confidence,
/// before it is verified. So it changes no output, only lengths.
#[derive(Debug, Clone, PartialEq)]
pub struct DraftPlan {
    /// Most drafts; 0: none at all.
    pub limit: usize,
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
        Self { limit: length, edges: Vec::new(), rules: Vec::new() }
    }

    /// Number of bins of confidence.
    pub fn bins(&self) -> usize {
        self.edges.len() + 1
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

    #[test]
    fn survival_is_the_product_of_what_was_kept() {
        // A draft in bin 1 is kept half the time, and the next one is worth three times its price.
        let sure = Rule { kept: 0.5, worth: 3.0 };
        let plan = DraftPlan { limit: 5, edges: vec![0.25], rules: [Rule::STOP, sure].repeat(4) };
        assert_eq!(length(&plan, &[0.25; 5]), 2, "1/2 × 3 > 1, 1/4 × 3 is not");
        assert_eq!(length(&plan, &[0.2499; 5]), 1);
        assert_eq!(length(&plan, &[f32::NAN; 5]), 1);
        let free = DraftPlan { rules: [Rule::STOP, Rule::GO].repeat(4), ..plan };
        assert_eq!(length(&free, &[0.3, 0.3, 0.1, 0.3]), 3);
        assert_eq!(length(&free, &[0.3; 9]), 5);
    }
}
