//! `cargo xtask sizes`: what a user pays for picking one crate: the image that it makes, and its static memory.
//!
//! ```text
//! tests/sizes/src/bin/<crate>.rs ──(bare metal, optimised for speed, for size)──▶ image ──▶ sections − those of `nothing`
//! ```

use crate::process;
use crate::say;
use crate::table::Table;
use crate::workspace::{Workspace, cargo};
use anyhow::{Context as _, bail};
use object::{Object as _, ObjectSection as _, SectionFlags, elf};
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";
const PACKAGE: &str = "kmem-sizes";
/// The image that the others are measured against.
const NOTHING: &str = "nothing";
/// The images, in the order of the layers, and what stands in each.
const IMAGES: [(&str, &str); 8] = [
    ("buddy", "sync, gfp, buddy"),
    ("slab", "sync, gfp, slab"),
    ("kmalloc", "sync, gfp, slab, kmalloc"),
    ("vmalloc", "sync, gfp, vmalloc"),
    ("kvmalloc", "sync, gfp, slab, kmalloc, vmalloc, kvmalloc"),
    ("cma", "sync, gfp, cma (DMA part)"),
    ("zsmalloc", "sync, gfp, zsmalloc"),
    ("reclaim", "sync, gfp, reclaim (engine and shrinkers)"),
];

/// Bytes of an image that end up in memory.
#[derive(Clone, Copy, Debug, Default)]
struct Sizes {
    code: u64,
    constants: u64,
    variables: u64,
}

/// Builds the images twice and prints the table.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let fast = build(workspace, "3")?;
    let small = build(workspace, "s")?;
    let mut table = Table::new(["crate", "code", "constants", "variables", "code, opt-level s", "what is linked"]);
    let (fast_base, small_base) = (measure(&fast, NOTHING)?, measure(&small, NOTHING)?);
    for (image, parts) in IMAGES {
        let (fast, small) = (measure(&fast, image)?, measure(&small, image)?);
        table.row([
            image.to_owned(),
            kib(fast.code, fast_base.code),
            kib(fast.constants, fast_base.constants),
            kib(fast.variables, fast_base.variables),
            kib(small.code, small_base.code),
            parts.to_owned(),
        ]);
    }
    say!("{table}");
    say!("in KiB, without what an empty image has; books per frame and per CPU come on top (each crate's README)");
    Ok(())
}

/// Builds all images with an `opt-level`, and says where they are.
fn build(workspace: &Workspace, opt_level: &str) -> anyhow::Result<PathBuf> {
    let folder = workspace.target.join(format!("sizes-{opt_level}"));
    let flags = [
        "--cfg=bare_metal",
        "-Crelocation-model=static",
        "-Crelro-level=off",
        "-Cno-redzone=yes",
        "-Clinker=rust-lld",
        "-Clinker-flavor=ld.lld",
        "-Clink-arg=--entry=entry",
    ];
    let mut command = Command::new(cargo());
    command
        .current_dir(&workspace.root)
        .args(["build", "-p", PACKAGE, "--bins", "--profile", "kernel", "--target", TARGET, "--target-dir"])
        .arg(&folder)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CARGO_PROFILE_KERNEL_OPT_LEVEL", opt_level)
        .env_remove("RUSTFLAGS");
    let finished = process::watch("images", &mut command, |_| false)?;
    if !finished.success {
        for line in finished.lines.iter().filter(|line| !process::is_progress(line)) {
            say!("{line}");
        }
        bail!("the images do not build");
    }
    Ok(folder.join(TARGET).join("kernel"))
}

/// Adds up an image's sections.
fn measure(folder: &Path, image: &str) -> anyhow::Result<Sizes> {
    let path = folder.join(image);
    let bytes = std::fs::read(&path).with_context(|| format!("no image {}", path.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("{} is no image", path.display()))?;
    let mut sizes = Sizes::default();
    for section in file.sections() {
        let SectionFlags::Elf { sh_flags } = section.flags() else { continue };
        // Tables for unwinding are not loaded by a kernel.
        if sh_flags & u64::from(elf::SHF_ALLOC) == 0 || section.name().is_ok_and(|name| name.starts_with(".eh_frame")) {
            continue;
        }
        let part = if sh_flags & u64::from(elf::SHF_EXECINSTR) != 0 {
            &mut sizes.code
        } else if sh_flags & u64::from(elf::SHF_WRITE) != 0 {
            &mut sizes.variables
        } else {
            &mut sizes.constants
        };
        *part += section.size();
    }
    Ok(sizes)
}

fn kib(bytes: u64, base: u64) -> String {
    format!("{:.1}", bytes.saturating_sub(base) as f64 / 1024.0)
}
