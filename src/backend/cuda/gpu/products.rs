//! Products of matrices through cuBLASLt.
//!
//! The library thinks in columns: a row-major matrix `[rows, columns]` is to it a column-major one `[columns, rows]`
//! with the same stride. So it is asked for `cᵀ = op(b)ᵀ op(a)ᵀ`: its first operand is `b`, its second `a`, and each
//! is transposed where the product says so.

use super::cublaslt::Calls;
use super::device::Device;
use crate::backend::BackendError;
use crate::backend::cuda::matmul::{Matmul, Number, RowMajor};
use cudarc::cublaslt::sys;
use cudarc::driver::sys::CUstream;
use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::{addr_of, null_mut};
use std::sync::Arc;

/// What the library is given to work in: as much as NVIDIA advises for Hopper (cuBLAS, `cublasSetWorkspace`).
pub const WORKSPACE_BYTES: usize = 32 << 20;

/// The alignment that the library assumes where it is told nothing.
const MOST_ALIGNMENT: u32 = 256;

/// Plans kept at a time: enough for every length of a prompt's last piece, in every matrix of a layer.
const MOST_PLANS: usize = 8192;

/// The library on a device.
pub struct Products {
    device: Arc<Device>,
    calls: &'static Calls,
    handle: sys::cublasLtHandle_t,
    /// How each shape is multiplied. The library asks no measurement for it, so that the same shape is always
    /// multiplied the same way.
    plans: HashMap<Key, Plan>,
}

// SAFETY: the library's handles may be used from any thread, one at a time.
unsafe impl Send for Products {}

impl Products {
    /// # Errors
    /// If the library does not start. The context is current.
    pub fn new(device: &Arc<Device>, calls: &'static Calls) -> Result<Self, BackendError> {
        let mut handle = null_mut();
        // SAFETY: writes one handle; the context is current.
        calls.checked(unsafe { (calls.cublasLtCreate)(&mut handle) }, || "starting cuBLASLt".into())?;
        Ok(Self { device: device.clone(), calls, handle, plans: HashMap::new() })
    }

    /// Queues a product on a stream. The context is current.
    ///
    /// # Safety
    /// As [`Driver::matmul`](crate::backend::cuda::driver::Driver::matmul).
    pub unsafe fn multiply(&mut self, product: &Matmul, stream: CUstream) -> Result<(), BackendError> {
        product.check()?;
        let key = Key::of(product);
        if !self.plans.contains_key(&key) {
            if self.plans.len() >= MOST_PLANS {
                self.plans.clear();
            }
            self.plans.insert(key, Plan::new(self.calls, self.handle, product, &key)?);
        }
        let plan = &self.plans[&key];
        let [b, a, c] = plan.layouts.each_ref().map(|layout| layout.handle);
        let (of_a, of_b, of_c) = (product.a.at.0, product.b.at.0, product.c.at.0);
        // SAFETY: descriptors of this product, which are alive; alpha and beta are read before this returns; addresses
        // are the caller's promise. The library's stream is the driver's.
        let code = unsafe {
            (self.calls.cublasLtMatmul)(
                self.handle,
                plan.operation.handle,
                addr_of!(product.alpha).cast(),
                of_b as *const c_void,
                b,
                of_a as *const c_void,
                a,
                addr_of!(product.beta).cast(),
                of_c as *const c_void,
                c,
                of_c as *mut c_void,
                c,
                &plan.algorithm,
                product.workspace.0 as *mut c_void,
                WORKSPACE_BYTES,
                stream.cast(),
            )
        };
        self.calls.checked(code, || product.to_string())
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.plans.clear();
        // What is queued must be done. What fails now was told by whoever waited before.
        if self.device.wait().is_ok() {
            // SAFETY: made by `new`.
            unsafe { (self.calls.cublasLtDestroy)(self.handle) };
        }
    }
}

/// All that the library looks at when it chooses how to multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    shape: [usize; 3],
    transposed: [bool; 2],
    /// Of `b`, `a` and `c`.
    strides: [usize; 3],
    numbers: [Number; 3],
    alignments: [u32; 3],
}

impl Key {
    fn of(product: &Matmul) -> Self {
        let matrices = [product.b, product.a, product.c];
        let alignment = |matrix: RowMajor| 1 << (matrix.at.0 | u64::from(MOST_ALIGNMENT)).trailing_zeros();
        Self {
            shape: [product.m, product.n, product.k],
            transposed: [product.transpose_b, product.transpose_a],
            strides: matrices.map(|matrix| matrix.stride),
            numbers: matrices.map(|matrix| matrix.number),
            alignments: matrices.map(alignment),
        }
    }
}

