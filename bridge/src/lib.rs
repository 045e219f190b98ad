//! Telemetry from MQTT into SQL.

pub mod store;
