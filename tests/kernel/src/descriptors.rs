//! Segments, the task state with its interrupt stacks, and the interrupt descriptors.
//!
//! Each interrupt that can come in the middle of work has a stack of its own (IST): the prebuilt libraries use the red zone
//! below the stack pointer, which an interrupt on the same stack would overwrite.
//!
//! | IST | for |
//! | --- | --- |
//! | 1 | the timer and messages |
//! | 2 | faults |
//! | 3 | NMIs |

use core::arch::asm;

use kmem_sync::UnsafeCell;
use kmem_sync::atomic::{AtomicBool, Ordering};

use crate::apic::vector;

/// Bytes of an interrupt stack.
pub(crate) const STACK_BYTES: usize = 32 << 10;

const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
const TASK: u16 = 0x18;

/// The task state segment of 64-bit mode.
#[derive(Debug)]
#[repr(C, packed(4))]
struct TaskState {
    reserved: u32,
    stacks: [u64; 3],
    reserved2: u64,
    ist: [u64; 7],
    reserved3: u64,
    reserved4: u16,
    io_map: u16,
}

#[derive(Debug)]
#[repr(C, align(16))]
struct Segments([u64; 5]);

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// One CPU's segments and task state.
#[derive(Debug)]
pub(crate) struct Tables {
    segments: UnsafeCell<Segments>,
    state: UnsafeCell<TaskState>,
}

// SAFETY: written once, by the CPU that they belong to, before it loads them.
unsafe impl Sync for Tables {}

impl Tables {
    pub(crate) const fn new() -> Self {
        Self {
            segments: UnsafeCell::new(Segments([0, 0x00af_9a00_0000_ffff, 0x00cf_9200_0000_ffff, 0, 0])),
            state: UnsafeCell::new(TaskState {
                reserved: 0,
                stacks: [0; 3],
                reserved2: 0,
                ist: [0; 7],
                reserved3: 0,
                reserved4: 0,
                io_map: size_of::<TaskState>() as u16,
            }),
        }
    }

    /// Loads this CPU's tables and the interrupt descriptors.
    ///
    /// # Safety
    /// `self` is the running CPU's, not loaded before; `stacks` are the upper ends of three stacks of
    /// [`STACK_BYTES`] that nobody else uses.
    pub(crate) unsafe fn load(&'static self, stacks: [usize; 3]) {
        let state = self.state.with_mut(|state| {
            // SAFETY: ours, not loaded yet.
            unsafe {
                for (i, top) in stacks.into_iter().enumerate() {
                    (&raw mut (*state).ist).cast::<u64>().add(i).write_unaligned(top as u64);
                }
            }
            state.expose_provenance() as u64
        });
        let limit = size_of::<TaskState>() as u64 - 1;
        let low = limit | (state & 0xff_ffff) << 16 | 0x89 << 40 | (state >> 24 & 0xff) << 56;
        let segments = self.segments.with_mut(|segments| {
            // SAFETY: ours, not loaded yet.
            unsafe {
                (*segments).0[3] = low;
                (*segments).0[4] = state >> 32;
            }
            segments.expose_provenance() as u64
        });
        let segments = Pointer { limit: size_of::<Segments>() as u16 - 1, base: segments };
        let gates = Pointer { limit: size_of::<Gates>() as u16 - 1, base: gates() as u64 };
        // SAFETY: the tables are complete and stay where they are. GS is left alone: its base is set already.
        unsafe {
            asm!(
                "lgdt [{segments}]",
                "push {code}",
                "lea {scratch}, [rip + 2f]",
                "push {scratch}",
                "retfq",
                "2:",
                "mov ds, {data:e}",
                "mov es, {data:e}",
                "mov ss, {data:e}",
                "ltr {task:x}",
                "lidt [{gates}]",
                segments = in(reg) &raw const segments,
                gates = in(reg) &raw const gates,
                code = in(reg) u64::from(CODE),
                data = in(reg) u32::from(DATA),
                task = in(reg) TASK,
                scratch = out(reg) _,
            );
        }
    }
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Gate {
    low: u64,
    high: u64,
}

type Gates = [Gate; 36];

struct SharedGates(UnsafeCell<Gates>);
// SAFETY: written once, by the CPU that boots, before anybody loads them.
unsafe impl Sync for SharedGates {}

static GATES: SharedGates = SharedGates(UnsafeCell::new([Gate { low: 0, high: 0 }; 36]));
static FILLED: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    static vector_stubs: [u8; 0];
}

/// Where the interrupt descriptors are; fills them in at the first call.
fn gates() -> usize {
    GATES.0.with_mut(|gates| {
        if !FILLED.swap(true, Ordering::AcqRel) {
            for number in 0..36_u8 {
                let entry = (&raw const vector_stubs).expose_provenance() as u64 + u64::from(number) * 16;
                let stack = match number {
                    2 => 3,
                    vector::TIMER.. => 1,
                    _ => 2,
                };
                // An interrupt gate: interrupts are off in the handler.
                let low =
                    entry & 0xffff | u64::from(CODE) << 16 | stack << 32 | 0x8e << 40 | (entry >> 16 & 0xffff) << 48;
                // SAFETY: one of 36; the first caller writes while the machine has one CPU.
                unsafe { (*gates)[number as usize] = Gate { low, high: entry >> 32 } };
            }
        }
        gates.expose_provenance()
    })
}
