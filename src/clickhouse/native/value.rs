//! Values as Native lays them out.

use time::{Date, OffsetDateTime};
use uuid::Uuid;

/// A value that a column can hold.
pub trait Value {
    /// ClickHouse's name of the type.
    const TYPE: &'static str;

    /// Bytes of the type's default, all of them zero.
    const DEFAULT_SIZE: usize;

    fn write(&self, out: &mut Vec<u8>);
}

macro_rules! little_endian {
    ($($rust:ty => $clickhouse:literal),* $(,)?) => {
        $(impl Value for $rust {
            const TYPE: &'static str = $clickhouse;
            const DEFAULT_SIZE: usize = size_of::<$rust>();

            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        })*
    };
}

little_endian! {
    u32 => "UInt32",
    u64 => "UInt64",
    i32 => "Int32",
    i64 => "Int64",
}

impl Value for bool {
    const TYPE: &'static str = "Bool";
    const DEFAULT_SIZE: usize = 1;

    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Value for str {
    const TYPE: &'static str = "String";
    const DEFAULT_SIZE: usize = 1;

    fn write(&self, out: &mut Vec<u8>) {
        write_string(self.as_bytes(), out);
    }
}

/// A ClickHouse string is bytes.
impl Value for [u8] {
    const TYPE: &'static str = "String";
    const DEFAULT_SIZE: usize = 1;

    fn write(&self, out: &mut Vec<u8>) {
        write_string(self, out);
    }
}

/// Two 64-bit halves, the high one first, each little-endian.
impl Value for Uuid {
    const TYPE: &'static str = "UUID";
    const DEFAULT_SIZE: usize = 16;

    fn write(&self, out: &mut Vec<u8>) {
        let (high, low) = self.as_u64_pair();
        high.write(out);
        low.write(out);
    }
}

/// Milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub i64);

impl Millis {
    /// The UTC date.
    pub fn date(self) -> Date {
        let time = OffsetDateTime::from_unix_timestamp(self.0.div_euclid(1000));
        time.map_or(Date::MIN, OffsetDateTime::date)
    }
}

impl Value for Millis {
    const TYPE: &'static str = "DateTime64(3, 'UTC')";
    const DEFAULT_SIZE: usize = 8;

    fn write(&self, out: &mut Vec<u8>) {
        self.0.write(out);
    }
}

pub fn write_string(bytes: &[u8], out: &mut Vec<u8>) {
    write_varuint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Seven bits per byte, the lowest first.
pub fn write_varuint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Adds `bytes` bytes of defaults.
pub fn pad(out: &mut Vec<u8>, bytes: usize) {
    out.resize(out.len() + bytes, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_strings_and_uuids_are_laid_out_as_clickhouse_reads_them() {
        let mut out = Vec::new();
        [b'x'; 300].as_slice().write(&mut out);
        assert_eq!(&out[..3], [0xac, 0x02, b'x']);

        out.clear();
        Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff).write(&mut out);
        assert_eq!(
            out,
            [
                0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x00, 0xff, 0xee, 0xdd, 0xcc, 0xbb, 0xaa,
                0x99, 0x88
            ]
        );
    }
}
