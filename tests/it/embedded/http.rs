//! What the HTTP interface promises in addition to what the clients test.

use crate::support::clickhouse::{RawRequest, fresh_database, post, url};
use crate::support::eventually;
use clickhouse::Client;

use super::{number, text};

async fn database(client: &Client) -> String {
    text(client, "SELECT currentDatabase()").await
}

async fn create(client: &Client) -> String {
    let sql = "CREATE TABLE t (id UInt64, name String) ENGINE = MergeTree ORDER BY id";
    client.query(sql).execute().await.unwrap();
    database(client).await
}

async fn running(client: &Client, mark: &str) -> u64 {
    let sql = format!(
        "SELECT count() FROM system.processes WHERE query LIKE '%{mark}%' \
         AND query NOT LIKE '%system.processes%'"
    );
    number(client, &sql).await
}

#[tokio::test]
async fn ping_and_root_answer_ok() {
    for target in ["GET /ping", "GET /", "GET /replicas_status"] {
        let (head, body) = RawRequest::open(url(), target, "").end();
        assert!(head.starts_with("http/1.1 200"), "{target}: {head}");
        assert_eq!(body, "Ok.\n", "{target}");
    }
}

#[tokio::test]
async fn an_answer_names_its_format_and_its_query() {
    let target = "/?query_id=abc&default_format=JSONEachRow";
    let (head, body) = post(url(), target, "", "SELECT 1 AS x");
    assert_eq!(body, "{\"x\":1}\n");
    for header in [
        "x-clickhouse-format: jsoneachrow",
        "x-clickhouse-query-id: abc",
        "x-clickhouse-timezone: ",
        "x-clickhouse-server-display-name: ",
        "x-clickhouse-summary: {",
    ] {
        assert!(head.contains(header), "{header}: {head}");
    }
}

#[tokio::test]
async fn an_exception_has_its_code_and_its_status() {
    for (sql, status, code) in [
        ("SELECT * FROM missing", 404, 60),
        ("SELEC 1", 400, 62),
        ("SELECT 1; SELECT 2", 400, 62),
        ("SELECT 1 SETTINGS missing = 1", 404, 115),
        ("SELECT throwIf(1)", 500, 395),
    ] {
        let (head, body) = post(url(), "/", "", sql);
        assert!(
            head.starts_with(&format!("http/1.1 {status}")),
            "{sql}: {head}"
        );
        let header = format!("x-clickhouse-exception-code: {code}");
        assert!(head.contains(&header), "{sql}: {head}");
        let text = format!("Code: {code}. DB::Exception: ");
        assert!(body.starts_with(&text), "{sql}: {body}");
    }
    let (head, _) = post(url(), "/?missing=1", "", "SELECT 1");
    assert!(head.contains("x-clickhouse-exception-code: 115"), "{head}");
    let (head, _) = post(url(), "/?database=missing", "", "SELECT 1");
    assert!(head.contains("x-clickhouse-exception-code: 81"), "{head}");
}

#[tokio::test]
async fn get_reads_and_does_not_write() {
    let client = fresh_database().await;
    let database = create(&client).await;
    let get = |query: &str| {
        let query = query.replace(' ', "%20");
        RawRequest::open(
            url(),
            &format!("GET /?database={database}&query={query}"),
            "",
        )
        .end()
    };
    assert_eq!(get("SELECT 1").1, "1\n");
    for query in ["INSERT INTO t VALUES (1,'x')", "DROP TABLE t"] {
        let (head, _) = get(query);
        assert!(
            head.contains("x-clickhouse-exception-code: 164"),
            "{query}: {head}"
        );
    }
    let (head, _) = get("DROP TABLE t&readonly=0");
    assert!(head.contains("x-clickhouse-exception-code: 164"), "{head}");
}

