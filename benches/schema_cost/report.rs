//! What is printed: Markdown tables on standard output.

use std::collections::BTreeMap;

use analytics_server::internal::native::Block;

use super::Args;
use super::engine::Engine;
use super::measure::{Cost, Form};

pub struct ColumnRow {
    pub column: String,
    pub form: String,
    pub is_present: bool,
    /// Without the control's cost.
    pub cost: Cost,
    /// Bytes of the column as it is, in the whole table.
    pub bytes_in_table: f64,
}

/// What the figures below are about.
pub async fn setup(args: &Args, engine: &Engine, blocks: &[Block]) -> anyhow::Result<()> {
    let bytes: usize = blocks.iter().map(|block| block.bytes.len()).sum();
    let rows: usize = blocks.iter().map(|block| block.rows).sum();
    println!(
        "ClickHouse {}, {rows} rows of {} bytes as sent, {} in an insert, {},000 clients, {} user agents, lowest of {} rounds\n",
        engine.fresh_database().version().await?,
        bytes / rows.max(1),
        args.block_rows,
        args.populations,
        6 * args.user_agents,
        args.rounds,
    );
    Ok(())
}

/// The first form's costs, and how the others' differ.
pub fn differences(title: &str, forms: &[Form], costs: &[Cost]) {
    let Some(first) = costs.first() else { return };
    type Value = fn(&Cost) -> f64;
    let mut columns: Vec<(&str, Value)> = vec![
        ("insert, CPU s per million", |cost| cost.insert),
        ("merge, CPU s per million", |cost| cost.merge),
        ("bytes per row", |cost| cost.bytes),
        ("parts per insert", |cost| cost.parts),
    ];
    if forms.iter().all(|form| form.is_asked) {
        columns.push(("questions, CPU s", |cost| cost.fresh_questions));
        columns.push(("questions, merged", |cost| cost.questions));
    }
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    println!("| {title} | {} |", names.join(" | "));
    println!("|---|{}", "---|".repeat(columns.len()));
    for (form, cost) in forms.iter().zip(costs) {
        let (_, name) = form.name.split_once('/').unwrap_or_default();
        print!("| {name} |");
        for (_, value) in &columns {
            let change = (value(cost) / value(first) - 1.0) * 100.0;
            match change.is_finite() && change.abs() >= 0.5 {
                true => print!(" {:.2} ({change:+.0} %) |", value(cost)),
                false => print!(" {:.2} |", value(cost)),
            }
        }
        println!();
    }
    println!();
}

/// Which forms of the views give the same answers as the views together, each view's form
/// by itself.
pub fn answers(forms: &[Form], costs: &[Cost]) {
    for (form, cost) in forms.iter().zip(costs) {
        println!("{}: answers {:016x}", form.name, cost.answers);
    }
    println!();
}

/// Each column's forms, then the sums by the form that the columns have.
pub fn columns(rows: &[ColumnRow]) {
    println!(
        "| column | form | insert, CPU s per million | merge, CPU s per million | bytes per row | in the table |"
    );
    println!("|---|---|---|---|---|---|");
    for row in rows {
        let (mark, in_table) = match row.is_present {
            true => ("**", format!("{:.2}", row.bytes_in_table)),
            false => ("", String::new()),
        };
        println!(
            "| {} | {mark}{}{mark} | {:.3} | {:.3} | {:.2} | {in_table} |",
            row.column, row.form, row.cost.insert, row.cost.merge, row.cost.bytes
        );
    }
    println!("\n| columns | form | insert | merge | bytes per row |\n|---|---|---|---|---|");
    let present: BTreeMap<&str, &str> = rows
        .iter()
        .filter(|row| row.is_present)
        .map(|row| (row.column.as_str(), row.form.as_str()))
        .collect();
    let mut sums: BTreeMap<(&str, &str), (usize, Cost)> = BTreeMap::new();
    for row in rows {
        let now = present.get(row.column.as_str()).copied();
        let (count, sum) = sums
            .entry((now.unwrap_or_default(), &row.form))
            .or_default();
        *count += 1;
        sum.insert += row.cost.insert;
        sum.merge += row.cost.merge;
        sum.bytes += row.cost.bytes;
    }
    for ((now, form), (count, sum)) in sums {
        let mark = if now == form { "**" } else { "" };
        println!(
            "| {count} × {now} | {mark}{form}{mark} | {:.2} | {:.2} | {:.1} |",
            sum.insert, sum.merge, sum.bytes
        );
    }
    println!();
}
