//! containerd's API: the labels that it and its clients exchange.

#![forbid(unsafe_code)]

pub mod labels;
