//! The C interface, `include/eesd.h`: models, sessions, requests and events behind handles and status codes.
//!
//! - `status` is what calls return, and where panics end; `handle` knows what is alive; `argument` reads what hosts pass.
//! - `model` opens models, `text` turns text into tokens and back; `device` says what the machine has; `log` what else there is
//!   to say.
//! - `session_params` and `drafting` decide how a session runs, and `session` makes it: an engine on a thread of its own,
//!   `worker`, with `places` for so many requests.
//! - `request` is what hosts fill in and `request_reading` what it comes to, `generate` runs requests by callback or by events,
//!   through `mailbox`; `answer` and `snapshot` are what comes out, and `source` is who drafted it.
//!
//! The header is made from these files by `cbindgen` (`cargo test --test header`): the comments here are its comments, so
//! they name things as C does. Every entry checks what can be checked and lets no panic pass.
//!
//! Called from Rust, for once:
//!
//! ```
//! use eesd::ffi::*;
//! use std::ptr::null_mut;
//!
//! let mut params = std::mem::MaybeUninit::<ModelParams>::uninit();
//! let mut model = null_mut();
//! // SAFETY: structures of the sizes that they say, and handles of this library.
//! unsafe {
//!     eesd_model_params_default(params.as_mut_ptr(), size_of::<ModelParams>());
//!     let status = eesd_model_load(params.as_ptr(), &mut model);
//!     assert_eq!(status, Status::Ok);
//!     eesd_model_free(model);
//!     assert_eq!(eesd_live_handles(), 0);
//! }
//! ```

mod answer;
mod argument;
mod device;
mod drafting;
mod exit_choice;
mod generate;
mod handle;
mod log;
mod mailbox;
mod model;
mod places;
mod request;
mod request_reading;
mod session;
mod session_params;
mod snapshot;
mod source;
mod status;
mod text;
mod version;
mod worker;

pub use answer::{Completion, Finish, Logprob, Stats, Token, TokenLogprobs, eesd_finish_name};
pub use argument::Text;
pub use device::{DeviceInfo, eesd_cuda_device_count, eesd_device_get_info};
pub use exit_choice::{EESD_EXIT_DEFAULT, EESD_EXIT_NONE};
pub use generate::{
    Event, EventKind, TokenCallback, eesd_cancel, eesd_generate, eesd_next_event, eesd_submit, eesd_submit_n,
};
pub use handle::eesd_live_handles;
pub use log::{LogCallback, LogLevel, eesd_set_log_callback};
pub use model::{
    Model, ModelInfo, ModelParams, eesd_model_free, eesd_model_get_info, eesd_model_load, eesd_model_params_default,
};
pub use request::{LogitBias, Request, Tokens, Verify, eesd_request_default};
pub use session::{
    Session, SessionInfo, eesd_session_create, eesd_session_free, eesd_session_get_info, eesd_session_write_draft_index,
};
pub use session_params::{SessionParams, eesd_session_params_default};
pub use snapshot::{Snapshot, Totals, eesd_session_get_snapshot};
pub use source::{EESD_SOURCES, Source, SourceStats, eesd_source_name};
pub use status::{Status, eesd_last_error, eesd_status_name};
pub use text::{
    ChatMessage, eesd_apply_chat_template, eesd_apply_chat_template_json, eesd_detokenize, eesd_token_spelling,
    eesd_tokenize,
};
pub use version::{EESD_ABI_VERSION, eesd_abi_version, eesd_version};

#[cfg(test)]
mod tests;
