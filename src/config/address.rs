use std::fmt;
use std::net::IpAddr;

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

    pub fn is_https(&self) -> bool {
        self.0.starts_with("https://")
    }

    /// Whether it is on this machine.
    pub fn is_local(&self) -> bool {
        self.parts().all(|(_, host)| {
            let host = host.split('/').next().unwrap_or_default();
            let host = match host.strip_prefix('[') {
                Some(address) => address.split(']').next(),
                None => host.split(':').next(),
            };
            let host = host.unwrap_or_default();
            let address = host.parse::<IpAddr>();
            host == "localhost" || address.is_ok_and(|address| address.is_loopback())
        })
    }

    /// Scheme and host, with port and path, of each address.
    fn parts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.split(',').map(|one| {
            let (scheme, rest) = one.split_once("://").unwrap_or(("", one));
            let host = rest
                .rsplit_once('@')
                .map_or(rest, |(_credentials, host)| host);
            let host = host
                .split_once('?')
                .map_or(host, |(host, _parameters)| host);
            (scheme, host)
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (scheme, host)) in self.parts().enumerate() {
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

    #[test]
    fn an_address_is_local_where_it_is_of_this_machine() {
        for local in [
            "http://localhost:8123",
            "http://ann:s3cret@127.0.0.1:8123/?a=b",
            "http://[::1]:8123",
            "localhost",
        ] {
            assert!(Address::new(local).is_local(), "{local}");
        }
        for elsewhere in [
            "http://clickhouse:8123",
            "https://10.0.0.1/localhost",
            "http://[fe80::1]:8123",
            "http://localhost.example.org",
        ] {
            assert!(!Address::new(elsewhere).is_local(), "{elsewhere}");
        }
    }
}
