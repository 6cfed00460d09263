//! Passes recorded as graphs: one launch instead of hundreds.

use super::driver::Driver;
use super::inbox::Shape;
use crate::backend::BackendError;
use std::collections::HashMap;

/// Graphs kept at a time; each takes memory of the driver's.
const MOST: usize = 256;

/// The graph of each shape of pass seen so far.
pub struct Graphs<D: Driver> {
    recorded: HashMap<Shape, D::Graph>,
    enabled: bool,
}

impl<D: Driver> Graphs<D> {
    /// None yet; where not `enabled` every pass is launched kernel by kernel, as profilers like it.
    pub fn new(enabled: bool) -> Self {
        Self { recorded: HashMap::new(), enabled }
    }

    /// Queues what `launch` launches: as a graph, recorded at the first pass of a shape.
    ///
    /// # Safety
    /// What `launch` promises of its launches holds at every pass of the shape.
    ///
    /// # Errors
    /// If the device refuses or fails.
    pub unsafe fn run(
        &mut self,
        on: &D,
        shape: Shape,
        launch: &dyn Fn() -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        if !self.enabled {
            return launch();
        }
        if !self.recorded.contains_key(&shape) {
            if self.recorded.len() == MOST {
                self.recorded.clear();
            }
            on.begin_capture()?;
            let launched = launch();
            let graph = on.end_capture();
            launched?;
            self.recorded.insert(shape, graph?);
        }
        // SAFETY: the caller's promise.
        unsafe { on.replay(&self.recorded[&shape]) }
    }

    /// Forgets all graphs: addresses have changed.
    pub fn clear(&mut self) {
        self.recorded.clear();
    }
}
