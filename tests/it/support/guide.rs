//! What docs/operations.md tells an operator to run, read from there, so that the tests
//! try the guide and not a copy of it.

use std::path::Path;

/// The first block of code after this heading of the guide.
pub fn block(heading: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, section) = text.split_once(heading).unwrap();
    let (_, block) = section.split_once("```").unwrap();
    let (_language, block) = block.split_once('\n').unwrap();
    block.split_once("```").unwrap().0.to_owned()
}

/// The grants of the daemon's ClickHouse user, in this database.
pub fn grants(database: &str) -> Vec<String> {
    let block = block("### ClickHouse: users").replace("fechatter_analytics", database);
    let statements = block.split_terminator(';').map(str::trim);
    let statements = statements.map(|statement| match statement.strip_prefix("--") {
        Some(commented) => commented.split_once('\n').unwrap().1,
        None => statement,
    });
    statements
        .filter(|statement| statement.starts_with("GRANT") && statement.ends_with("TO analytics"))
        .map(str::to_owned)
        .collect()
}
