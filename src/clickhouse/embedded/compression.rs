//! Compression of bodies, both ways: ClickHouse's own blocks (`compress=1`,
//! `decompress=1`) and HTTP's `Content-Encoding`.

use std::io::{self, BufRead, BufReader, Cursor, Read, Write};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use lz4_flex::frame::{FrameDecoder, FrameEncoder};
use ruzstd::decoding::StreamingDecoder;

use super::exception::Exception;

/// How a body is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Identity,
    /// ClickHouse's blocks, each with a CityHash128 checksum.
    Blocks,
    Lz4,
    Gzip,
    Zstd,
}

impl Encoding {
    /// From a request's `Content-Encoding`.
    pub fn from_content_encoding(name: &str) -> Result<Self, Exception> {
        match name.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Ok(Self::Identity),
            "lz4" => Ok(Self::Lz4),
            "gzip" | "x-gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            other => Err(Exception::new(
                48,
                "NOT_IMPLEMENTED",
                format_args!("Unknown compression method: {other}"),
            )),
        }
    }

    /// The best that a client's `Accept-Encoding` allows: LZ4 costs the least.
    pub fn from_accept_encoding(accepted: &str) -> Self {
        let accepts = |name: &str| {
            accepted.split(',').any(|item| {
                let mut parts = item.split(';').map(str::trim);
                parts.next().is_some_and(|it| it.eq_ignore_ascii_case(name))
                    && !parts.any(|quality| quality == "q=0")
            })
        };
        if accepts("lz4") {
            Self::Lz4
        } else if accepts("gzip") {
            Self::Gzip
        } else {
            Self::Identity
        }
    }

    /// The value of a response's `Content-Encoding`. ClickHouse's own blocks are
    /// part of its protocol, not of HTTP's.
    pub fn content_encoding(self) -> Option<&'static str> {
        match self {
            Self::Identity | Self::Blocks => None,
            Self::Lz4 => Some("lz4"),
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        }
    }
}

/// Reads what `source` holds, unpacked.
pub fn decoder(encoding: Encoding, source: impl Read + 'static) -> Box<dyn Read> {
    let source = BufReader::with_capacity(256 * 1024, source);
    match encoding {
        Encoding::Identity => Box::new(source),
        Encoding::Blocks => Box::new(Blocks {
            source,
            block: Cursor::default(),
        }),
        Encoding::Gzip => Box::new(MultiGzDecoder::new(source)),
        Encoding::Lz4 => Box::new(Lz4Frames(FrameDecoder::new(source))),
        Encoding::Zstd => Box::new(ZstdFrames::Between(source)),
    }
}

/// LZ4 frames, one after another: clients send one for each block of rows.
struct Lz4Frames<R: BufRead>(FrameDecoder<R>);

impl<R: BufRead> Read for Lz4Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.0.read(buffer)?;
            if read > 0 || buffer.is_empty() || self.0.get_mut().fill_buf()?.is_empty() {
                return Ok(read);
            }
        }
    }
}

/// Zstandard frames, one after another.
enum ZstdFrames<R: BufRead> {
    Between(R),
    Within(Box<StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>),
    Broken,
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(self, Self::Broken) {
                Self::Between(mut source) => {
                    if source.fill_buf()?.is_empty() {
                        *self = Self::Between(source);
                        return Ok(0);
                    }
                    let frame = StreamingDecoder::new(source).map_err(cannot_decompress)?;
                    *self = Self::Within(Box::new(frame));
                }
                Self::Within(mut frame) => {
                    let read = frame.read(buffer).map_err(cannot_decompress)?;
                    if read > 0 || buffer.is_empty() {
                        *self = Self::Within(frame);
                        return Ok(read);
                    }
                    *self = Self::Between(frame.into_inner());
                }
                Self::Broken => return Err(cannot_decompress("broken Zstandard frame")),
            }
        }
    }
}

const CHECKSUM_BYTES: usize = 16;
/// Method, compressed size (this header included) and uncompressed size.
const HEADER_BYTES: usize = 9;
const METHOD_NONE: u8 = 0x02;
const METHOD_LZ4: u8 = 0x82;
const METHOD_ZSTD: u8 = 0x90;
/// ClickHouse's own limit (`DBMS_MAX_COMPRESSED_SIZE`): a larger size is garbage.
const MAX_BLOCK_BYTES: usize = 1 << 30;

