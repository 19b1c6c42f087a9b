//! The daemon's blocks compared with the same rows as RowBinary, inserted into the same
//! table.

use analytics_server::internal::native::Block;
use bytes::BytesMut;

use super::engine::Engine;
use super::measure::{Form, Schema, drop_database, fill, in_turns};
use super::{Args, report, table, views};

pub async fn run(args: &Args, engine: &Engine, blocks: &[Block]) -> anyhow::Result<()> {
    let rows = rows(engine, blocks).await?;
    for (views, detached) in [("no views", &views::NAMES[..]), ("all views", &[])] {
        let forms: Vec<_> = ["RowBinary", "Native"]
            .into_iter()
            .map(|format| Form {
                format,
                ..Form::new(
                    format!("formats/{format}, {views}"),
                    Schema::Project(views::detached(detached)),
                )
            })
            .zip([rows.clone(), blocks.to_vec()])
            .collect();
        if !forms.iter().any(|(form, _)| args.asks_for(&form.name)) {
            continue;
        }
        let costs = in_turns(args, engine, &forms).await?;
        let forms: Vec<Form> = forms.into_iter().map(|(form, _)| form).collect();
        report::differences(&format!("format, {views}"), &forms, &costs);
    }
    Ok(())
}

/// The blocks' rows as RowBinary, in their order, made by ClickHouse.
async fn rows(engine: &Engine, blocks: &[Block]) -> anyhow::Result<Vec<Block>> {
    let clickhouse = engine.fresh_database();
    fill(engine, &clickhouse, &table::base(), blocks).await?;
    let mut all = Vec::new();
    let mut first = 1;
    for block in blocks {
        let last = first + block.rows - 1;
        let select = format!(
            "SELECT * FROM analytics_events WHERE stream_seq BETWEEN {first} AND {last} ORDER BY stream_seq"
        );
        let mut answer = clickhouse.stream(&select, "RowBinary")?;
        let mut bytes = BytesMut::new();
        while let Some(piece) = answer.next().await? {
            bytes.extend_from_slice(&piece);
        }
        all.push(Block {
            bytes: bytes.freeze(),
            rows: block.rows,
        });
        first = last + 1;
    }
    drop_database(&clickhouse).await?;
    Ok(all)
}
