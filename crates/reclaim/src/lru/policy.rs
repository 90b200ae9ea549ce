//! What tells one kind of lists from the other: where a page goes, what an access means, which page is taken next.

use super::vector::{Kind, Vector};
use super::word::State;
use super::{Lists, Look, LruEnv, Shadow};
use crate::{GroupId, Protection, Scan};
use kmem_gfp::NodeId;

/// Which end of a list a page goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Where new pages go.
    Head,
    /// Where pages are taken.
    Tail,
}

/// Why a page comes to a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It has been added.
    New,
    /// Reclaim took it and did not free it.
    Rejected,
    /// Somebody took it off the list with this number and brings it back as it was.
    Back(usize),
    /// It has been written, and waits for nothing else to be reclaimed.
    Written,
}

/// Where a page goes.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub(crate) list: usize,
    pub(crate) end: End,
    /// Flags of the state that end with it.
    pub(crate) clear: u64,
}

/// What an access does to a page's state.
#[derive(Clone, Copy, Debug)]
pub enum Access {
    /// Nothing: it is known already.
    Known,
    /// Only its state changes.
    Set(State),
    /// Its state changes, and its list should.
    Move(State),
}

/// What the marks of a page say about reclaiming it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Reclaim it.
    Reclaim,
    /// Reclaim it unless it is dirty.
    ReclaimClean,
    /// Keep it this time.
    Keep,
    /// It is in use.
    Activate,
}

/// A replacement policy over the lists of a vector.
pub trait Policy: Sized + Send + 'static {
    /// Counters of a vector that are read and written without its lock.
    type Shared: Default + Sync + Send + core::fmt::Debug;

    /// The policy's state of an empty vector.
    fn new() -> Self;

    /// Where an evictable page goes.
    fn place(&self, state: State, arrival: Arrival) -> Place;

    /// How the pages of an evictable list are counted.
    fn kind(&self, list: usize) -> Kind;

    /// Whether a listed evictable page belongs on another list.
    fn is_misplaced(&self, state: State, list: usize) -> bool;

    /// What an access by descriptor does.
    fn access(state: State) -> Access;

    /// Called when a listed page has been moved because of an access.
    fn moved(vector: &Vector<Self>) {
        let _ = vector;
    }

    /// The flags of a page that comes, by whether a fault brought it in.
    fn arrival(faulted: bool) -> u64;

    /// The flags of a page that comes back with its shadow, in the vector that the shadow names.
    fn refault<E: LruEnv>(lists: &Lists<E, Self>, vector: &Vector<Self>, shadow: Shadow, flags: u64) -> u64;

    /// The age for the shadow of a page that is being evicted.
    fn eviction_age(vector: &Vector<Self>, state: State) -> u64;

    /// The reference rule: what a look at a page says, and the state that it leaves.
    fn judge(state: State, look: Look) -> (Verdict, State);

    /// One pass; see [`PageLists::shrink`](crate::PageLists::shrink).
    fn shrink<E: LruEnv>(
        lists: &Lists<E, Self>,
        node: NodeId,
        group: GroupId,
        protection: Protection,
        scan: &mut Scan<'_>,
    );

    /// Ages if it is due; see [`PageLists::age`](crate::PageLists::age).
    fn age<E: LruEnv>(lists: &Lists<E, Self>, node: NodeId, group: GroupId, scan: &mut Scan<'_>);
}
