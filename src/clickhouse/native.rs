//! ClickHouse's `Native` format: one block, built column by column.
//!
//! A block is the number of columns and of rows, then for each column its name,
//! its type and its values one after the other. ClickHouse takes it in without
//! turning rows into columns first, which costs it half of what RowBinary does.
//! Source: <https://clickhouse.com/docs/reference/formats/Native>.

use bytes::Bytes;
use time::{Date, OffsetDateTime};
use uuid::Uuid;

/// A finished block: what one insert sends, and sends again when it must.
///
/// Cloning it shares the bytes.
#[derive(Debug, Clone)]
pub struct Block {
    pub bytes: Bytes,
    pub rows: usize,
}

/// Room before the first column for the two counts, which are known last.
const HEADER: usize = 2 * MAX_VARUINT;
const MAX_VARUINT: usize = 10;

/// Builds a [`Block`]; every column must have the same number of values.
pub struct BlockBuilder {
    bytes: Vec<u8>,
    columns: usize,
    rows: usize,
}

impl BlockBuilder {
    /// A block of `rows` rows that will take about `capacity` bytes.
    pub fn new(rows: usize, capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(HEADER + capacity);
        bytes.resize(HEADER, 0);
        Self {
            bytes,
            columns: 0,
            rows,
        }
    }

    /// Adds a column. ClickHouse casts it where the table's type is another
    /// (`LowCardinality(String)` from `String`).
    ///
    /// # Panics
    /// When `values` are not as many as the block has rows: the bytes would be
    /// read as something else.
    pub fn column<T: Value>(&mut self, name: &str, values: impl Iterator<Item = T>) -> &mut Self {
        name.write(&mut self.bytes);
        T::TYPE.write(&mut self.bytes);
        let mut rows = 0;
        for value in values {
            value.write(&mut self.bytes);
            rows += 1;
        }
        assert_eq!(
            rows, self.rows,
            "column `{name}` is not as long as its block"
        );
        self.columns += 1;
        self
    }

    pub fn build(mut self) -> Block {
        let mut header = Vec::with_capacity(HEADER);
        write_varuint(self.columns as u64, &mut header);
        write_varuint(self.rows as u64, &mut header);
        let start = HEADER - header.len();
        self.bytes[start..HEADER].copy_from_slice(&header);
        Block {
            bytes: Bytes::from(self.bytes).slice(start..),
            rows: self.rows,
        }
    }
}

/// A value that a column can hold.
pub trait Value {
    /// ClickHouse's name of the type.
    const TYPE: &'static str;

    fn write(&self, out: &mut Vec<u8>);
}

macro_rules! little_endian {
    ($($rust:ty => $clickhouse:literal),* $(,)?) => {
        $(impl Value for $rust {
            const TYPE: &'static str = $clickhouse;

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

    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Value for &str {
    const TYPE: &'static str = "String";

    fn write(&self, out: &mut Vec<u8>) {
        self.as_bytes().write(out);
    }
}

/// A ClickHouse string is bytes.
impl Value for &[u8] {
    const TYPE: &'static str = "String";

    fn write(&self, out: &mut Vec<u8>) {
        write_varuint(self.len() as u64, out);
        out.extend_from_slice(self);
    }
}

/// Two 64-bit halves, the high one first, each little-endian.
impl Value for Uuid {
    const TYPE: &'static str = "UUID";

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

    fn write(&self, out: &mut Vec<u8>) {
        self.0.write(out);
    }
}

/// Seven bits a byte, the lowest first.
fn write_varuint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_counts_then_named_and_typed_columns() {
        let mut builder = BlockBuilder::new(2, 0);
        builder
            .column("n", [1u32, 258].into_iter())
            .column("s", ["", "né"].into_iter());
        let block = builder.build();
        assert_eq!(
            block.bytes.as_ref(),
            b"\x02\x02\
              \x01n\x06UInt32\x01\0\0\0\x02\x01\0\0\
              \x01s\x06String\x00\x03n\xc3\xa9"
        );
    }

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

    #[test]
    #[should_panic(expected = "column `n` is not as long as its block")]
    fn a_column_of_another_length_is_refused() {
        BlockBuilder::new(3, 0).column("n", [1u64].into_iter());
    }
}
