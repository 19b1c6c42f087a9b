//! What kind of statement a text holds, and where an INSERT's rows begin.
//!
//! The engine parses SQL; this only finds the words that decide how a statement is
//! run. It must, since the engine takes what follows an INSERT in the same text
//! only up to the first empty line, which cuts binary formats short.

use super::exception::Exception;

/// How to run a text.
#[derive(Debug, PartialEq, Eq)]
pub enum Statement {
    /// An INSERT whose rows follow its text.
    Insert {
        /// End of the INSERT without its FORMAT or VALUES, as the engine wants it.
        end: usize,
        format: String,
        /// Where the rows begin.
        data: usize,
    },
    /// A query, whose result may be large.
    Select { end: usize, format: Option<String> },
    /// Anything else: DDL, SET, SHOW, INSERT … SELECT.
    Other { end: usize, format: Option<String> },
}

impl Statement {
    pub fn parse(text: &[u8]) -> Result<Self, Exception> {
        let tokens = Tokens::new(text).collect::<Vec<_>>();
        let Some(first) = tokens.first() else {
            return Err(Exception::new(62, "SYNTAX_ERROR", "Empty query"));
        };
        if first.is(text, "INSERT")
            && let Some(insert) = Self::insert(text, &tokens)
        {
            return Ok(insert);
        }
        Self::whole(text, &tokens)
    }

    fn insert(text: &[u8], tokens: &[Token]) -> Option<Self> {
        // The table's name may be any word, even `values`.
        let mut expect_name = true;
        for (index, token) in tokens.iter().enumerate().skip(1) {
            match token.kind {
                Kind::Semicolon => return None,
                Kind::Dot => expect_name = true,
                Kind::Word if token.depth > 0 => {}
                Kind::Word if expect_name => {
                    expect_name = ["INTO", "TABLE", "FUNCTION"]
                        .iter()
                        .any(|word| token.is(text, word));
                }
                Kind::Word if token.is(text, "VALUES") => {
                    return Some(Self::Insert {
                        end: token.start,
                        format: "Values".to_owned(),
                        data: token.end,
                    });
                }
                Kind::Word if token.is(text, "FORMAT") => {
                    let name = tokens
                        .get(index + 1)
                        .filter(|name| name.kind == Kind::Word)?;
                    return Some(Self::Insert {
                        end: token.start,
                        format: name.text(text).into_owned(),
                        data: skip_to_data(text, name.end),
                    });
                }
                // What follows is a query, or a file.
                Kind::Word => {
                    let query = ["SELECT", "WITH", "FROM", "WATCH"];
                    if query.iter().any(|word| token.is(text, word)) {
                        return None;
                    }
                }
                Kind::Quoted => expect_name = false,
                Kind::Other => {}
            }
        }
        None
    }

    fn whole(text: &[u8], tokens: &[Token]) -> Result<Self, Exception> {
        let semicolon = tokens
            .iter()
            .position(|token| token.kind == Kind::Semicolon);
        let (tokens, rest) = tokens.split_at(semicolon.unwrap_or(tokens.len()));
        let end = rest.first().map_or(text.len(), |token| token.start);
        if let Some(next) = rest.iter().find(|token| token.kind != Kind::Semicolon) {
            return Err(Exception::new(
                62,
                "SYNTAX_ERROR",
                format_args!(
                    "Syntax error (Multi-statements are not allowed): failed at position {}",
                    next.start + 1
                ),
            ));
        }
        let top_level = |word: &str| {
            tokens
                .iter()
                .any(|token| token.depth == 0 && token.is(text, word))
        };
        if top_level("OUTFILE") && top_level("INTO") {
            return Err(Exception::new(
                358,
                "INTO_OUTFILE_NOT_ALLOWED",
                "INTO OUTFILE is not allowed",
            ));
        }
        let format = output_format(text, tokens);
        let select = tokens.first().is_some_and(|first| {
            first.kind == Kind::Other
                || ["SELECT", "WITH", "FROM"]
                    .iter()
                    .any(|word| first.is(text, word))
        });
        Ok(if select && !top_level("INSERT") {
            Self::Select { end, format }
        } else {
            Self::Other { end, format }
        })
    }
}

