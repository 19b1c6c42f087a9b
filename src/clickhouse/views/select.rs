//! A view's SELECT, parsed if it is of the simple kind that can be compared: items of one table, a
//! condition, a grouping.

use std::iter;

/// Functions of their arguments alone. One that is not among them may depend on the time, on other
/// tables, or on how rows are divided into blocks.
#[rustfmt::skip]
const FUNCTIONS: [&str; 100] = [
    "abs", "and", "array", "arrayElement", "assumeNotNull", "CAST", "cityHash64", "coalesce",
    "concat", "cutQueryString", "cutURLParameter", "dateDiff", "dateTrunc", "domain",
    "domainWithoutWWW", "empty", "endsWith", "equals", "extract", "extractURLParameter",
    "formatDateTime", "fragment", "greater", "greaterOrEquals", "greatest", "has", "hasAll",
    "hasAny", "if", "ifNull", "ilike", "intDiv", "isNotNull", "isNull", "JSONExtractBool",
    "JSONExtractInt", "JSONExtractRaw", "JSONExtractString", "JSONExtractUInt", "JSONHas",
    "least", "left", "length", "lengthUTF8", "less", "lessOrEquals", "like", "lower",
    "lowerUTF8", "match", "minus", "modulo", "multiIf", "multiply", "not", "notEmpty",
    "notEquals", "notLike", "nullIf", "or", "path", "plus", "position", "protocol",
    "queryString", "replaceAll", "replaceOne", "replaceRegexpAll", "replaceRegexpOne", "right",
    "sipHash64", "splitByChar", "splitByString", "startsWith", "substring", "toDate",
    "toDateTime", "toDateTime64", "toDayOfWeek", "toHour", "toInt32", "toInt64",
    "toLowCardinality", "toMinute", "toMonday", "toMonth", "toStartOfDay",
    "toStartOfFiveMinutes", "toStartOfHour", "toStartOfMinute", "toStartOfMonth", "toString",
    "toUInt8", "toUInt16", "toUInt32", "toUInt64", "toYear", "trim", "tuple", "upper",
];

/// Words between operands.
const OPERATORS: [&str; 14] = [
    "AND", "OR", "NOT", "IN", "LIKE", "ILIKE", "BETWEEN", "IS", "NULL", "CASE", "WHEN", "THEN",
    "ELSE", "END",
];

/// Words that change the meaning of what follows them.
const FORBIDDEN: [&str; 5] = ["SELECT", "DISTINCT", "GLOBAL", "WITH", "OVER"];

const SYMBOLS: [&str; 18] = [
    "(", ")", "[", "]", ",", ".", "+", "-", "*", "/", "%", "=", "<", ">", "!=", "<=", ">=", "||",
];

/// A name, a number, a text in quotes or a symbol, as it is written.
pub type Token<'a> = &'a str;

#[derive(Debug, PartialEq, Eq)]
pub struct Item<'a> {
    pub name: Token<'a>,
    pub expression: Vec<Token<'a>>,
}

/// `SELECT items FROM … WHERE … GROUP BY groups`, each a function of a row alone or an aggregate of
/// such functions.
#[derive(Debug, PartialEq, Eq)]
pub struct Select<'a> {
    pub items: Vec<Item<'a>>,
    pub groups: Vec<Vec<Token<'a>>>,
}

impl<'a> Select<'a> {
    /// `None` if it is of another kind.
    pub fn read(text: &'a str) -> Option<Self> {
        let tokens = tokens(text)?;
        let rest = tokens.strip_prefix(&["SELECT"])?;
        let (items, rest) = split_at(rest, "FROM")?;
        let (before, groups) = rest.split_at(position(rest, "GROUP").unwrap_or(rest.len()));
        let (table, filter) = split_at(before, "WHERE").unwrap_or((before, &[]));
        // `table`, `database.table`, with an alias or without.
        let table = match table {
            [table @ .., "AS", _alias] => table,
            table => table,
        };
        let is_table = match table {
            [name] => is_name(name),
            [database, ".", name] => is_name(database) && is_name(name),
            _ => false,
        };
        let groups = match groups {
            [] => Vec::new(),
            groups => parts(groups.strip_prefix(&["GROUP", "BY"])?),
        };
        let are_of_a_row = iter::once(filter)
            .chain(groups.iter().copied())
            .all(is_of_a_row);
        if !is_table || !are_of_a_row {
            return None;
        }
        Some(Self {
            items: parts(items)
                .into_iter()
                .map(Item::read)
                .collect::<Option<_>>()?,
            groups: groups.into_iter().map(<[_]>::to_vec).collect(),
        })
    }
}

