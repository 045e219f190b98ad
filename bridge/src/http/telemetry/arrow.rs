//! Readings as an Arrow IPC stream: a data frame reads it without parsing, and every value keeps
//! its type and its bits.
//!
//! | column | type |
//! |---|---|
//! | sensor, quality, epoch | dictionary of text |
//! | observed_at, received_at | timestamp in microseconds, UTC |
//! | value_f64, value_i64, value_bool, value_text | nullable; one of them is set |
//! | hlc, seq | u64 |
//!
//! One answer is one stream of one record batch. Its schema's metadata name the device, `tideline.device`, and say what its
//! sensors are, `tideline.sensors`, as the API lists them. Of one sensor alone, the fields of values have `unit` and `description`.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::builder::{
    BooleanBuilder, Float64Builder, Int64Builder, StringBuilder, StringDictionaryBuilder,
    TimestampMicrosecondBuilder, UInt64Builder,
};
use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, RecordBatch};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Field, Schema, TimeUnit};
use schema::{DeviceId, Value};

use api::sensors::SensorBody;
use store::StoredReading;

use super::super::sensors;
use super::units::Units;

const UTC: &str = "UTC";

/// The stream.
pub(super) fn readings(
    device: &DeviceId,
    readings: &[StoredReading],
    units: &Units,
    of_one: bool,
) -> Result<Vec<u8>, ArrowError> {
    let schema = Arc::new(schema_of(device, units, of_one));
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns(readings)?)?;
    let mut writer = StreamWriter::try_new(Vec::new(), &schema)?;
    writer.write(&batch)?;
    writer.into_inner()
}

fn schema_of(device: &DeviceId, units: &Units, of_one: bool) -> Schema {
    let sensors: Vec<SensorBody> = units.all().cloned().map(sensors::body).collect();
    let mut of_values = HashMap::new();
    if let ([sensor], true) = (&sensors[..], of_one) {
        for (key, text) in [("unit", &sensor.unit), ("description", &sensor.description)] {
            if let Some(text) = text {
                of_values.insert(key.to_owned(), text.clone());
            }
        }
    }
    let value =
        |name: &str, of: DataType| Field::new(name, of, true).with_metadata(of_values.clone());
    let text = || DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let time = || DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into()));
    let fields = vec![
        Field::new("sensor", text(), false),
        Field::new("observed_at", time(), false),
        value("value_f64", DataType::Float64),
        value("value_i64", DataType::Int64),
        value("value_bool", DataType::Boolean),
        value("value_text", DataType::Utf8),
        Field::new("quality", text(), false),
        Field::new("hlc", DataType::UInt64, false),
        Field::new("epoch", text(), false),
        Field::new("seq", DataType::UInt64, false),
        Field::new("received_at", time(), false),
    ];
    let mut metadata = HashMap::from([("tideline.device".to_owned(), device.to_string())]);
    if !sensors.is_empty() {
        // Plain values are always written.
        let sensors = serde_json::to_string(&sensors).unwrap_or_default();
        metadata.insert("tideline.sensors".to_owned(), sensors);
    }
    Schema::new(fields).with_metadata(metadata)
}

