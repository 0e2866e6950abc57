//! Key exchange with the curve P-521, which ring does not have. It is offered last: a server that can
//! uses another one. OpenSSL uses a certificate with P-521 under TLS 1.2 only for clients that offer it.

use p521::elliptic_curve::point::AffineCoordinates as _;
use p521::elliptic_curve::sec1::ToEncodedPoint as _;
use p521::{FieldBytes, PublicKey, SecretKey};
use rustls::crypto::{ActiveKeyExchange, GetRandomFailed, SharedSecret, SupportedKxGroup};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::{Error, NamedGroup, PeerMisbehaved};

/// ECDHE with P-521 (RFC 8446, section 4.2.8.2).
#[derive(Debug)]
pub(crate) struct P521;

/// Attempts to draw a secret below the order of the group, which lacks less than 2^-260 of all.
const DRAWS: usize = 4;

impl SupportedKxGroup for P521 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let random = rustls::crypto::ring::default_provider().secure_random;
        for _ in 0..DRAWS {
            let mut bytes = FieldBytes::default();
            random.fill(&mut bytes)?;
            // The number has 521 bits.
            if let Some(first) = bytes.first_mut() {
                *first &= 1;
            }
            if let Ok(secret) = SecretKey::from_bytes(&bytes) {
                let public = secret.public_key().to_encoded_point(false);
                return Ok(Box::new(Exchange {
                    secret,
                    public: public.as_bytes().to_vec(),
                }));
            }
        }
        Err(GetRandomFailed.into())
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

struct Exchange {
    secret: SecretKey,
    public: Vec<u8>,
}

impl ActiveKeyExchange for Exchange {
    fn complete(self: Box<Self>, peer_pub_key: &[u8]) -> Result<SharedSecret, Error> {
        const UNCOMPRESSED: u8 = 4;
        let invalid = || Error::from(PeerMisbehaved::InvalidKeyShare);
        if peer_pub_key.first() != Some(&UNCOMPRESSED) {
            return Err(invalid());
        }
        // Refuses what is not on the curve; the order of P-521 is prime.
        let peer = PublicKey::from_sec1_bytes(peer_pub_key).map_err(|_| invalid())?;
        let shared = peer.to_projective() * *self.secret.to_nonzero_scalar();
        Ok(SharedSecret::from(&shared.to_affine().x()[..]))
    }

    fn pub_key(&self) -> &[u8] {
        &self.public
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_arrive_at_one_secret_and_points_off_the_curve_are_refused() {
        let (one, other) = (P521.start().unwrap(), P521.start().unwrap());
        assert_ne!(one.pub_key(), other.pub_key());
        let (of_one, of_other) = (one.pub_key().to_vec(), other.pub_key().to_vec());
        let secrets = [one.complete(&of_other), other.complete(&of_one)];
        let [first, second] = secrets.map(|secret| secret.unwrap().secret_bytes().to_vec());
        assert_eq!((first.len(), &first), (66, &second));
        let mut off = of_one.clone();
        *off.last_mut().unwrap() ^= 1;
        for bad in [&off[..], &[], &[4], &[0], of_one.get(..66).unwrap()] {
            assert!(P521.start().unwrap().complete(bad).is_err(), "{bad:?}");
        }
    }
}
