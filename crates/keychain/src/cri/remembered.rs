//! The credentials of the kubelet's pulls, by image.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use soci_oci::Reference;
use soci_registry::{
    Candidate, Credential, CredentialError, CredentialScope, Credentials, same_registry,
};

use super::messages::AuthConfig;

/// Most images whose credentials are remembered; the one pulled longest ago is forgotten first.
const MAX_IMAGES: usize = 4096;

/// A store of the credentials for the next process, which no other process can read.
pub trait Vault: Send + Sync {
    /// Replaces the stored secrets.
    fn put(&self, secrets: &[u8]);
}

/// Credentials of pulls through the [`ImageServiceProxy`](super::ImageServiceProxy). Clones share
/// them.
#[derive(Clone, Default)]
pub struct CriKeychain(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    remembered: Remembered,
    vault: Option<Arc<dyn Vault>>,
}

#[derive(Default, Serialize, Deserialize)]
struct Remembered {
    images: HashMap<String, Entry>,
    /// Number of pulls so far.
    pulls: u64,
}

#[derive(Clone, Serialize, Deserialize)]
struct Entry {
    pull: u64,
    /// The registry of the credentials, if the kubelet states it.
    server: String,
    #[serde(with = "secret")]
    credential: Credential,
}

/// The serialized form of a credential in the vault.
mod secret {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use soci_registry::Credential;

    #[derive(Serialize, Deserialize)]
    enum Plain {
        Basic(String, String),
        Identity(String),
        Bearer(String),
    }

    pub(super) fn serialize<S: Serializer>(secret: &Credential, to: S) -> Result<S::Ok, S::Error> {
        let plain = match secret {
            Credential::Basic { user, password } => Plain::Basic(user.clone(), password.clone()),
            Credential::IdentityToken(token) => Plain::Identity(token.clone()),
            Credential::BearerToken(token) => Plain::Bearer(token.clone()),
        };
        plain.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Credential, D::Error> {
        Ok(match Plain::deserialize(from)? {
            Plain::Basic(user, password) => Credential::Basic { user, password },
            Plain::Identity(token) => Credential::IdentityToken(token),
            Plain::Bearer(token) => Credential::BearerToken(token),
        })
    }
}

impl Seen {
    /// Stores the credentials in the vault, after each change.
    fn store(&self) {
        if let Some(vault) = &self.vault
            && let Ok(secrets) = serde_json::to_vec(&self.remembered)
        {
            vault.put(&secrets);
        }
    }
}

/// The change of a pull, to undo if the pull fails.
pub(super) struct Change {
    image: String,
    pull: u64,
    before: Option<Entry>,
}

impl CriKeychain {
    /// Creates a keychain from the secrets that an earlier process put into `vault`, which is kept up
    /// to date. Secrets of another version are ignored: those images need another pull.
    #[must_use]
    pub fn with_vault(vault: Arc<dyn Vault>, secrets: Option<&[u8]>) -> Self {
        let remembered = secrets.and_then(|secrets| serde_json::from_slice(secrets).ok());
        Self(Arc::new(Mutex::new(Seen {
            remembered: remembered.unwrap_or_default(),
            vault: Some(vault),
        })))
    }

    /// Remembers the credentials of a pull. A pull without credentials changes nothing: the image
    /// may be read with those of an earlier one.
    pub(super) fn remember(&self, image: &str, auth: &AuthConfig) -> Option<Change> {
        let image = key(&image.parse().ok()?);
        let credential = credential(auth)?;
        let mut locked = self.0.lock();
        let seen = &mut locked.remembered;
        seen.pulls = seen.pulls.saturating_add(1);
        let entry = Entry {
            pull: seen.pulls,
            server: auth.server_address.clone(),
            credential,
        };
        let pull = entry.pull;
        let before = seen.images.insert(image.clone(), entry);
        if seen.images.len() > MAX_IMAGES {
            let oldest = seen.images.iter().min_by_key(|(_, entry)| entry.pull);
            if let Some(oldest) = oldest.map(|(image, _)| image.clone()) {
                seen.images.remove(&oldest);
            }
        }
        locked.store();
        Some(Change {
            image,
            pull,
            before,
        })
    }

