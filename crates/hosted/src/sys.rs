//! The host's system calls that a machine needs, each behind one small function.
//!
//! Every function keeps the thread's `errno`: `free` must not change it, and any call of an allocator may end up here.

use core::ptr::NonNull;
use std::io;

/// Bytes in a page of the host's page tables, as far as this crate cares: machines have 4 KiB pages, and hosts with
/// larger ones are refused at boot.
pub(crate) const HOST_PAGE: usize = 4096;

/// Runs `f` and restores `errno` afterwards. The error of `f` is what `errno` said right after it.
fn keeping_errno<R>(f: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
    // SAFETY: the location is this thread's own and always valid.
    let errno = unsafe { &mut *libc::__errno_location() };
    let before = *errno;
    let result = f();
    *errno = before;
    result
}

/// Bytes in a page of the host.
pub(crate) fn page_size() -> usize {
    // SAFETY: no preconditions.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(0)
}

/// How many CPUs the host has online; at least one.
pub(crate) fn nr_cpus() -> u32 {
    // SAFETY: no preconditions.
    u32::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1).max(1)
}

/// Bytes of memory that the host has; zero if it does not say.
pub(crate) fn ram_bytes() -> u64 {
    // SAFETY: no preconditions.
    let pages = u64::try_from(unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) }).unwrap_or(0);
    pages.saturating_mul(page_size() as u64)
}

/// Lets another thread of the host run.
pub(crate) fn sched_yield() {
    // SAFETY: no preconditions; it cannot fail on Linux.
    let _ = unsafe { libc::sched_yield() };
}

/// Milliseconds of a coarse monotonic clock.
pub(crate) fn now_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the result. The clock exists on every Linux, so the call cannot fail.
    let _ = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut now) };
    (now.tv_sec as u64).wrapping_mul(1000).wrapping_add(now.tv_nsec as u64 / 1_000_000)
}

/// Microseconds of a monotonic clock.
pub(crate) fn now_us() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: as above.
    let _ = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    (now.tv_sec as u64).wrapping_mul(1_000_000).wrapping_add(now.tv_nsec as u64 / 1000)
}

/// Writes to standard error, once, ignoring failure.
pub(crate) fn write_stderr(bytes: &[u8]) {
    let _ = keeping_errno(|| {
        // SAFETY: the slice is readable for its length.
        let _ = unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len()) };
        Ok(())
    });
}

/// What may be done with mapped memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing: address space only.
    None,
    /// Reading and writing.
    ReadWrite,
    /// Each by itself.
    Of {
        /// Reading.
        read: bool,
        /// Writing.
        write: bool,
        /// Executing.
        execute: bool,
    },
}

impl Access {
    fn bits(self) -> libc::c_int {
        match self {
            Self::None => libc::PROT_NONE,
            Self::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
            Self::Of { read, write, execute } => {
                let bit = |on, bit| if on { bit } else { libc::PROT_NONE };
                bit(read, libc::PROT_READ) | bit(write, libc::PROT_WRITE) | bit(execute, libc::PROT_EXEC)
            }
        }
    }
}

fn mmap(
    at: Option<NonNull<u8>>,
    len: usize,
    access: Access,
    flags: libc::c_int,
    fd: libc::c_int,
    offset: u64,
) -> io::Result<NonNull<u8>> {
    keeping_errno(|| {
        let offset = libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
        let hint = at.map_or(core::ptr::null_mut(), |at| at.as_ptr().cast());
        // SAFETY: without `MAP_FIXED` (callers pass it only inside a mapping of their own) the kernel picks unused
        // addresses, so no existing object is touched.
        let address = unsafe { libc::mmap(hint, len, access.bits(), flags, fd, offset) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
    })
}

/// Private zeroed memory that costs nothing until touched.
pub(crate) fn map_anonymous(len: usize, access: Access) -> io::Result<NonNull<u8>> {
    mmap(None, len, access, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1, 0)
}

/// Address space for `len` bytes, aligned to `align` (a power of two), with nothing behind it.
pub(crate) fn reserve(len: usize, align: usize) -> io::Result<NonNull<u8>> {
    let too_long = || io::Error::from_raw_os_error(libc::ENOMEM);
    let slack = align.saturating_sub(HOST_PAGE);
    let whole = map_anonymous(len.checked_add(slack).ok_or_else(too_long)?, Access::None)?;
    let skip = whole.align_offset(align.max(1));
    if skip > slack {
        return Err(too_long());
    }
    // SAFETY: `skip <= slack`, so all three parts lie inside the mapping just made, which nobody else knows.
    unsafe {
        let start = whole.add(skip);
        unmap(whole, skip);
        unmap(start.add(len), slack - skip);
        Ok(start)
    }
}

/// Gives a part of reserved address space private zeroed memory.
///
/// # Safety
/// `len` bytes at `at` lie inside a mapping that the caller owns, page-aligned, and hold nothing of value.
pub(crate) unsafe fn commit_private(at: NonNull<u8>, len: usize) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    mmap(Some(at), len, Access::ReadWrite, flags, -1, 0).map(drop)
}

/// Gives a part of reserved address space the memory of a file.
///
/// # Safety
/// As for [`commit_private`]. `fd` is an open file that reaches to `offset + len`.
pub(crate) unsafe fn commit_shared(at: NonNull<u8>, len: usize, fd: libc::c_int, offset: u64) -> io::Result<()> {
    let flags = libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_FIXED;
    mmap(Some(at), len, Access::ReadWrite, flags, fd, offset).map(drop)
}

