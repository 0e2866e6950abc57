//! The responses of one program, as long as they count, and its failures for a while.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use soci_registry::Credential;
use tokio::time::Instant;

use super::error::CredentialProviderError;
use super::exec::{CacheKey, Response};

/// Time for which a failure counts: each request to a registry would run the program again.
const FAILED_FOR: Duration = Duration::from_secs(30);
/// Most responses that are kept of a program.
const MAX_RESPONSES: usize = 1024;

/// Credentials by the images that they are for.
pub(super) type Credentials = Arc<Vec<(String, Credential)>>;

/// What a response counts for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Image(String),
    Registry(String),
    Global,
}

/// The responses and failures of one program.
#[derive(Default)]
pub(super) struct Cache {
    kept: HashMap<Key, (Instant, Result<Credentials, CredentialProviderError>)>,
}

impl Cache {
    /// Returns what is known for an image of a registry, if it still counts.
    pub(super) fn get(
        &self,
        registry: &str,
        image: &str,
        now: Instant,
    ) -> Option<Result<Credentials, CredentialProviderError>> {
        let keys = [
            Key::Image(image.to_owned()),
            Key::Registry(registry.to_owned()),
            Key::Global,
        ];
        let mut known = keys.iter().filter_map(|key| self.kept.get(key));
        let (_, known) = known.find(|(until, _)| *until > now)?;
        Some(known.clone())
    }

    /// Keeps a response. One with a duration of 0 counts once.
    pub(super) fn put(
        &mut self,
        registry: &str,
        image: &str,
        response: &Response,
        default: Duration,
        now: Instant,
    ) -> Credentials {
        let credentials = Arc::new(response.auth.clone());
        let keep_for = response.keep_for.unwrap_or(default);
        let key = match response.key {
            CacheKey::Image => Key::Image(image.to_owned()),
            CacheKey::Registry => Key::Registry(registry.to_owned()),
            CacheKey::Global => Key::Global,
        };
        if let Some(until) = now.checked_add(keep_for).filter(|until| *until > now) {
            self.insert(key, until, Ok(credentials.clone()), now);
        }
        credentials
    }

    /// Keeps a failure for a while.
    pub(super) fn fail(&mut self, image: &str, failure: &CredentialProviderError, now: Instant) {
        let key = match failure.is_of_all_images() {
            true => Key::Global,
            false => Key::Image(image.to_owned()),
        };
        self.insert(key, now + FAILED_FOR, Err(failure.clone()), now);
    }

    fn insert(
        &mut self,
        key: Key,
        until: Instant,
        result: Result<Credentials, CredentialProviderError>,
        now: Instant,
    ) {
        if self.kept.len() >= MAX_RESPONSES {
            self.kept.retain(|_, (until, _)| *until > now);
        }
        if self.kept.len() >= MAX_RESPONSES {
            self.kept.clear();
        }
        self.kept.insert(key, (until, result));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_responses_that_are_kept_are_bounded() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let response = Response {
            key: CacheKey::Image,
            keep_for: Some(Duration::from_secs(60)),
            auth: Vec::new(),
        };
        let image = |number: usize| format!("registry.example/app{number}");
        for number in 0..MAX_RESPONSES + 5 {
            let default = Duration::ZERO;
            cache.put("registry.example", &image(number), &response, default, now);
            let known = cache.get("registry.example", &image(number), now);
            assert!(known.is_some_and(|known| known.is_ok()), "{number}");
            assert!(cache.kept.len() <= MAX_RESPONSES, "{number}");
        }
    }
}
