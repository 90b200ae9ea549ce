//! Lines per second of reading and parsing, and of turning events into operations: `parse_speed FILE`.

use kmem_lab::program::{CacheBook, Level, Program};
use kmem_lab::trace::{Event, Input, LineKind};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: parse_speed FILE")?;
    let start = Instant::now();
    let chunks: Vec<_> = Input::File(path.into()).open()?.chunks.collect::<Result<_, _>>()?;
    println!("read and unpacked in {:.3} s", start.elapsed().as_secs_f64());

    let (start, mut lines) = (Instant::now(), 0u64);
    for (_, line) in chunks.iter().flat_map(|c| c.lines()) {
        if let LineKind::Event(e) = LineKind::of(line) {
            std::hint::black_box(Event::parse(e.event, e.fields)?);
        }
        lines += 1;
    }
    println!("parsed {lines} lines, {:.2} million a second", lines as f64 / start.elapsed().as_secs_f64() / 1e6);

    let (start, mut ops) = (Instant::now(), Vec::new());
    let mut program = Program::new(Level::All, CacheBook::default());
    let mut total = 0;
    for chunk in &chunks {
        for (_, line) in chunk.lines() {
            if let LineKind::Event(e) = LineKind::of(line) {
                program.event(&e)?;
            }
        }
        program.drain(&mut ops, false);
        total += ops.len();
        ops.clear();
    }
    program.finish(&mut ops);
    total += ops.len();
    println!("{total} operations, {:.2} million lines a second", lines as f64 / start.elapsed().as_secs_f64() / 1e6);
    println!("{:?}", program.linux_figures());
    println!("{:?}", program.census());
    Ok(())
}
