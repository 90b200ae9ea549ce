//! A page allocator from a shared library named by `KMEM_LLFREE`: how LLFree, which is on no registry, takes part. The four calls are
//! those of the benchmarks; `benches/README.md` tells them.

use super::subjects::Pages;
use crate::trace::TraceGfp;
use std::ffi::{CStr, CString, c_void};

const VARIABLE: &str = "KMEM_LLFREE";

/// An allocator made by the library.
pub(crate) struct Plugin {
    get: unsafe extern "C" fn(*mut c_void, usize, u32) -> u64,
    put: unsafe extern "C" fn(*mut c_void, usize, u64, u32),
    end: unsafe extern "C" fn(*mut c_void),
    state: *mut c_void,
}

impl Plugin {
    /// One over `frames` frames.
    pub(crate) fn new(frames: usize, cpus: u32) -> Result<Self, String> {
        let out = |why: String| format!("LLFree is left out: {why}");
        let path =
            std::env::var(VARIABLE).map_err(|_| out(format!("{VARIABLE} names no library (see benches/README.md)")))?;
        let name = CString::new(path.clone()).map_err(|_| out(format!("{VARIABLE} holds a NUL")))?;
        // SAFETY: loading runs the library's initialisers, which is what the user asked for by naming it. It is never closed.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            return Err(out(format!("{path} cannot be loaded")));
        }
        let find = |symbol: &CStr| {
            // SAFETY: a handle just opened.
            let address = unsafe { libc::dlsym(library, symbol.as_ptr()) };
            if address.is_null() { Err(out(format!("{path} lacks {}", symbol.to_string_lossy()))) } else { Ok(address) }
        };
        type New = unsafe extern "C" fn(usize, usize) -> *mut c_void;
        // SAFETY: the named symbols have these signatures, by the contract that the user's library follows; any numbers are allowed.
        unsafe {
            let new = std::mem::transmute::<*mut c_void, New>(find(c"bench_pages_new")?);
            let get = std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void, usize, u32) -> u64>(find(
                c"bench_pages_get",
            )?);
            let put = std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void, usize, u64, u32)>(find(
                c"bench_pages_put",
            )?);
            let end = std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(find(c"bench_pages_drop")?);
            let state = new(frames, cpus as usize);
            if state.is_null() {
                Err(out("it cannot manage so many frames".into()))
            } else {
                Ok(Self { get, put, end, state })
            }
        }
    }
}

impl Pages for Plugin {
    fn name(&self) -> &'static str {
        "LLFree"
    }
    fn alloc(&mut self, cpu: u32, order: u8, _gfp: TraceGfp) -> Option<u64> {
        // SAFETY: `state` is live until drop.
        let frame = unsafe { (self.get)(self.state, cpu as usize, u32::from(order)) };
        (frame != u64::MAX).then_some(frame)
    }
    fn free(&mut self, cpu: u32, frame: u64, order: u8, _whole: bool) {
        // SAFETY: `state` is live, and a replay frees what it was given.
        unsafe { (self.put)(self.state, cpu as usize, frame, u32::from(order)) };
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        // SAFETY: the state made by `new`, given back once.
        unsafe { (self.end)(self.state) };
    }
}
