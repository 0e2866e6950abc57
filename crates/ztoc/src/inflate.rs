//! A safe interface to zlib-rs's inflate; the only module of this crate with `unsafe`.
//!
//! zlib-rs is pure Rust, but priming bits and the state at block boundaries are public only in
//! its C-style interface, libz-rs-sys. docs/inflate.md states why this library was chosen.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use libz_rs_sys as zlib;

/// Length of the checksum and size after a gzip member's blocks (RFC 1952, section 2.3), in bytes.
pub(crate) const GZIP_TRAILER: usize = 8;

/// Number of bits of the byte at bit `position` that come from there on; 0 at the start of a byte.
pub(crate) fn unused_bits(position: u64) -> u8 {
    position.wrapping_neg().to_le_bytes()[0] % 8
}

/// Format around the deflate blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrapping {
    /// Deflate blocks alone (RFC 1951).
    Raw,
    /// A gzip member with header and trailer, whose checksum is verified (RFC 1952).
    Gzip,
}

impl Wrapping {
    /// zlib's `windowBits`: 15 for 32 KiB, negative for raw, plus 16 for gzip.
    const fn window_bits(self) -> i32 {
        match self {
            Self::Raw => -15,
            Self::Gzip => 15 + 16,
        }
    }
}

/// Where to return before input or output runs out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Only at the end of the stream.
    Never,
    /// At the end of each block and after the gzip header.
    AtBlocks,
}

/// The state of the stream after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Anywhere.
    Inside,
    /// Right before a block's header, whose first bits are the `bits` high bits of the last input
    /// byte consumed.
    Boundary {
        /// 0 to 7.
        bits: u8,
    },
    /// The stream, or gzip member with its trailer, is complete.
    End,
}

/// The result of a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) consumed: usize,
    pub(crate) produced: usize,
    pub(crate) state: State,
}

/// Why the input is not a valid stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Invalid(pub(crate) &'static str);

/// An inflater of one stream at a time.
pub(crate) struct Inflater {
    /// Allocated by `Box`, so that it never moves: the state inside points back at it.
    stream: *mut zlib::z_stream,
}

// SAFETY: the stream and everything it points at belong to this value alone, its allocator is the
// global one, and zlib-rs keeps nothing per thread.
unsafe impl Send for Inflater {}

impl std::fmt::Debug for Inflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflater").finish_non_exhaustive()
    }
}

const NO_MEMORY: Invalid = Invalid("cannot allocate an inflater");

impl Inflater {
    /// An inflater at the start of a stream.
    pub(crate) fn new(wrapping: Wrapping) -> Result<Self, Invalid> {
        let size = i32::try_from(size_of::<zlib::z_stream>()).map_err(|_| NO_MEMORY)?;
        let stream = Box::into_raw(Box::<zlib::z_stream>::default());
        // SAFETY: `stream` points at an initialised z_stream without an allocator, for which
        // inflateInit2_ puts in its own; version and size are those of the library itself.
        let code = unsafe {
            zlib::inflateInit2_(stream, wrapping.window_bits(), zlib::zlibVersion(), size)
        };
        // From here on Drop frees the stream; inflateEnd accepts one that was not initialised.
        let inflater = Self { stream };
        if code == zlib::Z_OK {
            Ok(inflater)
        } else {
            Err(NO_MEMORY)
        }
    }

    /// Starts over with another stream; the allocation is kept.
    pub(crate) fn reset(&mut self, wrapping: Wrapping) -> Result<(), Invalid> {
        // SAFETY: `stream` was initialised by inflateInit2_.
        match unsafe { zlib::inflateReset2(self.stream, wrapping.window_bits()) } {
            zlib::Z_OK => Ok(()),
            zlib::Z_MEM_ERROR => Err(NO_MEMORY),
            _ => Err(Invalid("the inflater cannot be reset")),
        }
    }

