//! The settings of a `modbus` source as they are written, and their checks. Every problem is noted, with the key that it
//! is about.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use schema::SensorName;
use serde::Deserialize;

use super::ModbusConfig;
use super::bus::Link;
use super::decimal::Scale;
use super::decode::{Encoding, Kind, Order};
use super::plan::{BITS_MAX, Limits, Point, REGISTERS_MAX, Table};
use super::rounds::Pauses;
use super::serial::{Mode8, Parity};
use crate::source::config::Section;
use crate::source::format::is_unit;

/// Most points of one source: what one append to the buffer takes.
pub const POINTS_MAX: usize = crate::ingest::APPEND_READINGS_MAX;

/// The port of the protocol.
const PORT: u16 = 502;

/// How often points are read that do not say it.
const INTERVAL: Duration = Duration::from_secs(10);
const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(86_400);

const INTERVAL_BOUNDS: &str = "must be from 50ms to 1day";

const UNIT_OF_LINE: &str = "must be from 1 to 247 on a serial line";

/// Devices on a line answer within a tenth of this; gateways to slow lines need more.
const TIMEOUT: Duration = Duration::from_secs(1);
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);

/// The longest pause between two requests that a device should need.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// A request costs as much of a line as about eight registers.
const GAP_MAX: u16 = 8;

/// Specified by the protocol.
const BAUD: u32 = 19_200;
const BAUDS: RangeInclusive<u32> = 300..=4_000_000;

/// The first pause and the longest, before something that failed is asked again.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Deserialize)]
pub(crate) struct RawModbus {
    tcp: Option<String>,
    serial: Option<PathBuf>,
    #[serde(default)]
    framing: Framing,
    baud: Option<u32>,
    parity: Option<Parity>,
    stop_bits: Option<u8>,
    unit_id: Option<u8>,
    #[serde(default)]
    order: Order,
    gap_max: Option<u16>,
    registers_max: Option<u16>,
    bits_max: Option<u16>,
    #[serde(default, with = "humantime_serde")]
    pause: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    backoff_max: Option<Duration>,
    #[serde(default)]
    point: Vec<RawPoint>,
}

/// What stands around a request in a network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Framing {
    #[default]
    Tcp,
    Rtu,
}

#[derive(Debug, Deserialize)]
struct RawPoint {
    sensor: String,
    unit_id: Option<u8>,
    table: Option<Table>,
    address: RawAddress,
    #[serde(rename = "type")]
    kind: Option<RawKind>,
    order: Option<Order>,
    bit: Option<u8>,
    length: Option<u16>,
    scale: Option<f64>,
    offset: Option<f64>,
    exact: Option<bool>,
    unit: Option<String>,
    #[serde(default, with = "humantime_serde")]
    interval: Option<Duration>,
}

