//! Who drafts in a session, and how far.

use super::argument::{optional_string, within};
use super::log::{LogLevel, log};
use super::model::Model;
use super::session_params::SessionParams;
use super::status::{Failure, Outcome, Status};
use crate::TokenId;
use crate::control::ControllerSpec;
use crate::draft::{Source, Sources};
use crate::load::ExitBlock;
use std::path::Path;

/// Who drafts.
pub(super) struct Drafting {
    /// How far the exit block does.
    pub controller: ControllerSpec,
    /// All who do.
    pub sources: Sources,
    /// Texts of others that were kept of earlier sessions.
    pub kept: Vec<TokenId>,
    /// Most drafts in one round.
    pub draft_max: usize,
}

impl Drafting {
    /// As the parameters say, for a model with its exit block or without one.
    ///
    /// # Safety
    ///
    /// The parameters' texts end in zeros.
    pub unsafe fn of(model: &Model, params: &SessionParams) -> Outcome<Self> {
        // SAFETY: the same is asked of the caller.
        let controller = unsafe { optional_string(params.controller, "controller") }?;
        // SAFETY: the same.
        let draft = unsafe { optional_string(params.draft, "draft") }?;
        // SAFETY: the same.
        let index = unsafe { optional_string(params.draft_index, "draft_index") }?.map(Path::new);
        let (name, exit) = (model.checkpoint.name(), model.exit.as_ref());
        let spec = controller.map(ControllerSpec::parse).transpose()?;
        // Plain decoding is what "off" asks for; without an exit block it is only nobody's choice.
        let plain = spec == Some(ControllerSpec::Off);
        let controller = match (spec, exit) {
            (None, Some(_)) => ControllerSpec::default(),
            (None, None) => {
                log(LogLevel::Info, || format!("{name} has no exit block"));
                ControllerSpec::Off
            }
            (Some(controller), None) if !plain => return Err(no_exit(&format!("controller: {controller}"))),
            (Some(controller), _) => controller,
        };
        let asked = draft.map(str::parse::<Sources>).transpose()?;
        if asked.is_some_and(|sources| sources.has(Source::Exit)) && exit.is_none() {
            return Err(no_exit("draft: \"exit\""));
        }
        let sources = match asked {
            _ if plain => Sources::OFF,
            Some(sources) => sources,
            None => Sources::ALL.with(Source::Shared, index.is_some()).with(Source::Exit, exit.is_some()),
        };
        if index.is_some() && !sources.has(Source::Shared) {
            let found = format!("draft_index: the session drafts by {sources} (expected \"shared\" among its sources)");
            return Err(Failure::argument(found));
        }
        let kept = index.map(|index| model.checkpoint.read_draft_index(index)).transpose()?.unwrap_or_default();
        let draft_max = within(params.draft_max, 1, 1024, "draft_max")?;
        if let ControllerSpec::Fixed(k) = controller
            && k > draft_max
        {
            log(LogLevel::Warning, || format!("controller {controller}: at most {draft_max} drafts, by draft_max"));
        }
        Ok(Self { controller, sources, kept, draft_max })
    }

    /// The exit block of a model, if it drafts.
    pub fn exit<'m>(&self, model: &'m Model) -> Option<&'m ExitBlock> {
        let drafts = self.controller != ControllerSpec::Off && self.sources.has(Source::Exit);
        model.exit.as_ref().filter(|_| drafts)
    }

    /// Those who do, as eesd_session_params has it.
    pub fn in_words(&self, model: &Model) -> String {
        self.sources.with(Source::Exit, self.exit(model).is_some()).to_string()
    }
}

fn no_exit(found: &str) -> Failure {
    let found = format!("{found}, but the model was opened without an exit block to draft with");
    Failure::new(Status::Unsupported, found)
}
