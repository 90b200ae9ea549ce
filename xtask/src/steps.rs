//! A list of steps, run one after the other, with a table and a count at the end.

use crate::process::{self, Finished};
use crate::say;
use crate::table::Table;
use crate::workspace::Workspace;
use anyhow::bail;
use std::process::Command;
use std::time::{Duration, Instant};

/// The longest excerpt of a failed command's output that is printed; the log has everything.
const EXCERPT_LINES: usize = 120;

/// One step of a run.
#[derive(Debug)]
pub(crate) struct Step {
    /// What `--only` and the table call it.
    pub(crate) name: &'static str,
    /// What it does, in a few words.
    pub(crate) about: &'static str,
    /// What to do if it fails, beside running it alone.
    pub(crate) advice: &'static str,
    /// What it runs, in order; the first failure ends the step.
    pub(crate) commands: Vec<Command>,
    /// Why it cannot run here, if it cannot.
    pub(crate) skip: Option<String>,
    /// Whether it runs tests, whose closing lines are passed through and added up.
    pub(crate) tests: bool,
}

/// How a step went.
enum Outcome {
    Passed(String),
    Failed,
    Skipped(String),
}

/// Runs the steps and prints what became of them. `again` is the command line that runs one step alone, if one does.
pub(crate) fn run_all(
    workspace: &Workspace,
    steps: Vec<Step>,
    again: Option<&str>,
    fail_fast: bool,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut done: Vec<(Step, Outcome, Duration)> = Vec::new();
    let mut stop = false;
    for mut step in steps {
        let began = Instant::now();
        let outcome = if stop {
            Outcome::Skipped("an earlier step failed".to_owned())
        } else if let Some(reason) = step.skip.take() {
            Outcome::Skipped(reason)
        } else {
            say!("{:<12} {}", step.name, step.about);
            run_step(workspace, &mut step)?
        };
        let word = match &outcome {
            Outcome::Passed(_) => "ok",
            Outcome::Failed => "FAILED",
            Outcome::Skipped(_) => "skipped",
        };
        say!("{:<12} {word}, {:.1} s", step.name, began.elapsed().as_secs_f64());
        stop |= fail_fast && matches!(outcome, Outcome::Failed);
        done.push((step, outcome, began.elapsed()));
    }
    summary(&done, again, started.elapsed())
}

fn run_step(workspace: &Workspace, step: &mut Step) -> anyhow::Result<Outcome> {
    let log = workspace.target.join("xtask").join(format!("{}.log", step.name));
    let mut lines = Vec::new();
    let mut success = true;
    for command in &mut step.commands {
        lines.push(format!("$ {}", process::spelled(command)));
        let shown: fn(&str) -> bool = if step.tests { is_test_line } else { |_| false };
        let Finished { success: passed, lines: printed, .. } = process::watch(step.name, command, shown)?;
        lines.extend(printed);
        success = passed;
        if !success {
            break;
        }
    }
    process::log(&log, &lines)?;
    if success {
        return Ok(Outcome::Passed(note(&lines, step.tests)));
    }
    for line in excerpt(&lines) {
        say!("    {line}");
    }
    say!("    (everything it printed: {})", log.strip_prefix(&workspace.root).unwrap_or(&log).display());
    Ok(Outcome::Failed)
}

/// The lines by which `cargo test` tells which binary ran and how it went.
fn is_test_line(line: &str) -> bool {
    let line = line.trim_start();
    ["test result:", "Running ", "Doc-tests "].iter().any(|start| line.starts_with(start))
        || line.ends_with("... FAILED")
}

/// What a passed step says for itself in the table.
fn note(lines: &[String], tests: bool) -> String {
    if tests {
        let total = |word: &str| lines.iter().map(|line| count_before(line, word)).sum::<usize>();
        return format!("{} tests passed, {} ignored", total("passed"), total("ignored"));
    }
    let last = lines.iter().rev().find(|line| !line.trim().is_empty() && !line.starts_with("$ "));
    last.filter(|line| !line.trim_start().starts_with("Finished") && line.len() <= 72)
        .map_or(String::new(), |line| line.trim().to_owned())
}

/// The number in front of `word` on a `test result:` line.
pub(crate) fn count_before(line: &str, word: &str) -> usize {
    if !line.starts_with("test result:") {
        return 0;
    }
    line.split([';', '.']).find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok()).unwrap_or(0)
}

/// The part of a failed command's output that tells why.
fn excerpt(lines: &[String]) -> Vec<&str> {
    let mut chosen: Vec<&str> = Vec::new();
    let mut inside = false;
    for line in lines.iter().map(String::as_str) {
        // A failed test binary; a diagnostic of the compiler, up to the blank line that ends it.
        if line == "failures:" || line.starts_with("error") || line.starts_with("---- ") {
            inside = true;
        }
        if inside {
            chosen.push(line);
        }
        if line.starts_with("test result:") || (line.is_empty() && !chosen.contains(&"failures:")) {
            inside = false;
        }
    }
    if chosen.len() < 3 {
        chosen = lines.iter().map(String::as_str).filter(|line| !process::is_progress(line)).collect();
    }
    let from = chosen.len().saturating_sub(EXCERPT_LINES);
    chosen.split_off(from)
}

/// Prints the table, what to do about each failure, and the closing count.
fn summary(done: &[(Step, Outcome, Duration)], again: Option<&str>, total: Duration) -> anyhow::Result<()> {
    let mut table = Table::new(["step", "result", "seconds", "note"]);
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (step, outcome, time) in done {
        let (word, note) = match outcome {
            Outcome::Passed(note) => ("ok", note.clone()),
            Outcome::Failed => ("FAILED", step.about.to_owned()),
            Outcome::Skipped(reason) => ("skipped", reason.clone()),
        };
        match outcome {
            Outcome::Passed(_) => passed += 1,
            Outcome::Failed => failed += 1,
            Outcome::Skipped(_) => skipped += 1,
        }
        table.row([step.name.to_owned(), word.to_owned(), format!("{:.1}", time.as_secs_f64()), note]);
    }
    table.row(["total".to_owned(), String::new(), format!("{:.1}", total.as_secs_f64()), String::new()]);
    say!("\n{table}");
    for (step, ..) in done.iter().filter(|(_, outcome, _)| matches!(outcome, Outcome::Failed)) {
        say!("{}: {}", step.name, step.advice);
        if let Some(again) = again {
            say!("    again, alone: {again} {}", step.name);
        }
        for command in &step.commands {
            say!("    by hand:      {}", process::spelled(command));
        }
    }
    say!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed > 0 {
        // The count above is the last line: the exit status says the rest.
        bail!("");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{count_before, excerpt, note};

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn closing_lines_of_tests_add_up() {
        let line = "test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(
            (count_before(line, "passed"), count_before(line, "failed"), count_before(line, "ignored")),
            (12, 0, 3)
        );
        assert_eq!(note(&[line.to_owned(), line.to_owned()], true), "24 tests passed, 6 ignored");
    }

    #[test]
    fn an_excerpt_holds_the_failure_and_not_the_rest() {
        let text = "   Compiling a\ntest b ... FAILED\n\nfailures:\n\n---- b ----\nassertion failed\n\ntest result: FAILED. 0 passed\n     Running c\n";
        assert_eq!(
            excerpt(&lines(text)),
            ["failures:", "", "---- b ----", "assertion failed", "", "test result: FAILED. 0 passed"]
        );
        let text = "   Compiling a\nerror[E1]: b\n  --> c\n  | d\n\nwarning: e\n";
        assert_eq!(excerpt(&lines(text)), ["error[E1]: b", "  --> c", "  | d", ""]);
    }
}
