use super::*;
use crate::source::trial::{check_problems, source};

/// A source with these lines, and a point with those.
fn with(lines: &str, point: &str) -> String {
    format!(
        "[source.press]\nkind = \"modbus\"\n{lines}\n[[source.press.point]]\nsensor = \"s\"\n{point}\n"
    )
}

fn understood(lines: &str, point: &str) -> String {
    source(&with(lines, point)).unwrap()
}

/// Checks that a source or its point has one problem, with that key.
fn refused(lines: &str, point: &str, problem: &str) {
    check_problems(&with(lines, point), &[&format!("source.press.{problem}")]);
}

const TCP: &str = "tcp = \"plc\"";
const POINT: &str = "address = 7\ntype = \"u16\"";

#[test]
fn what_is_written_is_understood() {
    let found = understood(
        "tcp = \"10.0.0.7:1502\"\nunit_id = 3\norder = \"CDAB\"\ntimeout = \"300ms\"\npause = \"5ms\"",
        "table = \"input\"\naddress = 40\ntype = \"f32\"\nscale = 0.1\noffset = -40\nunit = \"Cel\"\ninterval = \"2s\"",
    );
    for part in [
        "address: \"10.0.0.7:1502\", rtu: false",
        "timeout: 300ms, pause: 5ms",
        "unit_id: 3, table: Input, address: 40",
        "kind: F32, order: SwappedWords",
        "factor: 0.1, offset: -40.0",
        "exact: false",
        "interval: 2s, unit: Some(\"Cel\")",
    ] {
        assert!(found.contains(part), "{part}: {found}");
    }
    let found = understood(
        "serial = \"/dev/ttyUSB0\"\nbaud = 9600\nparity = \"none\"",
        POINT,
    );
    for part in [
        "path: \"/dev/ttyUSB0\"",
        "baud: 9600, parity: None, stop_bits: 1",
        "unit_id: 1, table: Holding, address: 7",
        "scale: None",
        "interval: 10s",
    ] {
        assert!(found.contains(part), "{part}: {found}");
    }
}

#[test]
fn defaults_of_the_source_hold_for_points_that_do_not_say_otherwise() {
    let lines = "tcp = \"plc\"\norder = \"little\"\nunit_id = 9\ninterval = \"30s\"";
    assert!(understood(lines, POINT).contains("order: Little"));
    let own = "address = 7\ntype = \"u32\"\norder = \"big\"\nunit_id = 2\ninterval = \"1s\"";
    let found = understood(lines, own);
    assert!(
        found.contains("order: Big") && found.contains("unit_id: 2"),
        "{found}"
    );
    assert!(found.contains("interval: 1s"), "{found}");
    let text = "address = 7\ntype = \"string\"\nlength = 4";
    assert!(
        understood(lines, text).contains("order: Big"),
        "words of a text stay"
    );
}

#[test]
fn addresses_may_be_those_of_manuals() {
    for (text, place) in [
        ("00001", (Table::Coil, 0)),
        ("19999", (Table::Discrete, 9_998)),
        ("30001", (Table::Input, 0)),
        ("40108", (Table::Holding, 107)),
        ("400108", (Table::Holding, 107)),
        ("465536", (Table::Holding, 65_535)),
    ] {
        assert_eq!(printed(text), Some(place), "{text}");
    }
    for text in [
        "", "4", "4001", "40000", "400000", "465537", "20001", "4000001", "4000x", "4+001", "é0001",
    ] {
        assert_eq!(printed(text), None, "{text}");
    }
    let point = "address = \"30005\"\ntype = \"i16\"";
    assert!(understood(TCP, point).contains("table: Input, address: 4"));
    refused(
        TCP,
        "table = \"coil\"\naddress = \"30005\"",
        "point[0].table is not that of address \"30005\", input",
    );
    let error = source(&with(TCP, "address = \"4x01\"\ntype = \"u16\"")).unwrap_err();
    assert!(
        error.contains("source.press.point[0].address \"4x01\" is none: 0 (coil)"),
        "{error}"
    );
    for other in ["-1", "65536", "1.5", "true"] {
        let error = source(&with(TCP, &format!("address = {other}\ntype = \"u16\""))).unwrap_err();
        assert!(
            error.contains("an address is a number from 0 to 65535, or a text"),
            "{error}"
        );
    }
}

