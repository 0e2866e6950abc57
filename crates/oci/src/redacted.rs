//! A URL that can be logged, without user, password and query.

use std::fmt;

use url::Url;

/// A URL whose `Display` and `Debug` leave out user info, query values and fragment.
/// Signed object-storage URLs carry their secret in the query.
#[derive(Clone, PartialEq, Eq)]
pub struct RedactedUrl(Url);

impl RedactedUrl {
    /// Wraps a URL.
    #[must_use]
    pub fn new(url: Url) -> Self {
        Self(url)
    }

    /// Returns the URL with its secrets, for making the request only.
    #[must_use]
    pub fn expose(&self) -> &Url {
        &self.0
    }
}

impl From<Url> for RedactedUrl {
    fn from(url: Url) -> Self {
        Self(url)
    }
}

impl fmt::Display for RedactedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.clone();
        if !shown.username().is_empty() || shown.password().is_some() {
            // Refused only by URLs without a host, which have no user either.
            let _ = shown.set_username("");
            let _ = shown.set_password(None);
        }
        shown.set_fragment(None);
        let had_query = shown.query().is_some();
        shown.set_query(None);
        f.write_str(shown.as_str())?;
        if had_query {
            f.write_str("?…")?;
        }
        Ok(())
    }
}

impl fmt::Debug for RedactedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_show() {
        let url = RedactedUrl::new(
            Url::parse("https://user:hunter2@host/path?X-Amz-Signature=abc#frag").unwrap(),
        );
        assert_eq!(url.to_string(), "https://host/path?…");
        assert_eq!(format!("{url:?}"), "https://host/path?…");
    }
}
