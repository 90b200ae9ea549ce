//! The pages that reclaim may take: generations, or the classic lists.
//!
//! ```text
//! owner ── add, mark_accessed, remove ──▶ per-CPU batch ──▶ Vector of (node, group): lists behind a lock
//!   ▲                                                              │ isolate
//!   └──── look, unmap, write_back, evict(shadow) ◀── reclaim ◀─────┘ put back
//! ```
//!
//! In reading order: [`PageOwner`] is whom pages belong to and [`LruEnv`] the surroundings; [`Lists`] is both kinds of lists, by
//! their policy [`Classic`] or [`Generations`]. Inside: `word` (a page's state in the words of its frame), `chain`, `vector` and
//! `section` (lists, and who holds their lock), `add`, `remove`, `evict`, `migrate`, `reparent` (a page's way), `policy` (what
//! `classic` and `generations` decide), `shadow`.
//!
//! **Locking:** the lock of a vector is taken with interrupts off, held shortly, and alone. Owners are called without it, but
//! for [`PageOwner::can_isolate`]. A page's owner word says where the page is; see `word`.
//!
//! **Linux:** plays the part of `lruvec`, `folio_batch` and `lru_gen`.

mod add;
mod chain;
mod classic;
mod env;
mod evict;
mod generations;
mod hands;
mod lists;
mod migrate;
mod owner;
mod policy;
mod remove;
mod reparent;
mod section;
mod shadow;
mod vector;
mod word;

pub use add::{AddError, NewPage};
pub use classic::ClassicPolicy;
pub use env::LruEnv;
pub use generations::{GenerationInfo, GenerationsPolicy, VectorInfo};
pub use lists::{Lists, SetupError};
pub use owner::{Look, OwnerId, Page, PageKind, PageOwner, Refused, WriteBack};
pub use policy::Policy;
pub use remove::{NotListed, Removed};
pub use reparent::GroupBusy;
pub use shadow::Shadow;

/// The classic lists: active and inactive, anonymous and file, and a balance.
pub type Classic<E> = Lists<E, ClassicPolicy>;

/// The multi-generational lists: the default.
pub type Generations<E> = Lists<E, GenerationsPolicy>;
