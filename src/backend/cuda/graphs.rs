//! Passes recorded as graphs: one launch instead of hundreds.

use super::driver::Driver;
use super::inbox::Shape;
use crate::backend::BackendError;
use std::collections::HashMap;

/// Graphs kept at a time; each takes memory of the driver's.
const MOST: usize = 256;

/// The graph of each shape of pass seen of late.
pub struct Graphs<D: Driver> {
    recorded: HashMap<Shape, Recorded<D>>,
    replays: u64,
    enabled: bool,
}

struct Recorded<D: Driver> {
    graph: D::Graph,
    last_replay: u64,
}

impl<D: Driver> Graphs<D> {
    /// None yet; where not `enabled` every pass is launched kernel by kernel, as profilers like it.
    pub fn new(enabled: bool) -> Self {
        Self { recorded: HashMap::new(), replays: 0, enabled }
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
        if self.enabled && self.record(on, shape, launch)? {
            // SAFETY: the caller's promise.
            return unsafe { self.replay(on, shape) };
        }
        launch()
    }

    /// Records what `launch` launches, unless a pass of this shape is. False if the driver makes no graph of it.
    ///
    /// # Errors
    /// If `launch` fails, or the device.
    pub fn record(
        &mut self,
        on: &D,
        shape: Shape,
        launch: &dyn Fn() -> Result<(), BackendError>,
    ) -> Result<bool, BackendError> {
        if !self.recorded.contains_key(&shape) {
            on.begin_capture()?;
            let launched = launch();
            let graph = on.end_capture();
            launched?;
            let Ok(graph) = graph else {
                // The driver has no memory for one more: this pass goes without, later ones begin anew.
                self.clear();
                return Ok(false);
            };
            self.make_room();
            self.recorded.insert(shape, Recorded { graph, last_replay: 0 });
        }
        Ok(true)
    }

    /// Queues the graph of a shape, which must have been recorded.
    ///
    /// # Safety
    /// As [`run`](Self::run), of what was recorded.
    ///
    /// # Errors
    /// If the device refuses or fails.
    pub unsafe fn replay(&mut self, on: &D, shape: Shape) -> Result<(), BackendError> {
        self.replays += 1;
        let recorded = self.recorded.get_mut(&shape).expect("recorded just now or before");
        recorded.last_replay = self.replays;
        // SAFETY: the caller's promise.
        unsafe { on.replay(&recorded.graph) }
    }

    /// Forgets all graphs: addresses have changed.
    pub fn clear(&mut self) {
        self.recorded.clear();
    }

    /// Drops the graph whose last replay is longest ago, if there are as many as there may be.
    fn make_room(&mut self) {
        let oldest = self.recorded.iter().min_by_key(|(_, recorded)| recorded.last_replay).map(|(&shape, _)| shape);
        if let Some(oldest) = oldest.filter(|_| self.recorded.len() >= MOST) {
            self.recorded.remove(&oldest);
        }
    }
}
