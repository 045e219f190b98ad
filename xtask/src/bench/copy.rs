//! One COPY from memory: what a database can take at most from one connection.

use std::time::Instant;

use sqlx::PgConnection;

/// Bytes that travel at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// Copies rows in COPY's binary format into a table. Returns how many they are, and how many a second.
pub(super) async fn copy_in(
    connection: &mut PgConnection,
    table: &str,
    data: &[u8],
) -> sqlx::Result<(u64, f64)> {
    let started = Instant::now();
    let statement = format!("COPY {table} FROM STDIN (FORMAT binary)");
    let mut copy = connection.copy_in_raw(&statement).await?;
    for chunk in data.chunks(CHUNK_BYTES) {
        copy.send(chunk).await?;
    }
    let rows = copy.finish().await?;
    Ok((rows, rows as f64 / started.elapsed().as_secs_f64()))
}
