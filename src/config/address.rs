use std::fmt;

use serde::Deserialize;

/// A server's address, which may carry a user and a password. Both are left out
/// wherever it is shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Address(String);

impl Address {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The address as configured, secrets included: for connecting, not for showing.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, one) in self.0.split(',').enumerate() {
            let (scheme, rest) = one
                .split_once("://")
                .map_or(("", one), |(scheme, rest)| (scheme, rest));
            let host = rest
                .rsplit_once('@')
                .map_or(rest, |(_credentials, host)| host);
            let host = host
                .split_once('?')
                .map_or(host, |(host, _parameters)| host);
            let comma = if i == 0 { "" } else { "," };
            let colon = if scheme.is_empty() { "" } else { "://" };
            write!(f, "{comma}{scheme}{colon}{host}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn credentials_are_never_shown() {
        let address = Address::new("nats://ann:s3cret@a:4222,nats://token@b:4222,c:4222");
        assert_eq!(address.to_string(), "nats://a:4222,nats://b:4222,c:4222");
        assert!(!format!("{address:?}").contains("s3cret"));
        assert_eq!(
            Address::new("http://host:8123/?user=ann&password=s3cret").to_string(),
            "http://host:8123/"
        );
    }
}
