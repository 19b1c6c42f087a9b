//! One form of the schema: set up, filled, merged, weighed and dropped.

use analytics_server::clickhouse::ClickHouse;
use analytics_server::clickhouse::migrations;
use analytics_server::clickhouse::native::Block;
use analytics_server::clickhouse::quote::quote_identifier;
use analytics_server::clickhouse::schema;
use anyhow::{Context, ensure};
use clickhouse::Row;
use serde::Deserialize;

use super::Args;
use super::engine::Engine;

pub const RETENTION_DAYS: u16 = 90;

pub struct Form {
    pub name: String,
    pub schema: Schema,
    /// In which its blocks are: `Native` as the daemon sends it, or another one of ClickHouse's.
    pub format: &'static str,
    /// Settings of the insert beside the daemon's: `a = 1, b = 2`.
    pub insert_settings: &'static str,
    /// Whether the table can be asked [`QUESTIONS`].
    pub is_asked: bool,
}

impl Form {
    /// As the daemon sends its rows, and not asked anything.
    pub fn new(name: String, schema: Schema) -> Self {
        Self {
            name,
            schema,
            format: "Native",
            insert_settings: "",
            is_asked: false,
        }
    }
}

pub enum Schema {
    /// The migrations, then these changes.
    Project(Vec<Change>),
    /// The table `analytics_events` with nothing but this column.
    Column(String),
}