/// `FORMAT name` at the end, or before SETTINGS: elsewhere `format` is an identifier.
fn output_format(text: &[u8], tokens: &[Token]) -> Option<String> {
    let index = tokens
        .iter()
        .rposition(|token| token.depth == 0 && token.is(text, "FORMAT"))?;
    let name = tokens
        .get(index + 1)
        .filter(|name| name.kind == Kind::Word)?;
    let last = match tokens.get(index + 2) {
        None => true,
        Some(next) => next.is(text, "SETTINGS") || next.is(text, "INTO"),
    };
    (index > 0 && last).then(|| name.text(text).into_owned())
}

/// Rows begin after the line's end if nothing but blanks comes before it, and at the
/// first other byte otherwise.
fn skip_to_data(text: &[u8], format_end: usize) -> usize {
    let mut at = format_end;
    while matches!(text.get(at), Some(b' ' | b'\t' | b'\x0c')) {
        at += 1;
    }
    if text.get(at) == Some(&b';') {
        at += 1;
    }
    if text.get(at) == Some(&b'\r') {
        at += 1;
    }
    if text.get(at) == Some(&b'\n') {
        at += 1;
    }
    at
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Word,
    Quoted,
    Dot,
    Semicolon,
    Other,
}

#[derive(Debug, Clone, Copy)]
struct Token {
    kind: Kind,
    start: usize,
    end: usize,
    /// Parentheses and brackets open before it.
    depth: usize,
}

impl Token {
    fn is(&self, text: &[u8], word: &str) -> bool {
        self.kind == Kind::Word && text[self.start..self.end].eq_ignore_ascii_case(word.as_bytes())
    }

    fn text<'a>(&self, text: &'a [u8]) -> std::borrow::Cow<'a, str> {
        String::from_utf8_lossy(&text[self.start..self.end])
    }
}

/// Splits a text into tokens, leaving out blanks and comments.
struct Tokens<'a> {
    text: &'a [u8],
    at: usize,
    depth: usize,
}

impl<'a> Tokens<'a> {
    fn new(text: &'a [u8]) -> Self {
        Self {
            text,
            at: 0,
            depth: 0,
        }
    }

    /// Moves to the end of what `until` finds from `from` on, or to the text's end.
    fn skip_past(&mut self, from: usize, until: &[u8]) {
        let rest = self.text.get(from..).unwrap_or_default();
        self.at = rest
            .windows(until.len())
            .position(|window| window == until)
            .map_or(self.text.len(), |found| from + found + until.len());
    }

    fn skip_blanks_and_comments(&mut self) {
        loop {
            match &self.text[self.at..] {
                [byte, ..] if byte.is_ascii_whitespace() || *byte == 0 => self.at += 1,
                [b'-', b'-', ..] | [b'#', b' ' | b'!', ..] => self.skip_past(self.at, b"\n"),
                [b'/', b'*', ..] => self.skip_past(self.at + 2, b"*/"),
                _ => return,
            }
        }
    }

    /// Moves past a quoted text. A doubled quote is read as two texts, which comes to
    /// the same thing.
    fn skip_quoted(&mut self, quote: u8) {
        self.at += 1;
        while let Some(&byte) = self.text.get(self.at) {
            self.at += if byte == b'\\' { 2 } else { 1 };
            if byte == quote {
                break;
            }
        }
        self.at = self.at.min(self.text.len());
    }

    fn skip_word(&mut self) {
        while let Some(byte) = self.text.get(self.at)
            && (byte.is_ascii_alphanumeric() || *byte == b'_' || !byte.is_ascii())
        {
            self.at += 1;
        }
    }