    /// Undoes a change, unless another pull has come since.
    pub(super) fn undo(&self, change: Change) {
        let mut locked = self.0.lock();
        let seen = &mut locked.remembered;
        let latest = seen.images.get(&change.image).map(|entry| entry.pull);
        if latest == Some(change.pull) {
            match change.before {
                Some(before) => seen.images.insert(change.image, before),
                None => seen.images.remove(&change.image),
            };
            locked.store();
        }
    }

    /// Forgets the credentials of an image that is removed.
    pub(super) fn forget(&self, image: &str) {
        if let Ok(image) = image.parse() {
            let mut locked = self.0.lock();
            if locked.remembered.images.remove(&key(&image)).is_some() {
                locked.store();
            }
        }
    }
}

impl fmt::Debug for CriKeychain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "CriKeychain({} images)",
            self.0.lock().remembered.images.len()
        )
    }
}

#[async_trait]
impl Credentials for CriKeychain {
    /// The credential of the image's own pull, then those of other images of its repository: another tag
    /// has the same layers.
    async fn candidates(
        &self,
        registry_host: &str,
        reference: Option<&Reference>,
    ) -> Result<Vec<Candidate>, CredentialError> {
        let Some(reference) = reference else {
            return Ok(Vec::new());
        };
        let (own, name) = (key(reference), reference.name());
        let of_repository = |image: &str| {
            let rest = image.strip_prefix(&name);
            rest.is_some_and(|rest| rest.starts_with(['@', ':']) && !rest.contains('/'))
        };
        let seen = self.0.lock();
        let mut found: Vec<(bool, u64, &Credential)> = seen
            .remembered
            .images
            .iter()
            .filter(|(image, _)| **image == own || of_repository(image))
            .filter(|(_, entry)| {
                let server = match entry.server.as_str() {
                    // Not for a mirror of the image's registry, for example.
                    "" => reference.registry(),
                    server => server,
                };
                same_registry(server, registry_host)
            })
            .map(|(image, entry)| (*image == own, entry.pull, &entry.credential))
            .collect();
        // The latest pull first: its credentials are the freshest.
        found.sort_by_key(|(own, pull, _)| std::cmp::Reverse((*own, *pull)));
        let scope = |own| match own {
            true => CredentialScope::Image,
            false => CredentialScope::Path(reference.repository().len()),
        };
        let candidates = found
            .into_iter()
            .map(|(own, _, credential)| Candidate::new(credential.clone(), scope(own)));
        Ok(candidates.collect())
    }
}

/// The image as containerd names it to its snapshotter: without the tag if it has a digest.
fn key(reference: &Reference) -> String {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => format!("{}@{digest}", reference.name()),
        (None, tag) => format!("{}:{}", reference.name(), tag.unwrap_or("latest")),
    }
}

