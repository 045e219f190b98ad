use proptest::prelude::*;

use super::*;

fn layout_of(header: &str, hints: &Hints) -> Result<Layout, HeaderError> {
    Layout::of(header.split(',').map(str::as_bytes), hints)
}

fn plain(header: &str) -> Layout {
    layout_of(header, &Hints::default()).unwrap()
}

fn read(layout: &Layout, row: &str) -> Result<Row, Flaw> {
    layout.row(row.split(',').map(str::as_bytes))
}

/// Sensors and values of a row without flaws.
fn cells(layout: &Layout, text: &str) -> Vec<(String, Value)> {
    let row = read(layout, text).unwrap();
    assert_eq!(row.flaws, []);
    let cells = row.cells.into_iter();
    cells
        .map(|cell| (cell.sensor.as_str().to_owned(), cell.value))
        .collect()
}

fn is(sensor: &str, value: Value) -> (String, Value) {
    (sensor.to_owned(), value)
}

#[test]
fn a_column_is_a_sensor() {
    let layout = plain("room/co2,Time, room/on ,room/state");
    assert!(layout.has_times());
    let text = "500,1767225600000, true,open";
    assert_eq!(
        cells(&layout, text),
        [
            is("room/co2", Value::F64(500.0)),
            is("room/on", Value::Bool(true)),
            is("room/state", Value::Text("open".into())),
        ]
    );
    let at = ObservedAt::from_millis(1_767_225_600_000);
    assert_eq!(read(&layout, text).unwrap().when, When::At(at));
    assert_eq!(
        cells(&layout, ",1767225600000,,"),
        [],
        "empty cells are none"
    );
}

#[test]
fn types_stand_behind_names() {
    let layout = plain("time,a:f,b:i,c:b,d:t");
    assert_eq!(
        cells(&layout, "0,20,20,1,20"),
        [
            is("a", Value::F64(20.0)),
            is("b", Value::I64(20)),
            is("c", Value::Bool(true)),
            is("d", Value::Text("20".into())),
        ]
    );
    let row = read(&layout, "0,x,2.5,maybe,").unwrap();
    let flaws: Vec<&str> = row.flaws.iter().map(|flaw| flaw.reason.as_str()).collect();
    assert_eq!(
        flaws,
        [
            "a: \"x\" is not a number",
            "b: \"2.5\" is not a whole number",
            "c: \"maybe\" is not true, false, 1 or 0",
        ]
    );
    assert_eq!(row.cells, [], "and what can be read is kept");
}

#[test]
fn a_file_without_times_says_how_far_rows_are_apart() {
    let layout = plain("60,a:f,b:b");
    assert!(!layout.has_times());
    let row = read(&layout, "23.7,1").unwrap();
    assert_eq!(row.when, When::After(Duration::from_secs(60)));
    assert_eq!(row.cells.len(), 2);
    let every = Some(Duration::from_secs(5));
    let hints = Hints {
        every,
        ..Hints::default()
    };
    for header in ["a,b", "60,a,b"] {
        let layout = layout_of(header, &hints).unwrap();
        let row = read(&layout, "1,2").unwrap();
        assert_eq!(row.when, When::After(Duration::from_secs(5)));
    }
}

#[test]
fn a_row_may_be_a_reading() {
    let layout = plain("sensor,time,value,quality");
    let row = |text| read(&layout, text).unwrap();
    let cell = row("a:i,5,7,bad").cells.remove(0);
    assert_eq!((cell.value, cell.quality), (Value::I64(7), Quality::Bad));
    assert_eq!(row("a,5,7,").cells[0].quality, Quality::Good);
    assert_eq!(row("a,5,,").cells, []);
    assert_eq!(row("a,5,1,fine").flaws[0].label, "malformed");
    assert_eq!(row(",5,1,").flaws[0].label, "bad_sensor_name");
    let short = plain("observed_at,value,sensor");
    assert_eq!(cells(&short, "5,on,x"), [is("x", Value::Text("on".into()))]);
}

