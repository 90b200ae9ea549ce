//! The memory-allocation stack of a kernel, wired together for one platform
