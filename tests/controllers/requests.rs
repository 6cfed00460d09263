//! Many short requests under change, which `goodput-ts` has to follow.

use crate::parse;
use crate::simulator::Rows;
use crate::simulator::requests::{Case, Change, Pass};

#[test]
fn scratch() {
    let env = |name: &str, usual: &str| std::env::var(name).unwrap_or(usual.into());
    let seeds: u64 = env("SEEDS", "2").parse().unwrap();
    for slots in env("SLOTS", "1,2,4").split(',').map(|s| s.parse().unwrap()) {
        for (n, pass) in [Pass { draft: 0.1, rows: Rows::Even(0.01) }, Pass { draft: 0.22, rows: Rows::MemoryBound }, Pass { draft: 0.25, rows: Rows::SingleRowFast }].into_iter().enumerate() {
            if !env("PASS", "012").contains(&n.to_string()) { continue; }
            println!("{slots} {pass:?}");
            for change in Change::ALL {
              if !change.name().contains(&env("CHANGE", "")) { continue; }
              for seed in 0..seeds {
                let played = Case { change, pass, slots, seed }.prepare();
                let verdict = played.judge(&mut *parse(&env("C", "goodput-ts")).build());
                let ok = verdict.recoveries.iter().all(|r| r.back.is_some_and(|(q, n)| q <= 50 || n <= 2000)) && verdict.of_plain > 0.97;
                println!("{} {:45} {:?} plain {:.3} best {:.3} back {:?}", if ok { "  " } else { "!!" }, change.name(), played.best_lengths(), verdict.of_plain, verdict.of_best, verdict.recoveries.iter().map(|r| r.back).collect::<Vec<_>>());
              }
            }
        }
    }
}
