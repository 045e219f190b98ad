//! A TCP proxy before a database: a node that goes and comes back, and one that loses its answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A running proxy; dropping it ends its listener.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<State>,
    up: watch::Sender<bool>,
    listener: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    /// The answer to this many requests from now is lost; 0 where none is.
    lose: AtomicU64,
    lost: AtomicU64,
}

impl Proxy {
    /// Forwards to this `host:port`.
    pub async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let (up, is_up) = watch::channel(true);
        let shared = state.clone();
        let listener = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (state, mut is_up) = (shared.clone(), is_up.clone());
                let target = target.clone();
                tokio::spawn(async move {
                    if *is_up.borrow() {
                        tokio::select! {
                            () = forward(client, &target, &state) => {}
                            _ = is_up.wait_for(|up| !up) => {}
                        }
                    }
                });
            }
        });
        Self {
            address,
            state,
            up,
            listener,
        }
    }

    /// Cuts all connections and takes no new ones, or takes them again.
    pub fn set_up(&self, up: bool) {
        self.up.send_replace(up);
    }

    /// Whatever is asked next reaches the database; its answer is lost with the connection.
    pub fn lose_next_answer(&self) {
        self.lose_answer_after(0);
    }

    /// The same of what is asked after `passing` other requests.
    pub fn lose_answer_after(&self, passing: u64) {
        self.state.lose.store(passing + 1, Ordering::SeqCst);
    }

    /// How many answers were lost.
    pub fn lost_answers(&self) -> u64 {
        self.state.lost.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

async fn forward(mut client: TcpStream, target: &str, state: &State) {
    let mut server = TcpStream::connect(target).await.unwrap();
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut asked, mut answered) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut doomed = false;
    loop {
        tokio::select! {
            read = client.read(&mut asked) => match read {
                Ok(0) | Err(_) => return,
                Ok(bytes) => {
                    let count = |left: u64| left.checked_sub(1);
                    let (set, get) = (Ordering::SeqCst, Ordering::SeqCst);
                    doomed |= state.lose.fetch_update(set, get, count) == Ok(1);
                    if server.write_all(&asked[..bytes]).await.is_err() {
                        return;
                    }
                }
            },
            read = server.read(&mut answered) => match read {
                Ok(0) | Err(_) => return,
                Ok(_) if doomed => {
                    state.lost.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                Ok(bytes) => {
                    if client.write_all(&answered[..bytes]).await.is_err() {
                        return;
                    }
                }
            },
        }
    }
}
