//! Scopes: weaken every allocation that a stretch of code makes, directly or through whatever it calls.
//!
//! ```text
//!  let scope = NoIoScope::enter(&context);     NOIO set in the task's flags
//!    ... GFP_KERNEL here means GFP_NOIO ...
//!    { let inner = NoIoScope::enter(&context); }   was set already: leaving it changes nothing
//!  drop(scope);                                NOIO cleared: this is the scope that had set it
//! ```
//!
//! | scope | what it takes from each request | open it |
//! | --- | --- | --- |
//! | [`NoIoScope`] | IO and FS | where a lock is taken that the I/O path takes, too |
//! | [`NoFsScope`] | FS | where a lock is taken that a filesystem takes in reclaim, too |
//! | [`NoReclaimScope`] | nothing; grants every reserve and never reclaims | around code that frees more memory than it takes |
//! | [`PinScope`] | MOVABLE | where pages are about to be pinned for long |
//!
//! Prefer a scope to [`Gfp::NOIO`] and [`Gfp::NOFS`] at single calls: open it where the critical section begins, and say
//! there which lock makes it necessary. Scopes nest; they end in the reverse order of their opening. The guards do that by
//! themselves; beneath them lie the familiar pairs, [`memalloc_noio_save`] and [`memalloc_noio_restore`] and so on.
//!
//! The masks are applied where a request enters an allocator ([`current_gfp_context`]), not by code that merely tests
//! flags: a helper that looks at [`Gfp::FS`] has to apply them itself.
//!
//! **Contexts:** opening and closing cost a few instructions and may be done anywhere, but the flags belong to the running
//! task: a scope ends in the task (or the interrupt) that opened it, which is why guards cannot be sent to another thread.

use core::{fmt, marker::PhantomData};

use crate::{
    context::{AllocContext, TaskFlags},
    flags::Gfp,
};

mod sealed {
    pub trait Sealed {}
}

/// One of the four kinds of scope.
pub trait ScopeKind: sealed::Sealed {
    /// The task flag that the scope sets.
    const FLAG: TaskFlags;
    /// What the scope is called in reports.
    const NAME: &'static str;
}

macro_rules! scope_kinds {
    ($($(#[$meta:meta])* $kind:ident: $flag:ident, $name:literal;)*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        pub enum $kind {}
        impl sealed::Sealed for $kind {}
        impl ScopeKind for $kind {
            const FLAG: TaskFlags = TaskFlags::$flag;
            const NAME: &'static str = $name;
        }
    )*};
}

scope_kinds! {
    /// Reclaim starts no I/O.
    NoIo: NOIO, "noio";
    /// Reclaim enters no filesystem.
    NoFs: NOFS, "nofs";
    /// Allocations use every reserve and never reclaim.
    NoReclaim: MEMALLOC, "noreclaim";
    /// Pages are not movable.
    Pin: PIN, "pin";
}

/// What a save left behind for its restore: whether it was the one that set the flag.
#[derive(Debug)]
#[must_use = "the scope stays open until the token is given to its restore"]
pub struct ScopeToken<K> {
    newly_set: bool,
    kind: PhantomData<fn() -> K>,
}

/// A scope that ended in the wrong order: an outer one was closed while an inner one was still open, so that what the
/// inner one protects was allocated without its protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {scope} scope was closed from outside while this one was open")]
pub struct ScopeError {
    /// Which kind of scope.
    pub scope: &'static str,
}

/// Opens a scope of kind `K`: sets its task flag and notes whether that was new. Any context.
pub fn save<K: ScopeKind>(context: &(impl AllocContext + ?Sized)) -> ScopeToken<K> {
    let before = context.update_task_flags(K::FLAG, TaskFlags::empty());
    ScopeToken { newly_set: !before.contains(K::FLAG), kind: PhantomData }
}

/// Closes the scope that `token` stands for: clears its task flag if that save had set it. Any context.
///
/// # Errors
///
/// [`ScopeError`] if the flag is no longer set although an outer scope should hold it. Nothing is changed then.
pub fn restore<K: ScopeKind>(context: &(impl AllocContext + ?Sized), token: ScopeToken<K>) -> Result<(), ScopeError> {
    if token.newly_set {
        context.update_task_flags(TaskFlags::empty(), K::FLAG);
        Ok(())
    } else if context.task_flags().contains(K::FLAG) {
        Ok(())
    } else {
        Err(ScopeError { scope: K::NAME })
    }
}

macro_rules! familiar_pairs {
    ($($kind:ident, $save:ident, $restore:ident, $guard:ident, $effect:literal;)*) => {$(
        #[doc = concat!("Opens a scope in which ", $effect, ". Prefer the guard [`", stringify!($guard), "`]. Any context.")]
        pub fn $save(context: &(impl AllocContext + ?Sized)) -> ScopeToken<$kind> {
            save(context)
        }

        #[doc = concat!("Closes what [`", stringify!($save), "`] opened. Any context.\n\n# Errors\n\n[`ScopeError`] ",
            "if an outer scope was closed before this inner one.")]
        pub fn $restore(
            context: &(impl AllocContext + ?Sized),
            token: ScopeToken<$kind>,
        ) -> Result<(), ScopeError> {
            restore(context, token)
        }
    )*};
}

