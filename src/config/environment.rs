//! Environment variables that override the file.

use std::path::PathBuf;

use secrecy::SecretString;

use super::load::ConfigError;
use super::{Address, Config, Database, values};

/// An environment variable, and what it overrides.
pub struct Variable {
    pub name: &'static str,
    /// The key, or a description if it is not the key itself.
    pub sets: &'static str,
    set: fn(&mut Config, String) -> Result<(), String>,
}

/// All of them. Later ones win: a secret's own variable comes after that of its file.
pub const ENVIRONMENT: &[Variable] = &[
    Variable {
        name: "ANALYTICS_HOST",
        sets: "server.host",
        set: |config, host| {
            config.server.host = host
                .parse()
                .map_err(|_| format!("`{host}` is not an IP address"))?;
            Ok(())
        },
    },
    Variable {
        name: "ANALYTICS_PORT",
        sets: "server.port",
        set: |config, port| {
            config.server.port = port
                .parse()
                .map_err(|_| format!("`{port}` is not a port"))?;
            Ok(())
        },
    },
    Variable {
        name: "ANALYTICS_NATS_URL",
        sets: "integrations.messaging.nats_url",
        set: |config, url| {
            let url = Address::new(url);
            values::check_nats_url(&url)?;
            config.integrations.messaging.nats_url = url;
            Ok(())
        },
    },
    Variable {
        name: "ANALYTICS_NATS_USERNAME",
        sets: "integrations.messaging.username",
        set: |config, name| {
            config.integrations.messaging.username = Some(name);
            Ok(())
        },
    },
    Variable {
        name: "ANALYTICS_NATS_PASSWORD_FILE",
        sets: "a file that holds integrations.messaging.password",
        set: |config, file| {
            config.integrations.messaging.password = Some(secret_in(&file)?);
            Ok(())
        },
    },
    Variable {
        name: "ANALYTICS_NATS_PASSWORD",
        sets: "integrations.messaging.password",
        set: |config, password| {
            config.integrations.messaging.password = Some(password.into());
            Ok(())
        },
    },
    Variable {
        name: "ANALYTICS_NATS_TOKEN_FILE",
        sets: "a file that holds integrations.messaging.token",
        set: |config, file| {
            config.integrations.messaging.token = Some(secret_in(&file)?);
            Ok(())
        },
    },
    Variable {
        name: "ANALYTICS_NATS_TOKEN",
        sets: "integrations.messaging.token",
        set: |config, token| {
            config.integrations.messaging.token = Some(token.into());
            Ok(())
        },
    },
    Variable {
        name: "ANALYTICS_NATS_CREDENTIALS_FILE",
        sets: "integrations.messaging.credentials_file",
        set: |config, file| {
            config.integrations.messaging.credentials_file = Some(PathBuf::from(file));
            Ok(())
        },
    },
    Variable {
        name: "ANALYTICS_DB_URL",
        sets: "server.db_url",
        set: |config, url| {
            config.server.db_url = Database::parse(&url)?;
            Ok(())
        },
    },
    Variable {
        name: "ANALYTICS_DB_USER",
        sets: "server.db_user",
        set: |config, user| {
            config.server.db_user = user;
            Ok(())
        },
    },
    Variable {
        name: "ANALYTICS_DB_PASSWORD_FILE",
        sets: "a file that holds server.db_password",
        set: |config, file| {
            config.server.db_password = Some(secret_in(&file)?);
            Ok(())
        },
    },
    Variable {
        name: "ANALYTICS_DB_PASSWORD",
        sets: "server.db_password",
        set: |config, password| {
            config.server.db_password = Some(password.into());
            Ok(())
        },
    },
    Variable {
        name: "ANALYTICS_DB_NAME",
        sets: "server.db_name",
        set: |config, name| {
            config.server.db_name = name;
            Ok(())
        },
    },
    Variable {
        name: "ANALYTICS_BASE_DIR",
        sets: "server.base_dir",
        set: |config, dir| {
            config.server.base_dir = PathBuf::from(dir);
            Ok(())
        },
    },
];

impl Config {
    /// Applies the overrides of [`ENVIRONMENT`], looked up through `env`.
    pub(super) fn override_from(
        &mut self,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<(), ConfigError> {
        for Variable { name, set, .. } in ENVIRONMENT {
            // An empty variable counts as unset: compose files and unit files often
            // pass one through without a value.
            if let Some(value) = env(name).filter(|value| !value.is_empty()) {
                set(self, value).map_err(|message| ConfigError::Environment { name, message })?;
            }
        }
        Ok(())
    }
}

/// The file's text, without the line break that an editor adds.
pub fn secret_in(file: &str) -> Result<SecretString, String> {
    let text =
        std::fs::read_to_string(file).map_err(|error| format!("cannot read `{file}`: {error}"))?;
    Ok(text.trim_end_matches(['\r', '\n']).into())
}
