//! The generated types, server and client of `soci.status.v1`.

#![allow(missing_docs, reason = "generated; documented in proto/")]
#![allow(clippy::all, reason = "generated")]
#![allow(unreachable_pub, unused_qualifications, reason = "generated")]

tonic::include_proto!("soci.status.v1");
