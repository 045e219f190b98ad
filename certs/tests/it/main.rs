//! Certificates against real sockets, files, processes and other people's programs.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers too"
)]

mod command;
mod fleet;
mod handshake;
mod hostile;
mod machine;
mod outsiders;
mod tls_files;