/// How one shape is multiplied.
struct Plan {
    operation: Handle<sys::cublasLtMatmulDesc_t>,
    /// Of `b`, `a` and `c`.
    layouts: [Handle<sys::cublasLtMatrixLayout_t>; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Plan {
    fn new(
        calls: &'static Calls,
        handle: sys::cublasLtHandle_t,
        product: &Matmul,
        key: &Key,
    ) -> Result<Self, BackendError> {
        let operation = operation(calls, key)?;
        let [a_shape, b_shape, c_shape] = product.shapes();
        let layout = |index: usize, (rows, columns): (usize, usize)| {
            let mut layout = null_mut();
            let (type_, stride) = (data_type(key.numbers[index]), key.strides[index] as i64);
            // SAFETY: writes one handle.
            let code =
                unsafe { (calls.cublasLtMatrixLayoutCreate)(&mut layout, type_, columns as u64, rows as u64, stride) };
            calls.checked(code, || "describing a matrix".into())?;
            Ok::<_, BackendError>(Handle { handle: layout, destroy: calls.cublasLtMatrixLayoutDestroy })
        };
        let layouts = [layout(0, b_shape)?, layout(1, a_shape)?, layout(2, c_shape)?];
        let preference = preference(calls, key)?;
        let [b, a, c] = layouts.each_ref().map(|layout| layout.handle);
        let mut result = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        let mut found = 0;
        // SAFETY: all descriptors are alive; writes at most one result and their number.
        let code = unsafe {
            (calls.cublasLtMatmulAlgoGetHeuristic)(
                handle,
                operation.handle,
                b,
                a,
                c,
                c,
                preference.handle,
                1,
                result.as_mut_ptr(),
                &mut found,
            )
        };
        calls.checked(code, || format!("choosing how to multiply {product}"))?;
        let result = result.as_ptr();
        // SAFETY: initialised, by the library or with zeros. Read field by field: the state is an enum, and might hold
        // a code that the bindings do not know.
        let (algorithm, bytes, state) =
            unsafe { ((*result).algo, (*result).workspaceSize, addr_of!((*result).state).cast::<u32>().read()) };
        calls.checked(state, || format!("choosing how to multiply {product}"))?;
        if found < 1 || bytes > WORKSPACE_BYTES {
            let found = format!("{found} ways, of {bytes} bytes");
            let expected = format!("one that works in {WORKSPACE_BYTES} bytes");
            return Err(BackendError::Device(format!("{product}: cuBLASLt knows {found} (expected {expected})")));
        }
        Ok(Self { operation, layouts, algorithm })
    }
}

/// Which operands are transposed, and that sums are made in f32.
fn operation(calls: &'static Calls, key: &Key) -> Result<Handle<sys::cublasLtMatmulDesc_t>, BackendError> {
    use sys::cublasLtMatmulDescAttributes_t::{CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB};
    let (sums, factors) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
    let mut operation = null_mut();
    // SAFETY: writes one handle.
    let code = unsafe { (calls.cublasLtMatmulDescCreate)(&mut operation, sums, factors) };
    calls.checked(code, || "describing a product".into())?;
    let operation = Handle { handle: operation, destroy: calls.cublasLtMatmulDescDestroy };
    let attributes = [CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB];
    for (attribute, transposed) in attributes.into_iter().zip(key.transposed) {
        // CUBLAS_OP_T or CUBLAS_OP_N.
        let value = u32::from(transposed);
        // SAFETY: an attribute of so many bytes.
        let code = unsafe {
            (calls.cublasLtMatmulDescSetAttribute)(
                operation.handle,
                attribute,
                addr_of!(value).cast(),
                size_of_val(&value),
            )
        };
        calls.checked(code, || "describing a product".into())?;
    }
    Ok(operation)
}

/// How much the library may work in, and what it may rely on.
fn preference(calls: &'static Calls, key: &Key) -> Result<Handle<sys::cublasLtMatmulPreference_t>, BackendError> {
    use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
    let mut preference = null_mut();
    // SAFETY: writes one handle.
    let code = unsafe { (calls.cublasLtMatmulPreferenceCreate)(&mut preference) };
    calls.checked(code, || "describing what is wanted of a product".into())?;
    let preference = Handle { handle: preference, destroy: calls.cublasLtMatmulPreferenceDestroy };
    let set = |attribute, value: *const c_void, bytes| {
        // SAFETY: an attribute of so many bytes, at a live value.
        let code = unsafe { (calls.cublasLtMatmulPreferenceSetAttribute)(preference.handle, attribute, value, bytes) };
        calls.checked(code, || "describing what is wanted of a product".into())
    };
    let most = WORKSPACE_BYTES as u64;
    set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, addr_of!(most).cast(), size_of::<u64>())?;
    let [b, a, c] = &key.alignments;
    for (attribute, bytes) in [
        (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
        (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
        (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
        (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c),
    ] {
        set(attribute, (bytes as *const u32).cast(), size_of::<u32>())?;
    }
    Ok(preference)
}

fn data_type(number: Number) -> sys::cudaDataType {
    match number {
        Number::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Number::F16 => sys::cudaDataType::CUDA_R_16F,
        Number::F32 => sys::cudaDataType::CUDA_R_32F,
    }
}

/// A descriptor of the library's, in host memory, given back when dropped.
struct Handle<T: Copy> {
    handle: T,
    destroy: unsafe extern "C" fn(T) -> u32,
}

impl<T: Copy> Drop for Handle<T> {
    fn drop(&mut self) {
        // SAFETY: made by the library; what was queued with it has been read.
        unsafe { (self.destroy)(self.handle) };
    }
}