    /// Puts `bits` bits, the low ones of `value`, before the input. Raw streams only.
    fn prime(&mut self, bits: u8, value: u8) -> Result<(), Invalid> {
        // SAFETY: `stream` was initialised by inflateInit2_.
        let code = unsafe { zlib::inflatePrime(self.stream, i32::from(bits), i32::from(value)) };
        if code == zlib::Z_OK {
            Ok(())
        } else {
            Err(Invalid("its bits cannot be primed"))
        }
    }

    /// Sets what the stream's first matches may refer to. Raw streams only.
    fn set_window(&mut self, window: &[u8]) -> Result<(), Invalid> {
        let len = u32::try_from(window.len()).map_err(|_| Invalid("its window is too long"))?;
        // SAFETY: `stream` was initialised by inflateInit2_; `window` holds `len` bytes, which are
        // copied.
        let code = unsafe { zlib::inflateSetDictionary(self.stream, window.as_ptr(), len) };
        if code == zlib::Z_OK {
            Ok(())
        } else {
            Err(Invalid("its window cannot be set"))
        }
    }

    /// Starts over in the middle of a stream: the `bits` high bits of `byte`, 0 to 7, come first, and
    /// `window` is what came before.
    pub(crate) fn enter(&mut self, bits: u8, byte: u8, window: &[u8]) -> Result<(), Invalid> {
        self.reset(Wrapping::Raw)?;
        if bits != 0 {
            self.prime(bits, byte >> (8 - bits))?;
        }
        if window.is_empty() {
            return Ok(());
        }
        self.set_window(window)
    }

    /// Inflates some of `input` into `output`.
    pub(crate) fn step(
        &mut self,
        input: &[u8],
        output: &mut [u8],
        stop: Stop,
    ) -> Result<Step, Invalid> {
        let len = output.len();
        // SAFETY: `output` is `len` initialised bytes that we may write, and MaybeUninit<u8> has
        // the layout of u8; inflate writes only initialised bytes.
        let output = unsafe { std::slice::from_raw_parts_mut(output.as_mut_ptr().cast(), len) };
        self.step_uninit(input, output, stop)
    }

    /// Inflates some of `input` behind what is in `out`, within its capacity and up to `max` bytes in
    /// all.
    pub(crate) fn append(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        max: usize,
        stop: Stop,
    ) -> Result<Step, Invalid> {
        let max = max.saturating_sub(out.len());
        let room = out.spare_capacity_mut();
        let max = max.min(room.len());
        let step = self.step_uninit(input, room.get_mut(..max).unwrap_or_default(), stop)?;
        // SAFETY: inflate initialised `produced` bytes at the start of the spare capacity.
        unsafe { out.set_len(out.len() + step.produced) };
        Ok(step)
    }

    fn step_uninit(
        &mut self,
        input: &[u8],
        output: &mut [MaybeUninit<u8>],
        stop: Stop,
    ) -> Result<Step, Invalid> {
        let available_in = u32::try_from(input.len()).unwrap_or(u32::MAX);
        let available_out = u32::try_from(output.len()).unwrap_or(u32::MAX);
        let flush = match stop {
            Stop::Never => zlib::Z_NO_FLUSH,
            Stop::AtBlocks => zlib::Z_BLOCK,
        };
        // SAFETY: `stream` was initialised by inflateInit2_ and nothing else refers to it now; the
        // pointers and lengths are those of `input` and `output`, which outlive the call; inflate
        // only reads the input.
        let (code, left_in, left_out, data_type, message) = unsafe {
            let stream = self.stream;
            (*stream).next_in = input.as_ptr().cast_mut();
            (*stream).avail_in = available_in;
            (*stream).next_out = output.as_mut_ptr().cast();
            (*stream).avail_out = available_out;
            let code = zlib::inflate(stream, flush);
            (*stream).next_in = std::ptr::null_mut();
            (*stream).next_out = std::ptr::null_mut();
            (
                code,
                (*stream).avail_in,
                (*stream).avail_out,
                (*stream).data_type,
                (*stream).msg,
            )
        };
        let state = match code {
            zlib::Z_STREAM_END => State::End,
            // data_type: 128 at a boundary, 64 in the last block, the low bits are bits unused.
            zlib::Z_OK | zlib::Z_BUF_ERROR if data_type & 128 != 0 && data_type & 64 == 0 => {
                State::Boundary {
                    bits: u8::try_from(data_type & 7).unwrap_or(0),
                }
            }
            zlib::Z_OK | zlib::Z_BUF_ERROR => State::Inside,
            _ if message.is_null() => return Err(Invalid("it is not a deflate stream")),
            _ => {
                // SAFETY: zlib-rs's messages are static strings that end in a zero.
                let message = unsafe { std::ffi::CStr::from_ptr(message) };
                return Err(Invalid(
                    message.to_str().unwrap_or("it is not a deflate stream"),
                ));
            }
        };
        Ok(Step {
            consumed: available_in.saturating_sub(left_in) as usize,
            produced: available_out.saturating_sub(left_out) as usize,
            state,
        })
    }
}

