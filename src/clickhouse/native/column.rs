//! A column while it is filled, and after.

use super::LowCardinality;
use super::value::{Value, pad};

/// A column of values one after the other. A row that is left out holds the type's
/// default, which costs nothing here: most columns belong to one type of event.
#[derive(Debug)]
pub struct Plain<T: ?Sized> {
    bytes: Vec<u8>,
    rows: usize,
    of: std::marker::PhantomData<fn(&T)>,
}

impl<T: Value + ?Sized> Plain<T> {
    /// Sets the value of a row after all that are set.
    pub fn set(&mut self, row: usize, value: &T) {
        debug_assert!(row >= self.rows, "row {row} is set already");
        self.fill(row);
        value.write(&mut self.bytes);
        self.rows += 1;
    }

    /// Adds defaults until there are `rows` rows.
    fn fill(&mut self, rows: usize) {
        if self.rows < rows {
            pad(&mut self.bytes, (rows - self.rows) * T::DEFAULT_SIZE);
            self.rows = rows;
        }
    }

    /// Rows up to the last one that was set.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The values that were set, and the defaults between them.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl<T: ?Sized> Default for Plain<T> {
    fn default() -> Self {
        Self {
            bytes: Vec::new(),
            rows: 0,
            of: std::marker::PhantomData,
        }
    }
}

impl<'a, T: Value + ?Sized + 'a> FromIterator<&'a T> for Plain<T> {
    fn from_iter<I: IntoIterator<Item = &'a T>>(values: I) -> Self {
        let mut column = Self::default();
        for value in values {
            column.set(column.rows, value);
        }
        column
    }
}

/// A filled column, whatever its type.
#[derive(Debug)]
pub enum Column {
    Plain {
        /// ClickHouse's name of the type.
        type_name: &'static str,
        /// Bytes of the type's default.
        default_size: usize,
        bytes: Vec<u8>,
        rows: usize,
    },
    LowCardinality(LowCardinality),
}

impl<T: Value + ?Sized> From<Plain<T>> for Column {
    fn from(column: Plain<T>) -> Self {
        Self::Plain {
            type_name: T::TYPE,
            default_size: T::DEFAULT_SIZE,
            bytes: column.bytes,
            rows: column.rows,
        }
    }
}

impl From<LowCardinality> for Column {
    fn from(column: LowCardinality) -> Self {
        Self::LowCardinality(column)
    }
}

impl Column {
    /// ClickHouse's name of the type.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Plain { type_name, .. } => type_name,
            Self::LowCardinality(_) => LowCardinality::TYPE,
        }
    }

    /// Rows up to the last one that was set.
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Plain { rows, .. } => *rows,
            Self::LowCardinality(column) => column.rows(),
        }
    }

    /// Bytes that `all` rows take in a block, or a few more.
    pub fn size(&self, all: usize) -> usize {
        match self {
            Self::Plain {
                default_size,
                bytes,
                rows,
                ..
            } => bytes.len() + all.saturating_sub(*rows) * default_size,
            Self::LowCardinality(column) => column.size(all),
        }
    }

    /// Writes columns of one type one after the other, each with its number of rows, as one.
    pub(super) fn write(parts: Vec<(Self, usize)>, out: &mut Vec<u8>) {
        let mut dictionaries = Vec::new();
        for (part, all) in parts {
            match part {
                Self::Plain {
                    default_size,
                    bytes,
                    rows,
                    ..
                } => {
                    out.extend_from_slice(&bytes);
                    pad(out, (all - rows) * default_size);
                }
                Self::LowCardinality(column) => dictionaries.push((column, all)),
            }
        }
        LowCardinality::write(dictionaries, out);
    }
}

/// Rows of one table, column by column: a block is made of one or more of these.
#[derive(Debug, Default)]
pub struct Columns {
    pub rows: usize,
    /// With their names; the same ones in the same order for the same table.
    pub columns: Vec<(&'static str, Column)>,
}

/// Roughly what a column's name and type take in a block.
const COLUMN_HEADER: usize = 64;

impl Columns {
    /// Roughly how many bytes the rows take in a block.
    pub fn size(&self) -> usize {
        let sizes = self
            .columns
            .iter()
            .map(|(_, column)| column.size(self.rows));
        sizes.sum::<usize>() + self.columns.len() * COLUMN_HEADER
    }
}
