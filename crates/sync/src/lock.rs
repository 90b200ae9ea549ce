//! Locks for shared structures: the crate `spin` underneath, loom's mutex in models.
//!
//! Lock methods take a closure, so a section's end is where its brace closes, and loom sees every access.
//! [`SpinLock`] is unfair and smallest; [`TicketLock`] serves in order of arrival; [`IrqLock`] is a [`SpinLock`]
//! that also keeps this CPU's interrupts out, for data that handlers want as well.

use crate::{Cpu, IrqGuard, const_fn};

macro_rules! lock_type {
    ($(#[$doc:meta])* $name:ident over $inner:ty) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name<T> {
            #[cfg(not(loom))]
            inner: $inner,
            #[cfg(loom)]
            inner: loom::sync::Mutex<T>,
        }

        impl<T> $name<T> {
            #[cfg(not(loom))]
            /// An unlocked lock around `value`.
            pub const fn new(value: T) -> Self {
                Self { inner: <$inner>::new(value) }
            }

            #[cfg(loom)]
            /// An unlocked lock around `value`.
            pub fn new(value: T) -> Self {
                Self { inner: loom::sync::Mutex::new(value) }
            }

            /// Runs `f` with the lock held, spinning (with [`Cpu::relax`]) until it can be had.
            #[inline]
            pub fn with<C: Cpu, R>(&self, cpu: &C, f: impl FnOnce(&mut T) -> R) -> R {
                #[cfg(not(loom))]
                {
                    let mut guard = loop {
                        if let Some(guard) = self.inner.try_lock() {
                            break guard;
                        }
                        while self.inner.is_locked() {
                            cpu.relax();
                        }
                    };
                    f(&mut guard)
                }
                #[cfg(loom)]
                {
                    let _ = cpu;
                    match self.inner.lock() {
                        Ok(mut guard) => f(&mut guard),
                        Err(mut poisoned) => f(poisoned.get_mut()),
                    }
                }
            }

            /// Runs `f` if the lock is free at once; `None` otherwise. Never spins.
            #[inline]
            pub fn try_with<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
                #[cfg(not(loom))]
                {
                    self.inner.try_lock().map(|mut guard| f(&mut guard))
                }
                #[cfg(loom)]
                {
                    self.inner.try_lock().ok().map(|mut guard| f(&mut guard))
                }
            }

            /// The value, when nobody else can have the lock.
            #[cfg(not(loom))]
            pub fn get_mut(&mut self) -> &mut T {
                self.inner.get_mut()
            }
        }
    };
}

lock_type! {
    /// A spin lock. Not for data that an interrupt handler locks too: that is [`IrqLock`].
    SpinLock over spin::mutex::SpinMutex<T>
}

/// A fair spin lock: waiters enter in order of arrival.
#[derive(Debug, Default)]
pub struct TicketLock<T> {
    #[cfg(not(loom))]
    inner: spin::mutex::TicketMutex<T>,
    #[cfg(loom)]
    inner: loom::sync::Mutex<T>,
}

impl<T> TicketLock<T> {
    #[cfg(not(loom))]
    /// An unlocked lock around `value`.
    pub const fn new(value: T) -> Self {
        Self { inner: spin::mutex::TicketMutex::new(value) }
    }

    #[cfg(loom)]
    /// An unlocked lock around `value`.
    pub fn new(value: T) -> Self {
        Self { inner: loom::sync::Mutex::new(value) }
    }

    /// Runs `f` with the lock held, spinning until it is this caller's turn.
    #[inline]
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        #[cfg(not(loom))]
        {
            f(&mut self.inner.lock())
        }
        #[cfg(loom)]
        {
            match self.inner.lock() {
                Ok(mut guard) => f(&mut guard),
                Err(mut poisoned) => f(poisoned.get_mut()),
            }
        }
    }
}

/// A spin lock that is held with this CPU's interrupts off.
#[derive(Debug, Default)]
pub struct IrqLock<T> {
    lock: SpinLock<T>,
}

impl<T> IrqLock<T> {
    const_fn! {
        /// An unlocked lock around `value`.
        pub fn new(value: T) -> Self {
            Self { lock: SpinLock::new(value) }
        }
    }

    /// Runs `f` with interrupts off and the lock held. Any context but NMI.
    #[inline]
    pub fn with<C: Cpu, R>(&self, cpu: &C, f: impl FnOnce(&mut T) -> R) -> R {
        let _irqs_off = IrqGuard::new(cpu);
        self.lock.with(cpu, f)
    }

    /// Runs `f` with interrupts off if the lock is free at once. Any context, NMI included.
    #[inline]
    pub fn try_with<C: Cpu, R>(&self, cpu: &C, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        let _irqs_off = IrqGuard::new(cpu);
        self.lock.try_with(f)
    }

    /// The value, when nobody else can have the lock.
    #[cfg(not(loom))]
    pub fn get_mut(&mut self) -> &mut T {
        self.lock.get_mut()
    }
}
