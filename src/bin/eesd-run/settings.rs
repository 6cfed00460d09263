//! From flags to decisions: which model, exit block, controller and sampling.
//!
//! A flag goes before what the model folder says, and that before the built-in default. Nothing
//! the user asked for is dropped in silence: it works, or it is an error, or a note says why it
//! changes nothing.

use crate::args::{ModelArgs, SamplingArgs, TemplateArgs, Verification};
use crate::batch::bad_word;
use crate::failure::{Failure, Outcome};
use crate::report::Reporter;
use eesd::backend::Backend;
use eesd::constrain::Grammars;
use eesd::control::ControllerSpec;
use eesd::engine::settings::MAX_TOKENS;
use eesd::engine::{Engine, EngineOptions, Request};
use eesd::load::{Chat, ChatTemplate, Checkpoint, Message, Prompt, PromptEncoder, Tokenizer};
use eesd::model::{ModelWeights, Quantised, Scheme};
use eesd::sample::{SamplingParams, VerifyMode};
use serde_json::{Map, Value};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// For engines that are measured or checked: every prompt is read, though another began alike.
pub const EVERY_PROMPT: EngineOptions = EngineOptions { token_budget: 512, reuse_prefixes: false };

/// An opened model and where it came from.
pub struct Model {
    /// The model.
    pub checkpoint: Checkpoint,
    /// Its folder, or its file; `None`: the one in the binary.
    path: Option<PathBuf>,
    /// The folder with its file or files; `None`: the one in the binary.
    pub folder: Option<PathBuf>,
    /// A chat template in place of its own.
    template: Option<ChatTemplate>,
    /// Values for the chat template.
    arguments: Map<String, Value>,
    /// How its matrices are quantised before they are used.
    pub scheme: Option<Scheme>,
    /// The matrices, once somebody has asked for them.
    quantised: OnceLock<Quantised>,
    /// What compiles grammars for its answers.
    pub grammars: Grammars,
}

impl Model {
    /// Opens the folder or file, or the model in the binary.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(args: &ModelArgs, reporter: Reporter) -> Outcome<Self> {
        let path = args.model.clone();
        let checkpoint = reporter.wait("opening the model", || match &path {
            Some(path) => Checkpoint::open(path),
            None => Checkpoint::bundled(),
        })?;
        let folder = path.as_ref().map(|path| match path.parent() {
            Some(parent) if path.is_file() => {
                if parent == Path::new("") {
                    ".".into()
                } else {
                    parent.to_owned()
                }
            }
            _ => path.clone(),
        });
        checkpoint.notes().iter().for_each(|note| reporter.note(note));
        let scheme = args.quantize.map(Scheme::from);
        let (arguments, quantised) = (Map::new(), OnceLock::new());
        let grammars = Grammars::new(checkpoint.tokenizer().cloned(), checkpoint.geometry().vocab_size);
        Ok(Self { checkpoint, path, folder, template: None, arguments, scheme, quantised, grammars })
    }

    /// The weights, quantised as the flags say, which the first call takes its time for.
    ///
    /// # Errors
    /// If they cannot be quantised.
    pub fn weights(&self, reporter: Reporter) -> Outcome<ModelWeights<'_>> {
        let own = self.checkpoint.weights();
        let Some(scheme) = self.scheme else { return Ok(own) };
        if let Some(quantised) = self.quantised.get() {
            return Ok(quantised.weights(&own));
        }
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let made = reporter.wait("quantising the weights", || Quantised::of(&own, scheme, threads));
        let made = made.map_err(|error| Failure::failed(format!("--quantize {scheme}: {}: {error}", self.place())))?;
        if made.kept() > 0 {
            let why = "quantised already, or rows of no whole blocks of 32";
            reporter.note(&format!("--quantize {scheme}: {} matrices stay as they are ({why})", made.kept()));
        }
        Ok(self.quantised.get_or_init(|| made).weights(&own))
    }

    /// Bytes of the weights as they are used.
    pub fn bytes(&self) -> u64 {
        let saved = self.quantised.get().map_or(0, |quantised| quantised.saved(&self.checkpoint.weights()));
        self.checkpoint.bytes() - saved
    }

    /// Tells this model from others, and from itself with other numbers: see [`Checkpoint::fingerprint`].
    pub fn fingerprint(&self) -> String {
        let own = self.checkpoint.fingerprint();
        self.scheme.map_or_else(|| own.to_owned(), |scheme| format!("{own}-{scheme}"))
    }

    /// Says that text and tokens are the same however a model is quantised.
    pub fn note_idle_quantize(&self, reporter: Reporter) {
        if let Some(scheme) = self.scheme {
            reporter.note(&format!("--quantize {scheme} changes nothing where no weights are used"));
        }
    }

    /// With the chat template and its values as the flags say.
    ///
    /// # Errors
    /// What is wrong with the file of the template.
    pub fn with_template(mut self, args: &TemplateArgs) -> Outcome<Self> {
        if let Some(path) = &args.chat_template {
            if !path.exists() {
                return Err(Failure::failed(format!("--chat-template: {} does not exist", path.display())));
            }
            self.template = Some(self.checkpoint.chat_template_from(path)?);
        }
        self.arguments = args.template_args.iter().cloned().collect();
        Ok(self)
    }

    /// Says that what the flags give a chat template is of no use: text is continued as it is.
    pub fn note_idle_template(&self, args: &TemplateArgs, expected: &str, reporter: Reporter) {
        let given =
            [("--chat-template", args.chat_template.is_some()), ("--template-arg", !args.template_args.is_empty())];
        for (flag, _) in given.iter().filter(|(_, given)| *given) {
            reporter.note(&format!("{flag} changes nothing where text is continued as it is: {expected}"));
        }
    }

    /// What makes tokens of prompts.
    pub fn encoder(&self) -> PromptEncoder<'_> {
        PromptEncoder {
            tokenizer: self.checkpoint.tokenizer().map(Arc::as_ref),
            template: self.chat_template(),
            arguments: self.arguments.clone(),
        }
    }

    /// A text to continue; with a system message it is put as a user's message.
    pub fn prompt(&self, text: String, system: Option<&str>) -> Prompt {
        match system {
            None => Prompt::Text(text),
            Some(system) => {
                Prompt::Chat(Box::new(Chat::new([Message::new("system", system), Message::new("user", text)])))
            }
        }
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

    /// The chat template, or why there is none.
    pub fn chat_template(&self) -> Result<&ChatTemplate, String> {
        if let Some(template) = &self.template {
            return Ok(template);
        }
        let template = self.checkpoint.chat_template().map_err(|broken| {
            format!("{broken} (--chat-template FILE takes another template; `eesd-run generate -p TEXT` needs none)")
        })?;
        template.ok_or_else(|| {
            format!(
                "{} has no chat template (looked for chat_template.jinja, additional_chat_templates/default.jinja, \
                 chat_template.json, and the key chat_template of tokenizer_config.json, or tokenizer.chat_template of a GGUF \
                 file): give one with --chat-template FILE, \
                 or continue text with `eesd-run generate -p TEXT`",
                self.place()
            )
        })
    }

    /// The folder or file, or the bundled model's name, for messages.
    pub fn place(&self) -> String {
        self.path.as_deref().map_or_else(|| self.checkpoint.name().to_owned(), |path| path.display().to_string())
    }

    /// An engine over `backend`.
    pub fn engine(&self, backend: Box<dyn Backend>, controller: &ControllerSpec) -> Engine {
        let end_tokens = self.checkpoint.generation().end_tokens.clone();
        Engine::new(backend, controller.build(), self.checkpoint.tokenizer().cloned(), end_tokens)
    }
}

