//! TLS: whom to trust, and why a server is not trusted.

use std::error::Error;
use std::io;

use rustls::{CertificateError, ClientConfig, RootCertStore};

use crate::config::Authority;

/// Trusts the system's certificate authorities and these.
pub fn trusting(authority: &Authority) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    // Those that cannot be read are missing, and connections that need them say so.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots.add_parsable_certificates(authority.certificates().iter().cloned());
    ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Why there is no TLS with a server that answers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("its certificate is not valid: {0}")]
    Certificate(String),
    #[error("it does not speak TLS on this port")]
    NoTls,
}

/// Checks whether an error is about TLS.
pub fn fault(error: &(dyn Error + 'static)) -> Option<Fault> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref() {
            Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                let why = "no trusted authority has signed it";
                return Some(Fault::Certificate(why.to_owned()));
            }
            Some(rustls::Error::InvalidCertificate(why)) => {
                return Some(Fault::Certificate(why.to_string()));
            }
            Some(rustls::Error::InvalidMessage(_)) => return Some(Fault::NoTls),
            _ => {}
        }
        // An I/O error's source is that of the error inside it, not that error itself.
        let inside = error.downcast_ref().and_then(io::Error::get_ref);
        cause = match inside {
            Some(inside) => Some(inside),
            None => error.source(),
        };
    }
    None
}
