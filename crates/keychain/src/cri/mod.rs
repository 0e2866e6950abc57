//! Credentials of the kubelet's pulls: the daemon serves CRI's image service as a proxy in front of
//! the real one, and remembers the credentials of each pull for the layers of that image.

mod messages;
mod proxy;
mod remembered;

pub use proxy::ImageServiceProxy;
pub use remembered::{CriKeychain, ImagesInUse, Vault};
