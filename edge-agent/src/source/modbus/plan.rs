//! Points → the requests that read them. Pure.
//!
//! Points of one unit, table and interval that stand near each other are read with one request, over gaps of at
//! most `gap_max`. A device may have no register in such a gap, and then refuses all of the request: [`Group::split`]
//! parts it where it is most likely to help, again and again, until what is left alone is at fault itself.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use schema::SensorName;

use super::decode::Encoding;

/// Most registers in one request, and most single bits: what an answer of the protocol holds.
pub const REGISTERS_MAX: u16 = 125;
/// See [`REGISTERS_MAX`].
pub const BITS_MAX: u16 = 2_000;

/// The four tables of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Table {
    /// Bits that can be written.
    Coil,
    /// Bits that cannot.
    Discrete,
    /// Registers that cannot be written.
    Input,
    /// Registers that can.
    Holding,
}

/// One value of a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// The sensor whose readings it gives.
    pub sensor: SensorName,
    /// Which device on the bus.
    pub unit_id: u8,
    /// In which of its tables.
    pub table: Table,
    /// The address of its first register or bit, as the protocol counts: from 0.
    pub address: u16,
    /// What its registers hold; `None` for the tables of bits.
    pub encoding: Option<Encoding>,
    /// Between two readings.
    pub interval: Duration,
    /// The unit of measure.
    pub unit: Option<Arc<str>>,
}

/// How far points are read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most registers (or bits) between two points of a request that nobody wants.
    pub gap_max: u16,
    /// Most registers in one request.
    pub registers_max: u16,
    /// Most bits in one request.
    pub bits_max: u16,
}

/// What one point, or several with the same registers, need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    address: u16,
    count: u16,
    /// Places of the points in their list.
    points: Vec<usize>,
}

/// What one request reads: spans in the order of their addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    unit_id: u8,
    table: Table,
    interval: Duration,
    spans: Vec<Span>,
}

impl Table {
    /// Whether it is one of bits.
    #[must_use]
    pub const fn is_bits(self) -> bool {
        matches!(self, Self::Coil | Self::Discrete)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Coil => "coil",
            Self::Discrete => "discrete",
            Self::Input => "input",
            Self::Holding => "holding",
        })
    }
}

impl Point {
    /// How many registers or bits it fills.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.encoding
            .map_or(1, |encoding| encoding.kind.registers())
    }
}

impl Limits {
    const fn count_max(&self, table: Table) -> u16 {
        if table.is_bits() {
            self.bits_max
        } else {
            self.registers_max
        }
    }
}

impl Span {
    /// One beyond its last address.
    fn end(&self) -> u32 {
        u32::from(self.address) + u32::from(self.count)
    }

    /// Where its registers stand in an answer, and its points.
    #[must_use]
    pub fn points(&self) -> &[usize] {
        &self.points
    }

    /// The address of its first register.
    #[must_use]
    pub const fn address(&self) -> u16 {
        self.address
    }
}

impl Group {
    /// Which device on the bus.
    #[must_use]
    pub const fn unit_id(&self) -> u8 {
        self.unit_id
    }

    /// In which of its tables.
    #[must_use]
    pub const fn table(&self) -> Table {
        self.table
    }

    /// Between two requests.
    #[must_use]
    pub const fn interval(&self) -> Duration {
        self.interval
    }

    /// What is wanted of the answer.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Its first address.
    #[must_use]
    pub fn address(&self) -> u16 {
        self.spans.first().map_or(0, |span| span.address)
    }

    /// How many registers or bits it reads.
    #[must_use]
    pub fn count(&self) -> u16 {
        let end = self.spans.iter().map(Span::end).max().unwrap_or(0);
        u16::try_from(end - u32::from(self.address())).unwrap_or(u16::MAX)
    }

    /// All its points.
    pub fn points(&self) -> impl Iterator<Item = usize> {
        self.spans
            .iter()
            .flat_map(|span| span.points.iter().copied())
    }

    /// Parts it at its widest gap, of equal ones at the one nearest to its middle; `None` when it is one span.
    #[must_use]
    pub fn split(&self) -> Option<(Self, Self)> {
        let middle = self.spans.len() / 2;
        let gap = |at: &usize| {
            let before = self.spans[..*at].iter().map(Span::end).max().unwrap_or(0);
            i64::from(self.spans[*at].address) - i64::from(before)
        };
        let at = (1..self.spans.len()).max_by_key(|at| {
            let from_middle = i64::try_from(at.abs_diff(middle)).unwrap_or(i64::MAX);
            (gap(at), -from_middle)
        })?;
        let part = |spans: &[Span]| Self {
            spans: spans.to_vec(),
            ..*self
        };
        Some((part(&self.spans[..at]), part(&self.spans[at..])))
    }
}