/// ClickHouse's blocks: checksum, method, sizes, data.
struct Blocks<R> {
    source: R,
    block: Cursor<Vec<u8>>,
}

impl<R: BufRead> Blocks<R> {
    fn next_block(&mut self) -> io::Result<Vec<u8>> {
        let mut checksum = [0; CHECKSUM_BYTES];
        self.source.read_exact(&mut checksum)?;
        let mut header = [0; HEADER_BYTES];
        self.source.read_exact(&mut header)?;
        let [method, c0, c1, c2, c3, u0, u1, u2, u3] = header;
        let compressed = u32::from_le_bytes([c0, c1, c2, c3]) as usize;
        let uncompressed = u32::from_le_bytes([u0, u1, u2, u3]) as usize;
        if !(HEADER_BYTES..=MAX_BLOCK_BYTES).contains(&compressed) || uncompressed > MAX_BLOCK_BYTES
        {
            return Err(cannot_decompress("block size out of range"));
        }
        let mut block = header.to_vec();
        let body = (compressed - HEADER_BYTES) as u64;
        // Not allocated in advance: the client only claims the size.
        (&mut self.source).take(body).read_to_end(&mut block)?;
        if block.len() != compressed {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if checksum_of(&block) != checksum {
            return Err(io::Error::other(Exception::new(
                40,
                "CHECKSUM_DOESNT_MATCH",
                "Checksum doesn't match: corrupted data",
            )));
        }
        let data = &block[HEADER_BYTES..];
        match method {
            METHOD_NONE => Ok(data.to_vec()),
            METHOD_LZ4 => {
                lz4_flex::block::decompress(data, uncompressed).map_err(cannot_decompress)
            }
            METHOD_ZSTD => {
                let mut unpacked = Vec::new();
                ZstdFrames::Between(data).read_to_end(&mut unpacked)?;
                Ok(unpacked)
            }
            other => Err(io::Error::other(Exception::new(
                89,
                "UNKNOWN_COMPRESSION_METHOD",
                format_args!("Unknown compression method code: {other:#x}"),
            ))),
        }
    }
}

impl<R: BufRead> Read for Blocks<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.block.read(buffer)?;
            if read > 0 || buffer.is_empty() || self.source.fill_buf()?.is_empty() {
                return Ok(read);
            }
            self.block = Cursor::new(self.next_block()?);
        }
    }
}

fn cannot_decompress(reason: impl std::fmt::Display) -> io::Error {
    io::Error::other(Exception::new(
        271,
        "CANNOT_DECOMPRESS",
        format_args!("Cannot decompress: {reason}"),
    ))
}

/// Packs a response, piece by piece.
pub enum Encoder {
    Identity,
    Blocks,
    Lz4(Box<FrameEncoder<Vec<u8>>>),
    Gzip(Box<GzEncoder<Vec<u8>>>),
}

impl Encoder {
    pub fn new(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Identity | Encoding::Zstd => Self::Identity,
            Encoding::Blocks => Self::Blocks,
            Encoding::Lz4 => Self::Lz4(Box::new(FrameEncoder::new(Vec::new()))),
            Encoding::Gzip => {
                let level = flate2::Compression::fast();
                Self::Gzip(Box::new(GzEncoder::new(Vec::new(), level)))
            }
        }
    }

    /// The bytes to send for a piece, flushed so that a client sees every row that the
    /// engine has found.
    pub fn encode(&mut self, piece: Bytes) -> io::Result<Bytes> {
        match self {
            Self::Identity => Ok(piece),
            Self::Blocks => Ok(block(&piece)),
            Self::Lz4(encoder) => {
                encoder.write_all(&piece)?;
                encoder.flush()?;
                Ok(std::mem::take(encoder.get_mut()).into())
            }
            Self::Gzip(encoder) => {
                encoder.write_all(&piece)?;
                encoder.flush()?;
                Ok(std::mem::take(encoder.get_mut()).into())
            }
        }
    }

    /// The bytes that end the body.
    pub fn finish(self) -> io::Result<Bytes> {
        match self {
            Self::Identity | Self::Blocks => Ok(Bytes::new()),
            Self::Lz4(encoder) => Ok(encoder.finish().map_err(io::Error::other)?.into()),
            Self::Gzip(encoder) => Ok(encoder.finish()?.into()),
        }
    }
}

