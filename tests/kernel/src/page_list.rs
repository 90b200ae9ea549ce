//! [`PageList`]: pages that somebody owns, chained through their own memory, so that keeping them needs none.

use core::ptr::NonNull;

use kmem::{Order, Pfn};

use crate::platform::kmem;

/// A stack of single pages.
///
/// # Invariants
/// The pages belong to the list. The first word of each is the number of the next one; the last one's is zero.
#[derive(Debug)]
pub(crate) struct PageList {
    first: Pfn,
    len: usize,
}

fn link(page: Pfn) -> NonNull<u64> {
    kmem().page_address(page).expect("every frame is mapped").cast()
}

impl PageList {
    /// No pages.
    pub(crate) const fn new() -> Self {
        Self { first: Pfn(0), len: 0 }
    }

    /// How many pages.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds a page of the caller's.
    pub(crate) fn push(&mut self, page: Pfn) {
        // SAFETY: the page is the caller's.
        unsafe { link(page).write(self.first.0) };
        self.first = page;
        self.len += 1;
    }

    /// Takes the page back that was added last.
    pub(crate) fn pop(&mut self) -> Option<Pfn> {
        self.len = self.len.checked_sub(1)?;
        let page = self.first;
        // SAFETY: ours (invariant).
        self.first = Pfn(unsafe { link(page).read() });
        Some(page)
    }

    /// Adds all of another list's pages.
    pub(crate) fn append(&mut self, mut other: Self) {
        while let Some(page) = other.pop() {
            self.push(page);
        }
    }

    /// The pages, last in first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Pfn> + '_ {
        let mut next = self.first;
        (0..self.len).map(move |_| {
            let page = next;
            // SAFETY: ours (invariant).
            next = Pfn(unsafe { link(page).read() });
            page
        })
    }

    /// Gives every page back.
    pub(crate) fn free(mut self) {
        while let Some(page) = self.pop() {
            // SAFETY: ours (invariant), and nobody uses it.
            unsafe { kmem().free_pages(page, Order::ZERO) }.expect("the page is ours");
        }
    }
}