/// Sampling: flags, then `generation_config.json`, then greedy.
///
/// # Errors
/// If a word cannot be turned into tokens.
pub fn sampling(args: &SamplingArgs, model: &Model, reporter: Reporter) -> Outcome<SamplingParams> {
    let defaults = model.checkpoint.generation();
    let of_model = defaults.sampling();
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
    if let (Some(seed), Some(Verification::Rejection)) = (args.seed, args.verify)
        && temperature > 0.0
    {
        reporter.note(&format!(
            "--seed {seed} does not repeat a text with --verify rejection, which draws by how long drafts are, and their \
             lengths follow the clock: --verify coupled does"
        ));
    }
    let tokenizer = model.checkpoint.tokenizer().map(Arc::as_ref);
    let words = args.bad_word.iter().map(|word| bad_word(word, tokenizer).map_err(Failure::failed));
    let words: Vec<_> = words.collect::<Outcome<_>>()?;
    Ok(SamplingParams {
        temperature,
        top_k: args.top_k.unwrap_or(of_model.top_k),
        top_p: args.top_p.unwrap_or(of_model.top_p),
        min_p: args.min_p.unwrap_or(of_model.min_p),
        repetition_penalty: args.repeat_penalty.unwrap_or(of_model.repetition_penalty),
        presence_penalty: args.presence_penalty.unwrap_or(of_model.presence_penalty),
        frequency_penalty: args.frequency_penalty.unwrap_or(of_model.frequency_penalty),
        logit_bias: args.logit_bias.clone(),
        suppress_tokens: or(&args.suppress_token, &of_model.suppress_tokens),
        bad_words: or(&words.concat(), &of_model.bad_words),
        seed: args.seed,
        verify: args.verify.map(VerifyMode::from),
        logprobs: args.logprobs,
    })
}

/// A request with everything but its prompt as the flags say, and where they do not, the model's folder.
pub fn request(max_tokens: Option<usize>, sampling: SamplingParams, args: &SamplingArgs, model: &Model) -> Request {
    let defaults = model.checkpoint.generation();
    let max_tokens = max_tokens.or(defaults.max_new_tokens).unwrap_or(MAX_TOKENS);
    // Text that ends an answer can be met only where there is text.
    let stops = if model.checkpoint.tokenizer().is_some() { defaults.stop_strings.as_slice() } else { &[] };
    Request {
        sampling,
        // The model's wish gives way where the user wants fewer tokens.
        min_tokens: args.min_tokens.unwrap_or(defaults.min_new_tokens.unwrap_or(0).min(max_tokens)),
        stop: or(&args.stop, stops),
        stop_token_ids: args.stop_token.clone(),
        ignore_end: args.ignore_eos,
        ..Request::new(Vec::new(), max_tokens)
    }
}

/// What the flags give, or where they give nothing, what the model's folder does.
fn or<T: Clone>(flags: &[T], model: &[T]) -> Vec<T> {
    if flags.is_empty() { model.to_vec() } else { flags.to_vec() }
}