/// The requests that read all points, in the order of units, intervals, tables and addresses.
#[must_use]
pub fn plan(points: &[Point], limits: Limits) -> Vec<Group> {
    let mut order: Vec<usize> = (0..points.len()).collect();
    let key = |at: usize| {
        let point = &points[at];
        (
            point.unit_id,
            point.interval,
            point.table,
            point.address,
            point.count(),
        )
    };
    order.sort_by_key(|at| key(*at));
    let mut groups: Vec<Group> = Vec::new();
    for at in order {
        let point = &points[at];
        let span = Span {
            address: point.address,
            count: point.count(),
            points: vec![at],
        };
        match groups.last_mut() {
            Some(group) if group.takes(point, &span, limits) => match group.spans.last_mut() {
                Some(last) if (last.address, last.count) == (span.address, span.count) => {
                    last.points.push(at);
                }
                _ => group.spans.push(span),
            },
            _ => groups.push(Group {
                unit_id: point.unit_id,
                table: point.table,
                interval: point.interval,
                spans: vec![span],
            }),
        }
    }
    groups
}

impl Group {
    /// Whether a span that begins no earlier than its last one can be read with it.
    fn takes(&self, point: &Point, span: &Span, limits: Limits) -> bool {
        let end = u32::from(self.address()) + u32::from(self.count());
        let with = span.end().max(end) - u32::from(self.address());
        (self.unit_id, self.table, self.interval) == (point.unit_id, point.table, point.interval)
            && u32::from(span.address) <= end + u32::from(limits.gap_max)
            && with <= u32::from(limits.count_max(self.table))
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode::{Kind, Order};
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        gap_max: 8,
        registers_max: REGISTERS_MAX,
        bits_max: BITS_MAX,
    };

    fn register(address: u16, kind: Kind) -> Point {
        Point {
            sensor: format!("at/{address}").parse().unwrap(),
            unit_id: 1,
            table: Table::Holding,
            address,
            encoding: Some(Encoding {
                kind,
                order: Order::Big,
                scale: None,
                exact: false,
            }),
            interval: Duration::from_secs(10),
            unit: None,
        }
    }

    fn bit(address: u16) -> Point {
        Point {
            table: Table::Coil,
            encoding: None,
            ..register(address, Kind::U16)
        }
    }

    /// The first address and the count of each request.
    fn requests(points: &[Point], limits: Limits) -> Vec<(u16, u16)> {
        let groups = plan(points, limits);
        groups
            .iter()
            .map(|one| (one.address(), one.count()))
            .collect()
    }

    #[test]
    fn neighbours_are_read_together_over_small_gaps() {
        let points = |gap: u16| [register(10, Kind::F32), register(12 + gap, Kind::U16)];
        assert_eq!(requests(&points(7), LIMITS), [(10, 10)]);
        assert_eq!(requests(&points(8), LIMITS), [(10, 11)]);
        assert_eq!(requests(&points(9), LIMITS), [(10, 2), (21, 1)]);
        let touching = Limits {
            gap_max: 0,
            ..LIMITS
        };
        assert_eq!(requests(&points(0), touching), [(10, 3)]);
        assert_eq!(requests(&points(1), touching), [(10, 2), (13, 1)]);
    }

    #[test]
    fn a_request_keeps_to_what_an_answer_holds() {
        let registers = |count| {
            (0..count)
                .map(|at| register(at, Kind::U16))
                .collect::<Vec<_>>()
        };
        assert_eq!(requests(&registers(124), LIMITS), [(0, 124)]);
        assert_eq!(requests(&registers(125), LIMITS), [(0, 125)]);
        assert_eq!(requests(&registers(126), LIMITS), [(0, 125), (125, 1)]);
        let bits = |count| (0..count).map(bit).collect::<Vec<_>>();
        assert_eq!(requests(&bits(1_999), LIMITS), [(0, 1_999)]);
        assert_eq!(requests(&bits(2_000), LIMITS), [(0, 2_000)]);
        assert_eq!(requests(&bits(2_001), LIMITS), [(0, 2_000), (2_000, 1)]);
        let few = Limits {
            registers_max: 4,
            ..LIMITS
        };
        let wide = [register(0, Kind::U16), register(1, Kind::F64)];
        assert_eq!(requests(&wide, few), [(0, 1), (1, 4)]);
    }