#[tokio::test]
async fn statements_of_every_kind_run() {
    let client = fresh_database().await;
    let database = create(&client).await;
    let target = format!("/?database={database}");
    for sql in [
        "INSERT INTO t VALUES (1, 'a\n\nb'), (1 + 1, 'c');",
        "INSERT INTO t (id) SELECT number + 10 FROM numbers(3)",
        "INSERT INTO t SETTINGS max_threads = 1 FORMAT JSONEachRow\n{\"id\": 20}\n\n{\"id\": 21}",
        "OPTIMIZE TABLE t FINAL",
        "ALTER TABLE t ADD COLUMN other UInt8",
        "SYSTEM STOP MERGES t",
        "SET max_threads = 1",
        "KILL QUERY WHERE query_id = 'missing'",
        "CREATE VIEW v AS SELECT * FROM t",
        "RENAME TABLE v TO w",
        "DROP TABLE w",
        "-- a comment\nSELECT 1 /* and another */;",
    ] {
        let (head, body) = post(url(), &target, "", sql);
        assert!(head.starts_with("http/1.1 200"), "{sql}: {body}");
    }
    for (sql, expected) in [
        (
            "SELECT groupArray(id) FROM (SELECT id FROM t ORDER BY id)",
            "[1,2,10,11,12,20,21]\n",
        ),
        ("SELECT name FROM t WHERE id = 1", "a\\n\\nb\n"),
        ("SHOW TABLES", "t\n"),
        ("EXISTS TABLE t", "1\n"),
        ("WITH 2 AS x SELECT x", "2\n"),
        (
            "SELECT 1 AS x, count() FROM numbers(3) GROUP BY x WITH TOTALS",
            "1\t3\n\n1\t3\n",
        ),
    ] {
        assert_eq!(post(url(), &target, "", sql).1, expected, "{sql}");
    }
    assert!(
        post(url(), &target, "", "EXPLAIN SELECT 1")
            .1
            .contains("Read")
    );
}

#[tokio::test]
async fn a_streamed_result_is_the_document_that_the_format_asks_for() {
    let client = fresh_database().await;
    for format in [
        "CSVWithNames",
        "RowBinaryWithNamesAndTypes",
        "TabSeparatedWithNamesAndTypes",
        "Native",
    ] {
        let streamed = client.query("SELECT number FROM numbers(300000)");
        let streamed = streamed.with_setting("max_block_size", "65536");
        let one_piece = client.query("SELECT number FROM numbers(300000)");
        let one_piece = one_piece.with_setting("max_block_size", "1000000");
        let mut pieces = streamed.fetch_bytes(format).unwrap();
        let mut whole = one_piece.fetch_bytes(format).unwrap();
        let (pieces, whole) = (
            pieces.collect().await.unwrap(),
            whole.collect().await.unwrap(),
        );
        if format == "Native" {
            assert!(pieces.len() > whole.len(), "the result came in one piece");
        } else {
            assert!(pieces == whole, "{format}");
        }
    }
}

#[tokio::test]
async fn settings_of_one_request_do_not_reach_the_next() {
    let client = fresh_database().await;
    let sql = "SELECT toUInt64(getSetting('max_threads'))";
    let before = number(&client, sql).await;
    let changed = before + 7;
    for _ in 0..20 {
        let query = client
            .query(sql)
            .with_setting("max_threads", changed.to_string());
        assert_eq!(query.fetch_one::<u64>().await.unwrap(), changed);
        client.query("SET max_threads = 3").execute().await.unwrap();
        assert_eq!(number(&client, sql).await, before);
    }
    assert_eq!(
        post(url(), "/", "", "SELECT currentDatabase()").1,
        "default\n"
    );
}

