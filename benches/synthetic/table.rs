//! What was measured with one construction, as Markdown.

use crate::contender::Contender;
use crate::costs::{Costs, median};
use crate::measure::{LADDER, MAX_DRAFT, Measured};

/// The table, under what one must know to read it.
pub fn markdown(measured: &Measured) -> String {
    let [contenders @ .., ladder] = &measured.contenders[..] else { return String::new() };
    let costs = Costs::of(&ladder.rounds);
    let rows: String = contenders.iter().map(|contender| row(measured, contender, &costs)).collect();
    introduction(measured, &costs)
        + "| controller | tokens/s (range) | speed-up (range) | predicted | measured / predicted | i.i.d. | tokens a round \
           | drafts a round | accepted of tested | outside passes |\n\
           |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
        + &rows
}

fn introduction(measured: &Measured, costs: &Costs) -> String {
    let Measured { model, yardstick, device, exit_layer, scale, acceptance, texts: (tokens, different), .. } = measured;
    let decoding = match measured.temperature {
        0.0 => "Greedy".to_owned(),
        temperature => format!("Coupled sampling at temperature {temperature}"),
    };
    let plain = costs.verify(0);
    let (read, sum) = (measured.step_bytes as f64 / plain, median(&measured.reads));
    let ladder = LADDER.map(|drafts| format!("{:.2} of {}", costs.verify(drafts) / plain, drafts + 1)).join(", ");
    let best = costs.best_drafts(*acceptance, MAX_DRAFT);
    format!(
        "### Synthetic weights, acceptance {acceptance:.2} by construction\n\n\
         Random model of {model}, exit layer {exit_layer}, ε = {scale:.4}; {device}. This measures the \
         engine and says nothing of a method's acceptance.\n\
         {decoding}: {tokens} tokens a turn, {different} of them different; every answer equal to `off`'s.\n\n\
         - A plain step takes {:.1} ms: {:.2} GB/s, {:.0} % of {yardstick} ({:.2} GB/s).\n\
         - In plain steps, a draft step takes {:.3}, a verification by its rows {ladder}.\n\
         - Best fixed length at these costs and i.i.d. acceptance: {best}, {:.2}x.\n\n",
        plain * 1e3,
        read * 1e-9,
        read / sum * 100.0,
        sum * 1e-9,
        costs.draft / plain,
        costs.speed_up(*acceptance, best),
    )
}

fn row(measured: &Measured, contender: &Contender, costs: &Costs) -> String {
    let off = &measured.contenders[0];
    let ratios: Vec<f64> = std::iter::zip(contender.speeds(), off.speeds()).map(|(speed, off)| speed / off).collect();
    let speeds: Vec<f64> = contender.speeds().collect();
    let [(slowest, fastest), (low, high)] = [range(&speeds), range(&ratios)];
    let speed_up = median(&ratios);
    let predicted = predicted_speed(contender, costs) / predicted_speed(off, costs);
    let iid = fixed_length(&contender.name)
        .map_or_else(|| "–".to_owned(), |drafts| format!("{:.2}x", costs.speed_up(measured.acceptance, drafts)));
    let acceptance = match contender.tested {
        (0, _) => "–".to_owned(),
        (tested, accepted) => format!("{:.2}", accepted as f64 / tested as f64),
    };
    let rounds = contender.rounds.len() as f64;
    let drafts: usize = contender.rounds.iter().map(|round| round.drafts).sum();
    format!(
        "| {} | {:.1} ({slowest:.1}–{fastest:.1}) | {speed_up:.2}x ({low:.2}–{high:.2}) | {predicted:.2}x | {:.2} | {iid} | {:.2} | {:.2} \
         | {acceptance} | {:.2} % |\n",
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

/// Tokens per second that the costs predict for the rounds played.
fn predicted_speed(contender: &Contender, costs: &Costs) -> f64 {
    contender.tokens() as f64 / contender.rounds.iter().map(|round| costs.round(round.drafts)).sum::<f64>()
}

/// Drafts of every round, where that is a constant.
fn fixed_length(controller: &str) -> Option<usize> {
    match controller {
        "off" => Some(0),
        _ => controller.strip_prefix("fixed:")?.parse().ok(),
    }
}
