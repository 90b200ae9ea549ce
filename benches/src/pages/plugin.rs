//! A page allocator from a shared library: how LLFree takes part.
//!
//! LLFree is on no registry, so the harness knows it only through four C calls, which a library named by
//! `KMEM_LLFREE` exports (they fit any other page allocator as well):
//!
//! ```c
//! void    *bench_pages_new(size_t frames, size_t cpus);            // NULL: cannot
//! uint64_t bench_pages_get(void *, size_t cpu, uint32_t order);    // UINT64_MAX: nothing free
//! void     bench_pages_put(void *, size_t cpu, uint64_t frame, uint32_t order);
//! void     bench_pages_drop(void *);
//! ```
//!
//! The indirect call costs such a subject about a nanosecond.

use std::{
    ffi::{CStr, CString, c_void},
    sync::OnceLock,
};

use super::{Pages, Workload, subject};
use crate::measure::{Role, Subject};

const VARIABLE: &str = "KMEM_LLFREE";

/// The four calls, resolved.
#[derive(Clone, Copy)]
struct Calls {
    new: unsafe extern "C" fn(usize, usize) -> *mut c_void,
    get: unsafe extern "C" fn(*mut c_void, usize, u32) -> u64,
    put: unsafe extern "C" fn(*mut c_void, usize, u64, u32),
    drop: unsafe extern "C" fn(*mut c_void),
}

fn calls() -> &'static Result<Calls, String> {
    static CALLS: OnceLock<Result<Calls, String>> = OnceLock::new();
    CALLS.get_or_init(load)
}

fn load() -> Result<Calls, String> {
    let path = std::env::var(VARIABLE)
        .map_err(|_| format!("LLFree is left out: {VARIABLE} names no library (see benches/README.md)"))?;
    let failed = |what: String| format!("LLFree is left out: {what}");
    let name = CString::new(path.clone()).map_err(|_| failed(format!("{VARIABLE} holds a NUL")))?;
    // SAFETY: loading runs the library's initialisers, which is what the user asked for by naming it.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if library.is_null() {
        // SAFETY: after a failed `dlopen`, `dlerror` is a string or null.
        let reason = unsafe {
            let text = libc::dlerror();
            if text.is_null() { "not loadable".into() } else { CStr::from_ptr(text).to_string_lossy() }
        };
        return Err(failed(reason.into_owned()));
    }
    let find = |symbol: &CStr| {
        // SAFETY: `library` is a handle just opened, never closed.
        let address = unsafe { libc::dlsym(library, symbol.as_ptr()) };
        if address.is_null() { Err(failed(format!("{path} lacks {}", symbol.to_string_lossy()))) } else { Ok(address) }
    };
    // SAFETY: the named symbols have these signatures, by the contract in this file's header.
    unsafe {
        Ok(Calls {
            new: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(usize, usize) -> *mut c_void>(find(
                c"bench_pages_new",
            )?),
            get: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void, usize, u32) -> u64>(find(
                c"bench_pages_get",
            )?),
            put: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void, usize, u64, u32)>(find(
                c"bench_pages_put",
            )?),
            drop: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(find(c"bench_pages_drop")?),
        })
    }
}

/// Why LLFree does not take part, if it does not.
pub(crate) fn missing() -> Option<String> {
    calls().as_ref().err().cloned()
}

/// LLFree, if there is one.
pub(crate) fn subjects(workload: Workload, seed: u64) -> Vec<Subject> {
    match calls() {
        Ok(_) => vec![subject::<Plugin>("LLFree", Role::Peer, workload, seed)],
        Err(_) => Vec::new(),
    }
}

/// An allocator made by the library.
struct Plugin {
    calls: Calls,
    state: *mut c_void,
}

// SAFETY: the contract of the four calls is that of a shared page allocator: any thread may call them.
unsafe impl Send for Plugin {}
// SAFETY: as above.
unsafe impl Sync for Plugin {}

impl Pages for Plugin {
    fn new(frames: usize, cpus: usize) -> Option<Self> {
        let calls = *calls().as_ref().ok()?;
        // SAFETY: by the contract, any numbers are allowed.
        let state = unsafe { (calls.new)(frames, cpus) };
        (!state.is_null()).then_some(Self { calls, state })
    }
    #[inline]
    fn alloc(&self, cpu: usize, order: u32) -> Option<usize> {
        // SAFETY: `state` is live until drop.
        let frame = unsafe { (self.calls.get)(self.state, cpu, order) };
        (frame != u64::MAX).then_some(frame as usize)
    }
    #[inline]
    fn free(&self, cpu: usize, frame: usize, order: u32) {
        // SAFETY: `state` is live, and the workloads free what they allocated.
        unsafe { (self.calls.put)(self.state, cpu, frame as u64, order) };
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        // SAFETY: the state made by `new`, given back once.
        unsafe { (self.calls.drop)(self.state) };
    }
}
