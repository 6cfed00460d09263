//! Loops in graphs: conditional nodes, which drivers have from CUDA 12.4 on.
//!
//! The bindings are those of 11.8 and know nothing of them, so what is needed is declared here, after `cuda.h` of CUDA
//! 12.4 to 13.0. The functions are looked for by name: without them a driver has no loops, and all else works.
//!
//! A recording goes on a second stream while a body is recorded. The node is put where the recording stood, with a
//! value of 1 at each launch; the body ends with the kernel `continue_loop`, which sets it anew. Bodies hold kernels
//! alone, all of one context. Inside they may overlap as anywhere (`queue`); the first starts when the node does, and
//! `continue_loop` when all before it have ended.

use super::calls::{Calls, SUCCESS};
use super::device::Device;
use super::modules::Relaxed;
use crate::backend::BackendError;
use cudarc::driver::sys;
use std::ffi::{c_int, c_uint, c_ulonglong, c_void};
use std::mem::offset_of;
use std::ptr::{null, null_mut};
use std::sync::Arc;

/// The first driver whose conditional nodes are no preview.
pub const LEAST_LOOPING_DRIVER: (u32, u32) = (12, 4);

/// `CUgraphConditionalHandle`.
type ConditionalHandle = c_ulonglong;

/// Any function of the driver's, before it is known which.
pub type Symbol = unsafe extern "C" fn();

type CreateHandle = unsafe extern "C" fn(*mut ConditionalHandle, sys::CUgraph, sys::CUcontext, c_uint, c_uint) -> u32;

type AddNode = unsafe extern "C" fn(
    *mut sys::CUgraphNode,
    sys::CUgraph,
    *const sys::CUgraphNode,
    *const c_void, // edge data
    usize,
    *mut ConditionalNode,
) -> u32;

type BeginCaptureToGraph = unsafe extern "C" fn(
    sys::CUstream,
    sys::CUgraph,
    *const sys::CUgraphNode,
    *const c_void, // edge data
    usize,
    sys::CUstreamCaptureMode,
) -> u32;

/// The functions that a driver may lack.
pub struct LoopCalls {
    create_handle: CreateHandle,
    add_node: AddNode,
    begin_capture_to_graph: BeginCaptureToGraph,
}

impl LoopCalls {
    /// Finds them by name; `None` if one is missing.
    pub fn find(symbol: impl Fn(&'static [u8]) -> Option<Symbol>) -> Option<Self> {
        let create_handle = symbol(b"cuGraphConditionalHandleCreate\0")?;
        let add_node = symbol(b"cuGraphAddNode_v2\0")?;
        let begin_capture_to_graph = symbol(b"cuStreamBeginCaptureToGraph\0")?;
        // SAFETY: `cuda.h` declares the functions with these arguments, and results that are `unsigned int` to C.
        unsafe {
            Some(Self {
                create_handle: std::mem::transmute::<Symbol, CreateHandle>(create_handle),
                add_node: std::mem::transmute::<Symbol, AddNode>(add_node),
                begin_capture_to_graph: std::mem::transmute::<Symbol, BeginCaptureToGraph>(begin_capture_to_graph),
            })
        }
    }
}

/// `CUgraphNodeParams` with `CUDA_CONDITIONAL_NODE_PARAMS` in its union.
#[repr(C)]
struct ConditionalNode {
    node_type: c_uint,
    reserved: [c_int; 3],
    handle: ConditionalHandle,
    condition_type: c_uint,
    /// Number of bodies.
    size: c_uint,
    /// Written: the bodies, an array of the driver's.
    bodies: *mut sys::CUgraph,
    context: sys::CUcontext,
    /// The rest of the union, zero.
    unused: [u64; 25],
    reserved_2: c_ulonglong,
}

const _: () = {
    assert!(size_of::<ConditionalNode>() == 16 + 29 * 8 + 8);
    assert!(offset_of!(ConditionalNode, handle) == 16 && offset_of!(ConditionalNode, condition_type) == 24);
    assert!(offset_of!(ConditionalNode, bodies) == 32 && offset_of!(ConditionalNode, context) == 40);
    assert!(offset_of!(ConditionalNode, reserved_2) == 16 + 29 * 8);
};

/// `CU_GRAPH_NODE_TYPE_CONDITIONAL`.
const CONDITIONAL: c_uint = 13;
/// `CU_GRAPH_COND_TYPE_WHILE`.
const WHILE: c_uint = 1;
/// `CU_GRAPH_COND_ASSIGN_DEFAULT`: the value is set anew at each launch.
const ASSIGN_DEFAULT: c_uint = 1;
/// `CU_STREAM_SET_CAPTURE_DEPENDENCIES`: what is recorded next follows these nodes alone.
const SET_DEPENDENCIES: c_uint = 1;

/// A loop's body while it is recorded, on a stream of its own.
pub struct Body {
    device: Arc<Device>,
    pub stream: sys::CUstream,
    pub handle: ConditionalHandle,
    node: sys::CUgraphNode,
}

// SAFETY: the driver's handles may be used from any thread. (The recording ends on the one that began it.)
unsafe impl Send for Body {}

impl Body {
    /// Puts a loop where the recording on the device's stream stands, and begins to record its body. The context is
    /// current.
    pub fn begin(device: &Arc<Device>) -> Result<Self, BackendError> {
        let calls = device.calls;
        let loops = calls.loops.as_ref().ok_or_else(|| BackendError::Device("this driver has no loops".into()))?;
        // The driver may take memory for a node or a stream, which a recording forbids; nothing of it is recorded.
        let relaxed = Relaxed::new(device)?;
        let (graph, before) = recorded_so_far(calls, device)?;
        let mut handle = 0;
        // SAFETY: a graph and a context that are alive; writes one handle.
        let code = unsafe { (loops.create_handle)(&mut handle, graph, device.context, 1, ASSIGN_DEFAULT) };
        device.checked(code, || "the condition of a loop".into())?;
        let mut parameters = ConditionalNode {
            node_type: CONDITIONAL,
            reserved: [0; 3],
            handle,
            condition_type: WHILE,
            size: 1,
            bodies: null_mut(),
            context: device.context,
            unused: [0; 25],
            reserved_2: 0,
        };
        let mut node = null_mut();
        // SAFETY: nodes of this graph; writes the node and where its one body is.
        let code =
            unsafe { (loops.add_node)(&mut node, graph, before.as_ptr(), null(), before.len(), &mut parameters) };
        device.checked(code, || "a loop in a graph".into())?;
        if parameters.bodies.is_null() {
            return Err(BackendError::Device("a loop in a graph: the driver gave it no body".into()));
        }
        // SAFETY: an array of one graph, which lives as long as the node.
        let body = unsafe { parameters.bodies.read() };
        let mut begun = Self { device: device.clone(), stream: null_mut(), handle, node };
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one handle, given back in `drop`.
        let code = unsafe { (calls.cuStreamCreate)(&mut begun.stream, flags) };
        device.checked(code, || "a stream to record a loop on".into())?;
        drop(relaxed);
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a stream and a graph that are alive, and no nodes.
        let code = unsafe { (loops.begin_capture_to_graph)(begun.stream, body, null(), null(), 0, mode) };
        device.checked(code, || "beginning to record a loop".into())?;
        Ok(begun)
    }

