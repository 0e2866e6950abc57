//! The names of registries of Amazon ECR.

/// Suffixes of the private registries' names, and the domain of the API in that partition.
const PARTITIONS: [(&str, &str); 8] = [
    ("amazonaws.com", "amazonaws.com"),
    ("amazonaws.com.cn", "amazonaws.com.cn"),
    ("on.aws", "amazonaws.com"),
    ("on.amazonwebservices.com.cn", "amazonaws.com.cn"),
    ("sc2s.sgov.gov", "sc2s.sgov.gov"),
    ("c2s.ic.gov", "c2s.ic.gov"),
    ("cloud.adc-e.uk", "cloud.adc-e.uk"),
    ("csp.hci.ic.gov", "csp.hci.ic.gov"),
];

/// The public registry, whose API is in one region.
const PUBLIC: &str = "public.ecr.aws";
const PUBLIC_REGION: &str = "us-east-1";

/// A registry of ECR.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct EcrHost {
    /// `None` for the public registry.
    pub(super) account: Option<String>,
    pub(super) region: String,
    /// Whether the API's end point with validated cryptography is used.
    pub(super) fips: bool,
    /// The domain of the API.
    pub(super) domain: &'static str,
}

impl EcrHost {
    /// Parses the name of a registry; `None` if it is another's.
    pub(super) fn parse(host: &str) -> Option<Self> {
        if host == PUBLIC {
            return Some(Self {
                account: None,
                region: PUBLIC_REGION.to_owned(),
                fips: false,
                domain: "amazonaws.com",
            });
        }
        let (account, rest) = host.split_once('.')?;
        if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        // `dkr.ecr.REGION.SUFFIX`, or with dual stack `dkr-ecr.REGION.SUFFIX`.
        let (rest, fips) = [
            ("dkr.ecr-fips.", true),
            ("dkr-ecr-fips.", true),
            ("dkr.ecr.", false),
            ("dkr-ecr.", false),
        ]
        .into_iter()
        .find_map(|(service, fips)| Some((rest.strip_prefix(service)?, fips)))?;
        let (region, suffix) = rest.split_once('.')?;
        let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if region.is_empty() || region.len() > 32 || !region.bytes().all(fine) {
            return None;
        }
        let (_, domain) = PARTITIONS.iter().find(|(known, _)| *known == suffix)?;
        Some(Self {
            account: Some(account.to_owned()),
            region: region.to_owned(),
            fips,
            domain,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_registries_of_ecr_are_taken_for_them() {
        let parse = |host: &str| {
            let found = EcrHost::parse(host)?;
            let account = found.account.unwrap_or_default();
            Some(format!(
                "{account} {} {} {}",
                found.region, found.fips, found.domain
            ))
        };
        for (host, expected) in [
            (
                "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
                "123456789012 eu-west-1 false amazonaws.com",
            ),
            (
                "123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com",
                "123456789012 us-gov-west-1 true amazonaws.com",
            ),
            (
                "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
                "123456789012 cn-north-1 false amazonaws.com.cn",
            ),
            (
                "123456789012.dkr-ecr.eu-west-1.on.aws",
                "123456789012 eu-west-1 false amazonaws.com",
            ),
            ("public.ecr.aws", " us-east-1 false amazonaws.com"),
        ] {
            assert_eq!(parse(host).as_deref(), Some(expected), "{host}");
        }
        for host in [
            "12345678901.dkr.ecr.eu-west-1.amazonaws.com",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example",
            "123456789012.dkr.ecr.eu-west-1.evilamazonaws.com",
            "123456789012.dkr.ecr.evil.example.amazonaws.com",
            "123456789012.dkr.ecr..amazonaws.com",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com:443",
            "123456789012.dkr.ecr.eu@evil.amazonaws.com",
            "public.ecr.aws.evil.example",
            "docker.io",
        ] {
            assert_eq!(parse(host), None, "{host}");
        }
    }
}
