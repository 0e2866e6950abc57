//! Which images are indexed: `repository:tag` with `*`, as the parameter
//! `SociRepositoryImageTagFilters` of AWS's index builder has it.

use std::str::FromStr;

/// A list of filters; an image is indexed if one of them is for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filters(Vec<Filter>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Filter {
    repository: String,
    tag: String,
}

/// Why a filter is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a filter: {reason}; filters are REPOSITORY:TAG, each may contain *")]
pub struct ImageFilterError {
    text: String,
    reason: &'static str,
}

impl Default for Filters {
    fn default() -> Self {
        Self(vec![Filter {
            repository: "*".to_owned(),
            tag: "*".to_owned(),
        }])
    }
}

impl FromStr for Filters {
    type Err = ImageFilterError;

    fn from_str(text: &str) -> Result<Self, ImageFilterError> {
        text.split(',')
            .map(filter)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl std::fmt::Display for Filters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, filter) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{}:{}", filter.repository, filter.tag)?;
        }
        Ok(())
    }
}

impl Filters {
    /// Whether an image is to be indexed.
    #[must_use]
    pub fn select(&self, repository: &str, tag: &str) -> bool {
        self.0.iter().any(|filter| {
            matches(filter.repository.as_bytes(), repository.as_bytes())
                && matches(filter.tag.as_bytes(), tag.as_bytes())
        })
    }
}

fn filter(text: &str) -> Result<Filter, ImageFilterError> {
    let text = text.trim();
    let error = |reason| ImageFilterError {
        text: text.to_owned(),
        reason,
    };
    let Some((repository, tag)) = text.split_once(':') else {
        return Err(error("it has no colon"));
    };
    if repository.is_empty() || tag.is_empty() {
        return Err(error("repository or tag is empty"));
    }
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"*._-/".contains(&byte);
    if !repository.bytes().chain(tag.bytes()).all(fine) || tag.contains('/') {
        return Err(error(
            "it has a character that is in no repository's name or tag",
        ));
    }
    Ok(Filter {
        repository: repository.to_owned(),
        tag: tag.to_owned(),
    })
}

/// Whether a text matches a pattern in which `*` stands for any text. Takes at most the product of
/// both lengths.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to resume if what follows the last star does not match.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(byte) if text.get(t) == Some(byte) => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text_and_one_filter_of_the_list_suffices() {
        let filters: Filters = "prod*:latest, dev/*:v*.*,exact:1".parse().unwrap();
        for (repository, tag) in [
            ("prod", "latest"),
            ("production/app", "latest"),
            ("dev/a/b", "v1.2"),
            ("exact", "1"),
        ] {
            assert!(filters.select(repository, tag), "{repository}:{tag}");
        }
        for (repository, tag) in [
            ("prod", "latest2"),
            ("my-prod", "latest"),
            ("dev", "v1.2"),
            ("dev/a", "v1"),
            ("exact", "11"),
        ] {
            assert!(!filters.select(repository, tag), "{repository}:{tag}");
        }
        assert!(Filters::default().select("any/thing", "at.all"));
        assert_eq!(filters.to_string(), "prod*:latest,dev/*:v*.*,exact:1");
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = "*a".repeat(200);
        assert!(!matches(pattern.as_bytes(), "a".repeat(199).as_bytes()));
        assert!(matches(pattern.as_bytes(), "a".repeat(201).as_bytes()));
    }

    #[test]
    fn what_is_not_a_filter_is_refused_with_its_reason() {
        for bad in [
            "", "app", "app:", ":1", "a:b:c", "a:b,,", "a b:c", "a:b/c", "a@b:c",
        ] {
            let error = bad.parse::<Filters>().unwrap_err().to_string();
            assert!(error.contains("REPOSITORY:TAG"), "{bad}: {error}");
        }
    }
}
