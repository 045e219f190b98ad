//! What travels over HTTP between a bridge and whoever asks it: each endpoint once, with its path, who
//! may ask it, its request and its answer. No IO: a bridge serves these endpoints, clients ask them, and the
//! OpenAPI description is made from them.
//!
//! Reading order: [`table`] (all endpoints) → [`commands`], [`fleet`], … (each with its bodies) → [`endpoint`] (what
//! an endpoint is) → [`access`] → [`parameters`] and [`request`] (how they are read and written) → [`problem`] →
//! [`description`].

pub mod access;
pub mod alerts;
pub mod audit;
pub mod commands;
pub mod config;
pub mod conflicts;
pub mod dead_letters;
pub mod description;
pub mod endpoint;
pub mod fan_out;
pub mod fleet;
pub mod groups;
pub mod ledger;
pub mod media;
pub mod parameters;
pub mod problem;
pub mod readings;
pub mod request;
pub mod sensors;
mod shapes;
pub mod status;
pub mod telemetry;
pub mod tokens;

pub use access::{Access, Role};
use description::Described;
pub use endpoint::{Endpoint, Listing, Nothing, Paged, Parameters};
pub use parameters::{Limit, OfCommand, OfDevice, Page, ROWS_MAX, Time, text};
pub use problem::Problem;
pub use request::{Request, RequestError};

/// Where the next page begins, of answers that are not JSON.
pub const NEXT: &str = "x-next";

/// Names a request in logs and answers.
pub const REQUEST_ID: &str = "x-request-id";

/// Names a request among those of its caller: the same one again is not a second one.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Makes the table of endpoints.
macro_rules! table {
    ($($endpoint:path),+ $(,)?) => {
        vec![$(Described::new::<$endpoint>()),+]
    };
}

/// All endpoints.
#[must_use]
pub fn table() -> Vec<Described> {
    table![
        alerts::ListAlerts,
        alerts::ShowAlert,
        alerts::AcknowledgeAlert,
        audit::ListAudit,
        commands::ListCommands,
        commands::SendCommand,
        commands::ShowCommand,
        commands::CancelCommand,
        config::ShowDeviceConfig,
        config::ChangeDeviceConfig,
        config::ListDeviceConfigHistory,
        conflicts::ListConflicts,
        dead_letters::ListDeadLetters,
        dead_letters::ShowDeadLetter,
        dead_letters::RetryDeadLetter,
        dead_letters::DiscardDeadLetter,
        fan_out::SendToMany,
        fan_out::ShowMany,
        fan_out::ListDevicesOf,
        fan_out::CancelMany,
        fleet::ListDevices,
        fleet::ShowDevice,
        fleet::LabelDevice,
        fleet::RetireDevice,
        fleet::ReinstateDevice,
        groups::ListGroups,
        groups::ShowGroupConfig,
        groups::ChangeGroupConfig,
        groups::ListGroupConfigHistory,
        ledger::ShowFleetLedger,
        ledger::ShowLedger,
        ledger::AcceptLoss,
        readings::SendReadings,
        sensors::ListSensors,
        status::ShowStatus,
        telemetry::ListReadings,
        telemetry::ShowLatest,
        telemetry::SumUpReadings,
        tokens::ListRevokedTokens,
        tokens::RevokeToken,
        tokens::ListRevokedSubjects,
        tokens::RevokeSubject,
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_endpoint_has_a_name_and_a_place_of_its_own() {
        let table = table();
        let names: HashSet<_> = table.iter().map(|of| of.name).collect();
        let places: HashSet<_> = table.iter().map(|of| (&of.method, of.path)).collect();
        assert_eq!((names.len(), places.len()), (table.len(), table.len()));
    }

    #[test]
    fn every_name_in_a_path_is_a_parameter_of_it() {
        for of in table() {
            let named: HashSet<&str> = of
                .path
                .split('/')
                .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
                .collect();
            assert_eq!(named, of.in_path(), "{}", of.name);
        }
    }
}
