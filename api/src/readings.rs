//! Readings over HTTP: handed in, and what became of them.

use schema::SeqRange;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::Ref;
use utoipa::openapi::path::Operation;

use crate::OfDevice;
use crate::description::{answers_as, takes_as};
use crate::endpoint::endpoint;
use crate::media::BATCH;
use crate::shapes::{QualityShape, RangeShape, ValueShape};

endpoint! {
    /// Takes readings in
    ///
    /// For devices that cannot use MQTT. Answers after the database has committed. The same (epoch, sequence) again is
    /// the same reading, so whoever heard no answer sends the same again; 503 says when.
    SendReadings: POST "/api/v1/devices/{device}/readings", WriteReadings, "telemetry";
    path OfDevice; body NewReadings; answer Settlement; also describe_send; shapes BatchBytes, NewReading
}

/// Readings to take in
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NewReadings {
    /// Names this series of sequences: 12 hexadecimal digits, made at random once.
    #[schema(pattern = "^[0-9A-Fa-f]{12}$", example = "00c0ffee0001")]
    pub epoch: String,
    /// The sequence of the first reading; the others follow. Or each has a `seq` of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub first_seq: Option<u64>,
    /// In what numbers for `observed_at` count: `s`, `ms`, `us` or `ns`; microseconds unless it is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^(s|ms|us|ns)$", example = "us")]
    pub timestamp_unit: Option<String>,
    /// Of them a bridge says which it does not understand, and why.
    #[schema(value_type = Vec<NewReading>, min_items = 1, max_items = 4096)]
    pub readings: Vec<Value>,
}

/// A reading to take in
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NewReading {
    /// Which sensor.
    #[schema(min_length = 1, max_length = 128, example = "temperature")]
    pub sensor: String,
    /// RFC 3339, or a number in the body's `timestamp_unit` since the Unix epoch. One that looks like another unit
    /// is refused.
    #[schema(value_type = String, example = "2026-07-01T12:00:00.5Z")]
    pub observed_at: Value,
    /// A whole number of 64 bits when it is written as one, else a float; texts have at most 1 KiB.
    #[schema(value_type = ValueShape)]
    pub value: schema::Value,
    /// `f64`, `i64`, `bool` or `text`: what the value is to be. `f64` makes a float of a whole number.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// How far it is to be trusted; `good` unless it is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<QualityShape>)]
    pub quality: Option<schema::Quality>,
    /// The version's clock, 64 bits as a number or as digits; else it follows from the time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hlc: Option<u64>,
    /// Its sequence, where the body has no `first_seq`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
}

/// One batch, the bytes of an `up/telemetry` payload
#[derive(Debug, ToSchema)]
#[schema(value_type = String, format = Binary)]
pub struct BatchBytes(pub Vec<u8>);

/// What became of readings
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Settlement {
    /// The sequences' epoch.
    pub epoch: String,
    /// In the database, now or before.
    #[schema(value_type = Vec<RangeShape>)]
    pub committed: Vec<SeqRange>,
    /// Refused, with the reason. They are yours: the ledger knows nothing of them, and they may come
    /// again once what is wrong is mended.
    #[serde(default)]
    #[schema(required)]
    pub refused: Vec<RefusedBody>,
    /// What `refused` was called before 0.2.
    pub rejected: Vec<RefusedBody>,
}

/// A reading that is refused
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RefusedBody {
    /// Its sequence.
    pub seq: u64,
    /// Why, as `too_new`.
    pub reason: String,
}

fn describe_send(operation: &mut Operation) {
    takes_as(operation, BATCH, Ref::from_schema_name("BatchBytes").into());
    answers_as(operation, "What became of them", &[]);
}
