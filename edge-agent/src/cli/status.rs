//! `status`: gets the status of the agent that runs on this machine.

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::StatusCode;
use daemon::settings::Given;
use daemon::{Class, Failure, say, stdout};

use crate::config::Settings;
use crate::status::Status;

/// How long a running agent may take to answer `status`.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// Prints the status of the agent at `http`, or at the admin address of the settings file.
pub(super) async fn status(
    given: &Given,
    http: Option<SocketAddr>,
    json: bool,
) -> Result<(), Failure> {
    let address = match http {
        Some(address) => address,
        None => Settings::load_admin(given)
            .map_err(|failure| failure.help("--http says where the agent answers"))?,
    };
    let request = async {
        let client = reqwest::Client::builder()
            .timeout(STATUS_TIMEOUT)
            .no_proxy()
            .build()?;
        let answer = client
            .get(format!("http://{address}/status"))
            .send()
            .await?;
        if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
            return answer.text().await.map(Err);
        }
        answer.error_for_status()?.json::<Status>().await.map(Ok)
    };
    let answer = request.await.map_err(|error| {
        Failure::new(Class::Network, format!("ask the agent at {address}"))
            .because(error)
            .help("is the agent running, and is this its [admin] http address?")
    })?;
    let status = answer.map_err(|reason| {
        let what = format!("ask the agent at {address}: it has not started yet");
        Failure::new(Class::Storage, what).because(reason)
    })?;
    if json {
        let text = serde_json::to_string(&status)
            .map_err(|error| Failure::new(Class::Data, "print the status").because(error))?;
        say!("{text}");
    } else {
        stdout::print_bytes(status.to_string().as_bytes());
    }
    Ok(())
}