/// Where a point is: the protocol's address, from 0, or the number that manuals print, from 1, behind the digit of its
/// table.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "an address is a number from 0 to 65535, or a text as \"40001\""
)]
enum RawAddress {
    Protocol(u16),
    Printed(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawKind {
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
    Bit,
    String,
}

/// Notes problems with one point.
struct Checks<'a, 'b> {
    point: usize,
    section: &'a mut Section<'b>,
}

impl Checks<'_, '_> {
    fn add(&mut self, key: &str, reason: impl Into<String>) {
        let point = self.point;
        self.section
            .problem(&format!("point[{point}].{key}"), reason);
    }

    fn check(&mut self, holds: bool, key: &str, reason: &str) {
        if !holds {
            self.add(key, reason);
        }
    }
}

/// Reads the section of a source of this kind.
pub(super) fn read(section: &mut Section<'_>) -> Option<ModbusConfig> {
    let interval = section.interval(INTERVAL, INTERVALS, INTERVAL_BOUNDS);
    let timeout = section.timeout(TIMEOUT, TIMEOUTS, "must be from 10ms to 60s");
    section
        .read::<RawModbus>()?
        .check(interval, timeout, section)
}

impl RawModbus {
    /// Checks all; what is returned is valid when no problem was noted.
    fn check(
        self,
        interval: Duration,
        timeout: Duration,
        section: &mut Section<'_>,
    ) -> Option<ModbusConfig> {
        let limits = Limits {
            gap_max: self.gap_max.unwrap_or(GAP_MAX),
            registers_max: self.registers_max.unwrap_or(REGISTERS_MAX),
            bits_max: self.bits_max.unwrap_or(BITS_MAX),
        };
        section.check(
            limits.gap_max <= REGISTERS_MAX,
            "gap_max",
            "must be from 0 to 125",
        );
        section.check(
            (1..=REGISTERS_MAX).contains(&limits.registers_max),
            "registers_max",
            "must be from 1 to 125, the protocol's limit",
        );
        section.check(
            (1..=BITS_MAX).contains(&limits.bits_max),
            "bits_max",
            "must be from 1 to 2000, the protocol's limit",
        );
        let pause = self.pause.unwrap_or_default();
        section.check(pause <= PAUSE_MAX, "pause", "must be at most 10s");
        let backoff_max = self.backoff_max.unwrap_or(BACKOFF_MAX);
        section.check(
            (BACKOFF_FIRST..=Duration::from_secs(3_600)).contains(&backoff_max),
            "backoff_max",
            "must be from 1s to 1h",
        );
        let link = self.link(section);
        section.check(
            self.serial.is_none() || is_unit_of_line(self.unit_id),
            "unit_id",
            UNIT_OF_LINE,
        );
        section.check(
            (1..=POINTS_MAX).contains(&self.point.len()),
            "point",
            format!("must stand at least once and at most {POINTS_MAX} times"),
        );
        let defaults = Defaults {
            unit_id: self.unit_id.unwrap_or(1),
            order: self.order,
            interval,
            // One that is noted already is not held against points, too.
            registers_max: match limits.registers_max {
                most @ 1..=REGISTERS_MAX => most,
                _ => REGISTERS_MAX,
            },
            is_line: self.serial.is_some(),
        };
        let mut sensors = BTreeSet::new();
        let mut points = Vec::new();
        for (point, raw) in self.point.into_iter().take(POINTS_MAX).enumerate() {
            let mut checks = Checks { point, section };
            if let Some(point) = raw.check(defaults, &mut checks) {
                if !sensors.insert(point.sensor.clone()) {
                    checks.add("sensor", format!("{} stands twice", point.sensor));
                }
                points.push(point);
            }
        }
        Some(ModbusConfig {
            link: link?,
            timeout,
            pause,
            pauses: Pauses {
                first: BACKOFF_FIRST,
                max: backoff_max,
            },
            limits,
            points,
        })
    }

    fn link(&self, section: &mut Section<'_>) -> Option<Link> {
        if self.serial.is_none() {
            for (key, is_set) in [
                ("baud", self.baud.is_some()),
                ("parity", self.parity.is_some()),
                ("stop_bits", self.stop_bits.is_some()),
            ] {
                section.check(!is_set, key, "is of a serial line: it goes with serial");
            }
        }
        match (&self.tcp, &self.serial) {
            (Some(tcp), None) => {
                let address = with_port(tcp);
                if address.is_none() {
                    section.problem(
                        "tcp",
                        format!("{tcp:?} is not of the form host or host:port"),
                    );
                }
                Some(Link::Tcp {
                    address: address?,
                    rtu: self.framing == Framing::Rtu,
                })
            }
            (None, Some(path)) => {
                let baud = self.baud.unwrap_or(BAUD);
                section.check(BAUDS.contains(&baud), "baud", "must be from 300 to 4000000");
                let parity = self.parity.unwrap_or_default();
                // A byte has eleven bits on the line: without a parity bit there are two stop bits. Most
                // devices that are set to no parity have one all the same.
                let stop_bits = self.stop_bits.unwrap_or(1);
                section.check((1..=2).contains(&stop_bits), "stop_bits", "must be 1 or 2");
                Some(Link::Serial {
                    path: section.path(path),
                    mode: Mode8 {
                        baud,
                        parity,
                        stop_bits,
                    },
                })
            }
            (None, None) | (Some(_), Some(_)) => {
                section.problem_of_all("needs either tcp = \"HOST\" or serial = \"/dev/…\"");
                None
            }
        }
    }
}

/// What holds for points that do not say otherwise.
#[derive(Clone, Copy)]
struct Defaults {
    unit_id: u8,
    order: Order,
    interval: Duration,
    registers_max: u16,
    is_line: bool,
}

impl RawPoint {
    fn check(self, defaults: Defaults, checks: &mut Checks<'_, '_>) -> Option<Point> {
        let sensor = match self.sensor.parse::<SensorName>() {
            Ok(sensor) => Some(sensor),
            Err(error) => {
                checks.add("sensor", error.to_string());
                None
            }
        };
        // Those of the source are checked there.
        checks.check(
            !defaults.is_line || is_unit_of_line(self.unit_id),
            "unit_id",
            UNIT_OF_LINE,
        );
        checks.check(
            self.interval.is_none_or(|own| INTERVALS.contains(&own)),
            "interval",
            INTERVAL_BOUNDS,
        );
        checks.check(
            self.unit.as_deref().is_none_or(is_unit),
            "unit",
            "must have 1 to 64 characters, none of them a control character",
        );
        let place = self.place(checks);
        let encoding = place.and_then(|(table, _)| self.encoding(table, defaults, checks));
        let ((table, address), encoding) = place.zip(encoding)?;
        let point = Point {
            sensor: sensor?,
            unit_id: self.unit_id.unwrap_or(defaults.unit_id),
            table,
            address,
            encoding,
            interval: self.interval.unwrap_or(defaults.interval),
            unit: self.unit.map(Into::into),
        };
        if u32::from(address) + u32::from(point.count()) > 65_536 {
            checks.add("address", "its last register is beyond 65535");
        }
        Some(point)
    }

    fn place(&self, checks: &mut Checks<'_, '_>) -> Option<(Table, u16)> {
        match (&self.address, self.table) {
            (RawAddress::Protocol(address), table) => {
                Some((table.unwrap_or(Table::Holding), *address))
            }
            (RawAddress::Printed(text), table) => match printed(text) {
                Some((found, _)) if table.is_some_and(|table| table != found) => {
                    checks.add("table", format!("is not that of address {text:?}, {found}"));
                    None
                }
                Some(place) => Some(place),
                None => {
                    checks.add(
                        "address",
                        format!(
                            "{text:?} is none: 0 (coil), 1 (discrete), 3 (input) or 4 (holding) with \
                             0001 to 9999 or 00001 to 65536 behind it, or a number from 0 to 65535"
                        ),
                    );
                    None
                }
            },
        }
    }

    /// What its registers hold; `Some(None)` for a bit of a table of bits.
    fn encoding(
        &self,
        table: Table,
        defaults: Defaults,
        checks: &mut Checks<'_, '_>,
    ) -> Option<Option<Encoding>> {
        let is_number = |kind| !matches!(kind, RawKind::Bit | RawKind::String);
        if table.is_bits() {
            let is_bit = self.kind.is_none_or(|kind| kind == RawKind::Bit);
            checks.check(is_bit, "type", "can only be bit in this table");
            for (key, is_set) in [
                ("bit", self.bit.is_some()),
                ("length", self.length.is_some()),
                ("order", self.order.is_some()),
                ("scale", self.scale.is_some()),
                ("offset", self.offset.is_some()),
                ("exact", self.exact.is_some()),
            ] {
                checks.check(!is_set, key, "is for registers: this table has bits");
            }
            return Some(None);
        }
        let Some(raw) = self.kind else {
            checks.add(
                "type",
                "is missing: u16, i16, u32, i32, u64, i64, f32, f64, bit or string",
            );
            return None;
        };
        for (key, is_set, suits) in [
            ("bit", self.bit.is_some(), raw == RawKind::Bit),
            ("length", self.length.is_some(), raw == RawKind::String),
            ("scale", self.scale.is_some(), is_number(raw)),
            ("offset", self.offset.is_some(), is_number(raw)),
            (
                "exact",
                self.exact.is_some(),
                matches!(raw, RawKind::F32 | RawKind::F64),
            ),
        ] {
            checks.check(!is_set || suits, key, "does not go with this type");
        }
        for (key, number) in [("scale", self.scale), ("offset", self.offset)] {
            let is_finite = number.is_none_or(f64::is_finite);
            checks.check(is_finite, key, "must be a finite number");
        }
        checks.check(self.scale != Some(0.0), "scale", "must not be 0");
        let kind = match raw {
            RawKind::U16 => Kind::U16,
            RawKind::I16 => Kind::I16,
            RawKind::U32 => Kind::U32,
            RawKind::I32 => Kind::I32,
            RawKind::U64 => Kind::U64,
            RawKind::I64 => Kind::I64,
            RawKind::F32 => Kind::F32,
            RawKind::F64 => Kind::F64,
            RawKind::Bit => Kind::Bit(self.place_of_bit(checks)?),
            RawKind::String => Kind::Text {
                registers: self.registers(checks)?,
            },
        };
        let count = kind.registers();
        if count > defaults.registers_max {
            let key = if raw == RawKind::String {
                "length"
            } else {
                "type"
            };
            let reason = format!("has {count} registers, more than registers_max allows at once");
            checks.add(key, reason);
        }
        let order = self.order.unwrap_or(match raw {
            // Those of a source are about numbers; a text's registers are in their order.
            RawKind::String if defaults.order != Order::SwappedBytes => Order::Big,
            _ => defaults.order,
        });
        checks.check(
            raw != RawKind::String || matches!(order, Order::Big | Order::SwappedBytes),
            "order",
            "must be big or swapped-bytes for a string",
        );
        let is_scaled = self.scale.is_some() || self.offset.is_some();
        Some(Some(Encoding {
            kind,
            order,
            scale: is_scaled
                .then(|| Scale::new(self.scale.unwrap_or(1.0), self.offset.unwrap_or(0.0))),
            exact: self.exact.unwrap_or_default(),
        }))
    }

    fn place_of_bit(&self, checks: &mut Checks<'_, '_>) -> Option<u8> {
        let place = self.bit.filter(|bit| *bit < 16);
        if place.is_none() {
            checks.add("bit", "must be from 0, the least significant, to 15");
        }
        place
    }

    fn registers(&self, checks: &mut Checks<'_, '_>) -> Option<u16> {
        let length = self.length.filter(|length| *length > 0);
        if length.is_none() {
            checks.add(
                "length",
                "must say how many registers the string fills, from 1",
            );
        }
        length
    }
}

/// Whether a device on a line can have this number; none is the default.
fn is_unit_of_line(unit_id: Option<u8>) -> bool {
    unit_id.is_none_or(|unit_id| (1..=247).contains(&unit_id))
}

/// The place that a manual's number means: `40001`, or `400001` where there are more than 9999.
fn printed(text: &str) -> Option<(Table, u16)> {
    let (table, number) = text.split_at_checked(1)?;
    let table = match table {
        "0" => Table::Coil,
        "1" => Table::Discrete,
        "3" => Table::Input,
        "4" => Table::Holding,
        _ => return None,
    };
    let is_number = matches!(number.len(), 4 | 5) && number.bytes().all(|one| one.is_ascii_digit());
    let number: u32 = number.parse().ok().filter(|_| is_number)?;
    Some((table, u16::try_from(number.checked_sub(1)?).ok()?))
}

/// `host:port`, with the protocol's port unless there is one. IPv6 stands in brackets.
fn with_port(text: &str) -> Option<String> {
    let (host, port) = match text.rsplit_once(':') {
        // The colon is the address's own.
        Some((_, last)) if last.ends_with(']') => (text, PORT),
        Some((host, port)) => (host, port.parse().ok()?),
        None => (text, PORT),
    };
    let is_bracketed = host.starts_with('[') && host.ends_with(']');
    let is_host = !host.is_empty()
        && !host.contains(|one: char| one.is_whitespace() || one == '/')
        && (is_bracketed || !host.contains(':'))
        && port > 0;
    is_host.then(|| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests;