#[test]
fn times_are_read_as_people_write_them() {
    let hints = |unit| Hints {
        time_column: Some("t".to_owned()),
        timestamp_unit: Some(unit),
        every: None,
    };
    let at = |text: &str, unit| {
        let layout = layout_of("t,a", &hints(unit)).unwrap();
        let row = read(&layout, &format!("{text},1"))?;
        let When::At(at) = row.when else {
            panic!("{row:?}")
        };
        Ok::<i64, Flaw>(at.micros() / 1000)
    };
    let millis = TimestampUnit::Millis;
    for (text, unit) in [
        ("1767225600250", millis),
        ("1767225600.25", TimestampUnit::Seconds),
        ("2026-01-01T00:00:00.250Z", millis),
        ("2026-01-01 01:00:00.25+01:00", millis),
        ("2025-12-31 19:00:00.25-05:00", millis),
        ("2026-01-01 00:00:00.25", millis),
        ("2026-01-01T00:00:00.25", millis),
    ] {
        assert_eq!(at(text, unit), Ok(1_767_225_600_250), "{text}");
    }
    for text in [
        "",
        "noon",
        "2026-01-01",
        "2026-13-01 00:00:00",
        "1767225600",
    ] {
        assert_eq!(at(text, millis).unwrap_err().label, "bad_time", "{text}");
    }
}

#[test]
fn what_is_wrong_with_a_header_is_said() {
    let error = |header| layout_of(header, &Hints::default()).unwrap_err();
    assert_eq!(error("a,b"), HeaderError::NoTime);
    assert_eq!(error("time"), HeaderError::NoSensor);
    assert_eq!(error("60"), HeaderError::NoSensor);
    assert_eq!(error("0,a"), HeaderError::NoTime);
    let (first, second) = (2, 4);
    assert_eq!(
        error("time,a:f,b,a:i"),
        HeaderError::Twice { first, second }
    );
    assert!(matches!(
        error("time,,b"),
        HeaderError::Name { column: 2, .. }
    ));
    let hints = Hints {
        time_column: Some("when".to_owned()),
        ..Hints::default()
    };
    let missing = layout_of("time,a", &hints).unwrap_err();
    assert_eq!(missing, HeaderError::NoSuchColumn("when".to_owned()));
    let bytes: [&[u8]; 2] = [b"time", b"\xff"];
    let error = Layout::of(bytes.into_iter(), &Hints::default()).unwrap_err();
    assert_eq!(error, HeaderError::NotUtf8);
}

#[test]
fn what_is_wrong_with_a_row_is_said() {
    let layout = plain("time,a");
    for (text, label) in [
        ("1", "malformed"),
        ("1,2,3", "malformed"),
        ("x,2", "bad_time"),
    ] {
        assert_eq!(read(&layout, text).unwrap_err().label, label);
    }
    let bytes: [&[u8]; 2] = [b"1", b"\xff"];
    assert_eq!(
        layout.row(bytes.into_iter()).unwrap_err().label,
        "malformed"
    );
    for (cell, label) in [
        ("NaN", "not_finite"),
        ("inf", "not_finite"),
        ("1e999", "not_finite"),
        ("a\0b", "bad_text"),
        (&"x".repeat(1_025), "bad_text"),
    ] {
        let row = read(&layout, &format!("1,{cell}")).unwrap();
        assert_eq!((row.cells, row.flaws[0].label), (vec![], label), "{cell}");
    }
    assert_eq!(cells(&layout, &format!("1,{}", "x".repeat(1_024))).len(), 1);
}

proptest! {
    #[test]
    fn no_file_panics_and_all_values_can_be_kept(
        header in prop_oneof!["[a-z0-9:,\\. ]{0,30}", "time,[a-c:fibt]{1,6},x", "sensor,time,value(,quality)?"],
        text in prop_oneof![".{0,60}", "[0-9.e:, TZ+-]{0,60}"],
    ) {
        let Ok(layout) = layout_of(&header, &Hints::default()) else { return Ok(()) };
        if let Ok(row) = read(&layout, &text) {
            for cell in row.cells {
                prop_assert_eq!(cell.value.validate(), Ok(()));
            }
        }
    }
}
