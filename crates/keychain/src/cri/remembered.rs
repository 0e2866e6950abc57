//! The credentials of the kubelet's pulls, by image.

use std::collections::{HashMap, HashSet};
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
use tokio::sync::Notify;

use super::messages::AuthConfig;

/// Most images whose credentials are remembered; the one pulled longest ago is forgotten first.
const MAX_IMAGES: usize = 4096;

/// A store of the credentials for the next process, which no other process can read.
pub trait Vault: Send + Sync {
    /// Replaces the stored secrets.
    fn put(&self, secrets: &[u8]);
}

/// Knows which images' credentials are still needed.
#[async_trait]
pub trait ImagesInUse: Send + Sync {
    /// Whether the credentials of an image may still be needed: an image of its repository is stored,
    /// or something that is mounted can be read with no others.
    async fn needs(&self, image: &Reference) -> bool;
}

/// Credentials of pulls through the [`ImageServiceProxy`](super::ImageServiceProxy). Clones share
/// them.
#[derive(Clone, Default)]
pub struct CriKeychain(Arc<Mutex<Seen>>, Arc<Notify>);

#[derive(Default)]
struct Seen {
    remembered: Remembered,
    /// Numbers of the pulls under way: their images are not stored yet.
    running: HashSet<u64>,
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

/// The change of a pull that is under way. It is undone when this is dropped: the pull has failed, or
/// its client has gone away.
pub(super) struct Change {
    keychain: CriKeychain,
    image: String,
    pull: u64,
    before: Option<Entry>,
    succeeded: bool,
}

impl Change {
    /// Notes that the pull has succeeded.
    pub(super) fn keep(mut self) {
        self.succeeded = true;
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let mut locked = self.keychain.0.lock();
        locked.running.remove(&self.pull);
        let images = &mut locked.remembered.images;
        let latest = images.get(&self.image).map(|entry| entry.pull);
        // Unless another pull has come since.
        if self.succeeded || latest != Some(self.pull) {
            return;
        }
        match self.before.take() {
            Some(before) => images.insert(self.image.clone(), before),
            None => images.remove(&self.image),
        };
        locked.store();
    }
}

impl CriKeychain {
    /// Creates a keychain from the secrets that an earlier process put into `vault`, which is kept up
    /// to date. Secrets of another version are ignored: those images need another pull.
    #[must_use]
    pub fn with_vault(vault: Arc<dyn Vault>, secrets: Option<&[u8]>) -> Self {
        let remembered = secrets.and_then(|secrets| serde_json::from_slice(secrets).ok());
        let seen = Seen {
            remembered: remembered.unwrap_or_default(),
            running: HashSet::new(),
            vault: Some(vault),
        };
        Self(Arc::new(Mutex::new(seen)), Arc::default())
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
        locked.running.insert(pull);
        locked.store();
        Some(Change {
            keychain: self.clone(),
            image,
            pull,
            before,
            succeeded: false,
        })
    }

    /// Notes that an image was removed, perhaps under a name that says nothing of its repository.
    pub(super) fn image_removed(&self) {
        self.1.notify_one();
    }

    /// Waits until an image is removed.
    pub async fn removal(&self) {
        self.1.notified().await;
    }

