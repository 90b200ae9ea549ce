//! A program that wants little memory of the host's: what it frees goes back at once.

use kmem_hosted::HostedAlloc;

const LIMIT: u64 = 32 << 20;

#[global_allocator]
static HEAP: HostedAlloc = HostedAlloc::new().resident_limit(LIMIT).cpus(4);

#[test]
fn freed_memory_above_the_limit_goes_back_to_the_host() {
    for round in 1..=3_u8 {
        let blocks: Vec<Vec<u8>> = (0..120).map(|_| vec![round; 1 << 20]).collect();
        assert!(HEAP.resident_bytes() >= 120 << 20, "live memory stays");
        assert!(blocks.iter().all(|block| block[77] == round && block[block.len() - 1] == round));
        drop(blocks);
        let resident = HEAP.resident_bytes();
        // The limit is looked at each time that a sixteenth of it has been freed.
        assert!(resident <= LIMIT + LIMIT / 8, "{resident} bytes resident");
    }
}

#[test]
fn the_caches_can_be_looked_at() {
    let words: Vec<Box<u64>> = (0..1000).map(Box::new).collect();
    let mut text = String::with_capacity(64 << 10);
    HEAP.slabinfo(&mut text).unwrap();
    assert!(text.starts_with("slabinfo - version: 2.1\n"));
    let row = text.lines().find(|line| line.starts_with("heap-8 ")).unwrap();
    let active: u32 = row.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(active >= 1000, "{row}");
    drop(words);
}
