//! The functions of cuBLASLt, NVIDIA's library of matrix products, found by name when first needed.

use super::calls::Calls as Driver;
use crate::backend::BackendError;
use cudarc::cublaslt::sys;
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

/// Releases of the library that are used, newest first: all of them have these functions, with these arguments.
const RELEASES: [u32; 2] = [13, 12];

/// Declares [`Calls`], as the driver's are declared: results are plain numbers, because a newer library may return
/// codes that the bindings' enum has not heard of, and the arguments are checked against the bindings when this is
/// compiled.
macro_rules! calls {
    ($($name:ident($($argument:ty),*);)*) => {
        /// The functions used of the library.
        #[allow(non_snake_case)]
        pub struct Calls {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> u32,)*
            cublasLtGetStatusName: unsafe extern "C" fn(u32) -> *const c_char,
        }

        $(const _: unsafe fn($($argument),*) -> sys::cublasStatus_t = sys::$name;)*

        impl Calls {
            /// Finds all of them in the library of that name.
            fn find(name: &str) -> Result<Self, String> {
                // SAFETY: initialisers of the library make its own tables, which any program may have made.
                let library = unsafe { Library::new(name) }.map_err(|error| error.to_string())?;
                // Never closed: functions stay good as long as the process.
                let library: &'static Library = Box::leak(Box::new(library));
                let lacks = |function: &str| format!("{name} has no {function}");
                Ok(Self {
                    $($name: {
                        type Function = unsafe extern "C" fn($($argument),*) -> u32;
                        // SAFETY: the bindings declare the function with these arguments (see above); its
                        // result is an `unsigned int` to C.
                        match unsafe { library.get::<Function>(concat!(stringify!($name), "\0").as_bytes()) } {
                            Ok(function) => *function,
                            Err(_) => return Err(lacks(stringify!($name))),
                        }
                    },)*
                    // SAFETY: takes an enum, an `unsigned int` to C, and returns a terminated string.
                    cublasLtGetStatusName: match unsafe { library.get(b"cublasLtGetStatusName\0") } {
                        Ok(function) => *function,
                        Err(_) => return Err(lacks("cublasLtGetStatusName")),
                    },
                })
            }
        }
    };
}

calls! {
    cublasLtCreate(*mut sys::cublasLtHandle_t);
    cublasLtDestroy(sys::cublasLtHandle_t);
    cublasLtMatmulDescCreate(*mut sys::cublasLtMatmulDesc_t, sys::cublasComputeType_t, sys::cudaDataType);
    cublasLtMatmulDescSetAttribute(sys::cublasLtMatmulDesc_t, sys::cublasLtMatmulDescAttributes_t, *const c_void, usize);
    cublasLtMatmulDescDestroy(sys::cublasLtMatmulDesc_t);
    cublasLtMatrixLayoutCreate(*mut sys::cublasLtMatrixLayout_t, sys::cudaDataType, u64, u64, i64);
    cublasLtMatrixLayoutDestroy(sys::cublasLtMatrixLayout_t);
    cublasLtMatmulPreferenceCreate(*mut sys::cublasLtMatmulPreference_t);
    cublasLtMatmulPreferenceSetAttribute(sys::cublasLtMatmulPreference_t, sys::cublasLtMatmulPreferenceAttributes_t, *const c_void, usize);
    cublasLtMatmulPreferenceDestroy(sys::cublasLtMatmulPreference_t);
    cublasLtMatmulAlgoGetHeuristic(sys::cublasLtHandle_t, sys::cublasLtMatmulDesc_t, sys::cublasLtMatrixLayout_t, sys::cublasLtMatrixLayout_t, sys::cublasLtMatrixLayout_t, sys::cublasLtMatrixLayout_t, sys::cublasLtMatmulPreference_t, c_int, *mut sys::cublasLtMatmulHeuristicResult_t, *mut c_int);
    cublasLtMatmul(sys::cublasLtHandle_t, sys::cublasLtMatmulDesc_t, *const c_void, *const c_void, sys::cublasLtMatrixLayout_t, *const c_void, sys::cublasLtMatrixLayout_t, *const c_void, *const c_void, sys::cublasLtMatrixLayout_t, *mut c_void, sys::cublasLtMatrixLayout_t, *const sys::cublasLtMatmulAlgo_t, *mut c_void, usize, sys::cudaStream_t);
}

/// No error.
const SUCCESS: u32 = sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS as u32;

/// The library, of a release that the driver is new enough for. What went wrong the first time is told every time.
///
/// # Errors
/// If there is none, with where it was looked for.
pub fn library(driver: &Driver) -> Result<&'static Calls, String> {
    static LIBRARY: OnceLock<Result<Calls, String>> = OnceLock::new();
    let found = LIBRARY.get_or_init(|| {
        let names = names(driver.version()?)?;
        let mut failures = Vec::new();
        for name in &names {
            match Calls::find(name) {
                Ok(calls) => return Ok(calls),
                Err(why) => failures.push(why),
            }
        }
        Err(missing(&names, &failures))
    });
    found.as_ref().map_err(String::clone)
}

/// What the library's file is called, the newest release first that a driver of this version runs.
fn names(driver: (u32, u32)) -> Result<Vec<String>, String> {
    let name = |release: &u32| match cfg!(windows) {
        true => format!("cublasLt64_{release}.dll"),
        false => format!("libcublasLt.so.{release}"),
    };
    let names: Vec<String> = RELEASES.iter().filter(|&&release| release <= driver.0).map(name).collect();
    let ((major, minor), least) = (driver, RELEASES[RELEASES.len() - 1]);
    let too_old = || format!("cuBLASLt {least} needs a driver of CUDA {least}.0; this one knows CUDA {major}.{minor}");
    if names.is_empty() { Err(too_old()) } else { Ok(names) }
}

fn missing(names: &[String], failures: &[String]) -> String {
    format!(
        "no cuBLASLt: install NVIDIA's cuBLAS ({}), or put its folder into LD_LIBRARY_PATH ({})",
        names.join(" or "),
        failures.join("; ")
    )
}

impl Calls {
    /// Turns what a function returned into a result. `what` failed, for people.
    pub fn checked(&self, code: u32, what: impl FnOnce() -> String) -> Result<(), BackendError> {
        if code == SUCCESS {
            return Ok(());
        }
        // SAFETY: takes any number; returns null or a terminated string of the library, which is never closed.
        let name = unsafe {
            let name = (self.cublasLtGetStatusName)(code);
            if name.is_null() { None } else { Some(CStr::from_ptr(name).to_string_lossy().into_owned()) }
        };
        let name = name.unwrap_or_else(|| "an unknown status".into());
        Err(BackendError::Device(format!("{}: cuBLASLt says {name} ({code})", what())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_releases_that_the_driver_runs_are_looked_for() {
        let found = |driver| names(driver).map(|names| names.len());
        assert_eq!((found((13, 0)), found((14, 2)), found((12, 4))), (Ok(2), Ok(2), Ok(1)));
        assert!(names((12, 4)).unwrap()[0].contains("12"));
        let told = names((11, 8)).unwrap_err();
        assert!(told.contains("CUDA 12.0") && told.contains("CUDA 11.8"), "{told}");
    }

    #[test]
    fn a_missing_library_is_named_with_what_to_do() {
        let names = names((13, 0)).unwrap();
        let told = missing(&names, &["not here".into(), "nor here".into()]);
        for part in [&names[0], &names[1], "LD_LIBRARY_PATH", "not here; nor here"] {
            assert!(told.contains(part), "{told}");
        }
    }
}
