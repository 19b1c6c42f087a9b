use std::path::PathBuf;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};

/// The operator's own certificate authorities: a PEM file, read when the configuration is.
#[derive(Clone)]
pub struct Authority {
    path: PathBuf,
    certificates: Vec<CertificateDer<'static>>,
}

impl Authority {
    pub(super) fn read(path: PathBuf) -> Result<Self, String> {
        let shown = path.display();
        let fault = |error: pem::Error| match error {
            pem::Error::Io(error) => format!("cannot read `{shown}`: {error}"),
            error => format!("`{shown}` contains no PEM certificate: {error}"),
        };
        let certificates: Vec<_> = CertificateDer::pem_file_iter(&path)
            .and_then(Iterator::collect)
            .map_err(fault)?;
        if certificates.is_empty() {
            return Err(fault(pem::Error::NoItemsFound));
        }
        for certificate in &certificates {
            RootCertStore::empty()
                .add(certificate.clone())
                .map_err(|error| format!("`{shown}` contains no certificate authority: {error}"))?;
        }
        Ok(Self { path, certificates })
    }

    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.path.fmt(f)
    }
}
