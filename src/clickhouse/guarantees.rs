//! What exactly once rests on in ClickHouse: `serve` refuses to run without it, and
//! `check` shows it.
//!
//! Asked of the server rather than read from a configuration, since a profile, a
//! proxy, the server's own defaults or an operator's table can each take it away.

mod tables;

use std::collections::HashMap;
use std::fmt;

use clickhouse::Row;
use clickhouse::error::Error;
use serde::Deserialize;

use super::client::{ClickHouse, insert_settings};
use super::quote::quote_identifier;
use super::{codes, stored};
use crate::versions::{self, Verdict};

pub use tables::of_tables;

/// Something that is not as exactly once needs it to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortcoming {
    /// The line of `check` that it belongs to.
    pub topic: Topic,
    pub detail: String,
    /// What fixes it, if that is known: a statement, or a sentence.
    pub remedy: String,
    /// Whether events could be lost or counted twice; otherwise nobody knows.
    pub fatal: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    Version,
    /// Settings under which an insert runs.
    Settings,
    /// What the user may do.
    Rights,
    /// Tables and views that exist.
    Schema,
    /// Tables that recognise a repeated insert.
    Deduplication,
}

impl fmt::Display for Shortcoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        match self.remedy.as_str() {
            "" => Ok(()),
            remedy => write!(f, ": {remedy}"),
        }
    }
}

impl Shortcoming {
    fn fatal(topic: Topic, detail: String, remedy: String) -> Self {
        Self {
            topic,
            detail,
            remedy,
            fatal: true,
        }
    }
}

/// What is wrong with the server and the user: known before there are any tables.
pub async fn of_server(clickhouse: &ClickHouse) -> Result<Vec<Shortcoming>, Error> {
    let mut shortcomings = Vec::new();
    match versions::CLICKHOUSE.judge(&clickhouse.version().await?) {
        Verdict::Fine => {}
        Verdict::Untried(detail) => shortcomings.push(Shortcoming {
            topic: Topic::Version,
            detail,
            remedy: String::new(),
            fatal: false,
        }),
        Verdict::TooOld { detail, remedy } => {
            shortcomings.push(Shortcoming::fatal(Topic::Version, detail, remedy));
        }
    }
    shortcomings.extend(of_settings(clickhouse).await?);
    shortcomings.extend(of_rights(clickhouse).await?);
    Ok(shortcomings)
}

/// The one right that nothing needs while all is well. Without it, nobody knows whether an
/// earlier writer's insert is still running, nor whether ClickHouse is the process that
/// knows a token: an outage would silently lose events or count them twice.
async fn of_rights(clickhouse: &ClickHouse) -> Result<Option<Shortcoming>, Error> {
    let sees_inserts = stored::may_see_processes(clickhouse).await?;
    if sees_inserts && clickhouse.visible_process().await?.is_some() {
        return Ok(None);
    }
    let user = quote_identifier(clickhouse.user());
    Ok(Some(Shortcoming::fatal(
        Topic::Rights,
        "system.processes cannot be read; it shows what a restart of ClickHouse may have lost"
            .to_owned(),
        format!("GRANT SELECT ON system.processes TO {user}"),
    )))
}

/// A setting that overrides `insert_deduplicate` if ClickHouse has it (measured on 26.7), and that
/// an insert cannot send, since older versions do not know it.
const OVERRIDE: &str = "deduplicate_insert";

#[derive(Row, Deserialize)]
struct Setting {
    name: String,
    value: String,
}

/// Runs a query under all that is asked for, and checks which settings took effect.
async fn of_settings(clickhouse: &ClickHouse) -> Result<Vec<Shortcoming>, Error> {
    let asked = insert_settings().map(|(name, _)| format!("'{name}'"));
    let names: Vec<String> = asked.chain([format!("'{OVERRIDE}'")]).collect();
    let names = names.join(", ");
    let sql = format!("SELECT name, value FROM system.settings WHERE name IN ({names})");
    match clickhouse.rows_under(insert_settings(), &sql).await {
        Ok(settings) => {
            let settings: Vec<Setting> = settings;
            let settings: HashMap<String, String> = settings
                .into_iter()
                .map(|Setting { name, value }| (name, value))
                .collect();
            Ok(differences(&settings, clickhouse.user()))
        }
        Err(Error::BadResponse(answer)) => match refusal(&answer, clickhouse.user()) {
            Some(shortcoming) => Ok(vec![shortcoming]),
            None => Err(Error::BadResponse(answer)),
        },
        Err(error) => Err(error),
    }
}

