//! Credentials for Amazon ECR without a helper program (`[ecr_keychain]`): the node's or pod's role is
//! traded for a registry password. See decision 22.

mod endpoints;
mod error;
mod host;
mod keychain;
mod role;
mod signature;

pub use endpoints::AwsEnvironment;
pub use error::{AwsFailure, EcrError};
pub use keychain::EcrKeychain;