    #[test]
    fn the_last_address_is_read() {
        assert_eq!(
            requests(&[register(65_532, Kind::F64)], LIMITS),
            [(65_532, 4)]
        );
        assert_eq!(requests(&[bit(65_535), bit(65_534)], LIMITS), [(65_534, 2)]);
    }

    #[test]
    fn units_tables_and_intervals_are_asked_apart() {
        let one = register(0, Kind::U16);
        let other_unit = Point {
            unit_id: 2,
            ..register(1, Kind::U16)
        };
        let other_table = Point {
            table: Table::Input,
            ..register(1, Kind::U16)
        };
        let other_interval = Point {
            interval: Duration::from_secs(1),
            ..register(1, Kind::U16)
        };
        let all = [one, other_unit, other_table, other_interval];
        assert_eq!(plan(&all, LIMITS).len(), 4);
    }

    #[test]
    fn points_of_one_register_share_a_span() {
        let points = [
            register(3, Kind::Bit(0)),
            register(4, Kind::U16),
            register(3, Kind::Bit(7)),
        ];
        let groups = plan(&points, LIMITS);
        let spans: Vec<&[usize]> = groups[0].spans().iter().map(Span::points).collect();
        assert_eq!(spans, [&[0, 2][..], &[1]]);
    }

    #[test]
    fn a_group_parts_at_its_widest_gap_and_then_in_the_middle() {
        let points: Vec<Point> = [0, 1, 2, 6, 7, 9].map(|at| register(at, Kind::U16)).into();
        let group = plan(&points, LIMITS).remove(0);
        let of = |group: &Group| (group.address(), group.count());
        let (low, high) = group.split().unwrap();
        assert_eq!((of(&low), of(&high)), ((0, 3), (6, 4)));
        let (first, rest) = low.split().unwrap();
        assert_eq!((of(&first), of(&rest)), ((0, 1), (1, 2)));
        let (seven, nine) = high.split().unwrap();
        assert_eq!((of(&seven), of(&nine)), ((6, 2), (9, 1)));
        assert_eq!(nine.split(), None);
    }

    #[test]
    fn spans_that_overlap_part_too() {
        let points = [register(0, Kind::U32), register(1, Kind::U16)];
        let group = plan(&points, LIMITS).remove(0);
        assert_eq!(group.count(), 2);
        let (low, high) = group.split().unwrap();
        assert_eq!((low.count(), high.count()), (2, 1));
    }

    fn any_point() -> impl Strategy<Value = Point> {
        let kind = prop::sample::select(vec![
            Kind::U16,
            Kind::F32,
            Kind::F64,
            Kind::Text { registers: 20 },
        ]);
        (0u16..400, kind, 1u8..3, any::<bool>()).prop_map(|(address, kind, unit_id, is_bit)| {
            let point = if is_bit {
                bit(address)
            } else {
                register(address, kind)
            };
            Point { unit_id, ..point }
        })
    }

    proptest! {
        #[test]
        fn each_point_is_read_once_within_the_limits_however_it_is_split(
            points in prop::collection::vec(any_point(), 0..80),
            gap_max in 0u16..40, registers_max in 20u16..=125, bits_max in 1u16..=2000,
        ) {
            let limits = Limits { gap_max, registers_max, bits_max };
            let mut left = plan(&points, limits);
            let mut read = Vec::new();
            while let Some(group) = left.pop() {
                prop_assert!((1..=limits.count_max(group.table)).contains(&group.count()));
                for span in group.spans() {
                    for at in span.points() {
                        prop_assert_eq!((points[*at].address, points[*at].count()), (span.address, span.count));
                        prop_assert_eq!((points[*at].unit_id, points[*at].table), (group.unit_id, group.table));
                    }
                }
                match group.split() {
                    Some((low, high)) => left.extend([low, high]),
                    None => read.extend(group.points()),
                }
            }
            read.sort_unstable();
            prop_assert_eq!(read, (0..points.len()).collect::<Vec<_>>());
        }
    }
}