/// Maps a part of a file over whatever is at `at`, and fills the host's page tables at once.
///
/// # Safety
/// `len` bytes at `at` are address space of the caller's, page-aligned, and what is mapped there may go. `fd` is an open file
/// that reaches to `offset + len`.
pub(crate) unsafe fn map_shared_at(
    at: NonNull<u8>,
    len: usize,
    access: Access,
    fd: libc::c_int,
    offset: u64,
) -> io::Result<()> {
    let flags = libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_FIXED | libc::MAP_POPULATE;
    mmap(Some(at), len, access, flags, fd, offset).map(drop)
}

/// What became of address space that was cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cleared {
    /// It is reserved again.
    Reserved,
    /// Somebody else in the process got it in the meantime.
    Taken,
}

/// Makes a part of reserved address space inaccessible again.
///
/// # Safety
/// `len` bytes at `at` are address space of the caller's, page-aligned, and what is mapped there may go.
pub(crate) unsafe fn clear_at(at: NonNull<u8>, len: usize) -> io::Result<Cleared> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    if mmap(Some(at), len, Access::None, flags | libc::MAP_FIXED, -1, 0).is_ok() {
        return Ok(Cleared::Reserved);
    }
    // At the limit of mappings. Without a mapping in its place it goes, unless that splits one.
    keeping_errno(|| {
        // SAFETY: the caller's promise.
        if unsafe { libc::munmap(at.as_ptr().cast(), len) } != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    })?;
    let again = mmap(Some(at), len, Access::None, flags | libc::MAP_FIXED_NOREPLACE, -1, 0);
    Ok(if again.is_ok() { Cleared::Reserved } else { Cleared::Taken })
}

/// Ends a mapping. A length of zero is nothing.
///
/// # Safety
/// The caller owns the mapped range and nothing uses it any more.
pub(crate) unsafe fn unmap(at: NonNull<u8>, len: usize) {
    if len != 0 {
        let _ = keeping_errno(|| {
            // SAFETY: the caller's promise. It fails only when splitting exceeds the host's map count; then it leaks.
            let _ = unsafe { libc::munmap(at.as_ptr().cast(), len) };
            Ok(())
        });
    }
}

/// Moves or resizes a private mapping, keeping its contents.
///
/// # Safety
/// The caller owns the mapping of exactly `old` bytes at `at` and uses only the result afterwards.
pub(crate) unsafe fn remap(at: NonNull<u8>, old: usize, new: usize) -> io::Result<NonNull<u8>> {
    keeping_errno(|| {
        // SAFETY: the caller's promise.
        let address = unsafe { libc::mremap(at.as_ptr().cast(), old, new, libc::MREMAP_MAYMOVE) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
    })
}

/// Advice about memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Private memory goes back to the host and reads as zero afterwards.
    Discard,
    /// The file pages behind shared memory are freed and read as zero afterwards.
    Remove,
    /// No huge pages: memory that is touched sparsely.
    SmallPages,
    /// The child of a `fork` does not have it.
    NotForChildren,
}

/// Tells the host how a range is used.
///
/// # Safety
/// The caller owns the mapped, page-aligned range. For [`Advice::Discard`] and [`Advice::Remove`] its contents are of no
/// value.
pub(crate) unsafe fn advise(at: NonNull<u8>, len: usize, advice: Advice) -> io::Result<()> {
    let advice = match advice {
        Advice::Discard => libc::MADV_DONTNEED,
        Advice::Remove => libc::MADV_REMOVE,
        Advice::SmallPages => libc::MADV_NOHUGEPAGE,
        Advice::NotForChildren => libc::MADV_DONTFORK,
    };
    keeping_errno(|| {
        // SAFETY: the caller's promise.
        if unsafe { libc::madvise(at.as_ptr().cast(), len, advice) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    })
}

/// Says for each page of a mapped range whether the host keeps it in memory (bit 0 of the byte). The range starts at a
/// page boundary and has `pages.len()` pages.
pub(crate) fn residency(at: NonNull<u8>, pages: &mut [u8]) -> io::Result<()> {
    keeping_errno(|| {
        // SAFETY: the call reads page tables only and writes one byte a page into the slice. An unmapped range is an
        // error.
        if unsafe { libc::mincore(at.as_ptr().cast(), pages.len() * HOST_PAGE, pages.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    })
}

/// An anonymous file of `len` bytes in memory.
pub(crate) fn memory_file(len: u64) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::{FromRawFd, OwnedFd};
    keeping_errno(|| {
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"kmem".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened, owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let len = libc::off_t::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        // SAFETY: the descriptor is open.
        if unsafe { libc::ftruncate(std::os::fd::AsRawFd::as_raw_fd(&fd), len) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(fd)
    })
}

/// An environment variable's value, without allocating.
pub(crate) fn environment(name: &core::ffi::CStr) -> Option<&'static core::ffi::CStr> {
    // SAFETY: the name is a C string. The heap asks once, on the first allocation of the process, before `main` and so
    // before anybody changes the environment; the result is read at once.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    // SAFETY: null, or a C string.
    (!value.is_null()).then(|| unsafe { core::ffi::CStr::from_ptr(value) })
}

/// Eight random bytes of the host's; of the clock's and an address's if it has none to give.
pub(crate) fn entropy() -> u64 {
    let mut bytes = [0; 8];
    let _ = keeping_errno(|| {
        // SAFETY: the slice is writable for its length. `GRND_NONBLOCK`: early in a boot there may be none.
        let _ = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
        Ok(())
    });
    let random = u64::from_ne_bytes(bytes);
    if random != 0 { random } else { now_ms() ^ bytes.as_ptr().addr() as u64 }
}
