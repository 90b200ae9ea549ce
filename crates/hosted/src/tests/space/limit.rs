//! The host's limit on mappings: refused before it is reached, and nothing is the worse for it. Budgets count all machines of
//! a process, so these cases have one to themselves.

use std::process::Command;

use kmem_gfp::{Gfp, PAGE_SIZE};
use kmem_vmalloc::{MapError, VmallocError};

use super::{boot, scatter, small, write};
use crate::Reports;

const CASE: &str = "KMEM_HOSTED_LIMIT";

#[test]
fn child() {
    match std::env::var(CASE).as_deref() {
        Ok("budget") => a_budget_is_kept(),
        Ok("default") => the_default_budget_leaves_room_for_others(),
        Ok("long run") => a_long_run_does_not_use_mappings_up(),
        _ => {}
    }
}

#[test]
fn mappings_are_refused_before_the_host_has_to() {
    for case in ["budget", "default", "long run"] {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::space::limit::child", "--nocapture", "--test-threads=1"])
            .env(CASE, case)
            .output()
            .unwrap();
        assert!(
            child.status.success(),
            "{case}: {}{}",
            String::from_utf8_lossy(&child.stdout),
            String::from_utf8_lossy(&child.stderr)
        );
    }
}

fn a_budget_is_kept() {
    for lingering in [false, true] {
        let machine = boot(
            small().ram_bytes(16 << 20).reports(Reports::Discard).mapping_budget(200).lingering_translations(lingering),
        );
        let vmalloc = machine.kmem().vmalloc_layer();
        let _kept = scatter(&machine);
        let mut live = Vec::new();
        for round in 0..3 {
            let error = loop {
                match vmalloc.vmalloc((1 + live.len() % 7) * PAGE_SIZE) {
                    Ok(memory) => live.push(memory),
                    Err(error) => break error,
                }
            };
            let VmallocError::NotMapped { source: MapError::TooManyMappings { mappings, budget: 200, .. }, .. } = error
            else {
                panic!("{error}");
            };
            assert!(mappings > 200 && machine.space_stats().host_mappings <= 200);
            assert!(error.to_string().contains("200"), "{error}");
            assert!(live.len() > 20, "{}", live.len());
            live.iter().for_each(|memory| write(memory.addr().get(), round));
            // A third of it goes, in the middle of everything.
            for i in (0..live.len()).step_by(3).rev() {
                // SAFETY: ours, not used any more.
                unsafe { vmalloc.vfree(live.swap_remove(i).as_ptr()) }.unwrap();
            }
            vmalloc.purge();
        }
        for memory in live {
            // SAFETY: as above.
            unsafe { vmalloc.vfree(memory.as_ptr()) }.unwrap();
        }
        vmalloc.purge();
        assert_eq!(machine.space_stats().host_mappings, 1);
    }
}

fn the_default_budget_leaves_room_for_others() {
    let machine = boot(small().ram_bytes(512 << 20).reports(Reports::Discard));
    let vmalloc = machine.kmem().vmalloc_layer();
    let budget = machine.space_stats().host_mapping_budget;
    let limit: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    assert!(budget <= limit / 2 && (budget == 32 << 10 || budget == limit / 2), "{budget} of {limit}");
    let mut live = Vec::new();
    let error = loop {
        match vmalloc.vmalloc(PAGE_SIZE) {
            Ok(memory) => live.push(memory),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, VmallocError::NotMapped { source: MapError::TooManyMappings { .. }, .. }), "{error}");
    assert!(live.len() >= budget / 2 - 16);
    // Everything else goes on.
    std::thread::spawn(|| vec![1_u8; 1 << 20]).join().unwrap();
    assert!(machine.kmem().kmalloc(100_000, Gfp::KERNEL).is_ok());
    for memory in live {
        // SAFETY: ours, not used any more.
        unsafe { vmalloc.vfree(memory.as_ptr()) }.unwrap();
    }
    assert_eq!(machine.space_stats().host_mappings, 1);
}

fn a_long_run_does_not_use_mappings_up() {
    let machine = boot(small().ram_bytes(16 << 20).mapping_budget(2000));
    let vmalloc = machine.kmem().vmalloc_layer();
    let _kept = scatter(&machine);
    let mut live = std::collections::VecDeque::new();
    for round in 0..6000_usize {
        live.push_back(vmalloc.vmalloc((1 + round * 5 % 23) * PAGE_SIZE).unwrap());
        if live.len() > 40 {
            let memory = live.remove(round * 11 % 40).unwrap();
            // SAFETY: ours, not used any more.
            unsafe { vmalloc.vfree(memory.as_ptr()) }.unwrap();
        }
    }
    for memory in live {
        // SAFETY: as above.
        unsafe { vmalloc.vfree(memory.as_ptr()) }.unwrap();
    }
    assert_eq!(machine.space_stats().host_mappings, 1);
}
