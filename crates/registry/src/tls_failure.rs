//! What a failed TLS handshake means, in words for the operator.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error, OtherError};

/// Smallest RSA key that is accepted, in bits.
pub(crate) const SMALLEST_RSA: usize = 2048;

/// The cause where something else than TLS answers.
const NOT_TLS: &str = "the server does not speak TLS on this port";
const TRUST: &str = "add its authority, or the certificate itself, to the system's trusted certificates, or name it as `ca` \
     in the registry's hosts.toml (soci: --tlscacert, or --skip-verify to skip the verification)";
const REISSUE: &str = "issue it again";
const ACCEPTED: &str = "accepted are TLS 1.3, and TLS 1.2 with ECDHE and AES-GCM or ChaCha20-Poly1305, over X25519, \
     P-256, P-384 or P-521; CBC suites, RSA key exchange, finite-field DHE, TLS 1.0 and 1.1 are refused on purpose";

/// The cause and the remedy of a handshake that will fail again; `None` if it may succeed later.
pub(crate) fn explain(error: &Error) -> Option<(String, &'static str)> {
    let explained = match error {
        Error::InvalidCertificate(error) => certificate(error),
        Error::InvalidMessage(_) => (
            NOT_TLS.to_owned(),
            "check the port (soci takes --plain-http for a registry without TLS; hosts.toml an http:// URL)",
        ),
        Error::AlertReceived(
            AlertDescription::HandshakeFailure
            | AlertDescription::ProtocolVersion
            | AlertDescription::InsufficientSecurity
            | AlertDescription::IllegalParameter,
        )
        | Error::PeerIncompatible(_) => (
            "server and client have no TLS version, cipher suite or key exchange in common"
                .to_owned(),
            ACCEPTED,
        ),
        Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied,
        ) => (
            "the server refuses the client's certificate, or wants one".to_owned(),
            "name one as `client` in the registry's hosts.toml (soci: --tlscert and --tlskey)",
        ),
        Error::AlertReceived(AlertDescription::UnrecognisedName) => (
            "the server does not serve this host name".to_owned(),
            "check the host name",
        ),
        _ => return None,
    };
    Some(explained)
}

fn certificate(error: &CertificateError) -> (String, &'static str) {
    let (text, advice) = match error {
        CertificateError::Expired => ("the certificate has expired".to_owned(), REISSUE),
        CertificateError::ExpiredContext { not_after, .. } => (
            format!("the certificate expired on {}", date(*not_after)),
            "renew it, or check the clock of this machine",
        ),
        CertificateError::NotValidYet => (
            "the certificate is not valid yet".to_owned(),
            "check the clock of this machine",
        ),
        CertificateError::NotValidYetContext { not_before, .. } => (
            format!("the certificate is valid from {} on", date(*not_before)),
            "check the clock of this machine",
        ),
        CertificateError::UnknownIssuer => (
            "this machine trusts no authority that issued the certificate".to_owned(),
            TRUST,
        ),
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => (
            "the certificate has no subjectAltName; a host that only the common name (CN) states is refused on purpose"
                .to_owned(),
            "issue it again with a subjectAltName",
        ),
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => (
            format!(
                "the certificate is for {}, not for {}",
                names(presented),
                expected.to_str()
            ),
            "check the host name, or issue the certificate for it",
        ),
        CertificateError::NotValidForName => (
            "the certificate is for another host".to_owned(),
            "check the host name, or issue the certificate for it",
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => (
            "the certificate is not for servers (its extendedKeyUsage lacks serverAuth)".to_owned(),
            "issue it again with serverAuth",
        ),
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => (
            "the certificate is signed with an algorithm that is refused on purpose, such as SHA-1".to_owned(),
            "issue it again with SHA-256, SHA-384 or SHA-512",
        ),
        CertificateError::BadSignature => (
            "a signature of the certificate's chain or of the handshake is wrong".to_owned(),
            TRUST,
        ),
        CertificateError::Other(other) => match other.0.downcast_ref() {
            Some(refusal @ CertificateRefusal::MarkedAsAuthority) => (refusal.to_string(), TRUST),
            Some(refusal @ CertificateRefusal::SmallKey(_)) => {
                (refusal.to_string(), "issue it again with a larger key")
            }
            None => (format!("the certificate cannot be used: {}", other.0), REISSUE),
        },
        other => (format!("the certificate cannot be used: {other}"), TRUST),
    };
    (text, advice)
}

/// Joins the names of a certificate, which the library states as `DnsName("name")`.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| {
        let inner = name
            .split_once('(')
            .and_then(|(_, rest)| rest.strip_suffix(')'));
        inner.map_or_else(|| name.clone(), |inner| inner.trim_matches('"').to_owned())
    };
    presented.iter().map(bare).collect::<Vec<_>>().join(", ")
}

fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| "an unknown date".to_owned(), |t| t.to_string())
}

/// Why a certificate is refused, where rustls has no word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CertificateRefusal {
    /// It says that it is an authority, and neither it nor one that signed it is trusted.
    MarkedAsAuthority,
    /// Its RSA key has so many bits.
    SmallKey(usize),
}

impl fmt::Display for CertificateRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MarkedAsAuthority => f.write_str(
                "the certificate is that of an authority (CA:TRUE), and neither it nor one that signed it is trusted",
            ),
            Self::SmallKey(bits) => write!(
                f,
                "the certificate's RSA key has {bits} bits; fewer than {SMALLEST_RSA} are refused on purpose"
            ),
        }
    }
}

impl std::error::Error for CertificateRefusal {}

impl From<CertificateRefusal> for Error {
    fn from(refusal: CertificateRefusal) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}