    /// Forgets the credentials of images that nothing needs any more.
    pub async fn forget_unneeded(&self, in_use: &dyn ImagesInUse) {
        let idle: Vec<(String, u64)> = {
            let locked = self.0.lock();
            let images = locked.remembered.images.iter();
            images
                .filter(|(_, entry)| !locked.running.contains(&entry.pull))
                .map(|(image, entry)| (image.clone(), entry.pull))
                .collect()
        };
        for (image, pull) in idle {
            let Ok(reference) = image.parse() else {
                continue;
            };
            if in_use.needs(&reference).await {
                continue;
            }
            let mut locked = self.0.lock();
            let images = &mut locked.remembered.images;
            // Unless it was pulled again.
            if images.get(&image).is_some_and(|entry| entry.pull == pull) {
                images.remove(&image);
                locked.store();
                tracing::info!(image, "credentials of a removed image are forgotten");
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

    /// A pull that succeeds.
    fn pulled(keychain: &CriKeychain, image: &str, auth: &AuthConfig) {
        keychain.remember(image, auth).unwrap().keep();
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
        pulled(&keychain, "busybox", &auth("hub"));
        pulled(&keychain, "r.example/a:1", &auth("a"));
        let elsewhere = AuthConfig {
            server_address: "https://other.example/v2/".to_owned(),
            ..auth("b")
        };
        pulled(&keychain, "r.example/b", &elsewhere);
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
        assert_eq!(keychain.lookup("r.example", None).await.unwrap(), None);
        let digest = format!("sha256:{}", "0".repeat(64));
        pulled(&keychain, &format!("r.example/c:tag@{digest}"), &auth("c"));
        let found = user(&keychain, "r.example", &format!("r.example/c@{digest}")).await;
        assert_eq!(found.as_deref(), Some("c"));
        let shown = format!("{keychain:?} {:?}", auth("u"));
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[tokio::test]
    async fn the_credential_of_the_own_pull_comes_first_then_the_latest_of_the_repository() {
        let keychain = CriKeychain::default();
        for (tag, name) in [("1", "one"), ("2", "two"), ("4", "four")] {
            pulled(&keychain, &format!("r.example/team/a:{tag}"), &auth(name));
        }
        let (own, path) = (
            CredentialScope::Image,
            CredentialScope::Path("team/a".len()),
        );
        for (tag, expected) in [
            ("1", vec![("one", own), ("four", path), ("two", path)]),
            ("4", vec![("four", own), ("two", path), ("one", path)]),
            ("3", vec![("four", path), ("two", path), ("one", path)]),
        ] {
            let reference = format!("r.example/team/a:{tag}").parse().unwrap();
            let found = keychain.candidates("r.example", Some(&reference)).await;
            let expected: Vec<Candidate> = expected
                .into_iter()
                .map(|(user, scope)| {
                    let credential = Credential::Basic {
                        user: user.to_owned(),
                        password: "hunter2".to_owned(),
                    };
                    Candidate::new(credential, scope)
                })
                .collect();
            assert_eq!(found.unwrap(), expected, "{tag}");
        }
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
            pulled(&keychain, "r.example/a", &auth);
            let found = user(&keychain, "r.example", "r.example/a").await;
            assert_eq!(found.as_deref(), Some(expected));
        }
    }

    #[tokio::test]
    async fn a_pull_that_fails_or_has_no_credentials_leaves_what_was_known() {
        let keychain = CriKeychain::default();
        let image = "r.example/a";
        assert!(keychain.remember(image, &AuthConfig::default()).is_none());
        pulled(&keychain, image, &auth("right"));
        assert!(keychain.remember(image, &AuthConfig::default()).is_none());
        let wrong = keychain.remember(image, &auth("wrong")).unwrap();
        drop(wrong);
        assert_eq!(
            user(&keychain, "r.example", image).await.as_deref(),
            Some("right")
        );
        let late = keychain.remember(image, &auth("late")).unwrap();
        pulled(&keychain, image, &auth("newer"));
        drop(late);
        assert_eq!(
            user(&keychain, "r.example", image).await.as_deref(),
            Some("newer")
        );
    }

    /// The repositories that are needed.
    struct Needed(&'static [&'static str]);

    #[async_trait]
    impl ImagesInUse for Needed {
        async fn needs(&self, image: &Reference) -> bool {
            self.0.contains(&image.name().as_str())
        }
    }

    #[tokio::test]
    async fn credentials_are_forgotten_once_nothing_needs_them_and_not_during_a_pull() {
        let keychain = CriKeychain::default();
        let known = async |image: &str| user(&keychain, "r.example", image).await.is_some();
        let pulled = keychain.remember("r.example/a:1", &auth("a")).unwrap();
        keychain.forget_unneeded(&Needed(&[])).await;
        assert!(known("r.example/a:1").await, "the pull is under way");
        pulled.keep();
        let other = keychain.remember("r.example/b:1", &auth("b")).unwrap();
        other.keep();
        keychain.forget_unneeded(&Needed(&["r.example/a"])).await;
        assert!(known("r.example/a:1").await && !known("r.example/b:1").await);
        keychain.image_removed();
        keychain.removal().await;
        keychain.forget_unneeded(&Needed(&[])).await;
        assert!(!known("r.example/a:1").await);
    }

    #[test]
    fn no_more_than_a_limit_is_remembered() {
        let keychain = CriKeychain::default();
        for image in 0..=MAX_IMAGES {
            pulled(&keychain, &format!("r.example/a:{image}"), &auth("u"));
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
        pulled(&first, "r.example/a:1", &auth("a"));
        let undone = first.remember("r.example/a:1", &auth("wrong")).unwrap();
        drop(undone);
        let removed = first.remember("r.example/b:1", &auth("b")).unwrap();
        removed.keep();
        first.forget_unneeded(&Needed(&["r.example/a"])).await;
        let secrets = vault.0.lock().clone();
        let next = CriKeychain::with_vault(vault, Some(&secrets));
        for (image, expected) in [("r.example/a:1", Some("a")), ("r.example/b:1", None)] {
            let found = user(&next, "r.example", image).await;
            assert_eq!(found.as_deref(), expected, "{image}");
        }
    }
}
