//! Each column alone: its type, codec and what else they could be.
//!
//! A table of one column, so that its CPU time can be told apart. Its values are the
//! sample's, in the order in which the whole table has them, most of them the type's
//! default where the column belongs to one type of event. The cost of inserting and
//! merging a column of zeros is subtracted.

use analytics_server::internal::ClickHouse;
use analytics_server::internal::native::Block;
use bytes::BytesMut;
use clickhouse::Row;
use serde::Deserialize;

use super::engine::Engine;
use super::measure::{Cost, Form, Schema, drop_database, fill, in_turns, merge};
use super::report::ColumnRow;
use super::{Args, report, table};

#[derive(Row, Deserialize)]
struct Column {
    name: String,
    r#type: String,
    codec: String,
    /// Bytes of the column in the whole table, merged.
    bytes: u64,
}

/// What a column is and could be.
#[derive(Clone, PartialEq, Eq)]
struct Kind {
    r#type: String,
    codec: String,
    /// The type in which the block has it.
    sent: String,
}

pub async fn run(args: &Args, engine: &Engine, blocks: &[Block]) -> anyhow::Result<()> {
    let asked = |filter: &String| filter.contains("columns");
    if !args.filters.is_empty() && !args.filters.iter().any(asked) {
        return Ok(());
    }
    let clickhouse = engine.fresh_database();
    let source = table::base();
    let (tables, _) = fill(engine, &clickhouse, &source, blocks).await?;
    merge(&clickhouse, &tables).await?;
    let rows: usize = blocks.iter().map(|block| block.rows).sum();

    let zeros = one_column(args, &clickhouse, "toUInt8(0)", "z", blocks).await?;

    let columns: Vec<Column> = clickhouse
        .rows(
            "SELECT c.name AS name, c.type AS type, c.compression_codec AS codec, p.bytes AS bytes
             FROM system.columns AS c
             INNER JOIN
             (
                 SELECT column, sum(column_data_compressed_bytes) AS bytes FROM system.parts_columns
                 WHERE database = currentDatabase() AND table = 'analytics_events' AND active
                 GROUP BY column
             ) AS p ON p.column = c.name
             WHERE c.database = currentDatabase() AND c.table = 'analytics_events'
             ORDER BY c.position",
            &[],
        )
        .await?;
    let mut measured = Vec::new();
    for column in columns {
        let name = format!("columns/{}", column.name);
        if !args.asks_for(&name) {
            continue;
        }
        let kinds = kinds(&column);
        // An insert of zeros takes its turn, too.
        let mut forms = vec![(form(&format!("{name}/zeros"), "z UInt8"), zeros.clone())];
        let mut sent: Vec<(String, Vec<Block>)> = Vec::new();
        for kind in &kinds {
            if !sent.iter().any(|(r#type, _)| *r#type == kind.sent) {
                let sent_as = kind.sent.replace('\'', "\\'");
                let expression = format!("CAST({}, '{sent_as}')", column.name);
                let made = one_column(args, &clickhouse, &expression, &column.name, blocks);
                sent.push((kind.sent.clone(), made.await?));
            }
            let codec = match kind.codec.as_str() {
                "" => String::new(),
                codec => format!(" CODEC({codec})"),
            };
            let definition = format!("{} {}{codec}", column.name, kind.r#type);
            let made = sent.iter().find(|(r#type, _)| *r#type == kind.sent);
            let made = made.map(|(_, blocks)| blocks.clone()).unwrap_or_default();
            forms.push((form(&format!("{name}/{}", kind.name()), &definition), made));
        }
        let mut costs = in_turns(args, engine, &forms).await?;
        let zeros = costs.remove(0);
        for (kind, cost) in kinds.iter().zip(costs) {
            measured.push(ColumnRow {
                column: column.name.clone(),
                form: kind.name(),
                is_present: *kind == kinds[0],
                cost: Cost {
                    insert: cost.insert - zeros.insert,
                    merge: cost.merge - zeros.merge,
                    bytes: cost.bytes - zeros.bytes,
                    ..cost
                },
                bytes_in_table: column.bytes as f64 / rows as f64,
            });
        }
    }
    report::columns(&measured);
    drop_database(&clickhouse).await
}

fn form(name: &str, definition: &str) -> Form {
    Form::new(name.to_owned(), Schema::Column(definition.to_owned()))
}

/// A column's blocks, `args.passes` times over, made by ClickHouse.
async fn one_column(
    args: &Args,
    clickhouse: &ClickHouse,
    expression: &str,
    name: &str,
    blocks: &[Block],
) -> anyhow::Result<Vec<Block>> {
    let mut column = Vec::new();
    let mut first = 1;
    for block in blocks {
        let last = first + block.rows - 1;
        let select = format!(
            "SELECT {expression} AS {name} FROM analytics_events
             WHERE stream_seq BETWEEN {first} AND {last} ORDER BY event_type, server_ts
             SETTINGS max_block_size = {}, allow_suspicious_low_cardinality_types = 1",
            2 * block.rows
        );
        let mut answer = clickhouse.stream(&select, "Native")?;
        let mut bytes = BytesMut::new();
        while let Some(piece) = answer.next().await? {
            bytes.extend_from_slice(&piece);
        }
        column.push(Block {
            bytes: bytes.freeze(),
            rows: block.rows,
        });
        first = last + 1;
    }
    Ok(vec![column; args.passes].concat())
}

/// The column as it is, then what else it could be.
fn kinds(column: &Column) -> Vec<Kind> {
    let kind = |r#type: &str, codec: &str| Kind {
        r#type: r#type.to_owned(),
        codec: codec.to_owned(),
        sent: r#type.to_owned(),
    };
    let codec = column.codec.trim_start_matches("CODEC(");
    let codec = codec.strip_suffix(')').unwrap_or(codec);
    let mut kinds = vec![kind(&column.r#type, codec)];
    match column.r#type.as_str() {
        "String" | DICTIONARY => {
            kinds.extend([
                kind("String", ""),
                kind("String", "ZSTD(1)"),
                kind(DICTIONARY, ""),
                kind(DICTIONARY, "ZSTD(1)"),
                Kind {
                    sent: "String".to_owned(),
                    ..kind(DICTIONARY, "")
                },
            ]);
            if column.name == "exit_code" {
                kinds.push(Kind {
                    sent: "String".to_owned(),
                    ..kind(EXIT_CODE, "")
                });
            }
        }
        "UUID" => kinds.extend([kind("UUID", "NONE"), kind("UUID", "ZSTD(1)")]),
        "Bool" => kinds.push(kind("Bool", "ZSTD(1)")),
        number => {
            let codecs = ["", "ZSTD(1)", "T64, LZ4", "T64, ZSTD(1)"];
            kinds.extend(codecs.map(|codec| kind(number, codec)));
            let size = if number.ends_with("32") { 4 } else { 8 };
            for then in ["LZ4", "ZSTD(1)"] {
                kinds.push(kind(number, &format!("Delta({size}), {then}")));
            }
            if size == 8 {
                kinds.push(kind(number, "DoubleDelta, LZ4"));
            }
        }
    }
    let mut different: Vec<Kind> = Vec::new();
    for kind in kinds {
        if !different.contains(&kind) {
            different.push(kind);
        }
    }
    different
}

const DICTIONARY: &str = "LowCardinality(String)";
const EXIT_CODE: &str = "Enum8('' = 0, 'EXIT_CODE_UNSPECIFIED' = 1, 'EXIT_CODE_SUCCESS' = 2, 'EXIT_CODE_ERROR' = 3, 'EXIT_CODE_CRASH' = 4)";

impl Kind {
    fn name(&self) -> String {
        let r#type = self.r#type.split("('").next().unwrap_or_default();
        let codec = match self.codec.as_str() {
            "" => "LZ4",
            codec => codec,
        };
        match self.sent == self.r#type {
            true => format!("{} {codec}", r#type),
            false => format!("{} {codec}, sent as {}", r#type, self.sent),
        }
    }
}
