//! ECDSA signatures with the curve P-521, which ring does not verify.

use std::sync::{Arc, LazyLock};

use p521::ecdsa::signature::Verifier as _;
use p521::ecdsa::{Signature, VerifyingKey};
use rustls::SignatureScheme;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{
    AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id,
};

/// ECDSA with P-521 and SHA-512.
#[derive(Debug)]
struct P521Sha512;

impl SignatureVerificationAlgorithm for P521Sha512 {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let key = VerifyingKey::from_sec1_bytes(public_key).map_err(|_| InvalidSignature)?;
        let signature = Signature::from_der(signature).map_err(|_| InvalidSignature)?;
        key.verify(message, &signature)
            .map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P521
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_SHA512
    }
}

/// Returns ring's cryptography with P-521 for signatures.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = rustls::crypto::ring::default_provider();
        let known = provider.signature_verification_algorithms;
        let mut all = known.all.to_vec();
        all.push(&P521Sha512);
        let mut mapping = known.mapping.to_vec();
        // Rustls wants them for the whole run; there is one provider.
        let own: &'static [&'static dyn SignatureVerificationAlgorithm] = &[&P521Sha512];
        mapping.push((SignatureScheme::ECDSA_NISTP521_SHA512, own));
        provider.signature_verification_algorithms = WebPkiSupportedAlgorithms {
            all: all.leak(),
            mapping: mapping.leak(),
        };
        Arc::new(provider)
    });
    Arc::clone(&PROVIDER)
}
