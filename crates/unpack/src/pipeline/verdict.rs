//! What the threads of a layer have come to, taken together: the layer, or the one error that caused the
//! others.

use std::time::Instant;

use soci_oci::Digest;
use soci_registry::{RegistryError, RemoteBlob};
use tokio_util::sync::CancellationToken;

use super::config::PipelineConfig;
use super::request::PipelineRequest;
use super::stages::{DecompressError, InputError, Outcome};
use crate::apply::Application;
use crate::error::{ApplyError, UnpackError};

/// Ratio of uncompressed to compressed size that no gzip stream exceeds.
pub(crate) const MAX_RATIO: u64 = 1100;

/// A layer whose digests are right.
pub(crate) struct Verified<'l> {
    pub(crate) application: Application<'l>,
    pub(crate) compressed_size: u64,
    /// When its last byte had come.
    pub(crate) arrived: Instant,
}

/// Finds the first cause of a failure.
pub(crate) fn verdict<'l>(
    outcome: Outcome<'l>,
    (digest, diff_id): (Digest, Digest),
    blob: Option<&RemoteBlob>,
    config: &PipelineConfig,
    cancel: &CancellationToken,
) -> Result<Verified<'l>, UnpackError> {
    if cancel.is_cancelled() {
        return Err(UnpackError::Cancelled);
    }
    let written = outcome.written.map_err(|error| apply_error(error, config));
    // Whether the bytes were the layer's decides about all that was wrong in them.
    let (actual, compressed_size, arrived) = match outcome.compressed {
        Ok(compressed) => compressed,
        Err(InputError::Registry(error)) => return Err(cannot_fetch(error)),
        Err(InputError::Local(error)) => return Err(UnpackError::Local(error)),
        Err(InputError::Store(error)) => return Err(UnpackError::Store(error)),
        Err(InputError::Stopped) => {
            let first = match outcome.decompressed {
                Err(DecompressError::Stopped) | Ok(()) => written.err(),
                Err(error) => Some(decompress_error(error)),
            };
            return Err(first.unwrap_or(UnpackError::Cancelled));
        }
    };
    match blob {
        Some(blob) => blob.verify(actual).map_err(cannot_fetch)?,
        None if actual != digest => {
            return Err(UnpackError::Digest {
                expected: digest,
                actual,
            });
        }
        None => {}
    }
    if let Err(error) = outcome.decompressed {
        return match (error, written) {
            (DecompressError::Stopped, Err(error)) => Err(error),
            (error, _) => Err(decompress_error(error)),
        };
    }
    let application = written?;
    let actual = outcome.uncompressed.unwrap_or(actual);
    if actual != diff_id {
        return Err(UnpackError::DiffId {
            expected: diff_id,
            actual,
        });
    }
    Ok(Verified {
        application,
        compressed_size,
        arrived,
    })
}

pub(crate) fn cannot_fetch(source: RegistryError) -> UnpackError {
    UnpackError::Registry {
        what: "cannot fetch the layer",
        source,
    }
}

fn decompress_error(error: DecompressError) -> UnpackError {
    match error {
        DecompressError::Damaged(error) => ApplyError::Decompress(error).into(),
        DecompressError::OverLimit(limit) => ApplyError::OverLimit(limit).into(),
        DecompressError::Program(program, source) => UnpackError::Program {
            path: program.path,
            source,
        },
        DecompressError::Thread(error) => UnpackError::Thread(error),
        DecompressError::Stopped => UnpackError::Cancelled,
    }
}

/// The error of the applier, in the terms of a whole layer.
pub(crate) fn apply_error(error: ApplyError, config: &PipelineConfig) -> UnpackError {
    match error {
        ApplyError::Cancelled => UnpackError::Cancelled,
        ApplyError::TooLarge { limit } if limit < config.limits.output => {
            UnpackError::Apply(ApplyError::Bomb {
                ratio: MAX_RATIO,
                least: config.limits.any_output,
            })
        }
        error => UnpackError::Apply(error),
    }
}

/// The digests that a layer must have.
pub(crate) const fn digests(request: &PipelineRequest) -> (Digest, Digest) {
    (request.descriptor.digest, request.diff_id)
}