    /// `$tag$ … $tag$`, if that is what begins here.
    fn skip_heredoc(&mut self) -> bool {
        let start = self.at;
        self.at += 1;
        self.skip_word();
        if self.text.get(self.at) != Some(&b'$') {
            self.at = start + 1;
            return false;
        }
        let tag = &self.text[start..=self.at];
        self.skip_past(self.at + 1, tag);
        true
    }
}

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        self.skip_blanks_and_comments();
        let (start, depth) = (self.at, self.depth);
        let kind = match *self.text.get(start)? {
            quote @ (b'\'' | b'"' | b'`') => {
                self.skip_quoted(quote);
                Kind::Quoted
            }
            b'$' if self.skip_heredoc() => Kind::Quoted,
            byte if byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii() => {
                self.skip_word();
                Kind::Word
            }
            byte => {
                self.at = start + 1;
                match byte {
                    b'(' | b'[' | b'{' => self.depth += 1,
                    b')' | b']' | b'}' => self.depth = self.depth.saturating_sub(1),
                    _ => {}
                }
                match byte {
                    b'.' => Kind::Dot,
                    b';' => Kind::Semicolon,
                    _ => Kind::Other,
                }
            }
        };
        Some(Token {
            kind,
            start,
            end: self.at,
            depth,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(text: &str) -> (&str, String, &str) {
        match Statement::parse(text.as_bytes()).unwrap() {
            Statement::Insert { end, format, data } => (&text[..end], format, &text[data..]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rows_begin_after_format_and_its_line() {
        assert_eq!(
            insert("INSERT INTO t (a, values) FORMAT CSV\n1,2\n\n3,4"),
            ("INSERT INTO t (a, values) ", "CSV".into(), "1,2\n\n3,4")
        );
        assert_eq!(
            insert("insert into `format` format JSONEachRow {\"a\": 1}"),
            ("insert into `format` ", "JSONEachRow".into(), "{\"a\": 1}")
        );
    }

    #[test]
    fn rows_begin_after_values() {
        assert_eq!(
            insert("INSERT INTO db.values SETTINGS async_insert=0 VALUES (';'), ('')"),
            (
                "INSERT INTO db.values SETTINGS async_insert=0 ",
                "Values".into(),
                " (';'), ('')"
            )
        );
        assert_eq!(insert("INSERT INTO values VALUES (1)").2, " (1)");
    }

    #[test]
    fn comments_and_quotes_hide_words() {
        let text =
            "-- VALUES\n/* FORMAT x */ INSERT INTO t (`VALUES`, \"FORMAT a\") FORMAT Native\nrows";
        assert_eq!(insert(text).2, "rows");
    }

    #[test]
    fn an_insert_from_a_query_carries_no_rows() {
        for text in [
            "INSERT INTO t SELECT 1",
            "INSERT INTO t (a) WITH 1 AS x SELECT x",
            "INSERT INTO t FROM INFILE 'x' FORMAT CSV",
            "INSERT INTO t (SELECT 1)",
            "WITH 1 AS x INSERT INTO t SELECT x",
            "CREATE TABLE format (a Int8) ENGINE = Memory",
        ] {
            let statement = Statement::parse(text.as_bytes()).unwrap();
            assert!(
                matches!(statement, Statement::Other { .. }),
                "{text}: {statement:?}"
            );
        }
    }

    #[test]
    fn the_output_format_stands_at_the_end() {
        let format = |text: &str| match Statement::parse(text.as_bytes()).unwrap() {
            Statement::Select { format, .. } => format,
            other => panic!("{other:?}"),
        };
        assert_eq!(format("SELECT 1 FORMAT JSON"), Some("JSON".into()));
        assert_eq!(
            format("SELECT 1 FORMAT CSV SETTINGS a = 1;"),
            Some("CSV".into())
        );
        assert_eq!(
            format("(SELECT 1) -- FORMAT x\n FORMAT CSV ; "),
            Some("CSV".into())
        );
        assert_eq!(format("SELECT format FROM t"), None);
        assert_eq!(format("SELECT 'a FORMAT b', $x$ FORMAT c$x$"), None);
        assert_eq!(format("WITH 'it''s \\' FORMAT x' AS a SELECT a"), None);
    }

    #[test]
    fn a_second_statement_is_a_syntax_error() {
        assert_eq!(
            Statement::parse(b"SELECT 1; SELECT 2").unwrap_err().code,
            62
        );
        assert_eq!(Statement::parse(b" -- nothing\n").unwrap_err().code, 62);
        assert!(Statement::parse(b"SELECT ';' ; ; -- end").is_ok());
    }

    #[test]
    fn a_result_is_not_written_into_a_file() {
        let error = Statement::parse(b"SELECT 1 INTO OUTFILE 'x'").unwrap_err();
        assert_eq!(error.code, 358);
    }
}
