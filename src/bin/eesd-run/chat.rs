//! `eesd-run chat`: a conversation in the model's own chat format.

use crate::args::ChatArgs;
use crate::drafting::Drafting;
use crate::failure::{Failure, Outcome};
use crate::generate;
use crate::interrupt;
use crate::machine::Machine;
use crate::output::Output;
use crate::report::Reporter;
use crate::settings::{self, Model};
use crate::stderr::say;
use eesd::backend::Limits;
use eesd::engine::{Engine, Finish, Request, Stats};
use eesd::kv::PAGE_TOKENS;
use eesd::load::{Chat, Message, Prompt, PromptEncoder};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use std::io::{IsTerminal, Write};

const HINT: &str =
    "/clear forgets the conversation, /stats shows statistics, /exit or Ctrl-D quits, Ctrl-C stops an answer";

/// Reads, answers, and so on.
pub fn run(args: ChatArgs) -> Outcome {
    let reporter = Reporter::new(args.quiet);
    let model = Model::open(&args.model, reporter)?.with_template(&args.template)?;
    let reporter = reporter.with_quantised(model.scheme);
    let encoder = model.encoder();
    if let Err(why) = &encoder.template {
        return Err(Failure::failed(format!("chat: {why}")));
    }
    model.tokenizer()?;
    let drafting = Drafting::new(&args.draft, &model, true, reporter)?;
    let machine =
        Machine::new(&args.machine, args.prefill.prefill.into(), &model, 1, args.draft.by.draft_max, reporter)?;
    let backend = machine.backend(&model, drafting.exit.as_ref(), reporter)?;
    let engine = drafting.engine(&model, backend);
    let sampling = settings::sampling(&args.sampling, &model, reporter)?;
    if sampling.logprobs.is_some() {
        return Err(Failure::usage("--logprobs has nowhere to go in a chat: use `generate --json`"));
    }
    let request = settings::request(Some(usize::MAX), sampling, &args.sampling, &model);
    interrupt::listen();
    reporter.note(&format!("{}, {}. {HINT}", model.checkpoint.name(), drafting.describe()));

    let system = args.system.iter().map(|text| Message::new("system", text)).collect();
    let mut chat = Conversation {
        engine,
        encoder,
        request,
        max_tokens: args.max_tokens.or(model.checkpoint.generation().max_new_tokens),
        opening: system,
        turns: Vec::new(),
        sum: Stats::default(),
        colour: generate::colour(args.show_drafts, args.color),
        reporter,
        output: Output::stdout(),
    };
    let mut lines = Input::open()?;
    while let Some(line) = lines.next()? {
        match line.trim() {
            "" => {}
            "/exit" | "/quit" => break,
            "/clear" => {
                chat.turns.clear();
                reporter.note("the conversation is forgotten");
            }
            "/stats" => reporter.statistics(&chat.sum),
            // `//x` is the way to say `/x` where that is a command.
            text => chat.answer(text.strip_prefix('/').filter(|rest| rest.starts_with('/')).unwrap_or(text))?,
        }
    }
    Ok(())
}

struct Conversation<'a> {
    engine: Engine,
    encoder: PromptEncoder<'a>,
    /// Everything but the prompt and its length.
    request: Request,
    max_tokens: Option<usize>,
    /// The system message, where there is one.
    opening: Vec<Message>,
    turns: Vec<Message>,
    sum: Stats,
    colour: bool,
    reporter: Reporter,
    output: Output,
}

impl Conversation<'_> {
    /// Answers one message. A message without an answer is taken back, so that the roles alternate.
    fn answer(&mut self, text: &str) -> Outcome {
        self.turns.push(Message::new("user", text));
        let messages: Vec<Message> = self.opening.iter().chain(&self.turns).cloned().collect();
        let prompt = match self.encoder.encode(&Prompt::Chat(Box::new(Chat::new(messages)))) {
            Ok(prompt) => prompt,
            Err(error) => {
                self.turns.pop();
                say(&format!("error: {}", Failure::from(error).message()));
                return Ok(());
            }
        };
        let Limits { context, pages, .. } = self.engine.backend().limits();
        let cached = pages * PAGE_TOKENS;
        let (place, most, flag) =
            if cached < context { ("KV cache", cached, "--cache-tokens") } else { ("context", context, "--ctx-size") };
        let longer = format!("/clear starts anew, {flag} N makes it longer");
        let room = most.saturating_sub(prompt.len());
        if room == 0 {
            self.turns.pop();
            let len = prompt.len();
            say(&format!("error: the conversation has {len} tokens, but the {place} holds {most}: {longer}"));
            return Ok(());
        }
        let max_tokens = self.max_tokens.unwrap_or(room).min(room);
        let min_tokens = self.request.min_tokens.min(max_tokens);
        let request = Request { prompt, max_tokens, min_tokens, ..self.request.clone() };
        interrupt::forget();
        let ended = generate::stream(&mut self.engine, &request, &mut self.output, self.colour)?;
        self.output.text("\n")?;
        interrupt::forget();
        let completion = match ended {
            Ok(completion) => completion,
            Err(error) => {
                self.turns.pop();
                say(&format!("error: {}", Failure::from(error).message()));
                return Ok(());
            }
        };
        if completion.finish == Finish::Context || max_tokens == room && completion.finish == Finish::Length {
            self.reporter.note(&format!("the {place} is full: {longer}"));
        }
        self.sum.add(&completion.stats);
        self.reporter.statistics(&completion.stats);
        self.turns.push(Message::new("assistant", completion.text.trim_start()));
        Ok(())
    }
}

/// Where the user's lines come from.
enum Input {
    /// A terminal, with line editing and history.
    Editor(Box<DefaultEditor>),
    /// A pipe or a file at either end.
    Plain,
}

impl Input {
    fn open() -> Outcome<Self> {
        // The editor writes its prompt to standard output, where nothing but answers belongs in a pipe.
        if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
            Ok(Input::Editor(Box::new(DefaultEditor::new()?)))
        } else {
            Ok(Input::Plain)
        }
    }

    /// The next line; `None` at the end.
    fn next(&mut self) -> Outcome<Option<String>> {
        match self {
            Input::Editor(editor) => loop {
                std::io::stderr().flush()?;
                match editor.readline("> ") {
                    Ok(line) => {
                        editor.add_history_entry(&line)?;
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => say(HINT),
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error.into()),
                }
            },
            Input::Plain => {
                let mut line = String::new();
                match std::io::stdin().read_line(&mut line) {
                    Ok(0) => Ok(None),
                    Ok(_) => Ok(Some(line)),
                    Err(error) => Err(Failure::failed(format!("standard input: could not be read: {error}"))),
                }
            }
        }
    }
}
