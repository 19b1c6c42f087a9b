//! The table `analytics_events` without its views: codecs, indexes, sorting, settings.

use analytics_server::internal::native::Block;

use super::Args;
use super::engine::Engine;
use super::measure::{Change, Form, Schema, against_the_first};
use super::{report, views};

pub async fn run(args: &Args, engine: &Engine, blocks: &[Block]) -> anyhow::Result<()> {
    let forms = args.chosen(forms());
    let costs = against_the_first(args, engine, &forms, blocks).await?;
    report::differences("table analytics_events, no views", &forms, &costs);
    Ok(())
}

/// The table as it is.
pub fn base() -> Form {
    form("as it is", &[])
}

fn forms() -> Vec<Form> {
    vec![
        base(),
        form("before migration 0009", &BEFORE_0009),
        created("codecs: LZ4 for all", without_codecs),
        created("codecs: ZSTD(1) for all", |create| {
            with_setting(
                &without_codecs(create),
                "default_compression_codec = 'ZSTD(1)'",
            )
        }),
        created("String for LowCardinality", |create| {
            create.replace("LowCardinality(String)", "String")
        }),
        form(
            "String for user_agent",
            &["MODIFY COLUMN user_agent String"],
        ),
        form(
            "Delta and ZSTD(1) for client_ts",
            &["MODIFY COLUMN client_ts CODEC(Delta(8), ZSTD(1))"],
        ),
        form("LZ4 for ids and addresses", &[LZ4_FOR_IDS]),
        form("no index stream_seq", &["DROP INDEX stream_seq"]),
        form("no index user_id", &["DROP INDEX user_id"]),
        form(
            "no indexes",
            &["DROP INDEX stream_seq", "DROP INDEX user_id"],
        ),
        created("ORDER BY server_ts", |create| {
            create.replace("ORDER BY (event_type, server_ts)", "ORDER BY server_ts")
        }),
        created("ORDER BY tuple()", |create| {
            create.replace("ORDER BY (event_type, server_ts)", "ORDER BY tuple()")
        }),
        created("index_granularity 16384", |create| {
            create.replace("index_granularity = 8192", "index_granularity = 16384")
        }),
        form(
            "sparse from 50 % of defaults",
            &["MODIFY SETTING ratio_of_defaults_for_sparse_serialization = 0.5"],
        ),
        form(
            "never sparse",
            &["MODIFY SETTING ratio_of_defaults_for_sparse_serialization = 1"],
        ),
        form(
            "one file a part up to 128 MiB",
            &["MODIFY SETTING min_bytes_for_wide_part = 134217728"],
        ),
        form(
            "adaptive buffers",
            &["MODIFY SETTING min_columns_to_activate_adaptive_write_buffer = 1"],
        ),
        form(
            "compression blocks of 64 KiB",
            &["MODIFY SETTING min_compress_block_size = 65536, max_compress_block_size = 65536"],
        ),
        form(
            "no statistics",
            &["MODIFY SETTING auto_statistics_types = ''"],
        ),
        form(
            "strings in one stream",
            &["MODIFY SETTING string_serialization_version = 'single_stream'"],
        ),
        form("no TTL", &["REMOVE TTL"]),
        sent("insert: optimize_on_insert = 0", "optimize_on_insert = 0"),
        sent("insert: max_insert_threads = 2", "max_insert_threads = 2"),
        sent(
            "insert: input_format_parallel_parsing = 0",
            "input_format_parallel_parsing = 0",
        ),
        sent(
            "insert: no squashing",
            "min_insert_block_size_rows = 0, min_insert_block_size_bytes = 0",
        ),
        Form {
            is_asked: true,
            ..Form::new(
                "table/all five views".to_owned(),
                Schema::Project(Vec::new()),
            )
        },
    ]
}

const BEFORE_0009: [&str; 2] = [
    "MODIFY COLUMN client_ts CODEC(Delta(8), ZSTD(1))",
    "MODIFY COLUMN user_agent String",
];

const LZ4_FOR_IDS: &str = "MODIFY COLUMN client_id CODEC(LZ4), MODIFY COLUMN session_id CODEC(LZ4), MODIFY COLUMN user_id CODEC(LZ4), MODIFY COLUMN ip CODEC(LZ4)";

/// The table after some `ALTER`s.
fn form(name: &str, alters: &[&str]) -> Form {
    let alter = |change: &&str| Change::Statement(format!("ALTER TABLE analytics_events {change}"));
    changed(name, alters.iter().map(alter).collect())
}

/// The table created in another way.
fn created(name: &str, create: fn(&str) -> String) -> Form {
    changed(name, vec![Change::Create("analytics_events", create)])
}

/// The table as it is, with other settings of the insert.
fn sent(name: &str, insert_settings: &'static str) -> Form {
    Form {
        insert_settings,
        ..form(name, &[])
    }
}

fn changed(name: &str, changes: Vec<Change>) -> Form {
    let mut all = views::detached(&views::NAMES);
    all.extend(changes);
    Form {
        is_asked: true,
        ..Form::new(format!("table/{name}"), Schema::Project(all))
    }
}

fn without_codecs(create: &str) -> String {
    let mut parts = create.split(" CODEC(");
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut open = 1;
        let end = part.find(|letter| {
            open += i32::from(letter == '(') - i32::from(letter == ')');
            open == 0
        });
        all.push_str(end.map_or(part, |end| &part[end + 1..]));
    }
    all
}

fn with_setting(create: &str, setting: &str) -> String {
    create.replace(" SETTINGS ", &format!(" SETTINGS {setting}, "))
}
