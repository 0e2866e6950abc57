//! ECDSA signatures with the curve P-521, which ring does not verify.

use std::sync::{Arc, LazyLock};

use p521::ecdsa::signature::hazmat::PrehashVerifier as _;
use p521::ecdsa::{Signature, VerifyingKey};
use rustls::SignatureScheme;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{
    AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id,
};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use crate::p521_exchange::P521;

/// ECDSA with P-521 and a hash. TLS 1.3 has SHA-512 alone; certificates and TLS 1.2 have any.
#[derive(Debug, Clone, Copy)]
enum P521Signature {
    Sha256,
    Sha384,
    Sha512,
}

/// Length of SHA-512 in bytes.
const LONGEST: usize = 64;

impl P521Signature {
    /// The hash as the number that is signed, in as many bytes for each.
    fn number(self, message: &[u8]) -> [u8; LONGEST] {
        let hash = match self {
            Self::Sha256 => Sha256::digest(message).to_vec(),
            Self::Sha384 => Sha384::digest(message).to_vec(),
            Self::Sha512 => Sha512::digest(message).to_vec(),
        };
        let mut number = [0; LONGEST];
        for (to, from) in number.iter_mut().rev().zip(hash.iter().rev()) {
            *to = *from;
        }
        number
    }
}

impl SignatureVerificationAlgorithm for P521Signature {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let key = VerifyingKey::from_sec1_bytes(public_key).map_err(|_| InvalidSignature)?;
        let signature = Signature::from_der(signature).map_err(|_| InvalidSignature)?;
        key.verify_prehash(&self.number(message), &signature)
            .map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P521
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        match self {
            Self::Sha256 => alg_id::ECDSA_SHA256,
            Self::Sha384 => alg_id::ECDSA_SHA384,
            Self::Sha512 => alg_id::ECDSA_SHA512,
        }
    }
}

/// The algorithms of TLS 1.2 for a scheme, whose name then is that of a hash: what is known, and P-521.
/// TLS 1.3 takes the first.
fn with_p521(
    scheme: SignatureScheme,
    known: &[&'static dyn SignatureVerificationAlgorithm],
) -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    let mut all = known.to_vec();
    match scheme {
        SignatureScheme::ECDSA_NISTP256_SHA256 => all.push(&P521Signature::Sha256),
        SignatureScheme::ECDSA_NISTP384_SHA384 => all.push(&P521Signature::Sha384),
        _ => {}
    }
    // Rustls wants them for the whole run; there is one provider.
    all.leak()
}

/// Installs the cryptography of this crate for all of the process, unless there is another one.
/// [`crate::Client`] does so at its first request; to be called where TLS is needed before.
pub fn install_cryptography() {
    // Fails only when a provider is installed already, which then is the one to use.
    let _ = CryptoProvider::install_default(CryptoProvider::clone(&provider()));
}

/// Returns ring's cryptography with P-521 for signatures and, last, for key exchange.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = rustls::crypto::ring::default_provider();
        let known = provider.signature_verification_algorithms;
        let mut all = known.all.to_vec();
        all.push(&P521Signature::Sha256);
        all.push(&P521Signature::Sha384);
        all.push(&P521Signature::Sha512);
        let mut mapping: Vec<_> = known
            .mapping
            .iter()
            .map(|&(scheme, algorithms)| (scheme, with_p521(scheme, algorithms)))
            .collect();
        let own: &'static [&'static dyn SignatureVerificationAlgorithm] = &[&P521Signature::Sha512];
        mapping.push((SignatureScheme::ECDSA_NISTP521_SHA512, own));
        provider.kx_groups.push(&P521);
        provider.signature_verification_algorithms = WebPkiSupportedAlgorithms {
            all: all.leak(),
            mapping: mapping.leak(),
        };
        Arc::new(provider)
    });
    Arc::clone(&PROVIDER)
}
