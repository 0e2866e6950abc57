//! Servers whose certificate says that it is an authority's (`CA:TRUE`), signed by one that is trusted.
//! Go, and so containerd, does not look at that flag of a server's certificate; WebPKI refuses it.
//!
//! WebPKI verifies the certificate with the flag cleared, chain, dates, name constraints, purpose and
//! all; only where it verifies the signature of the certificate's body, the body as it was signed takes
//! the place of the changed one.

use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, ServerName,
    SignatureVerificationAlgorithm, UnixTime,
};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, Error, RootCertStore};
use x509_cert::der::{Decode as _, Encode as _};
use x509_cert::ext::pkix::BasicConstraints;
use x509_cert::{Certificate, TbsCertificate};

/// Verifies such a certificate.
pub(crate) fn verify(
    certificate: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    server_name: &ServerName<'_>,
    now: UnixTime,
    roots: &RootCertStore,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<(), Error> {
    let changed =
        Changed::of(certificate).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
    let substituting: Vec<Substituting<'_>> = algorithms
        .all
        .iter()
        .map(|algorithm| Substituting {
            algorithm: *algorithm,
            changed: &changed,
        })
        .collect();
    let substituting: Vec<&dyn SignatureVerificationAlgorithm> = substituting
        .iter()
        .map(|algorithm| algorithm as &dyn SignatureVerificationAlgorithm)
        .collect();
    let der = CertificateDer::from(changed.certificate.as_slice());
    let parsed = ParsedCertificate::try_from(&der)?;
    verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, &substituting)?;
    verify_server_name(&parsed, server_name)
}

/// A certificate with its flag cleared, and its body, which is signed, before and after.
#[derive(Debug)]
struct Changed {
    certificate: Vec<u8>,
    body: Vec<u8>,
    signed_body: Vec<u8>,
}

impl Changed {
    fn of(certificate: &[u8]) -> Option<Self> {
        /// The end of the extension's name (2.5.29.19) and of the flag's place: a boolean, true.
        const NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x1d, 0x13];
        const FLAG: [u8; 3] = [0x01, 0x01, 0xff];
        /// From the name to the flag: `critical`, an octet string, a sequence.
        const NEAR: usize = 12;
        let signed = Certificate::from_der(certificate).ok()?;
        let signed_body = signed.tbs_certificate.to_der().ok()?;
        // The body must be the bytes that were signed, not only mean the same.
        let start = position(certificate, &signed_body)?;
        let names = (0..signed_body.len()).filter(|&at| signed_body[at..].starts_with(&NAME));
        for name in names {
            let near = name + NAME.len()..(name + NAME.len() + NEAR).min(signed_body.len());
            for flag in near.filter(|&at| signed_body[at..].starts_with(&FLAG)) {
                let mut body = signed_body.clone();
                *body.get_mut(flag + 2)? = 0;
                if !differs_in_the_flag_alone(&signed.tbs_certificate, &body) {
                    continue;
                }
                let mut changed = certificate.to_vec();
                changed
                    .get_mut(start..start + body.len())?
                    .copy_from_slice(&body);
                return Some(Self {
                    certificate: changed,
                    body,
                    signed_body,
                });
            }
        }
        None
    }
}

fn position(all: &[u8], part: &[u8]) -> Option<usize> {
    all.windows(part.len()).position(|window| window == part)
}

/// Whether a changed body is the signed one but for the flag.
fn differs_in_the_flag_alone(signed: &TbsCertificate, changed: &[u8]) -> bool {
    // What is encoded as false, and not left out, is not DER: it is read by WebPKI alone.
    let Some(extensions) = &signed.extensions else {
        return false;
    };
    let Ok(original) = signed.to_der() else {
        return false;
    };
    let differing: Vec<usize> = (0..original.len())
        .filter(|&at| original.get(at) != changed.get(at))
        .collect();
    let [at] = differing[..] else {
        return false;
    };
    // The byte is the second of the extension's value that is the flag's.
    extensions
        .iter()
        .filter(|one| one.extn_id == BASIC_CONSTRAINTS)
        .any(|one| {
            let value = one.extn_value.as_bytes();
            let is_authority = BasicConstraints::from_der(value).is_ok_and(|value| value.ca);
            // SEQUENCE, its length, BOOLEAN, 1, the flag.
            is_authority
                && value.get(2..5) == Some(&[0x01, 0x01, 0xff])
                && at
                    .checked_sub(4)
                    .and_then(|start| original.get(start..start + value.len()))
                    == Some(value)
        })
}

const BASIC_CONSTRAINTS: x509_cert::der::asn1::ObjectIdentifier =
    x509_cert::der::asn1::ObjectIdentifier::new_unwrap("2.5.29.19");

/// An algorithm that verifies the signature of the signed body where it is given the changed one.
#[derive(Debug)]
struct Substituting<'a> {
    algorithm: &'a dyn SignatureVerificationAlgorithm,
    changed: &'a Changed,
}

impl SignatureVerificationAlgorithm for Substituting<'_> {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let message = match message == self.changed.body {
            true => &self.changed.signed_body,
            false => message,
        };
        self.algorithm
            .verify_signature(public_key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }
}
