//! From flags to decisions: which model, exit block, controller and sampling.
//!
//! A flag goes before what the model folder says, and that before the built-in default. Nothing
//! the user asked for is dropped in silence: it works, or it is an error, or a note says why it
//! changes nothing.

use crate::args::{DraftArgs, ExitChoice, ModelArgs, SamplingArgs};
use crate::failure::{Failure, Outcome};
use crate::report::Reporter;
use eesd::TokenId;
use eesd::backend::Backend;
use eesd::control::ControllerSpec;
use eesd::engine::{Engine, EngineOptions, Request};
use eesd::load::{BUNDLED_EXIT, ChatTemplate, Checkpoint, ExitBlock, GenerationDefaults, Tokenizer, json_error};
use eesd::sample::{SamplingParams, VerifyMode};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Prompts that the bundled model comes with, in builds without that model too: the default of
/// `bench` and `verify`.
const BUNDLED_PROMPTS: &str = include_str!("../../../models/pycode-4m/prompts.jsonl");

/// For engines that are measured or checked: every prompt is read, though another began alike.
pub const EVERY_PROMPT: EngineOptions = EngineOptions { token_budget: 512, reuse_prefixes: false };

/// An opened model and where it came from.
pub struct Model {
    /// The model.
    pub checkpoint: Checkpoint,
    /// Its folder; `None`: the one in the binary.
    pub folder: Option<PathBuf>,
}

impl Model {
    /// Opens the folder, or the model in the binary.
    ///
    /// # Errors
    /// What is wrong with the folder.
    pub fn open(args: &ModelArgs, reporter: Reporter) -> Outcome<Self> {
        let folder = args.model.clone();
        let checkpoint = reporter.wait("opening the model", || match &folder {
            Some(folder) => Checkpoint::open(folder),
            None => Checkpoint::bundled(),
        })?;
        checkpoint.notes().iter().for_each(|note| reporter.note(note));
        Ok(Self { checkpoint, folder })
    }

    /// The tokenizer, which every command that handles text needs.
    ///
    /// # Errors
    /// If the folder has none.
    pub fn tokenizer(&self) -> Outcome<Arc<Tokenizer>> {
        let missing =
            || Failure::failed(format!("{}: no tokenizer.json, which turning text into tokens needs", self.place()));
        self.checkpoint.tokenizer().cloned().ok_or_else(missing)
    }

    /// The chat template, which `what` needs.
    ///
    /// # Errors
    /// If the folder has none.
    pub fn chat_template(&self, what: &str) -> Outcome<&ChatTemplate> {
        self.checkpoint.chat_template().ok_or_else(|| {
            Failure::failed(format!(
                "{what}: {} has no chat template (looked for chat_template.jinja and for the key chat_template of \
                 tokenizer_config.json): it continues text, so use `eesd-run generate -p TEXT`",
                self.place()
            ))
        })
    }

    /// The folder, or the bundled model's name, for messages.
    pub fn place(&self) -> String {
        self.folder.as_deref().map_or_else(|| self.checkpoint.name().to_owned(), |folder| folder.display().to_string())
    }

    /// The exit block asked for; by default the bundled model's best one, or the only one there is.
    ///
    /// # Errors
    /// If it is missing or does not fit the model, or if there are several to choose from.
    pub fn exit_block(&self, choice: Option<&ExitChoice>) -> Outcome<Option<ExitBlock>> {
        let layer = match (choice, &self.folder) {
            (Some(ExitChoice::File(path)), _) => return self.open_exit(path).map(Some),
            (Some(ExitChoice::Layer(n)), Some(folder)) => {
                return self.open_exit(&folder.join(format!("exit-{n}.safetensors"))).map(Some);
            }
            (Some(ExitChoice::Layer(n)), None) => Some(*n),
            (None, Some(_)) => None,
            (None, None) => Some(BUNDLED_EXIT),
        };
        let mut blocks = self.checkpoint.exit_blocks()?;
        let there = blocks.iter().map(|block| block.after().to_string()).collect::<Vec<_>>().join(", ");
        match layer {
            Some(n) => match blocks.into_iter().find(|block| block.after() == n) {
                Some(block) => Ok(Some(block)),
                None => Err(Failure::failed(format!("--exit {n}: {} has exit blocks {there}", self.place()))),
            },
            None if blocks.len() > 1 => Err(Failure::failed(format!(
                "{}: several exit blocks, choose one: --exit N with N one of {there} (`eesd-run inspect` compares them), \
                 or --no-exit to decode plainly",
                self.place()
            ))),
            None => Ok(blocks.pop()),
        }
    }

    fn open_exit(&self, path: &Path) -> Outcome<ExitBlock> {
        if !path.exists() {
            return Err(Failure::failed(format!("--exit: {} does not exist", path.display())));
        }
        Ok(self.checkpoint.open_exit(path)?)
    }

