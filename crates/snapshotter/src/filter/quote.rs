//! Quoted words in Go's string syntax: the escapes `\a \b \f \n \r \t \v \\`, the quote itself,
//! three octal digits, `\xHH`, `\uHHHH`, `\UHHHHHHHH`. Numeric byte escapes are single bytes: the
//! result can be other than UTF-8.

/// Decodes the quoted word at the beginning of `text`. Returns its bytes, and its length in `text`
/// with both quotes.
pub(super) fn unquote(text: &str) -> Result<(Vec<u8>, usize), &'static str> {
    const OPEN: &str = "the quoted text is not closed";
    let mut chars = text.char_indices();
    let (_, quote) = chars.next().ok_or(OPEN)?;
    let mut bytes = Vec::new();
    loop {
        let (at, c) = chars.next().ok_or(OPEN)?;
        match c {
            _ if c == quote => return Ok((bytes, at + c.len_utf8())),
            '\n' | '\0' => return Err(OPEN),
            '\\' => {
                let (_, escaped) = chars.next().ok_or(OPEN)?;
                escape(escaped, quote, &mut chars, &mut bytes)?;
            }
            _ => push(c, &mut bytes),
        }
    }
}

fn escape(
    escaped: char,
    quote: char,
    chars: &mut std::str::CharIndices<'_>,
    bytes: &mut Vec<u8>,
) -> Result<(), &'static str> {
    match escaped {
        _ if escaped == quote => push(quote, bytes),
        'a' => bytes.push(0x07),
        'b' => bytes.push(0x08),
        'f' => bytes.push(0x0c),
        'n' => bytes.push(b'\n'),
        'r' => bytes.push(b'\r'),
        't' => bytes.push(b'\t'),
        'v' => bytes.push(0x0b),
        '\\' => bytes.push(b'\\'),
        'x' => bytes.push(byte(number(0, chars, 16, 2)?)?),
        'u' => push(code_point(number(0, chars, 16, 4)?)?, bytes),
        'U' => push(code_point(number(0, chars, 16, 8)?)?, bytes),
        '0'..='7' => {
            let first = escaped.to_digit(8).unwrap_or_default();
            bytes.push(byte(number(first, chars, 8, 2)?)?);
        }
        _ => return Err("unknown escape sequence"),
    }
    Ok(())
}

/// Appends exactly `digits` further digits to `start`. There are at most eight hexadecimal ones: no overflow.
fn number(
    start: u32,
    chars: &mut std::str::CharIndices<'_>,
    base: u32,
    digits: usize,
) -> Result<u32, &'static str> {
    let mut number = start;
    for _ in 0..digits {
        let digit = chars.next().and_then(|(_, c)| c.to_digit(base));
        let digit = digit.ok_or("too few digits in an escape sequence")?;
        number = number.wrapping_mul(base) | digit;
    }
    Ok(number)
}

fn byte(number: u32) -> Result<u8, &'static str> {
    u8::try_from(number).map_err(|_| "an octal escape above \\377")
}

/// Returns the character of a code point. Surrogates become the replacement character, as in Go, and
/// so do values that are negative as Go's rune, a signed number.
fn code_point(number: u32) -> Result<char, &'static str> {
    match number {
        0xd800..=0xdfff | 0x8000_0000.. => Ok(char::REPLACEMENT_CHARACTER),
        _ => char::from_u32(number).ok_or("an escape beyond U+10FFFF"),
    }
}

fn push(c: char, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}
