//! Directory trees whose shape a container or an image decides: walked, measured and removed with a
//! constant number of descriptors and a constant depth of stack, whatever their depth.
//!
//! Everything goes by descriptors of directories and single names. No path is built, so the kernel's
//! limit for paths does not apply, and no symbolic link is ever followed.

#![forbid(unsafe_code)]

mod descent;
mod measure;
mod open;
mod remove;
mod space;
mod walk;

pub use descent::Descent;
pub use measure::{Usage, measure};
pub use remove::{remove_path, remove_tree};
pub use space::{Reserve, Space};
pub use walk::{Event, Walk};