fn columns(readings: &[StoredReading]) -> Result<Vec<ArrayRef>, ArrowError> {
    let time = || TimestampMicrosecondBuilder::new().with_timezone(UTC);
    let mut sensor = StringDictionaryBuilder::<Int32Type>::new();
    let mut quality = StringDictionaryBuilder::<Int32Type>::new();
    let mut epoch = StringDictionaryBuilder::<Int32Type>::new();
    let (mut observed_at, mut received_at) = (time(), time());
    let (mut f64s, mut i64s) = (Float64Builder::new(), Int64Builder::new());
    let (mut bools, mut texts) = (BooleanBuilder::new(), StringBuilder::new());
    let (mut hlc, mut seq) = (UInt64Builder::new(), UInt64Builder::new());
    for reading in readings {
        sensor.append(reading.sensor.as_str())?;
        observed_at.append_value(reading.observed_at.micros());
        let (mut number, mut whole, mut truth, mut text) = (None, None, None, None);
        match &reading.value {
            Value::F64(value) => number = Some(*value),
            Value::I64(value) => whole = Some(*value),
            Value::Bool(value) => truth = Some(*value),
            Value::Text(value) => text = Some(value),
        }
        f64s.append_option(number);
        i64s.append_option(whole);
        bools.append_option(truth);
        texts.append_option(text);
        quality.append(reading.quality.as_str())?;
        hlc.append_value(reading.version.hlc.bits());
        epoch.append(reading.version.epoch.to_string())?;
        seq.append_value(reading.version.seq);
        received_at.append_value(reading.received_at.micros());
    }
    Ok(vec![
        Arc::new(sensor.finish()),
        Arc::new(observed_at.finish()),
        Arc::new(f64s.finish()),
        Arc::new(i64s.finish()),
        Arc::new(bools.finish()),
        Arc::new(texts.finish()),
        Arc::new(quality.finish()),
        Arc::new(hlc.finish()),
        Arc::new(epoch.finish()),
        Arc::new(seq.finish()),
        Arc::new(received_at.finish()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::cast::AsArray as _;
    use arrow_array::types::{Float64Type, Int64Type, TimestampMicrosecondType, UInt64Type};
    use arrow_array::{Array as _, StringArray};
    use arrow_ipc::reader::StreamReader;
    use proptest::prelude::*;
    use schema::time::ReceivedAt;
    use schema::{Epoch, Hlc, ObservedAt, Quality, Version};

    /// What a reader of the stream finds.
    fn read(stream: &[u8]) -> Vec<StoredReading> {
        let reader = StreamReader::try_new(stream, None).unwrap();
        assert_eq!(reader.schema().metadata()["tideline.device"], "press-7");
        let mut found = Vec::new();
        for batch in reader {
            let batch = batch.unwrap();
            let column = |name: &str| batch.column_by_name(name).unwrap();
            let text = |name: &str, at: usize| {
                let dictionary = column(name).as_dictionary::<Int32Type>();
                let values: &StringArray = dictionary.values().as_string();
                values
                    .value(dictionary.keys().value(at) as usize)
                    .to_owned()
            };
            let time = |name: &str, at: usize| {
                column(name)
                    .as_primitive::<TimestampMicrosecondType>()
                    .value(at)
            };
            for at in 0..batch.num_rows() {
                let set = |name: &str| column(name).is_valid(at);
                let value = match [
                    set("value_f64"),
                    set("value_i64"),
                    set("value_bool"),
                    set("value_text"),
                ] {
                    [true, false, false, false] => {
                        Value::F64(column("value_f64").as_primitive::<Float64Type>().value(at))
                    }
                    [false, true, false, false] => {
                        Value::I64(column("value_i64").as_primitive::<Int64Type>().value(at))
                    }
                    [false, false, true, false] => {
                        Value::Bool(column("value_bool").as_boolean().value(at))
                    }
                    [false, false, false, true] => {
                        Value::Text(column("value_text").as_string::<i32>().value(at).into())
                    }
                    other => panic!("{other:?}"),
                };
                let number = |name: &str| column(name).as_primitive::<UInt64Type>().value(at);
                found.push(StoredReading {
                    sensor: text("sensor", at).parse().unwrap(),
                    observed_at: ObservedAt::from_micros(time("observed_at", at)),
                    value,
                    quality: serde_json::from_value(text("quality", at).into()).unwrap(),
                    version: Version {
                        hlc: Hlc::from_bits(number("hlc")),
                        epoch: Epoch::try_from(
                            u64::from_str_radix(&text("epoch", at), 16).unwrap(),
                        )
                        .unwrap(),
                        seq: number("seq"),
                    },
                    received_at: ReceivedAt::from_micros(time("received_at", at)),
                });
            }
        }
        found
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            (-1e300..1e300f64).prop_map(Value::F64),
            any::<i64>().prop_map(Value::I64),
            any::<bool>().prop_map(Value::Bool),
            ".{0,20}".prop_map(|text| Value::Text(text.into())),
        ]
    }

    fn reading() -> impl Strategy<Value = StoredReading> {
        let version = (any::<u64>(), 1..=Epoch::MAX, any::<u64>());
        (
            "[a-c°]{1,2}",
            any::<i64>(),
            value(),
            0..3u8,
            version,
            any::<i64>(),
        )
            .prop_map(
                |(sensor, observed, value, quality, (hlc, epoch, seq), received)| StoredReading {
                    sensor: sensor.parse().unwrap(),
                    observed_at: ObservedAt::from_micros(observed),
                    value,
                    quality: Quality::try_from(quality).unwrap(),
                    version: Version {
                        hlc: Hlc::from_bits(hlc),
                        epoch: Epoch::try_from(epoch).unwrap(),
                        seq,
                    },
                    received_at: ReceivedAt::from_micros(received),
                },
            )
    }

    proptest! {
        #[test]
        fn a_stream_reads_back_as_it_was(rows in prop::collection::vec(reading(), 0..50)) {
            let stream = readings(&"press-7".parse().unwrap(), &rows, &Units::default(), false).unwrap();
            prop_assert_eq!(read(&stream), rows);
        }
    }

    #[test]
    fn a_schema_says_what_its_sensors_are() {
        let kept = |sensor: &str, unit: &str| store::sensors::KeptSensor {
            sensor: sensor.parse().unwrap(),
            declaration: schema::SensorDeclaration {
                unit: Some(unit.to_owned()),
                description: Some("oil".to_owned()),
                ..schema::SensorDeclaration::default()
            },
            version: Hlc::from_bits(7),
            declared_at: ReceivedAt::from_micros(0),
        };
        let device = "press-7".parse().unwrap();
        let check = |kept: Vec<_>, of_one: bool, unit: Option<&str>| {
            let count = kept.len();
            let units = Units::from_iter(kept);
            let stream = readings(&device, &[], &units, of_one).unwrap();
            let reader = StreamReader::try_new(&stream[..], None).unwrap();
            let schema = reader.schema();
            let field = schema.field_with_name("value_f64").unwrap();
            assert_eq!(field.metadata().get("unit").map(String::as_str), unit);
            let sensors = schema.metadata().get("tideline.sensors");
            let sensors =
                sensors.map(|text| serde_json::from_str::<Vec<SensorBody>>(text).unwrap());
            assert_eq!(sensors.unwrap_or_default().len(), count);
        };
        check(vec![kept("a", "Cel")], true, Some("Cel"));
        // Readings of others may come on the next page.
        check(vec![kept("a", "Cel")], false, None);
        check(vec![kept("a", "Cel"), kept("b", "K")], false, None);
        check(Vec::new(), true, None);
    }

    #[test]
    fn columns_have_their_types() {
        let names: Vec<String> = schema_of(&"d".parse().unwrap(), &Units::default(), false)
            .fields()
            .iter()
            .map(|field| format!("{} {}", field.name(), field.data_type()))
            .collect();
        let text = "Dictionary(Int32, Utf8)";
        let time = "Timestamp(µs, \"UTC\")";
        assert_eq!(
            names,
            [
                format!("sensor {text}"),
                format!("observed_at {time}"),
                "value_f64 Float64".to_owned(),
                "value_i64 Int64".to_owned(),
                "value_bool Boolean".to_owned(),
                "value_text Utf8".to_owned(),
                format!("quality {text}"),
                "hlc UInt64".to_owned(),
                format!("epoch {text}"),
                "seq UInt64".to_owned(),
                format!("received_at {time}"),
            ]
        );
    }
}
