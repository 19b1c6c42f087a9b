//! TLS: whom to trust, and what is wrong with a server's certificate.

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

/// Why the certificate does not hold, where that is what an error is about.
pub fn certificate_fault(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref() {
            Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                return Some("no authority that is trusted here has signed it".to_owned());
            }
            Some(rustls::Error::InvalidCertificate(fault)) => return Some(fault.to_string()),
            _ => {}
        }
        // An I/O error's source is that of the error inside, not that error itself.
        let inside = error.downcast_ref().and_then(io::Error::get_ref);
        cause = match inside {
            Some(inside) => Some(inside),
            None => error.source(),
        };
    }
    None
}
