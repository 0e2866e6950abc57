//! Inflating one span from its checkpoint.

use std::cmp::Ordering;

use crate::inflate::{GZIP_TRAILER, Inflater, State, Stop, Wrapping};

/// Inflates `compressed` to exactly `len` bytes in `out`, which is empty before. `bits` high bits of
/// the first byte belong to the span; `cut`: the stream may continue, and the rest is not wanted.
/// Members may end and start inside.
pub(crate) fn inflate_span(
    bits: u8,
    compressed: &[u8],
    window: Option<&[u8]>,
    len: usize,
    cut: bool,
    out: &mut Vec<u8>,
) -> Result<(), &'static str> {
    // Before memory is taken: two bits stand for 258 bytes at best.
    if len / 1032 > compressed.len() {
        return Err("it is too short for that");
    }
    // A byte more than must come, so that more than must come is noticed.
    let limit = len.saturating_add(usize::from(!cut));
    out.reserve_exact(limit);

    inflate(bits, compressed, window, out, |out| {
        if out.len() > len && !cut {
            return Err("there is more in it");
        }
        Ok(!cut || out.len() < len)
    })?;
    // The allocation may be larger than requested, so a cut stream may have filled more.
    if cut {
        out.truncate(len);
    }
    match out.len().cmp(&len) {
        Ordering::Equal => Ok(()),
        Ordering::Less => Err("it is too short"),
        Ordering::Greater => Err("there is more in it"),
    }
}

/// Inflates `compressed` to its end, at most `limit` bytes, in `out`, which is empty before.
pub(crate) fn inflate_to_end(
    bits: u8,
    compressed: &[u8],
    window: Option<&[u8]>,
    limit: usize,
    out: &mut Vec<u8>,
) -> Result<(), &'static str> {
    const STEP: usize = 256 << 10;
    let check = |out: &Vec<u8>| match out.len() > limit {
        true => Err("too much follows the end of the tar"),
        false => Ok(()),
    };
    inflate(bits, compressed, window, out, |out| {
        check(out)?;
        if out.len() == out.capacity() {
            let more = out.len().max(STEP).min(limit.saturating_sub(out.len()));
            out.reserve_exact(more.saturating_add(1));
        }
        Ok(true)
    })?;
    check(out)
}

/// Inflates `compressed` into the capacity of `out`, while `more` allows it and there is input.
fn inflate(
    bits: u8,
    compressed: &[u8],
    window: Option<&[u8]>,
    out: &mut Vec<u8>,
    mut more: impl FnMut(&mut Vec<u8>) -> Result<bool, &'static str>,
) -> Result<(), &'static str> {
    let mut inflater = Inflater::new(Wrapping::Raw).map_err(|invalid| invalid.0)?;
    let (mut first, mut input) = (0, compressed);
    if bits != 0 {
        let split = compressed.split_first().ok_or("it is empty")?;
        (first, input) = (*split.0, split.1);
    }
    inflater
        .enter(bits, first, window.unwrap_or_default())
        .map_err(|invalid| invalid.0)?;
    let mut raw = true;
    while more(out)? {
        let step = inflater
            .append(input, out, usize::MAX, Stop::Never)
            .map_err(|invalid| invalid.0)?;
        input = input.get(step.consumed..).unwrap_or_default();
        if step.state == State::End {
            // A raw stream ends before its member's trailer; later members are read as gzip.
            if raw {
                input = input.get(GZIP_TRAILER..).unwrap_or_default();
                raw = false;
            }
            if input.is_empty() {
                break;
            }
            inflater
                .reset(Wrapping::Gzip)
                .map_err(|invalid| invalid.0)?;
        } else if step.consumed == 0 && step.produced == 0 {
            break;
        }
    }
    Ok(())
}
