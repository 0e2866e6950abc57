//! Verifies certificates of servers as containerd does: by WebPKI with the system's authorities, and a
//! certificate whatever it says about being an authority.

use std::collections::HashSet;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::der::asn1::{ObjectIdentifier, UintRef};
use x509_cert::ext::pkix::ExtendedKeyUsage;

use crate::tls_failure::{CertificateRefusal, SMALLEST_RSA};
use crate::{
    AuthorityDefect, ClientCertificateDefect, Misconfiguration, RegistryError, TlsSettings,
    tls_authority_leaf,
};

const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const ANY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");

/// Returns the TLS configuration of connections whose servers are verified.
pub(crate) fn client_config(tls: &TlsSettings) -> Result<ClientConfig, RegistryError> {
    let provider = crate::p521::provider();
    let mut trusted: Vec<CertificateDer<'static>> = Vec::new();
    for pem in &tls.extra_ca {
        trusted.extend(authorities(pem).map_err(Misconfiguration::Authority)?);
    }
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!(%error, "cannot read a certificate authority of the system");
    }
    trusted.extend(system.certs);
    let mut roots = RootCertStore::empty();
    // One that is not an authority by its form may still be the server's own certificate.
    roots.add_parsable_certificates(trusted.iter().cloned());
    let roots = Arc::new(roots);
    let webpki =
        WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(Misconfiguration::NoAuthorities)?;
    let verifier = Verifier {
        webpki,
        roots,
        algorithms: provider.signature_verification_algorithms,
        trusted: trusted
            .into_iter()
            .map(|certificate| certificate.to_vec())
            .collect(),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Misconfiguration::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let bad = Misconfiguration::ClientCertificate;
            let chain = CertificateDer::pem_slice_iter(&identity.pem)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| bad(error.into()))?;
            let key =
                PrivateKeyDer::from_pem_slice(&identity.pem).map_err(|error| bad(error.into()))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| bad(ClientCertificateDefect::Tls(error)))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Returns the certificates of a file of authorities.
pub(crate) fn authorities(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, AuthorityDefect> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() {
        return Err(AuthorityDefect::Empty);
    }
    for certificate in &found {
        Certificate::from_der(certificate)
            .map_err(|error| AuthorityDefect::Certificate(Arc::new(error)))?;
    }
    Ok(found)
}

#[derive(Debug)]
struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    /// The trusted certificates, DER.
    trusted: HashSet<Vec<u8>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.webpki.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            Ok(verified) => Ok(verified),
            Err(_) if self.trusted.contains(end_entity.as_ref()) => {
                verify_trusted(end_entity, server_name, now)?;
                Ok(ServerCertVerified::assertion())
            }
            // Rustls passes WebPKI's error on as it is.
            Err(error) if format!("{error:?}").contains("CaUsedAsEndEntity") => {
                tls_authority_leaf::verify(
                    end_entity,
                    intermediates,
                    server_name,
                    now,
                    &self.roots,
                    &self.algorithms,
                )
                .map_err(|error| match error {
                    // Another one of the same name may be trusted.
                    Error::InvalidCertificate(
                        CertificateError::UnknownIssuer | CertificateError::BadSignature,
                    ) => CertificateRefusal::MarkedAsAuthority.into(),
                    error => error,
                })?;
                Ok(ServerCertVerified::assertion())
            }
            Err(error) => Err(small_key(end_entity).map_or(error, Into::into)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki
            .verify_tls12_signature(message, certificate, signature)
            .map_err(|error| small_key(certificate).map_or(error, Into::into))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki
            .verify_tls13_signature(message, certificate, signature)
            .map_err(|error| small_key(certificate).map_or(error, Into::into))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Verifies a certificate that is itself trusted: name, dates and purpose, as Go does.
fn verify_trusted(
    certificate: &CertificateDer<'_>,
    server_name: &ServerName<'_>,
    now: UnixTime,
) -> Result<(), Error> {
    let refuse = |error| Error::InvalidCertificate(error);
    rustls::client::verify_server_name(&ParsedCertificate::try_from(certificate)?, server_name)?;
    let parsed =
        Certificate::from_der(certificate).map_err(|_| refuse(CertificateError::BadEncoding))?;
    let validity = &parsed.tbs_certificate.validity;
    let seconds = |time: x509_cert::time::Time| time.to_unix_duration();
    let (not_before, not_after) = (seconds(validity.not_before), seconds(validity.not_after));
    let today = std::time::Duration::from_secs(now.as_secs());
    if today < not_before {
        return Err(refuse(CertificateError::NotValidYetContext {
            time: now,
            not_before: UnixTime::since_unix_epoch(not_before),
        }));
    }
    if today > not_after {
        return Err(refuse(CertificateError::ExpiredContext {
            time: now,
            not_after: UnixTime::since_unix_epoch(not_after),
        }));
    }
    match parsed.tbs_certificate.get::<ExtendedKeyUsage>() {
        Ok(None) => Ok(()),
        Ok(Some((_, usage)))
            if usage
                .0
                .iter()
                .any(|one| [SERVER_AUTH, ANY_USAGE].contains(one)) =>
        {
            Ok(())
        }
        Ok(Some(_)) => Err(refuse(CertificateError::InvalidPurpose)),
        Err(_) => Err(refuse(CertificateError::BadEncoding)),
    }
}

/// Whether the key of a certificate is an RSA key that is too small.
fn small_key(certificate: &CertificateDer<'_>) -> Option<CertificateRefusal> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let key = &parsed.tbs_certificate.subject_public_key_info;
    if key.algorithm.oid != RSA_ENCRYPTION {
        return None;
    }
    // RFC 8017: a sequence that begins with the modulus.
    let bytes = key.subject_public_key.as_bytes()?;
    let modulus = x509_cert::der::SliceReader::new(bytes)
        .and_then(|mut reader| {
            use x509_cert::der::Reader as _;
            reader.sequence(|inner| {
                let modulus = UintRef::decode(inner)?;
                let bits = modulus.as_bytes().len() * 8;
                let _exponent = UintRef::decode(inner)?;
                Ok(bits)
            })
        })
        .ok()?;
    (modulus < SMALLEST_RSA).then_some(CertificateRefusal::SmallKey(modulus))
}
