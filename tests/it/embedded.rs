//! The embedded engine and its HTTP interface, as ordinary clients meet them.

mod clients;
mod http;
mod process;

use clickhouse::Client;

async fn number(client: &Client, sql: &str) -> u64 {
    client.query(sql).fetch_one::<u64>().await.unwrap()
}

async fn text(client: &Client, sql: &str) -> String {
    client.query(sql).fetch_one::<String>().await.unwrap()
}
