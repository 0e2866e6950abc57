//! The debug log of FUSE operations, with the names that v0.15 logs.

use soci_fuse::{Operation, Request};
use soci_oci::Digest;

use crate::nodes::Nodes;

/// Logs an operation. Shows names of files.
#[cold]
pub(crate) fn log_operation(layer: &Digest, nodes: &Nodes, request: &Request<'_>) {
    let (operation, name) = match request.operation {
        Operation::Lookup { name } => ("node.Lookup", name),
        Operation::GetXattr { name, .. } => ("node.Getxattr", name),
        Operation::ListXattr { .. } => ("node.Listxattr", &[][..]),
        Operation::GetAttr => ("node.Getattr", &[][..]),
        Operation::ReadLink => ("node.Readlink", &[][..]),
        Operation::Open | Operation::OpenDir => ("node.Open", &[][..]),
        Operation::ReadDir { .. } => ("node.Readdir", &[][..]),
        Operation::Read { .. } => ("file.Read", &[][..]),
        Operation::StatFs => ("node.Statfs", &[][..]),
        _ => ("other", &[][..]),
    };
    tracing::debug!(
        layer = %layer,
        operation,
        path = %String::from_utf8_lossy(&nodes.path(request.node)),
        name = %String::from_utf8_lossy(name),
        "FUSE operation"
    );
}