    /// Ends the body; the recording on the device's stream goes on behind the loop.
    pub fn end(mut self) -> Result<(), BackendError> {
        self.end_recording()?;
        let update = self.device.calls.cuStreamUpdateCaptureDependencies;
        // SAFETY: the stream is alive, and the node one of the graph that is recorded on it.
        let code = unsafe { update(self.device.stream, &mut self.node, 1, SET_DEPENDENCIES) };
        self.device.checked(code, || "going on behind a loop".into())
    }

    fn end_recording(&mut self) -> Result<(), BackendError> {
        let mut graph = null_mut();
        // SAFETY: writes one handle, the body's, which the node owns.
        let code = unsafe { (self.device.calls.cuStreamEndCapture)(self.stream, &mut graph) };
        let stream = std::mem::replace(&mut self.stream, null_mut());
        let _relaxed = Relaxed::new(&self.device);
        // SAFETY: made by `begin`, and nothing is queued on it.
        unsafe { (self.device.calls.cuStreamDestroy_v2)(stream) };
        self.device.checked(code, || "recording a loop".into())
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if !self.stream.is_null() && self.device.make_current().is_ok() {
            // Given up after a failure, which was told.
            let _ = self.end_recording();
        }
    }
}

/// The graph that is being recorded on the device's stream, and the nodes that the next one follows.
fn recorded_so_far(calls: &Calls, device: &Device) -> Result<(sys::CUgraph, Vec<sys::CUgraphNode>), BackendError> {
    let mut status: c_uint = 0;
    let (mut graph, mut nodes, mut count) = (null_mut(), null(), 0);
    // SAFETY: writes a status, which is an `unsigned int` to C, a handle, and an array of the driver's with its length.
    let code = unsafe {
        let status = (&raw mut status).cast();
        (calls.cuStreamGetCaptureInfo_v2)(device.stream, status, null_mut(), &mut graph, &mut nodes, &mut count)
    };
    device.checked(code, || "what was recorded so far".into())?;
    if code != SUCCESS || status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE as u32 {
        return Err(BackendError::Device("a loop outside of a recording".into()));
    }
    // SAFETY: the array is good until the stream is used again; null where it is empty.
    let nodes = if count == 0 { Vec::new() } else { unsafe { std::slice::from_raw_parts(nodes, count) }.to_vec() };
    Ok((graph, nodes))
}