familiar_pairs! {
    NoIo, memalloc_noio_save, memalloc_noio_restore, NoIoScope, "reclaim starts no I/O and enters no filesystem";
    NoFs, memalloc_nofs_save, memalloc_nofs_restore, NoFsScope, "reclaim enters no filesystem";
    NoReclaim, memalloc_noreclaim_save, memalloc_noreclaim_restore, NoReclaimScope,
        "allocations use every reserve and never reclaim";
    Pin, memalloc_pin_save, memalloc_pin_restore, PinScope, "pages are allocated to be pinned, hence not movable";
}

/// An open scope; dropping it closes it.
///
/// A guard belongs to the task that opened it and cannot be sent to another:
///
/// ```compile_fail
/// use kmem_gfp::{NoIoScope, PlainContext};
///
/// let scope = NoIoScope::enter(&PlainContext);
/// std::thread::scope(|threads| {
///     threads.spawn(move || drop(scope));
/// });
/// ```
#[must_use = "the scope ends when the guard is dropped"]
pub struct Scope<'c, K: ScopeKind, C: AllocContext + ?Sized> {
    context: &'c C,
    newly_set: bool,
    kind: PhantomData<(K, *const ())>,
}

/// While it lives, reclaim starts no I/O and enters no filesystem for this task.
#[doc(alias("memalloc_noio_save", "PF_MEMALLOC_NOIO"))]
pub type NoIoScope<'c, C> = Scope<'c, NoIo, C>;
/// While it lives, reclaim enters no filesystem for this task.
#[doc(alias("memalloc_nofs_save", "PF_MEMALLOC_NOFS"))]
pub type NoFsScope<'c, C> = Scope<'c, NoFs, C>;
/// While it lives, this task may use every reserve and never reclaims. No effect in hardware interrupts and NMIs.
#[doc(alias("memalloc_noreclaim_save", "PF_MEMALLOC"))]
pub type NoReclaimScope<'c, C> = Scope<'c, NoReclaim, C>;
/// While it lives, this task's pages come from memory that is not movable and belongs to no contiguous area.
#[doc(alias("memalloc_pin_save", "PF_MEMALLOC_PIN"))]
pub type PinScope<'c, C> = Scope<'c, Pin, C>;

impl<'c, K: ScopeKind, C: AllocContext + ?Sized> Scope<'c, K, C> {
    /// Opens the scope. Any context; a few instructions.
    pub fn enter(context: &'c C) -> Self {
        let token = save::<K>(context);
        Self { context, newly_set: token.newly_set, kind: PhantomData }
    }

