//! Handles: numbers in the clothes of pointers.
//!
//! A handle is never dereferenced. It is the number of an entry in the one table of all that is alive, and no number is
//! given twice, so a handle that was freed, or never came from here, is found out whatever the host's memory holds. The
//! price is one look into the table per call. Numbers are odd, and what hosts have pointers to is mostly not.

use super::model::Model;
use super::session::Session;
use super::status::{Failure, Outcome, Status};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// All that is alive.
static TABLE: RwLock<Table> = RwLock::new(Table { next: 1, live: BTreeMap::new() });

struct Table {
    next: usize,
    live: BTreeMap<usize, Object>,
}

/// What a handle may stand for.
pub(super) enum Object {
    Model(Arc<Model>),
    Session(Arc<Session>),
}

/// A kind of object that has handles.
pub(super) trait Handled: Sized {
    /// As in "model".
    const KIND: &'static str;

    fn of(object: &Object) -> Option<&Arc<Self>>;

    fn into_object(this: Arc<Self>) -> Object;
}

/// Gives an object a handle.
pub(super) fn register<T: Handled>(object: Arc<T>) -> Outcome<*mut T> {
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    let number = table.next;
    table.next = number.checked_add(2).ok_or_else(|| Failure::new(Status::OutOfMemory, "no handle is left"))?;
    table.live.insert(number, T::into_object(object));
    Ok(std::ptr::without_provenance_mut(number))
}

/// The object of a handle; it stays while it is held, whoever frees the handle.
pub(super) fn find<T: Handled>(handle: *const T) -> Outcome<Arc<T>> {
    let table = TABLE.read().unwrap_or_else(PoisonError::into_inner);
    let object = table.live.get(&handle.addr()).and_then(T::of);
    object.cloned().ok_or_else(|| not_alive(handle))
}

/// The object of a handle that is one no longer.
pub(super) fn remove<T: Handled>(handle: *const T) -> Outcome<Arc<T>> {
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    let object = table.live.get(&handle.addr()).and_then(T::of).cloned().ok_or_else(|| not_alive(handle))?;
    table.live.remove(&handle.addr());
    Ok(object)
}

fn not_alive<T: Handled>(handle: *const T) -> Failure {
    match handle.is_null() {
        true => Failure::argument(format!("{}: NULL (expected a handle)", T::KIND)),
        false => {
            let found = format!("{0}: {handle:?} is no {0} that is alive (freed, or never made)", T::KIND);
            Failure::new(Status::InvalidHandle, found)
        }
    }
}

/// Models and sessions that were made and not freed yet, in the whole process. For tests of hosts: a tool that looks for
/// leaks finds a forgotten handle's memory reachable.
#[unsafe(no_mangle)]
pub extern "C" fn eesd_live_handles() -> usize {
    TABLE.read().unwrap_or_else(PoisonError::into_inner).live.len()
}
