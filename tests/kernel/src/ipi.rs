//! Messages that every CPU acts on before the sender goes on: a memory barrier, forgetting translations.
//!
//! ```text
//! sender    its turn ─▶ what, number + 1 ─▶ interrupt the others ─▶ act itself ─▶ wait for their answers ─▶ next
//! others    interrupt: number not answered yet? act ─▶ answered = number
//! ```

use core::ops::Range;

use kmem_sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use kmem_sync::{Cpu, Pinned};

use crate::cpu::KernelCpu;
use crate::percpu::{self, PerCpu};
use crate::{apic, asm};

/// From so many pages on every translation is forgotten instead of each.
const MANY_PAGES: usize = 33;

/// Whether somebody's message is under way.
static TURN: AtomicBool = AtomicBool::new(false);
static NUMBER: AtomicU64 = AtomicU64::new(0);
/// The addresses whose translations are to be forgotten; empty for a barrier only.
static START: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);
/// Messages sent so far, for the curious: barriers and flushes.
pub(crate) static BARRIERS: AtomicU64 = AtomicU64::new(0);
pub(crate) static FLUSHES: AtomicU64 = AtomicU64::new(0);

/// Makes every CPU execute a full barrier. Interrupts are on.
pub(crate) fn barrier() {
    BARRIERS.fetch_add(1, Ordering::Relaxed);
    send(0..0);
}

/// Makes every CPU forget its translations of a range. Interrupts are on.
pub(crate) fn flush(range: Range<usize>) {
    FLUSHES.fetch_add(1, Ordering::Relaxed);
    send(range);
}

fn send(range: Range<usize>) {
    let Some(_pin) = Pinned::new(&KernelCpu) else { return };
    let this = percpu::this();
    let others = || percpu::all().iter().filter(|cpu| !core::ptr::eq(*cpu, this) && is_online(cpu));
    if others().next().is_some() {
        debug_assert!(asm::interrupts_on(), "a CPU that waits for answers must answer others");
        // Interrupts are on, so whoever waits here answers the message that is under way.
        while TURN.swap(true, Ordering::Acquire) {
            KernelCpu.relax();
        }
        START.store(range.start, Ordering::Relaxed);
        END.store(range.end, Ordering::Relaxed);
        // Release pairs with the acquire in `answer`.
        let number = NUMBER.load(Ordering::Relaxed) + 1;
        NUMBER.store(number, Ordering::Release);
        let mut asked = [false; percpu::MAX_CPUS];
        for cpu in others() {
            asked[cpu.id().index()] = true;
            apic::send(cpu.apic_id.load(Ordering::Relaxed) as u8, apic::vector::MESSAGE);
        }
        act(&range);
        for cpu in others().filter(|cpu| asked[cpu.id().index()]) {
            while cpu.answered.load(Ordering::Acquire) < number {
                KernelCpu.relax();
            }
        }
        TURN.store(false, Ordering::Release);
    } else {
        act(&range);
    }
}

fn is_online(cpu: &PerCpu) -> bool {
    cpu.online.load(Ordering::Acquire)
}

fn act(range: &Range<usize>) {
    fence(Ordering::SeqCst);
    if range.len() >= MANY_PAGES << 12 {
        asm::invalidate_all();
    } else {
        for page in range.clone().step_by(4096) {
            asm::invalidate_page(page);
        }
    }
}

/// Acts on the message that is under way. In its interrupt.
pub(crate) fn answer() {
    let this = percpu::this();
    let number = NUMBER.load(Ordering::Acquire);
    if this.answered.load(Ordering::Relaxed) == number {
        return;
    }
    act(&(START.load(Ordering::Relaxed)..END.load(Ordering::Relaxed)));
    // Release pairs with the acquire in `send`.
    this.answered.store(number, Ordering::Release);
}

/// Makes a CPU that comes up not answer what came before it.
pub(crate) fn join(this: &PerCpu) {
    this.answered.store(NUMBER.load(Ordering::Acquire), Ordering::Release);
}