impl Drop for Inflater {
    fn drop(&mut self) {
        // SAFETY: `stream` came from Box::into_raw, is freed once, and inflateEnd frees what
        // inflateInit2_ allocated, if it did.
        unsafe {
            zlib::inflateEnd(self.stream);
            drop(Box::from_raw(self.stream));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_gzip_member_is_inflated_and_its_checksum_verified() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(b"some words, some words").unwrap();
        let mut gzip = gzip.finish().unwrap();
        let mut inflater = Inflater::new(Wrapping::Gzip).unwrap();
        let mut out = Vec::with_capacity(100);
        let step = inflater.append(&gzip, &mut out, 100, Stop::Never).unwrap();
        assert_eq!((step.state, step.consumed), (State::End, gzip.len()));
        assert_eq!(out, b"some words, some words");

        let checksum = gzip.len() - 8;
        gzip[checksum] ^= 1;
        inflater.reset(Wrapping::Gzip).unwrap();
        let refused = inflater.step(&gzip, &mut [0; 100], Stop::Never);
        assert_eq!(refused.unwrap_err(), Invalid("incorrect data check"));
    }

    #[test]
    fn the_first_boundary_is_behind_the_gzip_header() {
        let gzip = flate2::GzBuilder::new().filename("a name");
        let gzip = gzip
            .write(Vec::new(), flate2::Compression::fast())
            .finish()
            .unwrap();
        let mut inflater = Inflater::new(Wrapping::Gzip).unwrap();
        let step = inflater.step(&gzip, &mut [0; 10], Stop::AtBlocks).unwrap();
        assert_eq!(
            (step.state, step.consumed),
            (State::Boundary { bits: 0 }, 10 + 7)
        );
    }

    #[test]
    fn a_stream_is_entered_at_any_of_its_boundaries() {
        let text: Vec<u8> = (0..6000_u32)
            .flat_map(|n| (n * n % 251).to_le_bytes())
            .collect();
        let mut raw = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        for part in text.chunks(5000) {
            raw.write_all(part).unwrap();
            raw.flush().unwrap();
        }
        let raw = raw.finish().unwrap();
        let mut inflater = Inflater::new(Wrapping::Raw).unwrap();
        let (mut input, mut out) = (0, Vec::with_capacity(text.len() + 1));
        let mut boundaries = 0;
        loop {
            let step = inflater.append(&raw[input..], &mut out, usize::MAX, Stop::AtBlocks);
            let step = step.unwrap();
            input += step.consumed;
            let bits = match step.state {
                State::Boundary { bits } => bits,
                State::Inside => continue,
                State::End => break,
            };
            boundaries += 1;
            let window = &out[out.len().saturating_sub(32 << 10)..];
            let mut other = Inflater::new(Wrapping::Raw).unwrap();
            other.enter(bits, raw[input - 1], window).unwrap();
            let mut rest = Vec::with_capacity(text.len() - out.len() + 1);
            let step = other.append(&raw[input..], &mut rest, usize::MAX, Stop::Never);
            assert_eq!(step.unwrap().state, State::End);
            assert_eq!(rest, text[out.len()..]);
        }
        assert!(boundaries > 4);
        assert_eq!(out, text);
    }
}
