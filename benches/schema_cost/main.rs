//! What the schema costs ClickHouse: `cargo bench --bench schema_cost -- [FILTER]…`
//!
//! Starts the embedded engine on an empty directory and gives it the blocks that the
//! daemon would send. Each form of a column, of the table and of the views is a database
//! of its own: CPU-seconds of the engine's process while it inserts, with merges stopped,
//! then while it merges everything into one part per partition, and the bytes on disk
//! that are left. The forms take turns, and what is printed is the lowest of the rounds:
//! other programs can only add to a figure.

mod columns;
mod engine;
mod events;
mod formats;
mod measure;
mod report;
mod table;
mod views;

use clap::Parser;

use engine::Engine;
use measure::Form;

/// Measure what the schema costs ClickHouse, in CPU-seconds per million rows and bytes per row
#[derive(Debug, Parser)]
pub struct Args {
    /// What to measure, as parts of names: `columns`, `columns/user_agent`, `table/no index`,
    /// `views`, `formats`; each group's first form is always measured, too [default: all]
    filters: Vec<String>,
    /// Rows that each form gets
    #[arg(long, default_value_t = 500_000)]
    rows: usize,
    /// Rows of one insert
    #[arg(long, default_value_t = 50_000)]
    block_rows: usize,
    /// How many times each form is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Thousands of clients that send the events
    #[arg(long, default_value_t = 20)]
    populations: usize,
    /// Variants of each of the sample's six user agents
    #[arg(long, default_value_t = 100)]
    user_agents: u32,
    /// How many times a column alone gets its rows: time is counted in hundredths of a second
    #[arg(long, default_value_t = 2)]
    passes: usize,
    /// cargo says so to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    fn asks_for(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter))
    }

    /// The first form, which the others are compared with, and those that are asked for.
    fn chosen(&self, forms: Vec<Form>) -> Vec<Form> {
        let chosen: Vec<bool> = forms.iter().map(|form| self.asks_for(&form.name)).collect();
        let any = chosen.contains(&true);
        let chosen = forms.into_iter().zip(chosen).enumerate();
        chosen
            .filter(|(index, (_, chosen))| *chosen || *index == 0 && any)
            .map(|(_, (form, _))| form)
            .collect()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let engine = Engine::start().await?;
    let blocks = events::blocks(&args);
    report::setup(&args, &engine, &blocks).await?;
    table::run(&args, &engine, &blocks).await?;
    views::run(&args, &engine, &blocks).await?;
    formats::run(&args, &engine, &blocks).await?;
    columns::run(&args, &engine, &blocks).await
}
