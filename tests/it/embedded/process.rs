//! The server as a process: how it starts, ends, and what it leaves behind.

use std::env::consts::DLL_SUFFIX;
use std::path::Path;
use std::process::{Output, Stdio};

use clickhouse::Client;
use tempfile::tempdir;

use super::number;
use crate::support::clickhouse::{RawRequest, Server, command, free_port, post};
use crate::support::{dependency, eventually};

const CREATE: &str = "CREATE TABLE IF NOT EXISTS t (id UInt64) ENGINE = MergeTree ORDER BY id";

fn client(server: &Server) -> Client {
    Client::default().with_url(&server.url)
}

async fn fill(server: &Server, sql: &str) {
    for sql in [CREATE, sql] {
        client(server).query(sql).execute().await.unwrap();
    }
}

#[tokio::test]
async fn sigterm_ends_the_server_cleanly_and_the_data_is_there_again() {
    let directory = tempdir().unwrap();
    for expected in [1, 2, 3] {
        let server = Server::start(directory.path());
        fill(&server, "INSERT INTO t SELECT 1").await;
        assert_eq!(
            number(&client(&server), "SELECT count() FROM t").await,
            expected
        );
        assert_eq!(server.terminate().code(), Some(0));
    }
}

#[tokio::test]
async fn sigterm_ends_what_still_runs() {
    let directory = tempdir().unwrap();
    let server = Server::start(directory.path());
    fill(&server, "SELECT 1").await;
    let mut insert = RawRequest::open(
        &server.url,
        "POST /?query=INSERT%20INTO%20t%20FORMAT%20CSV",
        "",
    );
    insert.chunk(b"1\n");
    let mut select = RawRequest::open(&server.url, "POST /", "");
    select.chunk(b"SELECT sum(sipHash64(number)) FROM numbers(1000000000000)");
    select.end_body();
    let both = "SELECT count() FROM system.processes WHERE query NOT LIKE '%processes%'";
    let client = client(&server);
    eventually("both", async || {
        (number(&client, both).await == 2).then_some(())
    })
    .await;
    assert_eq!(server.terminate().code(), Some(0));

    let server = Server::start(directory.path());
    assert_eq!(post(&server.url, "/", "", "SELECT count() FROM t").1, "0\n");
}

#[tokio::test]
async fn the_data_directory_opens_again_after_kill_9() {
    let directory = tempdir().unwrap();
    for round in 1..=3 {
        let server = Server::start(directory.path());
        fill(&server, "INSERT INTO t SELECT number FROM numbers(1000)").await;
        assert_eq!(
            number(&client(&server), "SELECT count() FROM t").await,
            1000 * round
        );
        let mut open = RawRequest::open(
            &server.url,
            "POST /?query=INSERT%20INTO%20t%20FORMAT%20CSV",
            "",
        );
        open.chunk(b"1\n");
        server.kill9();
    }
}

#[tokio::test]
async fn the_server_ends_with_its_parent() {
    let directory = tempdir().unwrap();
    let server = Server::start(directory.path());
    fill(&server, "INSERT INTO t SELECT 1").await;
    assert_eq!(server.orphan().code(), Some(0));
}

#[tokio::test]
async fn a_wrong_password_is_refused() {
    let directory = tempdir().unwrap();
    let server = Server::start_with(directory.path(), &["--user", "me", "--password", "secret"]);
    let client = client(&server);
    let right = client.clone().with_user("me").with_password("secret");
    assert_eq!(number(&right, "SELECT toUInt64(1)").await, 1);
    for headers in [
        "X-ClickHouse-User: me\r\nX-ClickHouse-Key: secret\r\n",
        "Authorization: Basic bWU6c2VjcmV0\r\n",
    ] {
        assert_eq!(post(&server.url, "/", headers, "SELECT 1").1, "1\n");
    }
    for target in ["/", "/?user=me&password=wrong", "/?user=default"] {
        let (head, body) = post(&server.url, target, "", "SELECT 1");
        assert!(head.starts_with("http/1.1 403"), "{head}");
        assert!(body.starts_with("Code: 516. DB::Exception: "), "{body}");
    }
}

#[tokio::test]
async fn nothing_is_written_beside_the_data_directory() {
    let (directory, elsewhere) = (tempdir().unwrap(), tempdir().unwrap());
    let in_deps = || dependency(&format!("lib/libchdb{DLL_SUFFIX}")).into();
    let library = std::env::var_os("LIBCHDB_PATH").unwrap_or_else(in_deps);
    // `clickhouse local` would take its settings from here.
    let stray = "<clickhouse><user_files_path>/nowhere</user_files_path></clickhouse>";
    std::fs::write(elsewhere.path().join("config.xml"), stray).unwrap();
    let server = Server::spawn(
        command(directory.path(), free_port())
            .current_dir(elsewhere.path())
            .env("LIBCHDB_PATH", library),
    );
    for sql in [
        "INSERT INTO FUNCTION file('rows.csv') SELECT number FROM numbers(10)",
        "SELECT * FROM numbers(1000000) ORDER BY sipHash64(number) LIMIT 1 \
         SETTINGS max_bytes_before_external_sort = 1",
    ] {
        let (head, body) = post(&server.url, "/", "", sql);
        assert!(head.starts_with("http/1.1 200"), "{body}");
    }
    server.terminate();
    assert_eq!(elsewhere.path().read_dir().unwrap().count(), 1);
    assert!(directory.path().join("user_files/rows.csv").exists());
}

fn fail(path: &Path, port: u16, arguments: &[&str]) -> (Output, String) {
    let mut command = command(path, port);
    command.args(arguments).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, errors)
}

#[tokio::test]
async fn what_keeps_the_server_from_starting_is_said_in_one_line() {
    let (directory, other) = (tempdir().unwrap(), tempdir().unwrap());
    let server = Server::start(directory.path());
    let taken = server.url.rsplit(':').next().unwrap().parse().unwrap();
    for (path, port, arguments, expected) in [
        (
            directory.path(),
            free_port(),
            [].as_slice(),
            "is in use by another ClickHouse process",
        ),
        (
            other.path(),
            taken,
            [].as_slice(),
            "is in use by another process; choose another --port",
        ),
        (
            other.path(),
            free_port(),
            ["--libchdb", "/missing"].as_slice(),
            "run scripts/deps.sh",
        ),
        (
            Path::new("/proc/x"),
            free_port(),
            [].as_slice(),
            "cannot use directory `/proc/x`",
        ),
    ] {
        let (output, errors) = fail(path, port, arguments);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains(expected), "{errors}");
        assert_eq!(errors.trim_end().lines().count(), 1, "{errors}");
    }
}
