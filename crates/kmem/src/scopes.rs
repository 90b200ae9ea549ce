//! Allocation scopes of the running task, under the familiar names.

use kmem_gfp::scope::{
    NoFs, NoIo, NoReclaim, Pin, ScopeError, ScopeToken, memalloc_nofs_restore, memalloc_nofs_save,
    memalloc_noio_restore, memalloc_noio_save, memalloc_noreclaim_restore, memalloc_noreclaim_save,
    memalloc_pin_restore, memalloc_pin_save,
};
use kmem_gfp::{NoFsScope, NoIoScope, NoReclaimScope, PinScope};

use crate::{Kmem, Platform};

/// # Scopes
///
/// Inside a scope every allocation of the task is weakened, whatever its flags. The guards end with their block; the
/// save and restore pairs are for code that cannot hold one.
impl<P: Platform> Kmem<P> {
    /// No I/O until the guard is dropped.
    pub fn noio_scope(&self) -> NoIoScope<'_, P::Context> {
        NoIoScope::enter(self.platform.context())
    }

    /// No entry into filesystems until the guard is dropped.
    pub fn nofs_scope(&self) -> NoFsScope<'_, P::Context> {
        NoFsScope::enter(self.platform.context())
    }

    /// All reserves and no reclaim until the guard is dropped: for whoever frees memory by allocating some.
    pub fn noreclaim_scope(&self) -> NoReclaimScope<'_, P::Context> {
        NoReclaimScope::enter(self.platform.context())
    }

    /// No movable memory until the guard is dropped: what is allocated will be pinned.
    pub fn pin_scope(&self) -> PinScope<'_, P::Context> {
        PinScope::enter(self.platform.context())
    }

    /// Opens a scope without I/O.
    pub fn memalloc_noio_save(&self) -> ScopeToken<NoIo> {
        memalloc_noio_save(self.platform.context())
    }

    /// Closes what [`memalloc_noio_save`](Self::memalloc_noio_save) opened.
    ///
    /// # Errors
    /// [`ScopeError`] if an outer scope was closed before this one.
    pub fn memalloc_noio_restore(&self, token: ScopeToken<NoIo>) -> Result<(), ScopeError> {
        memalloc_noio_restore(self.platform.context(), token)
    }

    /// Opens a scope that enters no filesystem.
    pub fn memalloc_nofs_save(&self) -> ScopeToken<NoFs> {
        memalloc_nofs_save(self.platform.context())
    }

    /// Closes what [`memalloc_nofs_save`](Self::memalloc_nofs_save) opened.
    ///
    /// # Errors
    /// [`ScopeError`] if an outer scope was closed before this one.
    pub fn memalloc_nofs_restore(&self, token: ScopeToken<NoFs>) -> Result<(), ScopeError> {
        memalloc_nofs_restore(self.platform.context(), token)
    }

    /// Opens a scope without reclaim.
    pub fn memalloc_noreclaim_save(&self) -> ScopeToken<NoReclaim> {
        memalloc_noreclaim_save(self.platform.context())
    }

    /// Closes what [`memalloc_noreclaim_save`](Self::memalloc_noreclaim_save) opened.
    ///
    /// # Errors
    /// [`ScopeError`] if an outer scope was closed before this one.
    pub fn memalloc_noreclaim_restore(&self, token: ScopeToken<NoReclaim>) -> Result<(), ScopeError> {
        memalloc_noreclaim_restore(self.platform.context(), token)
    }

    /// Opens a scope of pages to be pinned.
    pub fn memalloc_pin_save(&self) -> ScopeToken<Pin> {
        memalloc_pin_save(self.platform.context())
    }

    /// Closes what [`memalloc_pin_save`](Self::memalloc_pin_save) opened.
    ///
    /// # Errors
    /// [`ScopeError`] if an outer scope was closed before this one.
    pub fn memalloc_pin_restore(&self, token: ScopeToken<Pin>) -> Result<(), ScopeError> {
        memalloc_pin_restore(self.platform.context(), token)
    }
}