#[test]
fn hosts_have_the_protocols_port_unless_they_say_another() {
    for (text, address) in [
        ("plc", "plc:502"),
        ("10.0.0.7", "10.0.0.7:502"),
        ("plc:1502", "plc:1502"),
        ("[fe80::1]", "[fe80::1]:502"),
        ("[::1]:5020", "[::1]:5020"),
    ] {
        assert_eq!(with_port(text).as_deref(), Some(address));
    }
    for text in [
        "",
        ":502",
        "plc:",
        "plc:0",
        "plc:65536",
        "::1",
        "a b",
        "tcp://plc",
        "plc:x",
    ] {
        assert_eq!(with_port(text), None, "{text}");
    }
    refused(
        "tcp = \"tcp://plc\"",
        POINT,
        "tcp \"tcp://plc\" is not of the form host or host:port",
    );
}

#[test]
fn a_source_has_one_bus() {
    let needs = "needs either tcp = \"HOST\" or serial = \"/dev/…\"";
    for lines in ["", "tcp = \"plc\"\nserial = \"/dev/ttyS0\""] {
        check_problems(&with(lines, POINT), &[&format!("source.press {needs}")]);
    }
    refused(
        "tcp = \"plc\"\nbaud = 9600",
        POINT,
        "baud is of a serial line: it goes with serial",
    );
    let found = understood("tcp = \"plc\"\nframing = \"rtu\"", POINT);
    assert!(found.contains("rtu: true"), "{found}");
}

#[test]
fn each_limit_is_met_at_it_and_not_beyond() {
    let line = |text: &str| format!("serial = \"/dev/ttyS0\"\n{text}");
    for (good, bad, problem) in [
        (
            vec!["gap_max = 0", "gap_max = 125"],
            vec!["gap_max = 126"],
            "gap_max must be from 0 to 125",
        ),
        (
            vec!["registers_max = 1", "registers_max = 125"],
            vec!["registers_max = 0", "registers_max = 126"],
            "registers_max must be from 1 to 125, the protocol's limit",
        ),
        (
            vec!["bits_max = 1", "bits_max = 2000"],
            vec!["bits_max = 0", "bits_max = 2001"],
            "bits_max must be from 1 to 2000, the protocol's limit",
        ),
        (
            vec!["timeout = \"10ms\"", "timeout = \"60s\""],
            vec!["timeout = \"9ms\"", "timeout = \"60001ms\""],
            "timeout must be from 10ms to 60s",
        ),
        (
            vec!["pause = \"10s\""],
            vec!["pause = \"10001ms\""],
            "pause must be at most 10s",
        ),
        (
            vec!["backoff_max = \"1s\"", "backoff_max = \"1h\""],
            vec!["backoff_max = \"999ms\"", "backoff_max = \"3601s\""],
            "backoff_max must be from 1s to 1h",
        ),
        (
            vec!["baud = 300", "baud = 4000000"],
            vec!["baud = 299", "baud = 4000001"],
            "baud must be from 300 to 4000000",
        ),
        (
            vec!["stop_bits = 1", "stop_bits = 2"],
            vec!["stop_bits = 0", "stop_bits = 3"],
            "stop_bits must be 1 or 2",
        ),
        (
            vec!["unit_id = 1", "unit_id = 247"],
            vec!["unit_id = 0", "unit_id = 248"],
            "unit_id must be from 1 to 247 on a serial line",
        ),
    ] {
        for text in good {
            understood(&line(text), POINT);
        }
        for text in bad {
            refused(&line(text), POINT, problem);
        }
    }
    for interval in ["49ms", "86401s"] {
        let lines = format!("{TCP}\ninterval = \"{interval}\"");
        refused(&lines, POINT, "interval must be from 50ms to 1day");
    }
    for unit_id in ["0", "248"] {
        let point = format!("{POINT}\nunit_id = {unit_id}");
        let problem = "point[0].unit_id must be from 1 to 247 on a serial line";
        refused(&line(""), &point, problem);
    }
    for unit_id in ["0", "255"] {
        understood(TCP, &format!("{POINT}\nunit_id = {unit_id}"));
    }
    for interval in ["50ms", "1day"] {
        understood(TCP, &format!("{POINT}\ninterval = \"{interval}\""));
    }
    for interval in ["49ms", "86401s"] {
        let point = format!("{POINT}\ninterval = \"{interval}\"");
        refused(TCP, &point, "point[0].interval must be from 50ms to 1day");
    }
}

