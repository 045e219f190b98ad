//! What the sensors of this machine are, by their names.

use schema::sensor::Precision;
use schema::{SensorDeclaration, ValueType};

/// What a sensor of this source is.
pub(super) fn of(sensor: &str) -> SensorDeclaration {
    let (end, of_type) = (
        sensor.rsplit('/').next().unwrap_or(sensor),
        ValueType::Float,
    );
    let float = |unit: &str, text: &str| declared(unit, text, of_type);
    let whole = |unit: &str, text: &str| declared(unit, text, ValueType::Integer);
    match end {
        "busy_ratio" => SensorDeclaration {
            min: Some(0.0),
            max: Some(1.0),
            precision: Some(Precision::Decimals(4)),
            ..float("1", "share of the time in which the processor is busy")
        },
        "celsius" => SensorDeclaration {
            precision: Some(Precision::Decimals(3)),
            ..float("Cel", "temperature")
        },
        "receive_bytes_per_second" => float("By/s", "bytes received"),
        "transmit_bytes_per_second" => float("By/s", "bytes sent"),
        "uptime_seconds" => whole("s", "time since the machine started"),
        "total_bytes" => whole("By", "size"),
        "available_bytes" => whole("By", "what is free for use"),
        "used_bytes" => whole("By", "what is in use"),
        "1m" | "5m" | "15m" => float("1", "processes that run or wait to, on average"),
        _ => SensorDeclaration::default(),
    }
}

fn declared(unit: &str, description: &str, value_type: ValueType) -> SensorDeclaration {
    SensorDeclaration {
        unit: Some(unit.to_owned()),
        description: Some(description.to_owned()),
        value_type: Some(value_type),
        ..SensorDeclaration::default()
    }
}
