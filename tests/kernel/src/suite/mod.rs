//! The tests that run inside the kernel, each in a thread of its own.
//!
//! A failed assertion ends the test's thread and nothing else. The last line is `N passed, N failed`; the emulator's status
//! says the same. `test=NAME` on the command line chooses: a test, a group, `costs` or `scaling`.

mod areas;
mod background;
mod collections;
mod contract;
mod costs;
mod guard;
mod interrupts;
mod machine;
mod oracle;
mod pressure;
mod random;
mod scaling;
mod storage;
mod threads;
mod tools;

use alloc::string::String;

use kmem_sync::atomic::{AtomicU64, Ordering};

use crate::exit::{Exit, exit};
use crate::{cmdline, console, daemons, ipi, percpu, sched, thread, trap, vm};

/// A test: its name, and what it does. It fails by panicking.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Test {
    name: &'static str,
    body: fn(),
}

/// Lists tests by the names of their functions.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        /// The tests of this group.
        pub(crate) const TESTS: &[crate::suite::Test] =
            &[$(crate::suite::Test { name: stringify!($name), body: $name }),*];
    };
}
use tests;

const GROUPS: [(&str, &[Test]); 13] = [
    ("machine", machine::TESTS),
    ("contract", contract::TESTS),
    ("pressure", pressure::TESTS),
    ("background", background::TESTS),
    ("areas", areas::TESTS),
    ("guard", guard::TESTS),
    ("collections", collections::TESTS),
    ("threads", threads::TESTS),
    ("interrupts", interrupts::TESTS),
    ("oracle", oracle::TESTS),
    ("storage", storage::TESTS),
    ("scaling", scaling::TESTS),
    ("costs", costs::TESTS),
];

/// How much longer than in a short run the tests that go on for a while are to go on.
static EFFORT: AtomicU64 = AtomicU64::new(1);

/// The factor by which a test should do more than in a short run.
pub(crate) fn effort() -> usize {
    EFFORT.load(Ordering::Relaxed) as usize
}

/// What the first thread is called; the machine ends with it.
pub(crate) const NAME: &str = "suite";

/// The first thread.
pub(crate) fn main() {
    // Counts include what is put off: nobody does it on the side.
    if cmdline::value("test") != Some("costs") {
        vm::start_worker();
        daemons::start();
    }
    println!(
        "kmem kernel: {} cpus, {} MiB managed, tick {} us",
        percpu::nr_cpus(),
        crate::platform::kmem().pages().managed_pages() >> 8,
        cmdline::number("tick_us").unwrap_or(1000)
    );
    EFFORT.store(cmdline::number("effort").unwrap_or(1).max(1), Ordering::Relaxed);
    if cmdline::has("interactive") {
        interactive();
    }
    let (passed, failed) = run(cmdline::value("test").unwrap_or("all"));
    println!("{passed} passed, {failed} failed");
    exit(if failed == 0 && passed > 0 { Exit::Passed } else { Exit::Failed })
}

/// Runs what `wanted` names: everything but what measures, a group, or the tests whose name contains it.
fn run(wanted: &str) -> (u32, u32) {
    let (mut passed, mut failed) = (0, 0);
    for (group, tests) in GROUPS {
        for test in tests {
            let chosen = match wanted {
                "all" => !matches!(group, "costs" | "scaling"),
                _ => group == wanted || test.name.contains(wanted),
            };
            if !chosen {
                continue;
            }
            let started = sched::now_ms();
            let ok = run_one(test);
            println!(
                "test {group}::{} ... {} ({} ms)",
                test.name,
                if ok { "ok" } else { "FAILED" },
                sched::now_ms() - started
            );
            if ok {
                passed += 1;
            } else {
                failed += 1;
            }
        }
    }
    (passed, failed)
}

fn run_one(test: &'static Test) -> bool {
    let limit = cmdline::number("limit_ms").unwrap_or(60_000);
    let started = sched::now_ms();
    let handle = thread::spawn(test.name, None, test.body);
    while !handle.is_finished() {
        if sched::now_ms() - started > limit {
            println!("test {} still runs after {limit} ms", test.name);
            console::seize();
            exit(Exit::Failed);
        }
        sched::park_or_yield();
    }
    // Whatever a failed test left behind.
    trap::on_tick(None);
    trap::on_nmi(None);
    crate::platform::fail_page_request(0);
    handle.join()
}

/// Answers lines typed at the serial port until `quit`.
fn interactive() -> ! {
    println!(
        "type the name of a test, a group, `all`, `costs`, `buddyinfo`, `slabinfo`, `vmallocinfo`, `messages` or `quit`"
    );
    let mut line = String::new();
    loop {
        let Some(byte) = console::typed() else {
            sched::park_or_yield();
            continue;
        };
        if byte != b'\n' && byte != b'\r' {
            line.push(char::from(byte));
            continue;
        }
        let kmem = crate::platform::kmem();
        match line.trim() {
            "" => {}
            "quit" => exit(Exit::Passed),
            "buddyinfo" => println!("{}", kmem.buddyinfo()),
            "slabinfo" => println!("{}", kmem.slabinfo()),
            "vmallocinfo" => println!("{}", vm::vmalloc().vmallocinfo()),
            "messages" => println!(
                "{} barriers, {} flushes",
                ipi::BARRIERS.load(Ordering::Relaxed),
                ipi::FLUSHES.load(Ordering::Relaxed)
            ),
            name => {
                let (passed, failed) = run(name);
                println!("{passed} passed, {failed} failed");
            }
        }
        line.clear();
    }
}
