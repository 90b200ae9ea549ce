//! What every image stands on: a page source of a few lines, so that each crate is alone, and the names that the prebuilt
//! `core` calls.
//!
//! ```text
//! src/bin/<crate>.rs ──▶ image!{ ... } ──▶ entry: does each common operation once     nothing of it is ever run
//! ```
//!
//! `cargo xtask sizes` links the images and takes `nothing` off each.
#![cfg_attr(bare_metal, no_std)]

#[cfg(bare_metal)]
mod machine;
#[cfg(bare_metal)]
mod symbols;

#[cfg(bare_metal)]
pub use machine::{BASE, MACHINE, Machine, NR_FRAMES};

/// The entry of an image, and what it does; on the host, a program that says what it is for.
#[macro_export]
macro_rules! image {
    ($($body:tt)*) => {
        #[cfg(bare_metal)]
        $($body)*

        #[cfg(bare_metal)]
        #[unsafe(no_mangle)]
        extern "C" fn entry() -> ! {
            core::hint::black_box(body as fn());
            body();
            $crate::halt()
        }

        #[cfg(bare_metal)]
        #[panic_handler]
        fn on_panic(_: &core::panic::PanicInfo<'_>) -> ! {
            $crate::halt()
        }

        #[cfg(not(bare_metal))]
        fn main() {
            println!("linked by `cargo xtask sizes`");
        }
    };
}

/// Stops.
pub fn halt() -> ! {
    loop {
        core::hint::spin_loop();
    }
}
