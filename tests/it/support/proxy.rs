//! A TCP proxy between the daemon and one of its servers: a connection that can be
//! slow, silent or gone while both ends are well.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// What happens to the bytes on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Passes,
    /// Each piece waits this long, in either direction.
    Delays(Duration),
    /// Connections stay open and nothing gets through, until bytes pass again.
    Stalls,
    /// Connections are cut, and so is each new one.
    Refuses,
}

#[derive(Debug, Clone, Copy)]
struct State {
    link: Link,
    /// How often all connections have been cut.
    cuts: u64,
}

/// Listens on the loopback address until it is dropped.
pub struct Proxy {
    port: u16,
    state: watch::Sender<State>,
    _accepting: AbortOnDropHandle<()>,
}

impl Proxy {
    /// A proxy to the server on this port of the loopback address.
    pub async fn to(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (state, observed) = watch::channel(State {
            link: Link::Passes,
            cuts: 0,
        });
        let accepting = tokio::spawn(accept(listener, server, observed));
        Self {
            port,
            state,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn set(&self, link: Link) {
        self.state.send_modify(|state| {
            state.link = link;
            state.cuts += u64::from(link == Link::Refuses);
        });
    }

    /// Ends all connections as they are; new ones can be made at once.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }
}

async fn accept(listener: TcpListener, server: u16, state: watch::Receiver<State>) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let mut state = state.clone();
        let State { link, cuts } = *state.borrow();
        if link == Link::Refuses {
            reset(&client);
            continue;
        }
        tokio::spawn(async move {
            let mut client = client;
            let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await else {
                reset(&client);
                return;
            };
            let observed = state.clone();
            let ended = tokio::select! {
                ended = carry(&mut client, &mut server, &observed) => ended,
                _ = state.wait_for(|state| state.cuts != cuts) => Err(io::ErrorKind::ConnectionReset.into()),
            };
            if ended.is_err() {
                reset(&client);
                reset(&server);
            }
        });
    }
}

/// Closing the connection then tells the other end that it broke, not that it ended.
fn reset(connection: &TcpStream) {
    // This fails where the other end was faster.
    let _ = connection.set_zero_linger();
}

/// Carries bytes in both directions until both have ended.
async fn carry(
    client: &mut TcpStream,
    server: &mut TcpStream,
    state: &watch::Receiver<State>,
) -> io::Result<()> {
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::try_join!(
        carry_one_way(from_client, to_server, state.clone()),
        carry_one_way(from_server, to_client, state.clone()),
    )?;
    Ok(())
}

async fn carry_one_way(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut state: watch::Receiver<State>,
) -> io::Result<()> {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut bytes).await?;
        let passing = state.wait_for(|state| state.link != Link::Stalls).await;
        let link = passing.map_or(Link::Refuses, |state| state.link);
        if let Link::Delays(delay) = link {
            tokio::time::sleep(delay).await;
        }
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&bytes[..length]).await?;
    }
}
