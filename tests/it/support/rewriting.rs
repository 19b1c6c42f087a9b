//! A proxy that changes what passes: for servers that are set up in a way that the
//! tests' servers cannot be.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Starts one in front of `upstream` and returns its address. Each text that is found in
/// what one read gives, in either direction, is replaced.
pub async fn start(upstream: &str, changes: &[(&str, &str)]) -> SocketAddr {
    let upstream = upstream.rsplit('/').next().unwrap().to_owned();
    let changes: Arc<[(String, String)]> = changes
        .iter()
        .map(|(from, to)| ((*from).to_owned(), (*to).to_owned()))
        .collect();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = TcpStream::connect(&upstream).await else {
                continue;
            };
            let (client, server) = (client.into_split(), server.into_split());
            tokio::spawn(copy(client.0, server.1, Arc::clone(&changes)));
            tokio::spawn(copy(server.0, client.1, Arc::clone(&changes)));
        }
    });
    address
}

async fn copy(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    changes: Arc<[(String, String)]>,
) {
    let mut buffer = vec![0; 65_536];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let mut bytes = buffer[..count].to_vec();
        for (old, new) in changes.iter() {
            bytes = replace(&bytes, old.as_bytes(), new.as_bytes());
        }
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

fn replace(bytes: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    let mut replaced = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = rest.windows(old.len()).position(|window| window == old) {
        replaced.extend_from_slice(&rest[..at]);
        replaced.extend_from_slice(new);
        rest = &rest[at + old.len()..];
    }
    replaced.extend_from_slice(rest);
    replaced
}
