//! Certificates of an authority that nobody knows, and a TLS end in front of a server
//! that has none.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

pub struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// Files in PEM.
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        write(&dir.path().join("authority.pem"), &certificate.pem());
        let issuer = Issuer::new(params, key);
        Self { dir, issuer }
    }

    /// Its own certificate.
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("authority.pem")
    }

    /// What a server of this name, or address, shows.
    pub fn identity(&self, name: &str) -> Identity {
        let server_key = KeyPair::generate().unwrap();
        let server = CertificateParams::new([name.to_owned()]).unwrap();
        let server = server.signed_by(&server_key, &self.issuer).unwrap();
        let [certificate, key] =
            ["pem", "key"].map(|end| self.dir.path().join(format!("{name}.{end}")));
        write(&certificate, &server.pem());
        write(&key, &server_key.serialize_pem());
        Identity { certificate, key }
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

/// Listens on the loopback address until it is dropped.
pub struct TlsEnd {
    pub port: u16,
    _accepting: AbortOnDropHandle<()>,
}

impl TlsEnd {
    /// TLS as this identity, in front of the server on this port of the loopback address.
    pub async fn before(server: u16, identity: &Identity) -> Self {
        let certificates = CertificateDer::pem_file_iter(&identity.certificate).unwrap();
        let key = PrivateKeyDer::from_pem_file(&identity.key).unwrap();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(certificates.map(Result::unwrap).collect(), key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepting = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // A client that does not trust it leaves.
                    let Ok(mut client) = acceptor.accept(client).await else {
                        return;
                    };
                    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, server))
                        .await
                        .unwrap();
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self {
            port,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }
}