    /// Runs `body` inside the scope: the form that cannot be ended in the wrong order.
    ///
    /// ```
    /// use kmem_gfp::{NoFsScope, PlainContext};
    ///
    /// assert_eq!(NoFsScope::run(&PlainContext, || 6 * 7), 42);
    /// ```
    pub fn run<T>(context: &'c C, body: impl FnOnce() -> T) -> T {
        let _scope = Self::enter(context);
        body()
    }
}

impl<K: ScopeKind, C: AllocContext + ?Sized> Drop for Scope<'_, K, C> {
    fn drop(&mut self) {
        let token = ScopeToken::<K> { newly_set: self.newly_set, kind: PhantomData };
        if let Err(error) = restore(self.context, token) {
            self.context.report(format_args!("kmem: {error}"));
        }
    }
}

impl<K: ScopeKind, C: AllocContext + ?Sized> fmt::Debug for Scope<'_, K, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("kind", &K::NAME).field("newly_set", &self.newly_set).finish_non_exhaustive()
    }
}

/// A scope that carries a caller's flags through code that takes none: missing IO opens a [`NoIoScope`], missing FS alone
/// a [`NoFsScope`], neither missing nothing. For layers such as vmalloc, whose page-table allocations have no flag
/// argument.
#[derive(Debug)]
#[must_use = "the scope ends when the guard is dropped"]
pub enum CallerScope<'c, C: AllocContext + ?Sized> {
    /// The caller's flags need no scope.
    Plain,
    /// Reclaim enters no filesystem.
    NoFs(NoFsScope<'c, C>),
    /// Reclaim starts no I/O.
    NoIo(NoIoScope<'c, C>),
}

impl<'c, C: AllocContext + ?Sized> CallerScope<'c, C> {
    /// Opens the scope that `gfp` calls for. Any context.
    #[doc(alias = "memalloc_apply_gfp_scope")]
    pub fn enter(context: &'c C, gfp: Gfp) -> Self {
        if !gfp.contains(Gfp::IO) {
            Self::NoIo(NoIoScope::enter(context))
        } else if !gfp.contains(Gfp::FS) {
            Self::NoFs(NoFsScope::enter(context))
        } else {
            Self::Plain
        }
    }
}

/// `gfp` as the scopes of a task with these flags weaken it. Applied once, where a request enters an allocator, and again
/// at the entries of reclaim, compaction and contiguous ranges. Pure; any context; one test when no scope is open.
///
/// NOIO takes IO and FS, NOFS takes FS, PIN takes MOVABLE (HIGHMEM stays). The noreclaim scope changes no flags: see
/// [`Reserve`](crate::alloc_flags::Reserve), [`may_reclaim`](crate::verdict::may_reclaim) and
/// [`check_sleep`](crate::verdict::check_sleep).
#[must_use]
#[inline]
pub const fn current_gfp_context(gfp: Gfp, task: TaskFlags) -> Gfp {
    if !task.intersects(TaskFlags::NOIO.union(TaskFlags::NOFS).union(TaskFlags::PIN)) {
        return gfp;
    }
    let mut taken = Gfp::empty();
    if task.contains(TaskFlags::NOIO) {
        taken = Gfp::IO.union(Gfp::FS);
    } else if task.contains(TaskFlags::NOFS) {
        taken = Gfp::FS;
    }
    if task.contains(TaskFlags::PIN) {
        taken = taken.union(Gfp::MOVABLE);
    }
    gfp.difference(taken)
}

/// How many clock ticks a caller that loops on an allocation by itself should sleep between two attempts: one when the
/// allocation has waited already (it may block and is not NORETRY), else up to a fiftieth of a second. Pure.
#[doc(alias = "memalloc_retry_wait")]
#[must_use]
pub const fn retry_wait_ticks(gfp: Gfp, task: TaskFlags, ticks_per_second: u32) -> u32 {
    let gfp = current_gfp_context(gfp, task);
    if gfp.allows_blocking() && !gfp.contains(Gfp::NORETRY) { 1 } else { ticks_per_second / 50 }
}
