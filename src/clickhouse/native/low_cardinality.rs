//! `LowCardinality(String)`: each distinct value once, and each row's number among them.
//!
//! ClickHouse takes it as it is. With `String`, it would read every row's bytes and look
//! them up itself.
//! Source: `SerializationLowCardinality.cpp` in ClickHouse.

use foldhash::{HashMap, HashMapExt};

use super::Plain;
use super::value::Value;

/// A column of strings that repeat.
#[derive(Debug)]
pub struct LowCardinality {
    /// The distinct values in the order of their first rows, after the default.
    values: Plain<str>,
    numbers: HashMap<Box<str>, u32>,
    rows: Vec<u32>,
}

/// The one way in which ClickHouse lays these out.
const VERSION: u64 = 1;

/// The block brings its own values along, with no dictionary shared by many blocks.
const HAS_ADDITIONAL_KEYS: u64 = 1 << 9;

/// The number of the default, the empty string.
const DEFAULT: u32 = 0;

impl LowCardinality {
    /// Sets the value of a row after all that are set.
    pub fn set(&mut self, row: usize, value: &str) {
        debug_assert!(row >= self.rows.len(), "row {row} is set already");
        let number = self.number(value);
        self.rows.resize(row, DEFAULT);
        self.rows.push(number);
    }

    fn number(&mut self, value: &str) -> u32 {
        if value.is_empty() {
            return DEFAULT;
        }
        if let Some(number) = self.numbers.get(value) {
            return *number;
        }
        let number = self.values.rows();
        self.values.set(number, value);
        // A block has at most a few million rows.
        let number = number as u32;
        self.numbers.insert(value.into(), number);
        number
    }
}

impl Default for LowCardinality {
    fn default() -> Self {
        Self {
            values: Plain::from_iter([""]),
            numbers: HashMap::new(),
            rows: Vec::new(),
        }
    }
}

impl LowCardinality {
    /// ClickHouse's name of the type.
    pub(super) const TYPE: &'static str = "LowCardinality(String)";

    /// Rows up to the last one that was set.
    pub(super) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Bytes that `rows` rows take in a block, or a few more.
    pub(super) fn size(&self, rows: usize) -> usize {
        let counts = 4 * size_of::<u64>();
        counts + self.values.bytes().len() + rows * Width::Two.bytes()
    }

    /// Writes columns one after the other, each with its number of rows, as one.
    pub(super) fn write(parts: Vec<(Self, usize)>, out: &mut Vec<u8>) {
        let mut parts = parts.into_iter();
        let Some((mut column, mut rows)) = parts.next() else {
            return;
        };
        for (part, more) in parts {
            column.append(rows, part);
            rows += more;
        }
        column.write_alone(rows, out);
    }
}

impl LowCardinality {
    /// Adds the rows of `other` after the first `rows` of this column, which has no
    /// more.
    fn append(&mut self, rows: usize, other: Self) {
        let mut numbers = vec![DEFAULT; other.values.rows()];
        // In their order, since the same rows must always become the same bytes.
        let mut values: Vec<_> = other.numbers.into_iter().collect();
        values.sort_unstable_by_key(|(_, number)| *number);
        for (value, number) in values {
            numbers[number as usize] = self.number(&value);
        }
        self.rows.resize(rows, DEFAULT);
        let appended = other.rows.iter().map(|number| numbers[*number as usize]);
        self.rows.extend(appended);
    }

    fn write_alone(mut self, rows: usize, out: &mut Vec<u8>) {
        let (width, values) = (self.width(), self.values.rows());
        VERSION.write(out);
        (width as u64 | HAS_ADDITIONAL_KEYS).write(out);
        (values as u64).write(out);
        out.extend_from_slice(self.values.bytes());
        (rows as u64).write(out);
        self.rows.resize(rows, DEFAULT);
        let bytes = self.rows.iter().map(|number| number.to_le_bytes());
        match width {
            Width::One => out.extend(bytes.map(|number| number[0])),
            Width::Two => out.extend(bytes.flat_map(|[low, high, ..]| [low, high])),
            Width::Four => out.extend(bytes.flatten()),
        }
    }

    fn width(&self) -> Width {
        match self.values.rows() {
            ..=0x100 => Width::One,
            0x101..=0x1_0000 => Width::Two,
            _ => Width::Four,
        }
    }
}

/// How many bytes a row's number takes; cast to a number, ClickHouse's code for that.
#[derive(Debug, Clone, Copy)]
enum Width {
    One = 0,
    Two = 1,
    Four = 2,
}

impl Width {
    fn bytes(self) -> usize {
        1 << self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(column: LowCardinality, rows: usize) -> Vec<u8> {
        let mut out = Vec::new();
        LowCardinality::write(vec![(column, rows)], &mut out);
        out
    }

    fn column(values: &[(usize, &str)]) -> LowCardinality {
        let mut column = LowCardinality::default();
        for (row, value) in values {
            column.set(*row, value);
        }
        column
    }

    #[test]
    fn values_stand_once_and_rows_are_their_numbers() {
        let column = column(&[(1, "b"), (2, "a"), (3, ""), (4, "b")]);
        assert_eq!(
            written(column, 6),
            b"\x01\0\0\0\0\0\0\0\
              \x00\x02\0\0\0\0\0\0\
              \x03\0\0\0\0\0\0\0\
              \x00\x01b\x01a\
              \x06\0\0\0\0\0\0\0\
              \x00\x01\x02\x00\x01\x00"
        );
    }

    #[test]
    fn more_values_need_wider_numbers() {
        for (values, width, kind) in [(255, 1, 0), (256, 2, 1), (65_535, 2, 1), (65_536, 4, 2)] {
            let mut column = LowCardinality::default();
            for row in 0..values {
                column.set(row, &row.to_string());
            }
            let rows = values;
            let out = written(column, rows);
            assert_eq!(out[8], kind, "of {values} values");
            let last = &out[out.len() - width..];
            assert_eq!(last, &(values as u32).to_le_bytes()[..width]);
        }
    }

    #[test]
    fn columns_one_after_the_other_are_one_column() {
        let first = column(&[(0, "a"), (1, "b")]);
        let second = column(&[(1, "c"), (2, "b"), (3, "d")]);
        let mut out = Vec::new();
        LowCardinality::write(vec![(first, 3), (second, 5)], &mut out);
        let whole = column(&[(0, "a"), (1, "b"), (4, "c"), (5, "b"), (6, "d")]);
        assert_eq!(out, written(whole, 8));
    }
}