/// The settings that are asked for but not granted.
fn differences(settings: &HashMap<String, String>, user: &str) -> Vec<Shortcoming> {
    let user = quote_identifier(user);
    let asked = insert_settings().filter_map(|(name, wanted)| {
        let value = settings.get(name)?;
        (value != wanted).then(|| {
            let detail = format!("inserts ask for {name} = {wanted} and get {value}");
            let remedy = format!(
                "let proxies pass it on, then run ALTER USER {user} SETTINGS {name} = {wanted}"
            );
            Shortcoming::fatal(Topic::Settings, detail, remedy)
        })
    });
    let overridden = settings.get(OVERRIDE).filter(|value| *value == "disable");
    let overridden = overridden.map(|value| {
        let detail = format!("{OVERRIDE} is {value}, so a repeated insert would be stored again");
        let remedy = format!("ALTER USER {user} SETTINGS {OVERRIDE} = 'enable'");
        Shortcoming::fatal(Topic::Settings, detail, remedy)
    });
    asked.chain(overridden).collect()
}

/// What an answer that refuses an insert's settings means; `None` if it is about something else.
/// ClickHouse names only the first setting.
fn refusal(answer: &str, user: &str) -> Option<Shortcoming> {
    let code = codes::of_answer(answer)?;
    let words = || answer.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let (name, value) = insert_settings().find(|(name, _)| words().any(|word| word == *name))?;
    let user = quote_identifier(user);
    let (why, remedy) = match code {
        codes::UNKNOWN_SETTING => (
            "is not known to this ClickHouse",
            "upgrade ClickHouse".to_owned(),
        ),
        codes::READONLY => (
            "cannot be set by this user, who may only read",
            format!("ALTER USER {user} SETTINGS readonly = 0"),
        ),
        codes::SETTING_CONSTRAINT_VIOLATION => (
            "is pinned for this user by a constraint",
            format!("ALTER USER {user} SETTINGS {name} = {value} WRITABLE"),
        ),
        _ => return None,
    };
    let detail = format!("inserts ask for {name} = {value}, which {why}");
    Some(Shortcoming::fatal(Topic::Settings, detail, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_do_not_take_effect_are_named() {
        let mut settings: HashMap<String, String> = insert_settings()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        settings.insert(OVERRIDE.to_owned(), "enable".to_owned());
        assert_eq!(differences(&settings, "ann"), []);
        settings.insert("insert_deduplicate".to_owned(), "0".to_owned());
        settings.insert(OVERRIDE.to_owned(), "disable".to_owned());
        let details: Vec<String> = differences(&settings, "ann")
            .into_iter()
            .map(|shortcoming| format!("{}: {}", shortcoming.detail, shortcoming.remedy))
            .collect();
        assert_eq!(
            details,
            [
                "inserts ask for insert_deduplicate = 1 and get 0: let proxies pass it on, then run ALTER USER `ann` SETTINGS insert_deduplicate = 1",
                "deduplicate_insert is disable, so a repeated insert would be stored again: ALTER USER `ann` SETTINGS deduplicate_insert = 'enable'",
            ]
        );
    }

    #[test]
    fn a_refused_setting_is_told_from_other_errors() {
        let remedy = |answer| refusal(answer, "ann").map(|shortcoming| shortcoming.remedy);
        for (answer, statement) in [
            (
                "Code: 452. DB::Exception: Setting async_insert should not be changed. (SETTING_CONSTRAINT_VIOLATION)",
                "ALTER USER `ann` SETTINGS async_insert = 0 WRITABLE",
            ),
            (
                "Code: 452. DB::Exception: Setting max_partitions_per_insert_block shouldn't be less than 1. (SETTING_CONSTRAINT_VIOLATION)",
                "ALTER USER `ann` SETTINGS max_partitions_per_insert_block = 0 WRITABLE",
            ),
            (
                "Code: 164. DB::Exception: Cannot modify 'insert_deduplicate' setting in readonly mode. (READONLY)",
                "ALTER USER `ann` SETTINGS readonly = 0",
            ),
            (
                "Code: 115. DB::Exception: Unknown setting 'materialized_views_ignore_errors'. (UNKNOWN_SETTING)",
                "upgrade ClickHouse",
            ),
        ] {
            assert_eq!(remedy(answer).as_deref(), Some(statement), "{answer}");
        }
        for other in [
            "Code: 516. DB::Exception: ann: Authentication failed. (AUTHENTICATION_FAILED)",
            "Code: 164. DB::Exception: ann: Cannot execute query in readonly mode. (READONLY)",
            "502 Bad Gateway",
        ] {
            assert_eq!(remedy(other), None, "{other}");
        }
    }
}
