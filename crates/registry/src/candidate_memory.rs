//! Which credentials a host took for a repository: several may be configured, and only the host
//! knows which of them are right.

use std::hash::{BuildHasher as _, RandomState};

use parking_lot::Mutex;

use crate::auth::AuthTarget;
use crate::bounded::Bounded;
use crate::{Candidate, Credential};

/// Most repositories that are remembered.
const MAX_REPOSITORIES: usize = 4096;
/// Most credentials of a repository that are remembered as refused.
const MAX_REFUSED: usize = 64;

/// Stands for a credential; says nothing about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint(u64);

#[derive(Clone, Default)]
struct Outcome {
    worked: Option<Fingerprint>,
    refused: Vec<Fingerprint>,
}

/// What came of the credentials that were tried, by base URL and repository.
pub(crate) struct CandidateMemory {
    outcomes: Mutex<Bounded<(String, String), Outcome>>,
    hasher: RandomState,
}

impl Default for CandidateMemory {
    fn default() -> Self {
        Self {
            outcomes: Mutex::new(Bounded::new(MAX_REPOSITORIES)),
            hasher: RandomState::new(),
        }
    }
}

fn key(target: &AuthTarget<'_>) -> (String, String) {
    (
        target.endpoint.base().to_string(),
        target.reference.repository().to_owned(),
    )
}

impl CandidateMemory {
    pub(crate) fn fingerprint(&self, credential: &Credential) -> Fingerprint {
        Fingerprint(self.hasher.hash_one(credential))
    }

    /// Sorts candidates into the order in which they are tried: what worked, then the most specific,
    /// last those that were refused. Each credential stays once.
    pub(crate) fn order(
        &self,
        target: &AuthTarget<'_>,
        mut candidates: Vec<Candidate>,
    ) -> Vec<(Fingerprint, Credential)> {
        Candidate::sort(&mut candidates);
        let outcome = self
            .outcomes
            .lock()
            .get(&key(target))
            .cloned()
            .unwrap_or_default();
        let mut ordered: Vec<(Fingerprint, Credential)> = Vec::new();
        for candidate in candidates {
            let fingerprint = self.fingerprint(&candidate.credential);
            if ordered.iter().all(|(known, _)| *known != fingerprint) {
                ordered.push((fingerprint, candidate.credential));
            }
        }
        ordered.sort_by_key(|(fingerprint, _)| {
            if outcome.worked == Some(*fingerprint) {
                0
            } else if outcome.refused.contains(fingerprint) {
                2
            } else {
                1
            }
        });
        ordered
    }

    /// Notes that the host took a credential.
    pub(crate) fn worked(&self, target: &AuthTarget<'_>, credential: Fingerprint) {
        self.change(target, |outcome| {
            outcome.worked = Some(credential);
            outcome.refused.retain(|refused| *refused != credential);
        });
    }

    /// Notes that the host refused a credential.
    pub(crate) fn refused(&self, target: &AuthTarget<'_>, credential: Fingerprint) {
        self.change(target, |outcome| {
            if outcome.worked == Some(credential) {
                outcome.worked = None;
            }
            outcome.refused.retain(|refused| *refused != credential);
            outcome.refused.push(credential);
            if outcome.refused.len() > MAX_REFUSED {
                outcome.refused.remove(0);
            }
        });
    }

    fn change(&self, target: &AuthTarget<'_>, change: impl FnOnce(&mut Outcome)) {
        let key = key(target);
        let mut outcomes = self.outcomes.lock();
        let mut outcome = outcomes.get(&key).cloned().unwrap_or_default();
        change(&mut outcome);
        outcomes.insert(key, outcome);
    }
}
