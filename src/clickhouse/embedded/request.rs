//! What a request's URL, headers and form say.

use std::collections::HashMap;

use axum::extract::Multipart;
use axum::http::{HeaderMap, Method, Uri, header};
use base64::Engine as _;
use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::compression::Encoding;
use super::exception::Exception;
use super::execute::{ExternalTable, Request};

/// The one user of the engine.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub user: String,
    pub password: SecretString,
}

impl Credentials {
    /// Compares digests, so that the time taken says nothing about the password.
    fn check(&self, user: &str, password: &str) -> Result<(), Exception> {
        let expected = Sha256::digest(self.password.expose_secret());
        if user == self.user && Sha256::digest(password) == expected {
            return Ok(());
        }
        Err(Exception::new(
            516,
            "AUTHENTICATION_FAILED",
            format_args!(
                "{user}: Authentication failed: password is incorrect, \
                 or there is no user with such name"
            ),
        ))
    }
}

/// A request without its body.
#[derive(Debug)]
pub struct Parsed {
    pub request: Request,
    pub query_id: String,
    pub body: Encoding,
    pub response: Encoding,
    /// Nothing is sent before the result is complete.
    pub wait_end_of_query: bool,
    user: Option<String>,
    password: Option<String>,
}

impl Parsed {
    /// Reads headers and the URL's parameters.
    pub fn new(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Self, Exception> {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let mut parsed = Self {
            request: Request {
                database: header("x-clickhouse-database").map(str::to_owned),
                default_format: header("x-clickhouse-format").map(str::to_owned),
                readonly: *method == Method::GET || *method == Method::HEAD,
                tag: Uuid::new_v4().to_string(),
                ..Request::default()
            },
            query_id: Uuid::new_v4().to_string(),
            body: Encoding::from_content_encoding(header("content-encoding").unwrap_or_default())?,
            response: Encoding::from_accept_encoding(header("accept-encoding").unwrap_or_default()),
            wait_end_of_query: false,
            user: header("x-clickhouse-user").map(str::to_owned),
            password: header("x-clickhouse-key").map(str::to_owned),
        };
        if let Some((user, password)) = basic(headers) {
            parsed.user = Some(user);
            parsed.password = Some(password);
        }
        for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            parsed.parameter(&name, value.into_owned());
        }
        Ok(parsed)
    }

    /// A parameter of the URL or of a form. What is not the interface's own is a
    /// setting, which the engine accepts or refuses.
    fn parameter(&mut self, name: &str, value: String) {
        let set = matches!(value.as_str(), "1" | "true");
        let request = &mut self.request;
        match name {
            "query" => request.query.push_str(&value),
            "database" => request.database = Some(value).filter(|it| !it.is_empty()),
            "default_format" => request.default_format = Some(value),
            "user" => self.user = Some(value),
            "password" => self.password = Some(value),
            "query_id" if value.is_empty() => {}
            "query_id" => self.query_id = value,
            "wait_end_of_query" => self.wait_end_of_query = set,
            "compress" if set => self.response = Encoding::Blocks,
            "decompress" if set => self.body = Encoding::Blocks,
            // Sessions, roles, quotas and protocol versions are a server's matters.
            "compress"
            | "decompress"
            | "session_id"
            | "session_timeout"
            | "session_check"
            | "close_session"
            | "quota_key"
            | "role"
            | "buffer_size"
            | "stacktrace"
            | "client_protocol_version" => {}
            _ => match name.strip_prefix("param_") {
                Some(name) => request.parameters.push((name.to_owned(), value)),
                None => {
                    if name == "enable_http_compression"
                        && !set
                        && self.response != Encoding::Blocks
                    {
                        self.response = Encoding::Identity;
                    }
                    // A client may be stricter than GET demands, never laxer.
                    request.readonly &= name != "readonly" || value == "0";
                    request.settings.push((name.to_owned(), value));
                }
            },
        }
    }