#[tokio::test]
async fn a_query_runs_while_an_insert_is_open() {
    let client = fresh_database().await;
    let database = create(&client).await;
    let target = format!("POST /?query=INSERT%20INTO%20{database}.t%20FORMAT%20CSV");
    let mut insert = RawRequest::open(url(), &target, "");
    insert.chunk(b"1,first\n");
    let mark = format!("INSERT INTO {database}.t");
    eventually("the insert", async || {
        (running(&client, &mark).await == 1).then_some(())
    })
    .await;
    assert_eq!(number(&client, "SELECT count() FROM t").await, 0);
    insert.chunk(b"2,second\n");
    let (head, body) = insert.end();
    assert!(head.starts_with("http/1.1 200"), "{body}");
    assert_eq!(number(&client, "SELECT count() FROM t").await, 2);
}

#[tokio::test]
async fn an_insert_whose_body_breaks_off_stores_nothing() {
    let client = fresh_database().await;
    let database = create(&client).await;
    let target = format!("POST /?query=INSERT%20INTO%20{database}.t%20FORMAT%20CSV");
    let mut insert = RawRequest::open(url(), &target, "");
    insert.chunk(b"1,first\n2,second\n");
    let mark = format!("INSERT INTO {database}.t");
    eventually("the insert", async || {
        (running(&client, &mark).await == 1).then_some(())
    })
    .await;
    drop(insert);
    eventually("its end", async || {
        (running(&client, &mark).await == 0).then_some(())
    })
    .await;
    assert_eq!(number(&client, "SELECT count() FROM t").await, 0);
}

#[tokio::test]
async fn of_two_queries_with_one_id_the_second_is_refused_while_the_first_runs() {
    let client = fresh_database().await;
    let database = create(&client).await;
    let insert = format!("INSERT%20INTO%20{database}.t%20FORMAT%20CSV");
    let target = format!("/?query_id={database}&query={insert}");
    let again = || post(url(), &target, "", "2,again\n");
    let refused = |(head, body): (String, String)| {
        assert!(head.starts_with("http/1.1 500"), "{head}");
        assert!(head.contains("x-clickhouse-exception-code: 216"), "{head}");
        let text = format!(
            "Code: 216. DB::Exception: Query with id = {database} is already running. (QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING)"
        );
        assert!(body.starts_with(&text), "{body}");
    };
    let mark = format!("INSERT INTO {database}.t");
    let begin = async || {
        let mut first = RawRequest::open(url(), &format!("POST {target}"), "");
        first.chunk(b"1,first\n");
        eventually("the insert", async || {
            (running(&client, &mark).await == 1).then_some(())
        })
        .await;
        first
    };

    let first = begin().await;
    refused(again());
    let (head, body) = first.end();
    assert!(head.starts_with("http/1.1 200"), "{body}");
    // At once: whoever has the answer may come again.
    let (head, body) = again();
    assert!(head.starts_with("http/1.1 200"), "{body}");
    assert_eq!(number(&client, "SELECT sum(id) FROM t").await, 1 + 2);

    // A client that is gone keeps its id only until its query has ended.
    let first = begin().await;
    refused(again());
    drop(first);
    eventually("the id is free", async || {
        let (head, _) = again();
        head.starts_with("http/1.1 200").then_some(())
    })
    .await;
    assert_eq!(number(&client, "SELECT sum(id) FROM t").await, 1 + 2 + 2);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_select() {
    let client = fresh_database().await;
    let mark = database(&client).await;
    for sql in [
        // Computes, and has nothing to send yet.
        "SELECT sum(sipHash64(number)) FROM numbers(1000000000000)",
        // Sends more than anybody reads.
        "SELECT * FROM system.numbers",
        // Is not streamed.
        "SELECT sum(sipHash64(number)) FROM numbers(1000000000000) FORMAT JSON",
    ] {
        // A server does so only when asked.
        let target = "POST /?cancel_http_readonly_queries_on_client_close=1";
        let mut request = RawRequest::open(url(), target, "");
        request.chunk(format!("/* {mark} */ {sql}").as_bytes());
        request.end_body();
        eventually(sql, async || {
            (running(&client, &mark).await == 1).then_some(())
        })
        .await;
        drop(request);
        eventually("its end", async || {
            (running(&client, &mark).await == 0).then_some(())
        })
        .await;
    }
}
