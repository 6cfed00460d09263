//! What was measured with one construction, as Markdown.

use crate::contender::Contender;
use crate::costs::{Costs, Round, median};
use crate::measure::{LADDER, MAX_DRAFT, Measured, Measurement, Side};
use eesd::control::Way;

/// The tables, one for each way of drafting, under what one must know to read them.
pub fn markdown(measurement: &Measurement, measured: &Measured) -> String {
    let sides: String = measured.sides.iter().map(|side| table(measurement, measured, side)).collect();
    introduction(measurement, measured) + &sides
}

fn introduction(measurement: &Measurement, measured: &Measured) -> String {
    let Measured { device, exit_layer, scale, acceptance, texts: (tokens, different), .. } = measured;
    let decoding = match measured.temperature {
        0.0 => "Greedy".to_owned(),
        temperature => format!("Coupled sampling at temperature {temperature}"),
    };
    let (first, later) = (acceptance[0], &acceptance[1..]);
    let later = match later.is_empty() {
        true => String::new(),
        false => format!(", of recurrent drafts after it {}", list(later)),
    };
    format!(
        "### Synthetic weights, acceptance {first:.2} by construction\n\n\
         Random model of {}, exit layer {exit_layer}, ε = {scale:.4}; {device}. This measures the \
         engine and says nothing of a method's acceptance.\n\
         {decoding}: {tokens} tokens a turn, {different} of them different; every answer equal to `off`'s.\n\
         Acceptance of a round's first draft {first:.2}{later}.\n\n",
        measurement.model,
    )
}

fn table(measurement: &Measurement, measured: &Measured, side: &Side) -> String {
    let timed: Vec<&Round> = measured.off.rounds.iter().chain(&side.ladder.rounds).collect();
    let costs = Costs::of(&timed, side.way);
    // What is drafted through the first layers is accepted as first drafts are.
    let acceptance = match side.way {
        Way::FirstLayers => &measured.acceptance[..1],
        Way::Continued | Way::Recurrent => &measured.acceptance[..],
    };
    let plain = costs.verify(0);
    let (read, sum) = (measurement.step_bytes as f64 / plain, median(&measured.reads));
    let ladder: Vec<String> =
        LADDER.iter().map(|&drafts| format!("{:.2} of {}", costs.verify(drafts) / plain, drafts + 1)).collect();
    let best = costs.best_drafts(acceptance, MAX_DRAFT);
    let (way, steps) = match side.way {
        Way::FirstLayers => {
            ("Every draft through the first layers", format!("a draft step takes {:.3}", costs.drafts.first / plain))
        }
        Way::Continued | Way::Recurrent => (
            "Drafts by the recurrent block alone",
            format!(
                "a round's first draft step takes {:.3}, a later one {:.3}",
                costs.drafts.first / plain,
                costs.drafts.later / plain
            ),
        ),
    };
    let by_bytes = match side.by_bytes {
        costs if costs.first == costs.later => format!("{:.3}", costs.first),
        costs => format!("{:.3} and {:.3}", costs.first, costs.later),
    };
    let rows = [&measured.off].into_iter().chain(&side.contenders);
    let rows: String = rows.map(|contender| row(measured, side, contender, &costs, acceptance)).collect();
    format!(
        "{way}:\n\n\
         - A plain step takes {:.1} ms: {:.2} GB/s, {:.0} % of {} ({:.2} GB/s).\n\
         - In plain steps, {steps} ({by_bytes} by bytes), a verification by its rows {}.\n\
         - Best fixed length at these costs and i.i.d. acceptance: {best}, {:.2}x.\n\n\
         | controller | tokens/s (range) | speed-up (range) | predicted | measured / predicted | by bytes | i.i.d. | tokens a round \
         | drafts a round | accepted of tested | outside passes |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n{rows}\n",
        plain * 1e3,
        read * 1e-9,
        read / sum * 100.0,
        measurement.yardstick,
        sum * 1e-9,
        ladder.join(", "),
        costs.speed_up(acceptance, best),
    )
}

fn row(measured: &Measured, side: &Side, contender: &Contender, costs: &Costs, acceptance: &[f64]) -> String {
    let off = &measured.off;
    let ratios: Vec<f64> = std::iter::zip(contender.speeds(), off.speeds()).map(|(speed, off)| speed / off).collect();
    let speeds: Vec<f64> = contender.speeds().collect();
    let [(slowest, fastest), (low, high)] = [range(&speeds), range(&ratios)];
    let speed_up = median(&ratios);
    let predicted = speed(contender, |drafts| costs.round(drafts)) / speed(off, |drafts| costs.round(drafts));
    let by_bytes = speed(contender, |drafts| 1.0 + side.by_bytes.sum(drafts));
    let iid = fixed_length(&contender.name)
        .map_or_else(|| "–".to_owned(), |drafts| format!("{:.2}x", costs.speed_up(acceptance, drafts)));
    let accepted = match contender.tested {
        (0, _) => "–".to_owned(),
        (tested, accepted) => format!("{:.2}", accepted as f64 / tested as f64),
    };
    let rounds = contender.rounds.len() as f64;
    let drafts: usize = contender.rounds.iter().map(|round| round.drafts).sum();
    format!(
        "| {} | {:.2} ({slowest:.2}–{fastest:.2}) | {speed_up:.2}x ({low:.2}–{high:.2}) | {predicted:.2}x | {:.2} | {by_bytes:.2}x \
         | {iid} | {:.2} | {:.2} | {accepted} | {:.2} % |\n",
        contender.name,
        median(&speeds),
        speed_up / predicted,
        contender.tokens() as f64 / rounds,
        drafts as f64 / rounds,
        contender.overhead() * 100.0,
    )
}

/// The least and the greatest value.
fn range(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::MAX, f64::MIN), |(low, high), &value| (low.min(value), high.max(value)))
}

/// Shares, one after the other.
fn list(shares: &[f64]) -> String {
    shares.iter().map(|share| format!("{share:.2}")).collect::<Vec<_>>().join(", ")
}

/// Tokens in the time that rounds cost by their drafts, for the rounds played.
fn speed(contender: &Contender, round: impl Fn(usize) -> f64) -> f64 {
    contender.tokens() as f64 / contender.rounds.iter().map(|played| round(played.drafts)).sum::<f64>()
}

/// Drafts of every round, where that is a constant.
fn fixed_length(controller: &str) -> Option<usize> {
    match controller {
        "off" => Some(0),
        _ => controller.strip_prefix("fixed:")?.parse().ok(),
    }
}