impl<'a> Item<'a> {
    fn read(tokens: &[Token<'a>]) -> Option<Self> {
        let (expression, name) = match tokens {
            [expression @ .., "AS", name] => (expression, name),
            [name] | [_, ".", name] => (tokens, name),
            _ => return None,
        };
        is_name(name).then(|| Self {
            name: unquoted(name),
            expression: expression.to_vec(),
        })
    }

    /// Whether it gives the same for a row wherever that row is.
    pub fn is_of_a_row(&self) -> bool {
        is_of_a_row(&self.expression)
    }

    /// The aggregate function, in lower case, if that is all of it and its arguments are functions
    /// of a row.
    pub fn aggregate(&self) -> Option<String> {
        let [name, "(", arguments @ .., ")"] = self.expression.as_slice() else {
            return None;
        };
        // The bracket closed at the end may be another: `sum(a) / (b)`.
        let is_whole = depths(arguments).all(|(depth, _)| depth >= 0);
        (is_name(name) && is_whole && is_of_a_row(arguments)).then(|| name.to_ascii_lowercase())
    }

    pub fn is(&self, name: &str) -> bool {
        matches!(self.expression.as_slice(), [only] if unquoted(only) == name)
    }
}

pub fn unquoted(name: &str) -> &str {
    let inner = name.strip_prefix('`');
    inner
        .and_then(|inner| inner.strip_suffix('`'))
        .unwrap_or(name)
}

/// The names of a key, `a, b` or `(a, b)`; `None` if it has more than names.
pub fn names_of_key(key: &str) -> Option<Vec<&str>> {
    let tokens = tokens(key)?;
    let parts = parts(match tokens.as_slice() {
        ["(", inner @ .., ")"] => inner,
        all => all,
    });
    let names = parts.into_iter().map(|part| match part {
        [name] if is_name(name) => Some(unquoted(name)),
        _ => None,
    });
    names.collect()
}

/// Whether an expression, as it is written, depends on a row and on nothing else.
pub fn is_expression_of_a_row(text: &str) -> bool {
    tokens(text).is_some_and(|tokens| is_of_a_row(&tokens))
}

/// Whether a name occurs anywhere in a text.
pub fn mentions(text: &str, name: &str) -> bool {
    tokens(text).is_none_or(|tokens| tokens.iter().any(|token| unquoted(token) == name))
}

/// Whether an expression depends on a row and on nothing else.
fn is_of_a_row(expression: &[Token]) -> bool {
    let before = iter::once(None).chain(expression.iter().map(Some));
    before
        .zip(expression)
        .enumerate()
        .all(|(at, (before, token))| {
            let follows_operand = before.is_some_and(|before| is_operand_end(before));
            match token {
                symbol if is_symbol(symbol) => true,
                operator if OPERATORS.contains(operator) => {
                    *operator != "IN" || is_list_of_values(&expression[at + 1..])
                }
                _ if follows_operand => false,
                name if is_name(name) => match expression.get(at + 1) {
                    Some(&"(") => FUNCTIONS
                        .iter()
                        .any(|known| known.eq_ignore_ascii_case(name)),
                    // Names with a leading underscore are ClickHouse's own: a row's part, its
                    // place.
                    _ => !name.starts_with('_') && !is_forbidden(name),
                },
                _value => true,
            }
        })
}

/// Whether values follow `IN`, rather than a table or a query on one.
fn is_list_of_values(tokens: &[Token]) -> bool {
    let mut inside = tokens.iter().take_while(|token| **token != ")");
    inside.next() == Some(&"(")
        && inside.all(|token| *token == "," || *token == "-" || is_value(token))
}

fn is_forbidden(name: &str) -> bool {
    FORBIDDEN.iter().any(|word| word.eq_ignore_ascii_case(name))
}

fn is_operand_end(token: &str) -> bool {
    match is_symbol(token) {
        true => token == ")" || token == "]",
        false => !OPERATORS.contains(&token) || token == "NULL" || token == "END",
    }
}

fn is_symbol(token: &str) -> bool {
    SYMBOLS.contains(&token)
}

fn is_name(token: &str) -> bool {
    token.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_' || letter == '`')
}

fn is_value(token: &str) -> bool {
    token.starts_with(|letter: char| letter.is_ascii_digit() || letter == '\'')
}

/// How deep in brackets each token is.
fn depths<'a, 'b>(tokens: &'b [Token<'a>]) -> impl Iterator<Item = (i32, Token<'a>)> + 'b {
    tokens.iter().scan(0, |depth, token| {
        match *token {
            "(" | "[" => *depth += 1,
            ")" | "]" => *depth -= 1,
            _ => {}
        }
        Some((*depth, *token))
    })
}

/// Where a word occurs outside brackets.
fn position(tokens: &[Token], word: &str) -> Option<usize> {
    depths(tokens).position(|(depth, token)| depth == 0 && token == word)
}

/// What is before a word and what is after it.
fn split_at<'a, 'b>(
    tokens: &'b [Token<'a>],
    word: &str,
) -> Option<(&'b [Token<'a>], &'b [Token<'a>])> {
    let at = position(tokens, word)?;
    Some((&tokens[..at], &tokens[at + 1..]))
}

/// What is between the commas.
fn parts<'a, 'b>(tokens: &'b [Token<'a>]) -> Vec<&'b [Token<'a>]> {
    let commas: Vec<usize> = depths(tokens)
        .enumerate()
        .filter(|(_, (depth, token))| *depth == 0 && *token == ",")
        .map(|(at, _)| at)
        .collect();
    let starts = iter::once(0).chain(commas.iter().map(|at| at + 1));
    let ends = commas.iter().copied().chain([tokens.len()]);
    starts
        .zip(ends)
        .map(|(start, end)| &tokens[start..end])
        .collect()
}

/// `None` if it has an unknown symbol.
fn tokens(text: &str) -> Option<Vec<Token<'_>>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let end = match first {
            '\'' | '`' => 1 + end_of_quoted(&rest[1..], first)?,
            _ if first.is_ascii_alphanumeric() || first == '_' => rest
                .find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
                .unwrap_or(rest.len()),
            _ => {
                let symbols = SYMBOLS.iter().filter(|symbol| rest.starts_with(**symbol));
                symbols.map(|symbol| symbol.len()).max()?
            }
        };
        let (token, after) = rest.split_at(end);
        tokens.push(token);
        rest = after.trim_start();
    }
    Some(tokens)
}

/// Where a text that begins with a quote ends, its last quote included.
fn end_of_quoted(text: &str, quote: char) -> Option<usize> {
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => drop(letters.next()),
            _ if letter == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}