    /// Reads a form: parameters, and files as external tables.
    pub async fn form(&mut self, mut form: Multipart) -> Result<(), Exception> {
        let bad = |error| Exception::new(36, "BAD_ARGUMENTS", format_args!("Bad form: {error}"));
        let mut files: Vec<(String, Bytes)> = Vec::new();
        while let Some(field) = form.next_field().await.map_err(bad)? {
            let name = field.name().unwrap_or_default().to_owned();
            let is_file = field.file_name().is_some();
            let value = field.bytes().await.map_err(bad)?;
            if is_file {
                files.push((name, value));
            } else {
                self.parameter(&name, String::from_utf8_lossy(&value).into_owned());
            }
        }
        for (name, rows) in files {
            let table = self.external_table(name, rows)?;
            self.request.external_tables.push(table);
        }
        Ok(())
    }

    /// `NAME_structure` or `NAME_types`, and `NAME_format`, came in as settings.
    fn external_table(&mut self, name: String, rows: Bytes) -> Result<ExternalTable, Exception> {
        let mut described = HashMap::new();
        self.request.settings.retain_mut(|(key, value)| {
            let suffix = key.strip_prefix(&name);
            match suffix.filter(|it| ["_structure", "_types", "_format"].contains(it)) {
                Some(suffix) => {
                    described.insert(suffix.to_owned(), std::mem::take(value));
                    false
                }
                None => true,
            }
        });
        let types = described.remove("_types").map(|types| {
            let columns = types.split(',').enumerate();
            let columns = columns.map(|(index, kind)| format!("_{} {kind}", index + 1));
            columns.collect::<Vec<_>>().join(", ")
        });
        let Some(structure) = described.remove("_structure").or(types) else {
            return Err(Exception::new(
                36,
                "BAD_ARGUMENTS",
                format_args!("External table {name} has neither structure nor types"),
            ));
        };
        Ok(ExternalTable {
            format: described
                .remove("_format")
                .unwrap_or_else(|| "TabSeparated".to_owned()),
            name,
            structure,
            rows,
        })
    }

    pub fn authenticate(&self, credentials: &Credentials) -> Result<(), Exception> {
        credentials.check(
            self.user.as_deref().unwrap_or("default"),
            self.password.as_deref().unwrap_or_default(),
        )
    }
}

fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = base64::prelude::BASE64_STANDARD
        .decode(encoded.trim())
        .ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url_query: &str) -> Parsed {
        let uri = format!("/?{url_query}").parse().unwrap();
        Parsed::new(&Method::POST, &uri, &HeaderMap::new()).unwrap()
    }

    #[test]
    fn parameters_and_settings_are_told_apart() {
        let parsed = parsed("query=SELECT+1&param_x=a%5Ctb&max_threads=2&database=d&session_id=s");
        assert_eq!(parsed.request.query, "SELECT 1");
        assert_eq!(parsed.request.parameters, [("x".into(), r"a\tb".into())]);
        assert_eq!(
            parsed.request.settings,
            [("max_threads".into(), "2".into())]
        );
        assert_eq!(parsed.request.database.as_deref(), Some("d"));
    }

    #[test]
    fn credentials_come_from_headers_or_the_url() {
        let credentials = Credentials {
            user: "u".into(),
            password: "p:w".into(),
        };
        assert!(
            parsed("user=u&password=p:w")
                .authenticate(&credentials)
                .is_ok()
        );
        let error = parsed("user=u").authenticate(&credentials).unwrap_err();
        assert_eq!((error.code, error.status().as_u16()), (516, 403));

        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, "Basic dTpwOnc=".parse().unwrap());
        let parsed = Parsed::new(&Method::GET, &Uri::from_static("/"), &headers).unwrap();
        assert!(parsed.authenticate(&credentials).is_ok());
    }

    #[test]
    fn get_may_only_read() {
        let get = |url_query: &str| {
            let uri = format!("/?{url_query}").parse().unwrap();
            let parsed = Parsed::new(&Method::GET, &uri, &HeaderMap::new());
            parsed.unwrap().request
        };
        assert!(get("query=x").readonly);
        let request = get("readonly=1");
        assert_eq!(request.settings, [("readonly".into(), "1".into())]);
        assert!(!request.readonly);
        assert!(get("readonly=0").readonly);
    }
}
