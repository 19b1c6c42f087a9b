//! The format in which rows are inserted: ClickHouse's Native, column by column.
//!
//! A block is the number of columns and of rows, then for each column its name,
//! its type and its values one after the other. ClickHouse takes it in without
//! turning rows into columns first, which costs it half of what RowBinary does.
//! Source: <https://clickhouse.com/docs/reference/formats/Native>.

mod column;
mod low_cardinality;
mod value;

use bytes::Bytes;

pub use column::{Column, Columns, Plain};
pub use low_cardinality::LowCardinality;
pub use value::{Millis, Value};
use value::{write_string, write_varuint};

/// A finished block: what one insert sends, and sends again when it must.
///
/// Cloning it shares the bytes.
#[derive(Debug, Clone, Default)]
pub struct Block {
    pub bytes: Bytes,
    pub rows: usize,
}

/// Builds a [`Block`] from its columns.
pub struct BlockBuilder {
    bytes: Vec<u8>,
    columns: usize,
    rows: usize,
}

/// Room before the first column for the two counts: how many columns there are is
/// known last.
const HEADER: usize = 2 * MAX_VARUINT;
const MAX_VARUINT: usize = 10;

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

    /// Adds a column, of one or more parts with the number of rows of each. ClickHouse
    /// casts it if the table's type is different (`LowCardinality(String)` from `String`).
    /// Rows at a part's end that were not set hold the type's default.
    ///
    /// # Panics
    /// If the parts are not as long as the block, or not of one type: the bytes would be read as
    /// something else.
    pub fn column(&mut self, name: &str, parts: Vec<(Column, usize)>) -> &mut Self {
        let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
        let fit = parts.iter().all(|(part, rows)| part.rows() <= *rows);
        assert!(
            fit && rows == self.rows,
            "column `{name}` is not as long as its block"
        );
        let mut types = parts.iter().map(|(part, _)| part.type_name());
        let type_name = types.next().unwrap_or_default();
        assert!(
            types.all(|other| other == type_name),
            "column `{name}` has parts of two types"
        );
        write_string(name.as_bytes(), &mut self.bytes);
        write_string(type_name.as_bytes(), &mut self.bytes);
        // ClickHouse reads nothing for a column without rows, not even a dictionary.
        if rows > 0 {
            Column::write(parts, &mut self.bytes);
        }
        self.columns += 1;
        self
    }

    /// Adds all columns of a table; each of the parts has some of the rows.
    pub fn columns(&mut self, parts: Vec<Columns>) -> &mut Self {
        let mut parts: Vec<_> = parts
            .into_iter()
            .map(|part| (part.rows, part.columns.into_iter()))
            .collect();
        loop {
            // Column by column, since the parts of one no longer need their memory after it.
            let mut name = "";
            let next = parts.iter_mut().filter_map(|(rows, columns)| {
                let (of_part, column) = columns.next()?;
                name = of_part;
                Some((column, *rows))
            });
            let next: Vec<_> = next.collect();
            if next.is_empty() {
                return self;
            }
            self.column(name, next);
        }
    }

    /// Adds a column with as many values as the block has rows.
    pub fn values<'a, T: Value + ?Sized + 'a>(
        &mut self,
        name: &str,
        values: impl Iterator<Item = &'a T>,
    ) -> &mut Self {
        let column = Column::from(Plain::from_iter(values));
        let rows = column.rows();
        self.column(name, vec![(column, rows)])
    }

    /// The block of the columns that were added.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_counts_then_named_and_typed_columns() {
        let mut builder = BlockBuilder::new(2, 0);
        builder
            .values("n", [1u32, 258].iter())
            .values("s", ["", "né"].into_iter());
        let block = builder.build();
        assert_eq!(
            block.bytes.as_ref(),
            b"\x02\x02\
              \x01n\x06UInt32\x01\0\0\0\x02\x01\0\0\
              \x01s\x06String\x00\x03n\xc3\xa9"
        );
    }

    #[test]
    fn rows_that_are_left_out_hold_the_default() {
        let mut numbers = Plain::<u32>::default();
        numbers.set(1, &7);
        let mut strings = Plain::<str>::default();
        strings.set(2, "x");
        let strings = Column::from(strings);
        let size = strings.size(4);
        let mut builder = BlockBuilder::new(4, 0);
        builder
            .column("n", vec![(numbers.into(), 4)])
            .column("s", vec![(strings, 4)]);
        assert_eq!(
            builder.build().bytes.as_ref(),
            b"\x02\x04\
              \x01n\x06UInt32\0\0\0\0\x07\0\0\0\0\0\0\0\0\0\0\0\
              \x01s\x06String\0\0\x01x\0"
        );
        assert_eq!(size, b"\0\0\x01x\0".len());
    }

    #[test]
    fn columns_one_after_the_other_are_one_column() {
        let (mut first, mut second) = (Plain::<str>::default(), Plain::<str>::default());
        first.set(1, "a");
        second.set(1, "b");
        let mut out = Vec::new();
        Column::write(vec![(first.into(), 3), (second.into(), 3)], &mut out);
        assert_eq!(out, b"\0\x01a\0\0\x01b\0");
    }

    #[test]
    #[should_panic(expected = "column `n` is not as long as its block")]
    fn a_column_of_another_length_is_refused() {
        BlockBuilder::new(3, 0).values("n", [1u64].iter());
    }
}