fn credential(auth: &AuthConfig) -> Option<Credential> {
    let basic = |user: &str, password: &str| {
        Some(Credential::Basic {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    };
    if !auth.username.is_empty() {
        return basic(&auth.username, &auth.password);
    }
    if !auth.identity_token.is_empty() {
        return Some(Credential::IdentityToken(auth.identity_token.clone()));
    }
    if !auth.auth.is_empty() {
        let decoded = STANDARD.decode(auth.auth.trim()).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (user, password) = text.split_once(':')?;
        return basic(user, password.trim_matches('\0'));
    }
    let token = auth.registry_token.as_str();
    (!token.is_empty()).then(|| Credential::BearerToken(token.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(user: &str) -> AuthConfig {
        AuthConfig {
            username: user.to_owned(),
            password: "hunter2".to_owned(),
            ..AuthConfig::default()
        }
    }

    async fn user(keychain: &CriKeychain, host: &str, image: &str) -> Option<String> {
        let reference = image.parse().unwrap();
        match keychain.lookup(host, Some(&reference)).await.unwrap()? {
            Credential::Basic { user, .. } => Some(user),
            other => Some(format!("{other:?}")),
        }
    }

    #[tokio::test]
    async fn credentials_are_for_the_image_and_the_registry_that_they_came_with() {
        let keychain = CriKeychain::default();
        keychain.remember("busybox", &auth("hub"));
        keychain.remember("r.example/a:1", &auth("a"));
        let elsewhere = AuthConfig {
            server_address: "https://other.example/v2/".to_owned(),
            ..auth("b")
        };
        keychain.remember("r.example/b", &elsewhere);
        for (host, image, expected) in [
            ("docker.io", "docker.io/library/busybox:latest", Some("hub")),
            // Another tag may have the same layers.
            ("docker.io", "busybox:1", Some("hub")),
            ("docker.io", "busybox2:1", None),
            ("docker.io", "busybox/x:1", None),
            ("r.example", "r.example/a:1", Some("a")),
            ("mirror.example", "r.example/a:1", None),
            ("r.example", "r.example/b", None),
            ("other.example", "r.example/b:latest", Some("b")),
        ] {
            let found = user(&keychain, host, image).await;
            assert_eq!(found.as_deref(), expected, "{host} {image}");
        }
        assert_eq!(keychain.lookup("r.example", None).await, Ok(None));
        let digest = format!("sha256:{}", "0".repeat(64));
        keychain.remember(&format!("r.example/c:tag@{digest}"), &auth("c"));
        let found = user(&keychain, "r.example", &format!("r.example/c@{digest}")).await;
        assert_eq!(found.as_deref(), Some("c"));
        let shown = format!("{keychain:?} {:?}", auth("u"));
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[tokio::test]
    async fn every_form_of_credentials_is_understood() {
        let keychain = CriKeychain::default();
        let forms = [
            ("u", "user", "", "", ""),
            ("IdentityToken(…)", "", "", "id", ""),
            ("me", "", "bWU6cGE6c3M=", "", ""),
            ("BearerToken(…)", "", "", "", "rt"),
        ];
        for (expected, user_name, auth, identity, token) in forms {
            let auth = AuthConfig {
                username: user_name.replace("user", "u"),
                auth: auth.to_owned(),
                identity_token: identity.to_owned(),
                registry_token: token.to_owned(),
                ..AuthConfig::default()
            };
            keychain.remember("r.example/a", &auth);
            let found = user(&keychain, "r.example", "r.example/a").await;
            assert_eq!(found.as_deref(), Some(expected));
        }
    }

    #[tokio::test]
    async fn a_pull_that_fails_or_has_no_credentials_leaves_what_was_known() {
        let keychain = CriKeychain::default();
        let image = "r.example/a";
        assert!(keychain.remember(image, &AuthConfig::default()).is_none());
        keychain.remember(image, &auth("right")).unwrap();
        assert!(keychain.remember(image, &AuthConfig::default()).is_none());
        let wrong = keychain.remember(image, &auth("wrong")).unwrap();
        keychain.undo(wrong);
        assert_eq!(
            user(&keychain, "r.example", image).await.as_deref(),
            Some("right")
        );
        let late = keychain.remember(image, &auth("late")).unwrap();
        keychain.remember(image, &auth("newer")).unwrap();
        keychain.undo(late);
        assert_eq!(
            user(&keychain, "r.example", image).await.as_deref(),
            Some("newer")
        );
        keychain.forget(image);
        assert_eq!(user(&keychain, "r.example", image).await, None);
    }

    #[test]
    fn no_more_than_a_limit_is_remembered() {
        let keychain = CriKeychain::default();
        for image in 0..=MAX_IMAGES {
            keychain.remember(&format!("r.example/a:{image}"), &auth("u"));
        }
        let seen = &keychain.0.lock().remembered;
        assert_eq!(seen.images.len(), MAX_IMAGES);
        assert!(!seen.images.contains_key("r.example/a:0"));
    }

    #[derive(Default)]
    struct Memory(Mutex<Vec<u8>>);

    impl Vault for Memory {
        fn put(&self, secrets: &[u8]) {
            *self.0.lock() = secrets.to_vec();
        }
    }

    #[tokio::test]
    async fn the_next_process_knows_what_was_remembered_and_not_what_was_forgotten() {
        let vault = Arc::new(Memory::default());
        let first = CriKeychain::with_vault(vault.clone(), None);
        first.remember("r.example/a:1", &auth("a")).unwrap();
        let undone = first.remember("r.example/a:1", &auth("wrong")).unwrap();
        first.undo(undone);
        first.remember("r.example/b:1", &auth("b")).unwrap();
        first.forget("r.example/b:1");
        let secrets = vault.0.lock().clone();
        let next = CriKeychain::with_vault(vault, Some(&secrets));
        for (image, expected) in [("r.example/a:1", Some("a")), ("r.example/b:1", None)] {
            let found = user(&next, "r.example", image).await;
            assert_eq!(found.as_deref(), expected, "{image}");
        }
    }
}