    /// Exit block and controller of a generation.
    ///
    /// # Errors
    /// If a controller is asked for that has no exit block to draft with.
    pub fn drafting(&self, args: &DraftArgs, reporter: Reporter) -> Outcome<(Option<ExitBlock>, ControllerSpec)> {
        let off = args.no_exit || args.controller == Some(ControllerSpec::Off);
        if off {
            if args.exit.is_some() {
                reporter.note("--exit changes nothing with --controller off: decoding plainly");
            }
            return Ok((None, ControllerSpec::Off));
        }
        let exit = self.exit_block(args.exit.as_ref())?;
        match (&exit, &args.controller) {
            (Some(_), controller) => {
                let controller = controller.clone().unwrap_or_default();
                if let ControllerSpec::Fixed(k) = controller
                    && k > args.draft_max
                {
                    reporter.note(&format!(
                        "--controller {controller}: at most {0} drafts, by --draft-max {0}",
                        args.draft_max
                    ));
                }
                Ok((exit, controller))
            }
            (None, Some(controller)) => Err(Failure::failed(format!(
                "--controller {controller}: {} has no exit-N.safetensors to draft with: give one with --exit FILE, \
                 or decode plainly with --controller off",
                self.place()
            ))),
            (None, None) => {
                reporter.note(&format!("{} has no exit-N.safetensors: decoding plainly", self.place()));
                Ok((None, ControllerSpec::Off))
            }
        }
    }

    /// An engine over `backend`.
    pub fn engine(&self, backend: Box<dyn Backend>, controller: &ControllerSpec) -> Engine {
        let end_tokens = self.checkpoint.generation().end_tokens.clone();
        Engine::new(backend, controller.build(), self.checkpoint.tokenizer().cloned(), end_tokens)
    }
}

/// Sampling: flags, then `generation_config.json`, then greedy.
pub fn sampling(args: &SamplingArgs, model: &GenerationDefaults, reporter: Reporter) -> SamplingParams {
    let of_model = model.sampling();
    let temperature = args.temp.unwrap_or(of_model.temperature);
    if temperature == 0.0 {
        let idle = [
            ("--top-k", args.top_k.is_some()),
            ("--top-p", args.top_p.is_some()),
            ("--min-p", args.min_p.is_some()),
            ("--verify", args.verify.is_some()),
        ];
        for (flag, _) in idle.iter().filter(|(_, given)| *given) {
            reporter.note(&format!("{flag} changes nothing in greedy decoding: add --temp T"));
        }
    }
    SamplingParams {
        temperature,
        top_k: args.top_k.unwrap_or(of_model.top_k),
        top_p: args.top_p.unwrap_or(of_model.top_p),
        min_p: args.min_p.unwrap_or(of_model.min_p),
        repetition_penalty: args.repeat_penalty.unwrap_or(of_model.repetition_penalty),
        presence_penalty: args.presence_penalty.unwrap_or(of_model.presence_penalty),
        frequency_penalty: args.frequency_penalty.unwrap_or(of_model.frequency_penalty),
        logit_bias: args.logit_bias.clone(),
        seed: args.seed,
        verify: args.verify.map(VerifyMode::from),
        logprobs: args.logprobs,
    }
}

/// A request for `prompt` with everything else as the flags say.
pub fn request(prompt: Vec<TokenId>, max_tokens: usize, sampling: SamplingParams, args: &SamplingArgs) -> Request {
    Request { sampling, stop: args.stop.clone(), ignore_end: args.ignore_eos, ..Request::new(prompt, max_tokens) }
}

/// The tokens of each prompt of `bench` and `verify`.
///
/// # Errors
/// If a prompt cannot be encoded, or has no token for the model to start from.
pub fn encode(tokenizer: &Tokenizer, prompts: &[String]) -> Outcome<Vec<Vec<TokenId>>> {
    let encode = |(number, prompt): (usize, &String)| {
        let tokens = tokenizer.encode(prompt, true)?;
        if tokens.is_empty() { Err(Failure::failed(format!("prompt {number} is empty"))) } else { Ok(tokens) }
    };
    prompts.iter().enumerate().map(encode).collect()
}

/// The prompts of `bench` and `verify`: the file's, or the bundled model's own.
///
/// # Errors
/// If a line is not an object with a `prompt` text.
pub fn prompts(file: Option<&Path>) -> Outcome<Vec<String>> {
    let (name, text) = match file {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| Failure::file(path, "read", &e))?;
            (path.display().to_string(), text)
        }
        None => ("prompts.jsonl".into(), BUNDLED_PROMPTS.into()),
    };
    let mut prompts = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let object: serde_json::Value = serde_json::from_str(line)
            .map_err(|e| Failure::failed(format!("{name}:{}: not JSON: {}", number + 1, json_error(&e))))?;
        let prompt = object.get("prompt").and_then(|prompt| prompt.as_str());
        let missing = || Failure::failed(format!("{name}:{}: no key \"prompt\" with a text", number + 1));
        prompts.push(prompt.ok_or_else(missing)?.to_owned());
    }
    if prompts.is_empty() { Err(Failure::failed(format!("{name}: no prompts"))) } else { Ok(prompts) }
}