#[test]
fn the_last_register_is_the_last() {
    understood(TCP, "address = 65535\ntype = \"u16\"");
    understood(TCP, "address = 65532\ntype = \"f64\"");
    understood(TCP, "address = 65535\ntable = \"coil\"");
    refused(
        TCP,
        "address = 65533\ntype = \"f64\"",
        "point[0].address its last register is beyond 65535",
    );
    understood(TCP, "address = 0\ntype = \"string\"\nlength = 125");
    refused(
        TCP,
        "address = 0\ntype = \"string\"\nlength = 126",
        "point[0].length has 126 registers, more than registers_max allows at once",
    );
    refused(
        "tcp = \"plc\"\nregisters_max = 3",
        "address = 0\ntype = \"i64\"",
        "point[0].type has 4 registers, more than registers_max allows at once",
    );
}

#[test]
fn keys_go_with_types() {
    for (point, problem) in [
        (
            "address = 0",
            "type is missing: u16, i16, u32, i32, u64, i64, f32, f64, bit or string",
        ),
        (
            "address = 0\ntype = \"bit\"",
            "bit must be from 0, the least significant, to 15",
        ),
        (
            "address = 0\ntype = \"bit\"\nbit = 16",
            "bit must be from 0, the least significant, to 15",
        ),
        (
            "address = 0\ntype = \"u16\"\nbit = 1",
            "bit does not go with this type",
        ),
        (
            "address = 0\ntype = \"string\"",
            "length must say how many registers the string fills, from 1",
        ),
        (
            "address = 0\ntype = \"u16\"\nlength = 1",
            "length does not go with this type",
        ),
        (
            "address = 0\ntype = \"bit\"\nbit = 1\nscale = 2.0",
            "scale does not go with this type",
        ),
        (
            "address = 0\ntype = \"u16\"\nexact = true",
            "exact does not go with this type",
        ),
        (
            "address = 0\ntype = \"u16\"\nscale = 0.0",
            "scale must not be 0",
        ),
        (
            "address = 0\ntype = \"u16\"\noffset = nan",
            "offset must be a finite number",
        ),
        (
            "address = 0\ntype = \"string\"\nlength = 2\norder = \"little\"",
            "order must be big or swapped-bytes for a string",
        ),
        (
            "address = 0\ntable = \"coil\"\ntype = \"u16\"",
            "type can only be bit in this table",
        ),
        (
            "address = 0\ntable = \"discrete\"\nscale = 2.0",
            "scale is for registers: this table has bits",
        ),
        (
            "address = 0\ntype = \"u16\"\nunit = \"\"",
            "unit must have 1 to 64 characters, none of them a control character",
        ),
    ] {
        refused(TCP, point, &format!("point[0].{problem}"));
    }
    for bit in ["0", "15"] {
        understood(TCP, &format!("address = 0\ntype = \"bit\"\nbit = {bit}"));
    }
}

#[test]
fn all_problems_are_named_at_once() {
    let text = "[source.press]\nkind = \"modbus\"\ntcp = \"a b\"\ngap_max = 200\n\
        [[source.press.point]]\nsensor = \"\"\naddress = 0\ntype = \"u16\"\n\
        [[source.press.point]]\nsensor = \"x\"\naddress = 0\ntype = \"u16\"\n\
        [[source.press.point]]\nsensor = \"x\"\naddress = \"9\"\n\
        [[source.press.point]]\nsensor = \"x\"\naddress = 1\ntype = \"u16\"\n";
    let found = source(text).unwrap_err();
    for problem in [
        "source.press.gap_max must be",
        "source.press.tcp \"a b\"",
        "source.press.point[0].sensor ",
        "source.press.point[2].address \"9\" is none",
        "source.press.point[3].sensor x stands twice",
    ] {
        assert!(found.contains(problem), "{problem}: {found}");
    }
    assert_eq!(found.lines().count(), 6, "{found}");
    let unknown = with(TCP, &format!("{POINT}\nregister = 1"));
    check_problems(
        &unknown,
        &["source.press.point[0].register is not a known key"],
    );
}

#[test]
fn points_are_bounded() {
    let points = |count: usize| {
        let point = |at| {
            format!("[[source.press.point]]\nsensor = \"{at}\"\naddress = {at}\ntype = \"u16\"\n")
        };
        let points: String = (0..count).map(point).collect();
        format!("[source.press]\nkind = \"modbus\"\n{TCP}\n{points}")
    };
    let problem = "source.press.point must stand at least once and at most 4096 times";
    check_problems(&points(0), &[problem]);
    for count in [1, POINTS_MAX - 1, POINTS_MAX] {
        source(&points(count)).unwrap();
    }
    check_problems(&points(POINTS_MAX + 1), &[problem]);
}
