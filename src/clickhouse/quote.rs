//! Names and texts, as they stand in SQL: a quote in one of them does not end it.

/// A name in backquotes, as ClickHouse reads any identifier.
pub fn quote_identifier(name: &str) -> String {
    quote(name, '`')
}

/// A text in quotes, as ClickHouse reads any literal.
pub fn quote_string(text: &str) -> String {
    quote(text, '\'')
}

fn quote(text: &str, mark: char) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push(mark);
    for character in text.chars() {
        if character == mark || character == '\\' {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted.push(mark);
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_a_name_nor_a_text_can_end_its_quotes() {
        assert_eq!(quote_string(r"it's \ `x`"), r"'it\'s \\ `x`'");
        assert_eq!(quote_string(r"a'b\"), r"'a\'b\\'");
        assert_eq!(quote_identifier("a`; DROP"), r"`a\`; DROP`");
        assert_eq!(quote_identifier(r"it's \"), r"`it's \\`");
    }
}
