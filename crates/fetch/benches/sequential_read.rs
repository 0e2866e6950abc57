//! Cold sequential reads through a lazy layer.
fn main() {}
