//! The parser of filters: `selector ("," selector)*` with the selector `path [operator value]` and the
//! path `field ("." field)*`. White space is allowed before a word, not before a comma.

use regex::{Regex, RegexBuilder};

use super::go_regex;
use super::quote::unquote;
use super::{FilterError, Selector, Test};

/// Parses one filter. An empty one has no selectors and accepts everything.
pub(super) fn selectors(filter: &str) -> Result<Vec<Selector>, FilterError> {
    if filter.is_empty() {
        return Ok(Vec::new());
    }
    let mut parser = Parser {
        filter,
        position: 0,
    };
    // Go uses it for bytes that are not UTF-8.
    if let Some(position) = filter.find(char::REPLACEMENT_CHARACTER) {
        parser.position = position;
        return Err(parser.error("the replacement character U+FFFD is not allowed"));
    }
    let mut selectors = vec![parser.selector()?];
    loop {
        match parser.peek() {
            None => return Ok(selectors),
            Some(',') => {
                parser.next();
                selectors.push(parser.selector()?);
            }
            Some(other) => return Err(parser.error(format!("unexpected {other:?}"))),
        }
    }
}

struct Parser<'a> {
    filter: &'a str,
    /// Always at a character boundary.
    position: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.filter.get(self.position..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.position += next.len_utf8();
        Some(next)
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let length = rest.find(|c| !accept(c)).unwrap_or(rest.len());
        self.position += length;
        rest.get(..length).unwrap_or_default()
    }

    fn error(&self, reason: impl Into<String>) -> FilterError {
        FilterError {
            filter: self.filter.to_owned(),
            position: self.position,
            reason: reason.into(),
        }
    }

    fn selector(&mut self) -> Result<Selector, FilterError> {
        let path = self.path()?;
        if matches!(self.peek(), None | Some(',')) {
            return Ok(Selector {
                path,
                test: Test::Present,
            });
        }
        self.take_while(char::is_whitespace);
        let start = self.position;
        let operator = self.take_while(|c| matches!(c, '=' | '!' | '~'));
        let test = match operator {
            "==" => Test::Equal(self.value(false)?),
            "!=" => Test::NotEqual(self.value(false)?),
            "~=" => Test::Matches(regex(&self.value(true)?)),
            _ => {
                self.position = start;
                return Err(self.error("expected an operator: ==, != or ~="));
            }
        };
        Ok(Selector { path, test })
    }

    fn path(&mut self) -> Result<Vec<String>, FilterError> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.next();
            path.push(self.field()?);
        }
        Ok(path)
    }

    fn field(&mut self) -> Result<String, FilterError> {
        self.take_while(char::is_whitespace);
        if self.peek().is_some_and(is_quote) {
            let bytes = self.quoted(false)?;
            return String::from_utf8(bytes)
                .map_err(|_| self.error("a field name must be valid UTF-8"));
        }
        let word = self.take_while(|c| c.is_ascii_alphanumeric() || c == '_');
        if word.is_empty() {
            return Err(self.error("expected the name of a field, or one in double quotes"));
        }
        Ok(word.to_owned())
    }

    fn value(&mut self, alternative_quotes: bool) -> Result<Vec<u8>, FilterError> {
        self.take_while(char::is_whitespace);
        match self.peek() {
            None | Some(',' | '.' | '=' | '!' | '~' | '\0') => {
                Err(self.error("expected a value, or one in double quotes"))
            }
            Some(c) if is_quote(c) => self.quoted(alternative_quotes),
            Some(_) => Ok(self
                .take_while(|c| c != ',' && !c.is_whitespace() && !c.is_control())
                .as_bytes()
                .to_vec()),
        }
    }

    /// Parses a quoted word from its opening quote on. Regular expressions can also be quoted by `/`
    /// and `|`.
    fn quoted(&mut self, alternative_quotes: bool) -> Result<Vec<u8>, FilterError> {
        let Some(quote) = self.peek() else {
            return Err(self.error("expected a quote"));
        };
        if quote != '"' && !alternative_quotes {
            return Err(self.error(format!("{quote} quotes only the value of ~=")));
        }
        match unquote(self.rest()) {
            Ok((bytes, length)) => {
                self.position += length;
                Ok(bytes)
            }
            Err(reason) => Err(self.error(reason)),
        }
    }
}

fn is_quote(c: char) -> bool {
    matches!(c, '"' | '/' | '|')
}

fn regex(pattern: &[u8]) -> Option<Regex> {
    let compiled = std::str::from_utf8(pattern)
        .map_err(|error| error.to_string())
        .and_then(|pattern| {
            let translated = go_regex::translate(pattern);
            let built = RegexBuilder::new(&translated).octal(true).build();
            built.map_err(|error| error.to_string())
        });
    match compiled {
        Ok(regex) => Some(regex),
        Err(error) => {
            tracing::error!(
                pattern = %String::from_utf8_lossy(pattern),
                error,
                "a filter's regular expression cannot be compiled; it matches nothing"
            );
            None
        }
    }
}