fn block(piece: &[u8]) -> Bytes {
    let data = lz4_flex::block::compress(piece);
    let mut block = vec![0; CHECKSUM_BYTES];
    block.push(METHOD_LZ4);
    // Pieces are far below 4 GiB: the engine cuts results into blocks of rows.
    block.extend_from_slice(&((data.len() + HEADER_BYTES) as u32).to_le_bytes());
    block.extend_from_slice(&(piece.len() as u32).to_le_bytes());
    block.extend_from_slice(&data);
    let checksum = checksum_of(&block[CHECKSUM_BYTES..]);
    block[..CHECKSUM_BYTES].copy_from_slice(&checksum);
    block.into()
}

/// The checksum of header and data. ClickHouse writes the hash's upper half first, each
/// half in little endian.
fn checksum_of(header_and_data: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = cityhash_rs::cityhash_102_128(header_and_data);
    hash.rotate_right(64).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(encoding: Encoding, pieces: &[&'static [u8]]) -> Vec<u8> {
        let mut encoder = Encoder::new(encoding);
        let mut packed = Vec::new();
        for piece in pieces {
            packed.extend(encoder.encode(Bytes::from_static(piece)).unwrap());
        }
        packed.extend(encoder.finish().unwrap());
        packed
    }

    fn unpack(encoding: Encoding, packed: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut unpacked = Vec::new();
        decoder(encoding, Cursor::new(packed)).read_to_end(&mut unpacked)?;
        Ok(unpacked)
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        for encoding in [
            Encoding::Identity,
            Encoding::Blocks,
            Encoding::Lz4,
            Encoding::Gzip,
        ] {
            let packed = pack(encoding, &[b"one", b"", b"two"]);
            assert_eq!(unpack(encoding, packed).unwrap(), b"onetwo", "{encoding:?}");
            assert_eq!(unpack(encoding, Vec::new()).unwrap_or_default(), b"");
        }
    }

    #[test]
    fn frames_follow_one_another() {
        for encoding in [Encoding::Lz4, Encoding::Gzip] {
            let mut packed = pack(encoding, &[b"one"]);
            packed.extend(pack(encoding, &[b"two"]));
            assert_eq!(unpack(encoding, packed).unwrap(), b"onetwo", "{encoding:?}");
        }
        let zstd = ruzstd::encoding::compress_to_vec(
            b"one".as_slice(),
            ruzstd::encoding::CompressionLevel::Fastest,
        );
        assert_eq!(
            unpack(Encoding::Zstd, [zstd.clone(), zstd].concat()).unwrap(),
            b"oneone"
        );
    }

    #[test]
    fn a_body_that_breaks_off_is_an_error() {
        for encoding in [Encoding::Blocks, Encoding::Lz4, Encoding::Gzip] {
            let mut packed = pack(encoding, &[b"one", b"two"]);
            // Cuts into the last piece: if only the end mark is lost, LZ4's decoder says
            // nothing.
            packed.truncate(packed.len() - 6);
            assert!(unpack(encoding, packed).is_err(), "{encoding:?}");
        }
    }

    #[test]
    fn a_flipped_bit_fails_the_checksum() {
        let mut packed = pack(Encoding::Blocks, &[b"one"]);
        *packed.last_mut().unwrap() ^= 1;
        let error = unpack(Encoding::Blocks, packed).unwrap_err();
        let exception = error.downcast::<Exception>().unwrap();
        assert_eq!(exception.code, 40);
    }

    #[test]
    fn the_cheapest_accepted_encoding_wins() {
        let choose = Encoding::from_accept_encoding;
        assert_eq!(choose("gzip, deflate, LZ4"), Encoding::Lz4);
        assert_eq!(choose("zstd,gzip;q=0.5"), Encoding::Gzip);
        assert_eq!(choose("gzip;q=0"), Encoding::Identity);
        assert_eq!(choose(""), Encoding::Identity);
    }
}
