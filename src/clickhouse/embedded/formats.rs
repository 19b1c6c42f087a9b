//! Output formats: their content type, and how the engine's pieces of a streamed
//! result become one document.

/// As ClickHouse names it in `Content-Type`.
pub fn content_type(format: &str) -> &'static str {
    match format {
        "CSV" | "CSVWithNames" | "CSVWithNamesAndTypes" => {
            "text/csv; charset=UTF-8; header=present"
        }
        "HTML" => "text/html; charset=UTF-8",
        "XML" => "application/xml; charset=UTF-8",
        "Parquet" | "ORC" | "Arrow" | "ArrowStream" | "Native" | "Avro" | "MsgPack" => {
            "application/octet-stream"
        }
        name if name.starts_with("RowBinary") => "application/octet-stream",
        "JSONEachRow" | "JSONLines" | "NDJSON" => "application/x-ndjson; charset=UTF-8",
        name if name.starts_with("JSON") => "application/json; charset=UTF-8",
        name if name.starts_with("TabSeparated") || name.starts_with("TSV") => {
            "text/tab-separated-values; charset=UTF-8"
        }
        _ => "text/plain; charset=UTF-8",
    }
}

/// What each piece of a streamed result begins with, and only the first may keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    None,
    /// Lines of a format that never has a line break inside a value.
    Lines(usize),
    /// Lines in which double quotes protect line breaks.
    CsvLines(usize),
    /// A count in LEB128, that many names and, if `types`, that many types.
    RowBinary {
        types: bool,
    },
}

impl Header {
    /// `None` for a format whose pieces do not add up to a document, because it has
    /// an end or counts its rows: such a result must be read as a whole.
    pub fn of(format: &str) -> Option<Self> {
        Some(match format {
            "TabSeparated"
            | "TSV"
            | "TabSeparatedRaw"
            | "TSVRaw"
            | "TSKV"
            | "CSV"
            | "Native"
            | "RowBinary"
            | "JSONEachRow"
            | "JSONLines"
            | "NDJSON"
            | "JSONStringsEachRow"
            | "JSONCompactEachRow"
            | "JSONCompactStringsEachRow"
            | "LineAsString" => Self::None,
            "TabSeparatedWithNames" | "TSVWithNames" | "JSONCompactEachRowWithNames" => {
                Self::Lines(1)
            }
            "TabSeparatedWithNamesAndTypes"
            | "TSVWithNamesAndTypes"
            | "JSONCompactEachRowWithNamesAndTypes" => Self::Lines(2),
            "CSVWithNames" => Self::CsvLines(1),
            "CSVWithNamesAndTypes" => Self::CsvLines(2),
            "RowBinaryWithNames" => Self::RowBinary { types: false },
            "RowBinaryWithNamesAndTypes" => Self::RowBinary { types: true },
            _ => return None,
        })
    }

    /// The piece without its header.
    pub fn strip(self, piece: &[u8]) -> &[u8] {
        let length = match self {
            Self::None => Some(0),
            Self::Lines(lines) => lines_length(piece, lines, false),
            Self::CsvLines(lines) => lines_length(piece, lines, true),
            Self::RowBinary { types } => row_binary_length(piece, types),
        };
        length
            .and_then(|length| piece.get(length..))
            .unwrap_or_default()
    }
}

fn lines_length(piece: &[u8], lines: usize, quotes: bool) -> Option<usize> {
    let mut quoted = false;
    let ends = piece.iter().enumerate().filter(|&(_, &byte)| {
        quoted ^= quotes && byte == b'"';
        byte == b'\n' && !quoted
    });
    ends.map(|(index, _)| index + 1).take(lines).last()
}

fn row_binary_length(piece: &[u8], types: bool) -> Option<usize> {
    let mut rest = piece;
    let columns = leb128(&mut rest)?;
    let texts = columns.checked_mul(if types { 2 } else { 1 })?;
    for _ in 0..texts {
        let length = leb128(&mut rest)?;
        rest = rest.get(length..)?;
    }
    Some(piece.len() - rest.len())
}

fn leb128(bytes: &mut &[u8]) -> Option<usize> {
    let mut value = 0;
    for shift in (0..usize::BITS).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_of_a_later_piece_is_dropped() {
        let strip = |format: &str, piece: &[u8]| Header::of(format).unwrap().strip(piece).to_vec();
        assert_eq!(strip("TSVWithNamesAndTypes", b"a\nInt8\n1\n"), b"1\n");
        assert_eq!(strip("CSVWithNames", b"\"a\nb\"\"\"\n1\n"), b"1\n");
        assert_eq!(
            strip("RowBinaryWithNamesAndTypes", b"\x01\x01a\x05UInt8\x07"),
            b"\x07"
        );
        assert_eq!(strip("Native", b"\x01"), b"\x01");
    }

    #[test]
    fn a_piece_that_is_all_header_leaves_nothing() {
        let header = Header::of("RowBinaryWithNames").unwrap();
        assert_eq!(header.strip(b"\x01\x01a"), b"");
        assert_eq!(header.strip(b""), b"");
    }

    #[test]
    fn a_format_with_an_end_is_not_streamed() {
        for format in ["JSON", "Parquet", "Pretty", "Values", "XML"] {
            assert_eq!(Header::of(format), None);
        }
    }
}