#[derive(Clone)]
pub enum Change {
    Statement(String),
    /// Makes the table again from what becomes of its CREATE statement.
    Create(&'static str, fn(&str) -> String),
}

#[derive(Debug, Clone, Default)]
pub struct Cost {
    /// CPU-seconds per million rows sent.
    pub insert: f64,
    pub merge: f64,
    /// Bytes on disk per row sent, once merged.
    pub bytes: f64,
    /// Parts that one insert makes, in all tables.
    pub parts: f64,
    /// CPU-seconds of asking [`QUESTIONS`] three times, before the merge and after.
    pub fresh_questions: f64,
    pub questions: f64,
    /// A number for all answers of the views that analysts query.
    pub answers: u64,
}

/// Measures forms in turns, each with blocks of its own; the lowest of the rounds for each.
pub async fn in_turns(
    args: &Args,
    engine: &Engine,
    forms: &[(Form, Vec<Block>)],
) -> anyhow::Result<Vec<Cost>> {
    let mut costs = vec![Vec::new(); forms.len()];
    for round in 0..args.rounds {
        for ((form, blocks), costs) in forms.iter().zip(&mut costs) {
            costs.push(measure(engine, form, blocks, round).await?);
        }
    }
    Ok(costs.iter().map(|costs| lowest(costs)).collect())
}

/// Measures the first form right before each of the others. What disturbs the machine
/// disturbs both of a pair, so that another form costs the first one's figure times the
/// ratio of the two in their pairs.
pub async fn against_the_first(
    args: &Args,
    engine: &Engine,
    forms: &[Form],
    blocks: &[Block],
) -> anyhow::Result<Vec<Cost>> {
    let Some((first, others)) = forms.split_first() else {
        return Ok(Vec::new());
    };
    let mut pairs = vec![(Vec::new(), Vec::new()); others.len()];
    let mut alone = Vec::new();
    for round in 0..args.rounds {
        if others.is_empty() {
            alone.push(measure(engine, first, blocks, round).await?);
        }
        for (form, (firsts, costs)) in others.iter().zip(&mut pairs) {
            firsts.push(measure(engine, first, blocks, round).await?);
            costs.push(measure(engine, form, blocks, round).await?);
        }
    }
    let all = pairs.iter().flat_map(|(firsts, _)| firsts.clone());
    let all: Vec<Cost> = all.chain(alone).collect();
    let first = lowest(&all);
    let others = pairs.iter().map(|(firsts, costs)| {
        let (before, cost) = (lowest(firsts), lowest(costs));
        let of = |value: fn(&Cost) -> f64| value(&first) * value(&cost) / value(&before);
        Cost {
            insert: of(|cost| cost.insert),
            merge: of(|cost| cost.merge),
            fresh_questions: of(|cost| cost.fresh_questions),
            questions: of(|cost| cost.questions),
            ..cost
        }
    });
    Ok([first.clone()].into_iter().chain(others).collect())
}

/// Of each figure the lowest: other programs can only add to it.
fn lowest(costs: &[Cost]) -> Cost {
    let of = |value: fn(&Cost) -> f64| costs.iter().map(value).fold(f64::INFINITY, f64::min);
    Cost {
        insert: of(|cost| cost.insert),
        merge: of(|cost| cost.merge),
        bytes: of(|cost| cost.bytes),
        parts: of(|cost| cost.parts),
        fresh_questions: of(|cost| cost.fresh_questions),
        questions: of(|cost| cost.questions),
        answers: costs[0].answers,
    }
}

async fn measure(
    engine: &Engine,
    form: &Form,
    blocks: &[Block],
    round: usize,
) -> anyhow::Result<Cost> {
    let cost = one(engine, form, blocks).await;
    let cost = cost.with_context(|| format!("`{}` cannot be measured", form.name))?;
    eprintln!(
        "round {}: {}: insert {:.2}, merge {:.2}",
        round + 1,
        form.name,
        cost.insert,
        cost.merge
    );
    Ok(cost)
}

async fn one(engine: &Engine, form: &Form, blocks: &[Block]) -> anyhow::Result<Cost> {
    let clickhouse = engine.fresh_database();
    let (tables, insert) = fill(engine, &clickhouse, form, blocks).await?;
    let rows: usize = blocks.iter().map(|block| block.rows).sum();
    if tables.iter().any(|table| table == "analytics_events") {
        let stored = number(&clickhouse, "SELECT count() AS n FROM analytics_events").await?;
        ensure!(stored == rows as u64, "{stored} of {rows} rows are stored");
    }
    let parts = number(&clickhouse, ACTIVE_PARTS).await?;
    let fresh_questions = ask(engine, &clickhouse, form).await?;

    let start = engine.cpu_seconds()?;
    merge(&clickhouse, &tables).await?;
    let merge = engine.cpu_seconds()? - start;
    let questions = ask(engine, &clickhouse, form).await?;

    let bytes = number(
        &clickhouse,
        "SELECT sum(bytes_on_disk) AS n FROM system.parts WHERE database = currentDatabase() AND active AND table != 'schema_migrations'",
    );
    let bytes = bytes.await? as f64 / rows as f64;
    let answers = match tables.iter().any(|table| table == "session_totals") {
        true => answers(&clickhouse).await?,
        false => 0,
    };
    drop_database(&clickhouse).await?;
    let per_million = 1e6 / rows as f64;
    Ok(Cost {
        insert: insert * per_million,
        merge: merge * per_million,
        bytes,
        parts: parts as f64 / blocks.len() as f64,
        fresh_questions,
        questions,
        answers,
    })
}

const ACTIVE_PARTS: &str = "SELECT count() AS n FROM system.parts WHERE database = currentDatabase() AND active AND table != 'schema_migrations'";

/// Sets a form up and inserts the blocks, unmerged; returns the tables that hold rows
/// and the CPU-seconds of the inserts.
pub async fn fill(
    engine: &Engine,
    clickhouse: &ClickHouse,
    form: &Form,
    blocks: &[Block],
) -> anyhow::Result<(Vec<String>, f64)> {
    set_up(clickhouse, &form.schema).await?;
    let tables = names(
        clickhouse,
        "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree' AND name != 'schema_migrations'",
    );
    let tables = tables.await?;
    for table in &tables {
        let stop = format!("SYSTEM STOP MERGES {table}");
        clickhouse.execute(&stop).await?;
    }
    let target = match form.insert_settings {
        "" => "analytics_events".to_owned(),
        settings => format!("analytics_events SETTINGS {settings}"),
    };
    let start = engine.cpu_seconds()?;
    for (number, block) in blocks.iter().enumerate() {
        let token = format!("{}-{number}", clickhouse.database());
        match form.format {
            "Native" => clickhouse.insert(&target, block, &token).await?,
            format => {
                engine
                    .insert(clickhouse, &target, format, block, &token)
                    .await?
            }
        }
    }
    Ok((tables, engine.cpu_seconds()? - start))
}

/// Makes one part of each partition.
pub async fn merge(clickhouse: &ClickHouse, tables: &[String]) -> anyhow::Result<()> {
    for table in tables {
        let start = format!("SYSTEM START MERGES {table}");
        clickhouse.execute(&start).await?;
        let merge = format!("OPTIMIZE TABLE {table} FINAL SETTINGS optimize_throw_if_noop = 1");
        clickhouse.execute(&merge).await?;
    }
    let unmerged = "SELECT count() - uniqExact(table, partition) AS n FROM system.parts WHERE database = currentDatabase() AND active AND table != 'schema_migrations'";
    let unmerged = number(clickhouse, unmerged).await?;
    ensure!(unmerged == 0, "{unmerged} parts are not merged");
    Ok(())
}

pub async fn drop_database(clickhouse: &ClickHouse) -> anyhow::Result<()> {
    let name = quote_identifier(clickhouse.database());
    let drop = format!("DROP DATABASE {name} SYNC");
    Ok(clickhouse.without_database().execute(&drop).await?)
}

async fn set_up(clickhouse: &ClickHouse, schema: &Schema) -> anyhow::Result<()> {
    let changes = match schema {
        Schema::Project(changes) => changes,
        Schema::Column(definition) => {
            let name = quote_identifier(clickhouse.database());
            let create = format!("CREATE DATABASE {name}");
            clickhouse.without_database().execute(&create).await?;
            let create = format!(
                "CREATE TABLE analytics_events ({definition}) ENGINE = MergeTree ORDER BY tuple()"
            );
            return Ok(clickhouse.execute(&create).await?);
        }
    };
    migrations::apply(clickhouse).await?;
    schema::retain(clickhouse, RETENTION_DAYS).await?;
    for change in changes {
        match change {
            Change::Statement(statement) => clickhouse.execute(statement).await?,
            Change::Create(table, changed) => {
                let create = format!(
                    "SELECT create_table_query AS name FROM system.tables AS t WHERE t.database = currentDatabase() AND t.name = '{table}'"
                );
                let create = names(clickhouse, &create).await?;
                let create = create.first().context("no such table")?;
                let changed = changed(create);
                ensure!(&changed != create, "the form is the table as it is");
                let drop = format!("DROP TABLE {table} SYNC");
                clickhouse.execute(&drop).await?;
                clickhouse.execute(&changed).await?;
            }
        }
    }
    Ok(())
}

/// What analysts ask the whole table, and what the daemon does: by type and time, by
/// user, by sequence, sessions of clients, user agents.
const QUESTIONS: [&str; 6] = [
    "SELECT toStartOfSecond(server_ts) AS at, count(), sum(message_size) FROM analytics_events
     WHERE event_type = 'message_sent' AND toSecond(server_ts) < 10 GROUP BY at",
    "SELECT error_type, error_code, count() FROM analytics_events
     WHERE event_type = 'error_occurred' GROUP BY ALL",
    "SELECT event_type, max(server_ts) FROM analytics_events WHERE user_id = '100300' GROUP BY ALL",
    "SELECT stream_seq, batch_index, received_at FROM analytics_events
     WHERE stream_seq BETWEEN 120000 AND 130000",
    "SELECT client_id, uniqExact(session_id) FROM analytics_events GROUP BY client_id",
    "SELECT user_agent, count() FROM analytics_events GROUP BY user_agent",
];

async fn ask(engine: &Engine, clickhouse: &ClickHouse, form: &Form) -> anyhow::Result<f64> {
    if !form.is_asked {
        return Ok(0.0);
    }
    let start = engine.cpu_seconds()?;
    for _ in 0..3 {
        for question in QUESTIONS {
            let sql = format!("{question} SETTINGS use_query_condition_cache = 0 FORMAT Null");
            clickhouse.execute(&sql).await?;
        }
    }
    Ok(engine.cpu_seconds()? - start)
}

/// Whatever the views are made of, this must not change.
async fn answers(clickhouse: &ClickHouse) -> anyhow::Result<u64> {
    let all = [
        "SELECT date, user_id, sum(events_count) FROM daily_active_users GROUP BY ALL",
        "SELECT date, event_type, sum(count) FROM event_counts_by_type GROUP BY ALL",
        "SELECT date, message_type, sum(message_count), sum(total_size), sum(total_files) FROM message_statistics GROUP BY ALL",
        "SELECT * FROM error_tracking",
        "SELECT * FROM sessions",
        "SELECT * FROM daily_sessions",
    ];
    let mut together = 0u64;
    for answer in all {
        let digest = format!("SELECT sum(cityHash64(toString(tuple(*)))) AS n FROM ({answer})");
        together = together.wrapping_mul(31) ^ number(clickhouse, &digest).await?;
    }
    Ok(together)
}

pub async fn number(clickhouse: &ClickHouse, sql: &str) -> anyhow::Result<u64> {
    #[derive(Row, Deserialize)]
    struct Number {
        n: u64,
    }
    // Differences are signed.
    let sql = format!("SELECT toUInt64(n) AS n FROM ({sql})");
    let rows: Vec<Number> = clickhouse.rows(&sql, &[]).await?;
    Ok(rows.first().context("no number")?.n)
}

async fn names(clickhouse: &ClickHouse, sql: &str) -> anyhow::Result<Vec<String>> {
    #[derive(Row, Deserialize)]
    struct Name {
        name: String,
    }
    let rows: Vec<Name> = clickhouse.rows(sql, &[]).await?;
    Ok(rows.into_iter().map(|row| row.name).collect())
}
