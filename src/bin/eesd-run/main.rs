//! `eesd-run`: text from a language model by early-exit speculative decoding, and the proofs,
//! measurements and reports that go with it.
//!
//! Flags are parsed ([`args`]), then decided together with what the model folder says
//! ([`settings`]), then one file per subcommand does the work. Text goes to standard output and
//! nothing else does; everything for people goes to standard error ([`report`]).

mod args;
mod batch;
mod bench;
mod chart;
mod chat;
mod completions;
mod constraint;
mod distill;
mod doctor;
mod drafting;
mod failure;
mod files;
mod generate;
mod http;
mod inspect;
mod interrupt;
mod loop_probe;
mod machine;
mod monitor;
mod openai;
mod output;
mod perplexity;
mod progress;
mod prompts;
mod quantize;
mod report;
mod serve;
mod settings;
mod show_prompt;
mod stderr;
mod tokens;
mod verify;

use args::Command;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match args::parse() {
        Ok(cli) => cli,
        Err(exit) => return exit,
    };
    let done = match cli.command {
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Serve(args) => serve::run(*args),
        Command::Bench(args) => bench::run(args),
        Command::Distill(args) => distill::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Perplexity(args) => perplexity::run(args),
        Command::Quantize(args) => quantize::run(args),
        Command::Tokenize(args) => tokens::tokenize(args),
        Command::Detokenize(args) => tokens::detokenize(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Completions(args) => completions::run(args),
        Command::LoopProbe(args) => loop_probe::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.exit(),
    }
}
