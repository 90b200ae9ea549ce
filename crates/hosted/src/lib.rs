//! A whole machine inside a process, running kmem
