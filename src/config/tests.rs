use std::path::Path;

use super::*;

/// The fragments that operators already have, word for word.
const FRAGMENTS: &str = r#"
server: {port: 6690, db_url: "http://localhost:8123", db_user: default, db_password: ~, db_name: fechatter_analytics, base_dir: /tmp/fechatter_analytics}
integrations:
  messaging:
    enabled: true
    nats_url: nats://localhost:4222
    jetstream_enabled: true
    subjects: {analytics_events: "fechatter.analytics.>", analytics_batch: "fechatter.analytics.batch", user_events: "fechatter.analytics.user.>", chat_events: "fechatter.analytics.chat.>", message_events: "fechatter.analytics.message.>", bot_events: "fechatter.analytics.bot.>", error_events: "fechatter.analytics.error.>"}
    jetstream: {stream_name: ANALYTICS, consumer_name: analytics-processor, max_age_hours: 720, storage_type: file, num_replicas: 1}
features:
  analytics: {batch_size: 100, flush_interval_seconds: 30}
"#;

fn load(text: &str) -> Result<Config, ConfigError> {
    load_with(text, |_| None)
}

fn load_with(text: &str, env: impl Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
    let file = tempfile::Builder::new().suffix(".yml").tempfile().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Config::load(Some(file.path()), env).map(|(config, _)| config)
}

/// The message without the path of the file, which differs from run to run.
fn error_of(text: &str) -> String {
    let message = load(text).unwrap_err().to_string();
    let (_path, message) = message.split_once(".yml:").unwrap();
    message.to_owned()
}

#[test]
fn fragments_that_operators_have_load_unchanged() {
    let config = load(FRAGMENTS).unwrap();
    assert_eq!(config.features.analytics.batch_size.get(), 100);
    assert_eq!(
        config.features.analytics.flush_interval,
        Duration::from_secs(30)
    );
    assert_eq!(config.integrations.messaging.subjects.all().count(), 7);
    assert_eq!(config.server.port, 6690);
}

#[test]
fn the_file_in_the_repository_says_the_defaults() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("analytics.yml"))
        .unwrap();
    let file = load(&text).unwrap();
    assert_eq!(format!("{file:#?}"), format!("{:#?}", Config::default()));
}

#[test]
fn an_empty_file_and_empty_sections_are_the_defaults() {
    for text in ["", "server:\n", "features: {}"] {
        assert_eq!(
            format!("{:?}", load(text).unwrap()),
            format!("{:?}", Config::default())
        );
    }
}

#[test]
fn errors_name_line_column_key_and_the_nearest_key() {
    let errors = [
        "feature:\n  analytics: {}",
        "features:\n  analytics:\n    batchsize: 10",
        "features:\n  analytics:\n    batch_size: ten",
        "features:\n  analytics:\n    batch_size: 0",
        "features:\n  analytics:\n    batch_max_bytes: 3 bananas",
        "features:\n  analytics:\n    batch_max_bytes: 10B",
        "features:\n  analytics:\n    batch_size: 2000000",
        "features:\n  analytics:\n    retention_days: 0",
        "features:\n  analytics:\n    flush_interval_seconds: -1",
        "features:\n  analytics:\n    flush_interval_seconds: .nan",
        "server:\n  db_url: localhost:8123",
        "server:\n  db_url: embedded:99999",
        "server:\n  db_url: http://ann:s3cret@host:8123",
        "integrations: {messaging: {nats_url: 'not a url'}}",
        "server: [",
        "server:\n  port: 6690\n  port: 6691",
        "integrations: {messaging: {enabled: false}}",
        "integrations: {messaging: {jetstream: {storage_type: tape}}}",
        "integrations: {messaging: {jetstream: {stream_name: a.b}}}",
        "integrations: {messaging: {subjects: {user_events: a..b}}}",
    ]
    .map(|text| format!("{text}\n=> {}", error_of(text)))
    .join("\n\n");
    insta::assert_snapshot!(errors);
}

#[test]
fn a_password_without_a_user_is_refused() {
    let error = load("integrations: {messaging: {password: p}}").unwrap_err();
    assert_eq!(
        error.to_string(),
        "integrations.messaging.password also needs `username`"
    );
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Some(Path::new("/nowhere/analytics.yml")), |_| None).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cannot read `/nowhere/analytics.yml`")
    );
}

