//! Basic and Bearer access control in front of a registry that has none, with a token endpoint
//! (the Docker registry's token specification, GET and OAuth2 POST).

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::http1::Head;

/// Where the token endpoint is.
pub(crate) const TOKEN_PATH: &str = "/testkit/token";
const SERVICE: &str = "testkit";

/// What the proxy demands of requests below `/v2/`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Auth {
    /// Nothing.
    #[default]
    Open,
    /// HTTP Basic with this user and password.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// HTTP Basic with the user and password of the repository; repositories without an account
    /// are closed.
    BasicByRepository(BTreeMap<String, (String, String)>),
    /// A token from the token endpoint. With a user, the endpoint demands it: as HTTP Basic, as an
    /// OAuth2 password grant, or as a refresh token that equals the password.
    Bearer {
        /// User and password; `None` gives everybody a token.
        user: Option<(String, String)>,
        /// After how many uses a token expires; `None` means never.
        uses: Option<u64>,
    },
}

/// What is demanded, and the tokens that are valid.
#[derive(Debug, Default)]
pub(crate) struct AuthState {
    auth: Auth,
    given_out: u64,
    tokens: BTreeMap<String, Option<u64>>,
}

/// An answer that needs no registry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: String,
}

impl AuthState {
    pub(crate) fn demand(&mut self, auth: Auth) {
        self.auth = auth;
        self.revoke();
    }

    pub(crate) fn revoke(&mut self) {
        self.tokens.clear();
    }

    /// `None`: the request may pass.
    pub(crate) fn check(&mut self, request: &Head) -> Option<Refusal> {
        let given = request.get("authorization").unwrap_or_default();
        let challenge = match &self.auth {
            Auth::Open => return None,
            Auth::Basic { user, password } => {
                if is_basic(given, user, password) {
                    return None;
                }
                format!("Basic realm=\"{SERVICE}\"")
            }
            Auth::BasicByRepository(accounts) => {
                let account = repository(request.word(1)).and_then(|name| accounts.get(name));
                if account.is_some_and(|(user, password)| is_basic(given, user, password)) {
                    return None;
                }
                format!("Basic realm=\"{SERVICE}\"")
            }
            Auth::Bearer { .. } => {
                if let Some(uses) = given
                    .strip_prefix("Bearer ")
                    .and_then(|token| self.tokens.get_mut(token))
                    && *uses != Some(0)
                {
                    *uses = uses.map(|left| left - 1);
                    return None;
                }
                let host = request.get("host").unwrap_or("127.0.0.1");
                let scope = scope(request.word(1), request.word(0));
                let error = match given.starts_with("Bearer ") {
                    true => ",error=\"invalid_token\"",
                    false => "",
                };
                format!(
                    "Bearer realm=\"http://{host}{TOKEN_PATH}\",service=\"{SERVICE}\"{scope}{error}"
                )
            }
        };
        Some(Refusal {
            status: 401,
            fields: vec![
                ("WWW-Authenticate".to_owned(), challenge),
                ("Content-Type".to_owned(), "application/json".to_owned()),
            ],
            body: error_body("UNAUTHORIZED", "authentication required"),
        })
    }

    /// Answers a request to the token endpoint.
    pub(crate) fn token(&mut self, request: &Head, form: &str) -> Refusal {
        let json = vec![("Content-Type".to_owned(), "application/json".to_owned())];
        let Auth::Bearer { user, uses } = &self.auth else {
            return Refusal {
                status: 404,
                fields: json,
                body: error_body("UNSUPPORTED", "no tokens here"),
            };
        };
        if let Some((user, password)) = user {
            let basic = request.get("authorization").unwrap_or_default();
            let granted = is_basic(basic, user, password)
                || (value(form, "grant_type") == "password"
                    && value(form, "username") == *user
                    && value(form, "password") == *password)
                || (value(form, "grant_type") == "refresh_token"
                    && value(form, "refresh_token") == *password);
            if !granted {
                return Refusal {
                    status: 401,
                    fields: json,
                    body: error_body("UNAUTHORIZED", "wrong user or password"),
                };
            }
        }
        self.given_out += 1;
        let token = format!("testkit-token-{}", self.given_out);
        self.tokens.insert(token.clone(), *uses);
        let body = serde_json::json!({ "token": token, "access_token": token, "expires_in": 300 });
        Refusal {
            status: 200,
            fields: json,
            body: body.to_string(),
        }
    }
}

fn error_body(code: &str, message: &str) -> String {
    serde_json::json!({ "errors": [{ "code": code, "message": message }] }).to_string()
}

fn is_basic(given: &str, user: &str, password: &str) -> bool {
    given
        .strip_prefix("Basic ")
        .and_then(|encoded| BASE64_STANDARD.decode(encoded).ok())
        .is_some_and(|decoded| decoded == format!("{user}:{password}").into_bytes())
}

/// The repository of a request.
fn repository(target: &str) -> Option<&str> {
    let path = target
        .split('?')
        .next()
        .unwrap_or_default()
        .trim_start_matches("/v2/");
    ["/blobs/", "/manifests/", "/tags/", "/referrers/"]
        .iter()
        .find_map(|part| path.split_once(part))
        .map(|(repository, _)| repository)
}

/// The scope that a request needs, as the challenge writes it.
fn scope(target: &str, method: &str) -> String {
    match repository(target) {
        None => String::new(),
        Some(repository) => {
            let actions = if matches!(method, "GET" | "HEAD") {
                "pull"
            } else {
                "pull,push"
            };
            format!(",scope=\"repository:{repository}:{actions}\"")
        }
    }
}

/// A value of an `application/x-www-form-urlencoded` body.
fn value(form: &str, key: &str) -> String {
    form.split('&')
        .find_map(|pair| pair.split_once('=').filter(|(name, _)| *name == key))
        .map(|(_, value)| percent_decoded(value))
        .unwrap_or_default()
}

fn percent_decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = (byte == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (hex, byte) {
            (Some(decoded), _) => {
                out.push(decoded);
                rest = tail.get(2..).unwrap_or_default();
            }
            (None, b'+') => {
                out.push(b' ');
                rest = tail;
            }
            (None, _) => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(authorization: &str) -> Head {
        let mut head = Head {
            first_line: "GET /v2/a/b/manifests/t HTTP/1.1".to_owned(),
            fields: Vec::new(),
        };
        head.set("Authorization", authorization);
        head
    }

    #[test]
    fn a_token_is_good_for_its_number_of_uses() {
        let mut state = AuthState::default();
        let user = Some(("u".to_owned(), "p+/ q".to_owned()));
        state.demand(Auth::Bearer {
            user,
            uses: Some(1),
        });
        let refusal = state.check(&request("")).unwrap();
        assert!(
            refusal.fields[0]
                .1
                .contains("scope=\"repository:a/b:pull\"")
        );
        assert_eq!(state.token(&request(""), "").status, 401);
        let form = "grant_type=password&username=u&password=p%2B%2F+q";
        assert_eq!(state.token(&request(""), form).status, 200);
        assert_eq!(state.check(&request("Bearer testkit-token-1")), None);
        assert!(state.check(&request("Bearer testkit-token-1")).is_some());
    }
}
