//! `next_draft` against the library's own following of a plan, draft by draft, with all that it moves on; and
//! `continue_loop`.

use crate::device::Device;
use crate::support::{NULL, Noise, from, schedules, to};
use eesd::backend::cuda::kernels::{
    ContinueLoop, DraftLoop, DraftRule, JudgedRow, Launcher, NextDraft, RowChoice, next_draft,
};
use eesd::control::{DraftPlan, Rule};

const MOST: usize = 12;
const FIRST: u32 = 5;
const CHOICES: usize = FIRST as usize + MOST;

/// A plan with this many edges, or with no rules at all.
fn plan(noise: &mut Noise, limit: usize, edges: Option<usize>) -> DraftPlan {
    let Some(edges) = edges else { return DraftPlan::of_length(limit) };
    let edges: Vec<f32> = (1..=edges).map(|i| i as f32 / (edges + 1) as f32).collect();
    let mut rule = |_| Rule { kept: 0.8 + 0.2 * noise.unit().abs(), worth: 1.0 + 4.0 * noise.unit().abs() };
    let rules = (0..(limit - 1) * (edges.len() + 1)).map(&mut rule).collect();
    DraftPlan { edges, rules, ..DraftPlan::of_length(limit) }
}

/// What the kernel reads and writes.
struct Inputs {
    state: Vec<DraftLoop>,
    ids: Vec<u32>,
    start: Vec<i32>,
    keep: Vec<u32>,
    row: Vec<JudgedRow>,
    recent: Vec<u32>,
}

/// Makes drafts until the kernel or the plan says no; they must agree at each.
fn check(on: &Device, plan: &DraftPlan, drafts: &[RowChoice], ends: &[u32], with_recent: bool) -> usize {
    let state = DraftLoop {
        survival: 1.0,
        limit: plan.limit as u32,
        drafted: 0,
        edges: plan.edges.len() as u32,
        has_rules: (!plan.rules.is_empty()).into(),
        ends: ends.len() as u32,
        go_on: 7,
    };
    let before = 2;
    let row = JudgedRow { sequence: 0, position: 40, drafted: before, slot: 3, destination: FIRST };
    let mut inputs = Inputs {
        state: vec![state],
        ids: vec![999, 7],
        start: vec![39, 7],
        keep: vec![20, 7],
        row: vec![row],
        recent: vec![77; MOST + 4],
    };
    let rules: Vec<DraftRule> = plan.rules.iter().map(|r| DraftRule { kept: r.kept, worth: r.worth }).collect();
    let mut choices = vec![RowChoice { token: 0, confidence: f32::NAN, total: 0 }; CHOICES];
    choices[FIRST as usize..][..drafts.len()].copy_from_slice(drafts);
    let mut following = plan.follow();
    for (made, draft) in drafts.iter().enumerate() {
        let arguments = NextDraft {
            choices: from(&choices),
            state: to(&mut inputs.state),
            edges: from(&plan.edges),
            rules: from(&rules),
            ends: from(ends),
            ids: to(&mut inputs.ids),
            start: to(&mut inputs.start),
            keep: to(&mut inputs.keep),
            row: to(&mut inputs.row),
            recent: if with_recent { to(&mut inputs.recent) } else { NULL },
        };
        // SAFETY: buffers of the sizes that cuda/next_draft.cu states.
        unsafe { next_draft(on, &arguments) }.unwrap();
        let goes_on = !ends.contains(&draft.token) & following.goes_on(draft.confidence);
        assert_eq!(inputs.state[0].go_on, u32::from(goes_on), "draft {made} of {plan:?}");
        assert_eq!(inputs.state[0].drafted as usize, made + 1);
        // How many drafts the next pass follows; the last pass's inputs stay as they are.
        let moved = made + usize::from(goes_on);
        let id = if moved == 0 { 999 } else { drafts[moved - 1].token };
        assert_eq!((&inputs.ids[..], &inputs.start[..]), (&[id, 7][..], &[39 + moved as i32, 7][..]));
        assert_eq!(inputs.keep, [20 + moved as u32, 7]);
        let n = moved as u32;
        let expected = JudgedRow { position: 40 + n, drafted: before + n, destination: FIRST + n, ..row };
        assert_eq!(bytemuck::bytes_of(&inputs.row[0]), bytemuck::bytes_of(&expected));
        let mut recent = vec![77; MOST + 4];
        let written = if with_recent { moved } else { 0 };
        (0..written).for_each(|i| recent[before as usize + i] = drafts[i].token);
        assert_eq!(inputs.recent, recent);
        if !goes_on {
            return made + 1;
        }
    }
    panic!("more than {} drafts of {plan:?}", drafts.len());
}

#[test]
fn next_draft_follows_the_plan() {
    let mut noise = Noise::new(11);
    let mut lengths = vec![0; MOST + 1];
    for round in 0..180 {
        let edges = [None, Some(0), Some(1), Some(7), Some(32)][round % 5];
        let plan = plan(&mut noise, 1 + round * 7 / 5 % MOST, edges);
        let mut draft = |i: usize| {
            let met = plan.edges.get(i % 4).copied().filter(|_| noise.unit() > 0.0);
            let confidence = if noise.unit() > 0.9 { f32::NAN } else { noise.unit().abs() as f32 };
            RowChoice { token: noise.word() as u32 % 50, confidence: met.unwrap_or(confidence), total: noise.word() }
        };
        let drafts: Vec<RowChoice> = (0..MOST).map(&mut draft).collect();
        let ends: Vec<u32> = [vec![], vec![drafts[3].token], (44..50).collect()][round % 3].clone();
        for schedule in schedules() {
            lengths[check(&schedule, &plan, &drafts, &ends, round % 2 == 0)] += 1;
        }
    }
    assert!(lengths[1..MOST].iter().all(|&rounds| rounds > 0), "{lengths:?}");
}

/// The emulated value of a conditional node is a word; a GPU's is the driver's alone.
#[test]
fn continue_loop_passes_the_condition_on() {
    for schedule in schedules().iter().filter(|schedule| matches!(schedule, Device::Emulated(_))) {
        for (condition, expected) in [(0u32, 0u32), (1, 1), (0x8000_0000, 1)] {
            let (condition, mut value) = (vec![condition], vec![9u32]);
            let arguments = ContinueLoop { handle: to(&mut value).0, condition: from(&condition) };
            let bytes = bytemuck::bytes_of(&arguments);
            // SAFETY: a word each.
            unsafe { schedule.launch(ContinueLoop::KERNEL, ContinueLoop::SHAPE, bytes) }.unwrap();
            assert_eq!(value, [expected]);
        }
    }
}
