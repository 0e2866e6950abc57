//! `WWW-Authenticate` (RFC 9110 section 11.6.1): the authentication that a registry requires.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// How to authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A token from `realm` (distribution's token authentication).
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
    /// User name and password.
    Basic,
}

/// Returns the strongest challenge that we can answer: Bearer before Basic.
pub(crate) fn choose(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        for (scheme, parameters) in parse(value.to_str().unwrap_or_default()) {
            let get = |name: &str| {
                parameters
                    .iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.clone())
            };
            if scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = get("realm")
            {
                return Some(Challenge::Bearer {
                    realm,
                    service: get("service"),
                    scope: get("scope").filter(|scope| !scope.is_empty()),
                });
            }
            if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

/// Whether a refusal says that the token is not valid, or not any longer: a new one may be (RFC 6750
/// section 3.1).
pub(crate) fn calls_token_invalid(headers: &HeaderMap) -> bool {
    let all = headers.get_all(WWW_AUTHENTICATE).iter();
    let mut challenges = all.flat_map(|value| parse(value.to_str().unwrap_or_default()));
    challenges.any(|(scheme, parameters)| {
        scheme.eq_ignore_ascii_case("bearer")
            && parameters
                .iter()
                .any(|(key, value)| key.eq_ignore_ascii_case("error") && value == "invalid_token")
    })
}

type Parameters = Vec<(String, String)>;

/// Splits a header value into its challenges, up to the first syntax error.
fn parse(text: &str) -> Vec<(String, Parameters)> {
    let mut challenges: Vec<(String, Parameters)> = Vec::new();
    let mut rest = text.trim_start_matches([' ', '\t', ',']);
    while !rest.is_empty() {
        let end = rest.find(|c| !is_token(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            break;
        }
        let trimmed = after.trim_start_matches([' ', '\t']);
        match trimmed.strip_prefix('=') {
            // `name = value` belongs to the challenge before it.
            Some(value) if !challenges.is_empty() => {
                let (value, after) = parameter_value(value.trim_start_matches([' ', '\t']));
                if let Some((_, parameters)) = challenges.last_mut() {
                    parameters.push((word.to_owned(), value));
                }
                rest = after;
            }
            Some(_) => break,
            None => {
                challenges.push((word.to_owned(), Vec::new()));
                rest = trimmed;
            }
        }
        rest = rest.trim_start_matches([' ', '\t', ',']);
    }
    challenges
}

/// Parses a token or a quoted string; returns it with the rest of the text.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, quoted.get(at + 1..).unwrap_or_default()),
            _ => value.push(c),
        }
    }
    (value, "")
}

/// RFC 9110 section 5.6.2.
fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        choose(&headers)
    }

    #[test]
    fn bearer_challenges_are_read_with_their_quotes_and_commas() {
        let challenge = chosen(&[
            r#"Bearer realm="https://a/token?x=1,2",service="s \"q\"" , scope="repository:a/b:pull,push""#,
        ]);
        assert_eq!(
            challenge,
            Some(Challenge::Bearer {
                realm: "https://a/token?x=1,2".to_owned(),
                service: Some("s \"q\"".to_owned()),
                scope: Some("repository:a/b:pull,push".to_owned()),
            })
        );
    }

    #[test]
    fn bearer_wins_over_basic_in_one_or_two_headers() {
        let bearer = Some(Challenge::Bearer {
            realm: "https://a".to_owned(),
            service: None,
            scope: None,
        });
        assert_eq!(
            chosen(&[r#"Basic realm="x", Bearer realm="https://a""#]),
            bearer
        );
        assert_eq!(chosen(&["Basic realm=x", "bearer realm=https://a"]), bearer);
        assert_eq!(chosen(&["BASIC realm=\"x\""]), Some(Challenge::Basic));
    }

    #[test]
    fn nonsense_is_no_challenge() {
        for text in [
            "",
            "=",
            "\"",
            "Bearer",
            "Negotiate abc==",
            "a=b",
            "Bearer realm",
        ] {
            assert_eq!(chosen(&[text]), None, "{text}");
        }
        assert!(chosen(&["Bearer realm=\"open"]).is_some());
    }
}
