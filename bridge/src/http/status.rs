//! How the bridge and its fleet stand, in one answer.

use api::status::StatusBody;
use axum::extract;
use axum::{Extension, Json};
use daemon::Health;
use daemon::health::State;

use super::Shared;
use super::problem::Problem;
use crate::intake::Broker;

/// The process around the API.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// The connection to the broker.
    pub(crate) broker: Broker,
    /// The database, without passwords.
    pub(crate) database: String,
    /// How the parts of the process are.
    pub(crate) health: Health,
}

/// Shows how the bridge and its fleet stand.
pub(super) async fn show(
    extract::State(store): Shared,
    Extension(host): Extension<Host>,
) -> Result<Json<StatusBody>, Problem> {
    let fleet = store.fleet_size().await?;
    let states = host.health.states().into_iter();
    let components = states.map(|(name, state)| (name.to_owned(), text(&state)));
    Ok(Json(StatusBody {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        database: host.database,
        broker_connected: host.broker.is_connected(),
        components: components.collect(),
        devices: fleet.devices,
        devices_online: fleet.online,
        devices_retired: fleet.retired,
        alerts_firing: store.alerts_firing().await?,
    }))
}

fn text(state: &State) -> String {
    match state {
        State::Ready => "ready".to_owned(),
        State::Waiting(reason) => format!("waiting: {reason}"),
        State::Broken(reason) => format!("broken: {reason}"),
    }
}
