//! Limits of memory and steps for work that outside data causes.
//!
//! A [`Meter`] accompanies one piece of work, such as reading a zTOC, building a tree or unpacking a
//! layer: memory is charged *before* it is allocated, steps as they are made. A [`MeterPool`] limits what
//! stays allocated, over all that share it: its [`Permit`] lives as long as the thing that it stands
//! for. Over a limit the work gets an [`OverLimit`], which names the limit and the key that sets it.

#![forbid(unsafe_code)]

mod meter;
mod pool;

pub use meter::{Limits, Measure, Meter, OverLimit};
pub use pool::{MeterPool, Permit};
