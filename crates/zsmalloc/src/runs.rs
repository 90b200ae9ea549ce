//! The bytes of an object: in one frame, or the end of one and the start of the next.
//!
//! ```text
//! |         first |  | second         |
//! ```

/// Where an object's bytes are: one or two runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runs {
    pub(crate) first: *mut u8,
    pub(crate) first_len: usize,
    pub(crate) second: *mut u8,
    pub(crate) second_len: usize,
}

impl Runs {
    /// Copies `data` in.
    ///
    /// # Safety
    /// The runs are the caller's to write and are as long as `data` together.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, data: &[u8]) {
        // SAFETY: the caller's promise.
        unsafe {
            self.first.copy_from_nonoverlapping(data.as_ptr(), self.first_len);
            if self.second_len != 0 {
                self.second.copy_from_nonoverlapping(data.as_ptr().add(self.first_len), self.second_len);
            }
        }
    }

    /// Copies the bytes out to `to`.
    ///
    /// # Safety
    /// Nobody writes the runs; `to` has room for both.
    #[inline(always)]
    pub(crate) unsafe fn read(&self, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            to.copy_from_nonoverlapping(self.first, self.first_len);
            if self.second_len != 0 {
                to.add(self.first_len).copy_from_nonoverlapping(self.second, self.second_len);
            }
        }
    }

    /// Copies the bytes of `from`, which has the same length, split wherever it is.
    ///
    /// # Safety
    /// Nobody writes `from`'s runs, these are the caller's to write, and they do not overlap.
    #[inline(always)]
    pub(crate) unsafe fn copy_from(&self, from: &Runs) {
        let head = self.first_len.min(from.first_len);
        // SAFETY: each piece lies in one run of either side; lengths add up to the object's.
        unsafe {
            self.first.copy_from_nonoverlapping(from.first, head);
            if from.first_len > head {
                let more = from.first_len - head;
                self.second.copy_from_nonoverlapping(from.first.add(head), more);
                if from.second_len != 0 {
                    self.second.add(more).copy_from_nonoverlapping(from.second, from.second_len);
                }
            } else if self.first_len > head {
                let more = self.first_len - head;
                self.first.add(head).copy_from_nonoverlapping(from.second, more);
                if self.second_len != 0 {
                    self.second.copy_from_nonoverlapping(from.second.add(more), self.second_len);
                }
            } else if self.second_len != 0 {
                self.second.copy_from_nonoverlapping(from.second, self.second_len);
            }
        }
    }
}
