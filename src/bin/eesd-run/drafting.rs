//! Who drafts: the exit block, by which controller, and the other sources.

use crate::args::{DraftArgs, Drafters, ExitChoice};
use crate::failure::{Failure, Outcome};
use crate::report::Reporter;
use crate::settings::Model;
use eesd::TokenId;
use eesd::backend::Backend;
use eesd::control::ControllerSpec;
use eesd::draft::{Source, Sources};
use eesd::engine::Engine;
use eesd::load::{BUNDLED_EXIT, ExitBlock};
use eesd::replace::Replacement;
use std::path::{Path, PathBuf};

/// Who drafts, and how far.
pub struct Drafting {
    /// The exit block, if it drafts.
    pub exit: Option<ExitBlock>,
    /// How far the exit block does.
    pub controller: ControllerSpec,
    /// All sources.
    pub sources: Sources,
    /// Texts of earlier runs, and the file that they are kept in.
    index: Option<(PathBuf, Vec<TokenId>)>,
}

impl Drafting {
    /// Nobody drafts.
    const OFF: Self = Self { exit: None, controller: ControllerSpec::Off, sources: Sources::OFF, index: None };

    /// As the flags say. Where they leave it open texts are shared if they are `all_of_one` owner.
    ///
    /// # Errors
    /// If the exit block is missing or does not fit, or a controller is asked for that has none to draft with.
    pub fn new(args: &DraftArgs, model: &Model, all_of_one: bool, reporter: Reporter) -> Outcome<Self> {
        let plain = args.controller == Some(ControllerSpec::Off);
        if plain || args.by.draft == Drafters::Only(Sources::OFF) {
            let why = if plain { "--controller off" } else { "--draft off" };
            let idle = [
                ("--exit", args.by.exit.is_some()),
                ("--controller", !plain && args.controller.is_some()),
                ("--draft-index", args.draft_index.is_some()),
                ("--draft", plain && args.by.draft != Drafters::Auto && args.by.draft != Drafters::Only(Sources::OFF)),
            ];
            for (flag, _) in idle.iter().filter(|(_, given)| *given) {
                reporter.note(&format!("{flag} changes nothing with {why}: decoding plainly"));
            }
            return Ok(Self::OFF);
        }
        let sources = match args.by.draft {
            Drafters::Auto => Sources::ALL.with(Source::Shared, all_of_one || args.draft_index.is_some()),
            Drafters::Only(sources) => sources,
        };
        if args.draft_index.is_some() && !sources.has(Source::Shared) {
            return Err(Failure::usage(format!("--draft-index is for --draft shared, not for --draft {sources}")));
        }
        let index = match &args.draft_index {
            Some(path) => Some((path.clone(), texts(path, model)?)),
            None => None,
        };
        let asked = args.by.exit.is_some() || args.controller.is_some();
        if !sources.has(Source::Exit) && asked {
            return Err(Failure::usage(format!(
                "--exit and --controller are for --draft exit, not for --draft {sources}"
            )));
        }
        if args.by.no_exit || !sources.has(Source::Exit) {
            return Ok(Self { sources: sources.with(Source::Exit, false), index, ..Self::OFF });
        }
        let Some(exit) = model.exit_block(args.by.exit.as_ref(), reporter)? else {
            return Ok(Self { index, ..Self::without_block(args, model, sources, reporter)? });
        };
        let controller = args.controller.clone().unwrap_or_default();
        if let ControllerSpec::Fixed(k) = controller
            && k > args.by.draft_max
        {
            reporter
                .note(&format!("--controller {controller}: at most {0} drafts, by --draft-max {0}", args.by.draft_max));
        }
        Ok(Self { exit: Some(exit), controller, sources, index })
    }

