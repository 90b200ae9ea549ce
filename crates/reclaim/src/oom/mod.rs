//! The OOM killer: what is killed when nothing else helps.
//!
//! ```text
//! no page ─▶ may this request kill at all? ─▶ turn free? ─▶ last look ─▶ decision (`killer.rs`)
//!                no: NoVictim                  no: Busy       found       1 disabled                NoVictim
//!                                                                         2 notifiers free          Progress
//!                                                                         3 the caller is dying     Progress, marked
//!                                                                         4 no FS                   Progress
//!                                                                         5 panic policy            Panic
//!                                                                         6 kill the allocating task
//!                                                                         7 the worst candidate     Progress, killed
//!                                                                         8 none                    NoVictim or Panic
//!
//! killed ─▶ VictimMark: victim ──exits──▶ gone
//!              └─ 2 s later: reaper, 10 × 100 ms ─▶ skip: others may be killed
//! ```
//!
//! Candidates, killing and reaping are the platform's ([`OomEnv`]); a panic is a verdict that the platform carries out.
//! Nothing here allocates.

mod badness;
mod env;
mod killer;
mod notifier;
mod reaper;
mod report;
mod seam;
mod victim;

#[cfg(test)]
mod tests;

pub use badness::{ADJ_MAX, ADJ_MIN, Badness, badness};
pub use env::{Candidate, CandidateFlags, CandidateId, Constraint, OomEnv, OomScope};
pub use killer::{NoVictim, Oom, OomSource, OomVerdict, PanicPolicy, PanicReason, Progress};
pub use notifier::OomNotifier;
pub use reaper::{REAP_ATTEMPTS, REAP_DELAY_MS, REAP_INTERVAL_MS};
pub use victim::{VictimMark, Victims};
