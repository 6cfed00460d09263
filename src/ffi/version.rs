//! Which interface this is, and which library.

use std::ffi::c_char;

/// The interface that this header describes. A host compares it with eesd_abi_version() of the library that it runs with:
/// where they are equal, structures and functions are the header's.
pub const EESD_ABI_VERSION: u32 = 2;

/// The interface of this library.
#[unsafe(no_mangle)]
pub extern "C" fn eesd_abi_version() -> u32 {
    EESD_ABI_VERSION
}

/// The version of this library, as in "0.1.0". Never NULL; a constant.
#[unsafe(no_mangle)]
pub extern "C" fn eesd_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}