    /// Where there is no exit block.
    fn without_block(args: &DraftArgs, model: &Model, sources: Sources, reporter: Reporter) -> Outcome<Self> {
        let others = sources.with(Source::Exit, false);
        let flag = match &args.controller {
            Some(controller) => Some(format!("--controller {controller}")),
            None => (args.by.draft != Drafters::Auto).then(|| format!("--draft {sources}")),
        };
        if let Some(flag) = flag {
            return Err(Failure::failed(format!(
                "{flag}: {} has no exit-N.safetensors to draft with: give one with --exit FILE, leave the flag out, or \
                 decode plainly with --controller off",
                model.place()
            )));
        }
        reporter.note(&format!("{} has no exit-N.safetensors: drafting by {others}", model.place()));
        Ok(Self { sources: others, ..Self::OFF })
    }

    /// Who drafts, in words.
    pub fn describe(&self) -> String {
        match &self.exit {
            Some(_) => format!("drafts by {}, controller {}", self.sources, self.controller),
            None if self.sources.is_off() => "plain decoding".into(),
            None => format!("drafts by {}", self.sources),
        }
    }

    /// An engine of the model over `backend`, with all who draft.
    pub fn engine(&self, model: &Model, backend: Box<dyn Backend>) -> Engine {
        let kept = self.index.as_ref().map_or(&[][..], |(_, kept)| kept);
        model.engine(backend, &self.controller).with_proposers(self.sources.proposers_with(kept))
    }

    /// Leaves the texts for the next run.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn keep_texts(&self, model: &Model, engine: &Engine) -> Outcome {
        if let (Some((path, _)), Some(texts)) = (&self.index, engine.kept(Source::Shared)) {
            model.checkpoint.write_draft_index(path, &texts)?;
        }
        Ok(())
    }
}

/// The texts of an index that can be written again when the run is over: better to be told before it.
fn texts(path: &Path, model: &Model) -> Outcome<Vec<TokenId>> {
    let texts = model.checkpoint.read_draft_index(path)?;
    Replacement::of(path)
        .map_err(|error| Failure::failed(format!("--draft-index {}: cannot be written: {error}", path.display())))?;
    Ok(texts)
}

impl Model {
    /// The exit block asked for; by default the bundled model's best one, or of those in the folder the one that promises
    /// most.
    ///
    /// # Errors
    /// If it is missing or does not fit the model.
    pub fn exit_block(&self, choice: Option<&ExitChoice>, reporter: Reporter) -> Outcome<Option<ExitBlock>> {
        let block = self.choose_exit(choice, reporter)?;
        block.iter().flat_map(ExitBlock::notes).for_each(|note| reporter.note(note));
        Ok(block)
    }

    fn choose_exit(&self, choice: Option<&ExitChoice>, reporter: Reporter) -> Outcome<Option<ExitBlock>> {
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
        let Some(n) = layer else { return self.most_promising(blocks, reporter) };
        match blocks.iter().position(|block| block.after() == n) {
            Some(index) => Ok(Some(blocks.swap_remove(index))),
            None => {
                let there = blocks.iter().map(|block| block.after().to_string()).collect::<Vec<_>>().join(", ");
                Err(Failure::failed(format!("--exit {n}: {} has exit blocks {there}", self.place())))
            }
        }
    }

    fn most_promising(&self, mut blocks: Vec<ExitBlock>, reporter: Reporter) -> Outcome<Option<ExitBlock>> {
        if blocks.len() < 2 {
            return Ok(blocks.pop());
        }
        let weights = self.weights(reporter)?;
        let (count, best) = (blocks.len(), eesd::load::most_promising(&blocks, &weights));
        let best = best.map(|index| blocks.swap_remove(index));
        if let Some(block) = &best {
            let promise = block.promise(&weights);
            reporter.note(&format!(
                "exit-{}.safetensors drafts, which of {count} blocks promises most: {promise} (--exit N takes another, \
                 `eesd-run inspect` compares them)",
                block.after()
            ));
        }
        Ok(best)
    }

    fn open_exit(&self, path: &Path) -> Outcome<ExitBlock> {
        if !path.exists() {
            return Err(Failure::failed(format!("--exit: {} does not exist", path.display())));
        }
        Ok(self.checkpoint.open_exit(path)?)
    }
}