#[test]
fn the_environment_overrides_the_file() {
    let password = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(password.path(), "from-file\n").unwrap();
    let path = password.path().display().to_string();
    let config = load_with(FRAGMENTS, |name| match name {
        "ANALYTICS_PORT" => Some("7000".to_owned()),
        "ANALYTICS_DB_URL" => Some("embedded".to_owned()),
        "ANALYTICS_DB_PASSWORD_FILE" => Some(path.clone()),
        "ANALYTICS_DB_NAME" => Some(String::new()),
        _ => None,
    })
    .unwrap();
    assert_eq!(config.server.port, 7000);
    assert_eq!(
        config.server.db_url,
        Database::Embedded {
            port: CLICKHOUSE_PORT
        }
    );
    assert_eq!(config.server.db_name, "fechatter_analytics");
    let password = config.server.db_password.unwrap();
    assert_eq!(secrecy::ExposeSecret::expose_secret(&password), "from-file");

    let error = load_with("", |name| {
        (name == "ANALYTICS_PORT").then(|| "http".to_owned())
    })
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "environment variable ANALYTICS_PORT: `http` is not a port"
    );
}

#[test]
fn each_secret_of_nats_can_stand_in_a_variable_or_in_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "from-file\r\n").unwrap();
    let path = file.path().display().to_string();
    let with = |names: &'static [&str], value: String| {
        let text = "integrations: {messaging: {username: u, password: p, token: t}}";
        let config = load_with(text, |name| names.contains(&name).then(|| value.clone()));
        config.unwrap().integrations.messaging
    };
    let exposed = |secret: Option<SecretString>| {
        let secret = secret.unwrap();
        secrecy::ExposeSecret::expose_secret(&secret).to_owned()
    };
    let from_file = with(
        &["ANALYTICS_NATS_PASSWORD_FILE", "ANALYTICS_NATS_TOKEN_FILE"],
        path,
    );
    assert_eq!(exposed(from_file.password), "from-file");
    assert_eq!(exposed(from_file.token), "from-file");
    let names: &[&str] = &[
        "ANALYTICS_NATS_USERNAME",
        "ANALYTICS_NATS_PASSWORD",
        "ANALYTICS_NATS_TOKEN",
        "ANALYTICS_NATS_CREDENTIALS_FILE",
    ];
    // The value of each variable, which for one of them has to be a file.
    let value = "/dev/null";
    let direct = with(names, value.to_owned());
    assert_eq!(direct.username.unwrap(), value);
    assert_eq!(exposed(direct.password), value);
    assert_eq!(exposed(direct.token), value);
    assert_eq!(direct.credentials_file.unwrap(), Path::new(value));

    let missing = |name: &str| (name == "ANALYTICS_NATS_TOKEN_FILE").then(|| "/nowhere".to_owned());
    let error = load_with("", missing).unwrap_err().to_string();
    let start = "environment variable ANALYTICS_NATS_TOKEN_FILE: cannot read `/nowhere`";
    assert!(error.starts_with(start), "{error}");
}

#[test]
fn a_file_of_authorities_has_to_be_one_and_to_be_used() {
    let with = |text: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let path = file.path().display().to_string();
        let key = format!("server: {{db_tls_ca_file: '{path}', db_url: 'https://host:8443'}}");
        error_of(&key).replace(&path, "FILE")
    };
    let pem = |inside: &str| {
        format!("-----BEGIN CERTIFICATE-----\n{inside}\n-----END CERTIFICATE-----\n")
    };
    let missing = "integrations: {messaging: {tls_ca_file: /nowhere/ca.pem}}";
    let errors = [
        error_of(missing),
        with("no certificate"),
        with(&pem("%%%")),
        with(&pem("AAAA")),
    ];
    insta::assert_snapshot!(errors.join("\n"));

    let key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new([]).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), authority.self_signed(&key).unwrap().pem()).unwrap();
    let server = |url: &str| {
        let file = file.path().display();
        load(&format!(
            "server: {{db_tls_ca_file: '{file}', db_url: '{url}'}}"
        ))
    };
    server("https://host:8443").unwrap();
    assert_eq!(
        server("http://host:8123").unwrap_err().to_string(),
        "server.db_tls_ca_file needs an `https://` address in `db_url`"
    );
}

#[test]
fn secrets_are_not_in_debug_output() {
    let config = load(
        "server: {db_url: 'http://h:8123', db_password: s3cret}\n\
         integrations: {messaging: {nats_url: 'nats://u:s3cret@h', username: u, password: s3cret, token: s3cret}}",
    )
    .unwrap();
    assert!(!format!("{config:?}").contains("s3cret"));
}
