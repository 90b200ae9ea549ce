//! `cargo xtask boot`: builds the kernel of `tests/kernel` and boots it in an emulator.
//!
//! The kernel is a package of this workspace, built for the host's own target without `std`, start files or a dynamic
//! loader. The emulator's exit status says how it went; a triple fault ends it with 0 and counts as a failure.

use crate::boot_disk::Disk;
use crate::process;
use crate::say;
use crate::workspace::{Workspace, cargo};
use anyhow::{Context as _, bail};
use clap::Args;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The emulator.
const QEMU: &str = "qemu-system-x86_64";
const TARGET: &str = "x86_64-unknown-linux-gnu";
const PACKAGE: &str = "kmem-kernel";

/// How to get the emulator.
const INSTALL: &str = "install QEMU: `apt-get install qemu-system-x86` (Debian), `dnf install qemu-system-x86` (Fedora), \
     `pacman -S qemu-system-x86` (Arch), `brew install qemu` (macOS)";

/// What to boot, and how.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// How many CPUs.
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: u32,
    /// How much memory, as QEMU spells it.
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    ram: String,
    /// Only this test or group; `costs` counts instructions.
    #[arg(long, value_name = "NAME", default_value = "all")]
    test: String,
    /// Connect the terminal to the serial port and wait for commands.
    #[arg(long)]
    interactive: bool,
    /// Do so many times as much where a test goes on for a while.
    #[arg(long, value_name = "FACTOR", default_value_t = 1)]
    effort: u32,
    /// One instruction is one nanosecond of virtual time: the same run every time. `costs` always runs so.
    #[arg(long)]
    icount: bool,
    /// Build with debug assertions.
    #[arg(long)]
    checked: bool,
    /// Only look at the kernel's code with clippy, warnings denied. The workspace's own run does not see it.
    #[arg(long)]
    lint: bool,
    /// Give up after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    limit: u64,
    /// Words for the kernel's command line.
    #[arg(long, value_name = "WORDS", default_value = "")]
    append: String,
}

/// Why nothing can be booted here, if nothing can.
pub(crate) fn missing() -> Option<String> {
    let found = Command::new(QEMU).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    (!found.is_ok_and(|status| status.success())).then(|| format!("{QEMU} is not here; {INSTALL}"))
}

/// Builds, boots, and says how it went.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    if options.lint {
        compile(workspace, "clippy", "kernel", &["--", "-D", "warnings"])?;
        say!("the kernel has no warning");
        return Ok(());
    }
    if let Some(reason) = missing() {
        bail!("{reason}");
    }
    let profile = if options.checked { "kernel-checked" } else { "kernel" };
    let kernel = compile(workspace, "build", profile, &[])?;
    let disk = Disk::create(&workspace.target.join("bare/disk.img"))?;
    let mut command = emulator(options, &kernel, &disk);
    let started = Instant::now();
    let child = command.spawn().with_context(|| format!("cannot run {}", process::spelled(&command)))?;
    let status = watch(child, Duration::from_secs(options.limit), options.interactive)?;
    let seconds = started.elapsed().as_secs_f64();
    match status {
        Some(33) => {}
        Some(0) => bail!("the kernel ended in a triple fault after {seconds:.1} s"),
        Some(3) => bail!("the kernel panicked"),
        Some(5) => bail!("the kernel faulted"),
        Some(35) => bail!("tests failed"),
        Some(other) => bail!("{QEMU} ended with status {other}"),
        None => bail!("no end after {} s: killed", options.limit),
    }
    if let Some(sectors) = disk.check()? {
        say!("disk: {sectors} sectors written by the kernel are as they should be");
    } else if matches!(options.test.as_str(), "all" | "storage") && !options.interactive {
        bail!("the kernel has written nothing to its disk");
    }
    say!("booted with {} CPUs and {} of memory, {seconds:.1} s", options.cpus, options.ram);
    Ok(())
}

/// Builds the kernel, or has it looked at, and says where it is.
fn compile(workspace: &Workspace, verb: &str, profile: &str, more: &[&str]) -> anyhow::Result<PathBuf> {
    let folder = workspace.target.join("bare");
    let script = workspace.root.join("tests/kernel/link.ld");
    let flags = [
        "--cfg=bare_metal".to_owned(),
        "-Crelocation-model=static".to_owned(),
        "-Cno-redzone=yes".to_owned(),
        "-Clinker=rust-lld".to_owned(),
        "-Clinker-flavor=ld.lld".to_owned(),
        format!("-Clink-arg=-T{}", script.display()),
        "-Clink-arg=-zmax-page-size=4096".to_owned(),
    ];
    let mut command = Command::new(cargo());
    command
        .current_dir(&workspace.root)
        .args([verb, "-p", PACKAGE, "--profile", profile, "--target", TARGET, "--target-dir"])
        .arg(&folder)
        .args(more)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env_remove("RUSTFLAGS");
    let finished = process::watch("kernel", &mut command, |_| false)?;
    if !finished.success {
        for line in finished.lines.iter().filter(|line| !process::is_progress(line)) {
            say!("{line}");
        }
        bail!("the kernel does not build");
    }
    for line in finished.lines.iter().filter(|line| line.starts_with("warning")) {
        say!("{line}");
    }
    Ok(folder.join(TARGET).join(profile).join(PACKAGE))
}

/// The emulator's command line.
fn emulator(options: &Options, kernel: &Path, disk: &Disk) -> Command {
    let costs = options.test == "costs";
    let mut append = vec![format!("test={}", options.test), format!("effort={}", options.effort)];
    let (mut cpu, mut cpus, mut ram) = ("max", options.cpus, options.ram.as_str());
    if costs {
        // As Linux was measured.
        (cpu, cpus, ram) = ("qemu64", 1, "1G");
        append.push("tick_us=0".to_owned());
    } else {
        append.push("dma32_mib=128".to_owned());
        append.push(format!("limit_ms={}", options.limit * 500));
    }
    if options.interactive {
        append.push("interactive".to_owned());
    }
    append.push(options.append.clone());
    let mut command = Command::new(QEMU);
    command
        .args(["-machine", "q35", "-accel", "tcg", "-cpu", cpu, "-smp"])
        .arg(cpus.to_string())
        .args(["-m", ram, "-kernel"])
        .arg(kernel)
        .args(["-append", &append.join(" ")])
        .args(["-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot", "-nodefaults"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"])
        .arg("-drive")
        .arg(format!("if=none,id=disk,format=raw,file={}", disk.path().display()))
        .args(["-device", "virtio-blk-pci,drive=disk"]);
    if costs || options.icount {
        command.args(["-icount", "shift=0,sleep=off"]);
    }
    if options.interactive {
        command.stdin(Stdio::inherit()).stdout(Stdio::inherit());
    } else {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
    }
    command
}

/// Passes the serial port through until the emulator ends; its status, or `None` if it had to be killed.
fn watch(mut child: Child, limit: Duration, interactive: bool) -> anyhow::Result<Option<i32>> {
    let reader = child.stdout.take().map(|serial| {
        std::thread::spawn(move || {
            for line in BufReader::new(serial).split(b'\n').map_while(Result::ok) {
                say!("{}", String::from_utf8_lossy(&line).trim_end());
            }
        })
    });
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status.code().unwrap_or(-1));
        }
        if !interactive && started.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    if let Some(reader) = reader {
        let _ = reader.join();
    }
    Ok(status)
}
