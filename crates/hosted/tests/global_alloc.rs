//! Compiles and runs an ordinary program on the global heap: thread churn, forks, exec of itself.

use std::path::PathBuf;
use std::process::Command;

/// Compiles the example into the folder that this test was compiled into, if that is not done yet.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test's path");
    let folder = test.parent().and_then(|deps| deps.parent()).expect("the target folder");
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        None | Some("debug") => "dev",
        Some(profile) => profile,
    };
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .args(["--example", name, "--profile", profile, "--target-dir"])
        .arg(folder.parent().expect("the target folder's parent"))
        .status();
    assert!(built.expect("cargo runs").success());
    folder.join("examples").join(name)
}

fn run(program: PathBuf, heap_bytes: Option<u64>) -> String {
    let mut command = Command::new(program);
    if let Some(bytes) = heap_bytes {
        command.env("KMEM_HEAP_BYTES", bytes.to_string());
    }
    let output = command.output().expect("the program starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}{err}", output.status);
    assert!(!err.contains("kmem:"), "the heap has reported: {err}");
    out.into_owned()
}

#[test]
fn a_program_with_threads_forks_and_exec_runs_on_the_heap() {
    let out = run(example("global_alloc"), None);
    assert!(out.ends_with("\nok\n"), "{out}");
}

#[test]
fn the_heap_is_as_large_as_the_environment_says() {
    let out = run(example("global_alloc"), Some(256 << 20));
    assert!(out.ends_with("\nok\n"), "{out}");
}
