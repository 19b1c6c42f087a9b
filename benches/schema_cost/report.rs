//! What is printed: Markdown tables on standard output.

use std::collections::BTreeMap;

use analytics_server::clickhouse::native::Block;

use super::Args;
use super::engine::Engine;
use super::measure::{Cost, Form};

pub struct ColumnRow {
    pub column: String,
    pub form: String,
    pub is_present: bool,
    /// Without the control's.
    pub cost: Cost,
    /// Of the column as it is, in the whole table.
    pub bytes_in_table: f64,
}

/// What the figures below are of.
pub async fn setup(args: &Args, engine: &Engine, blocks: &[Block]) -> anyhow::Result<()> {
    let bytes: usize = blocks.iter().map(|block| block.bytes.len()).sum();
    let rows: usize = blocks.iter().map(|block| block.rows).sum();
    println!(
        "ClickHouse {}, {rows} rows of {} bytes as sent, {} in an insert, {},000 clients, {} user agents, medians of {} rounds\n",
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
    let Some(base) = costs.first() else { return };
    println!(
        "| {title} | insert, CPU s a million | merge, CPU s a million | bytes a row | parts an insert |"
    );
    println!("|---|---|---|---|---|");
    for (form, cost) in forms.iter().zip(costs) {
        let (_, name) = form.name.split_once('/').unwrap_or_default();
        let change = |value: f64, base: f64| match form.name == forms[0].name || base == 0.0 {
            true => String::new(),
            false => format!(" ({:+.0} %)", (value / base - 1.0) * 100.0),
        };
        println!(
            "| {name} | {:.2}{} | {:.2}{} | {:.1}{} | {:.0} | {:.2}{}, {:.2}{} |",
            cost.insert,
            change(cost.insert, base.insert),
            cost.merge,
            change(cost.merge, base.merge),
            cost.bytes,
            change(cost.bytes, base.bytes),
            cost.parts,
            cost.fresh_questions,
            change(cost.fresh_questions, base.fresh_questions),
            cost.questions,
            change(cost.questions, base.questions),
        );
    }
    println!();
}

/// Which forms of the views answer as the views together do, each view's form by itself.
pub fn answers(forms: &[Form], costs: &[Cost]) {
    for (form, cost) in forms.iter().zip(costs) {
        println!("{}: answers {:016x}", form.name, cost.answers);
    }
    println!();
}

/// Each column's forms, then the sums by the form that the columns have.
pub fn columns(control: &Cost, rows: &[ColumnRow]) {
    println!(
        "An insert of zeros, taken off: {:.3} s, merge {:.3} s a million, {:.2} bytes a row\n",
        control.insert, control.merge, control.bytes
    );
    println!(
        "| column | form | insert, CPU s a million | merge, CPU s a million | bytes a row | in the table |"
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
    println!("\n| columns | form | insert | merge | bytes a row |\n|---|---|---|---|---|");
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
