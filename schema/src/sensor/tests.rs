use proptest::prelude::*;

use super::*;

fn of(change: impl FnOnce(&mut SensorDeclaration)) -> SensorDeclaration {
    let mut declaration = SensorDeclaration::default();
    change(&mut declaration);
    declaration
}

fn check(change: impl FnOnce(&mut SensorDeclaration)) -> bool {
    of(change).validate().is_ok()
}

#[test]
fn texts_are_bounded_and_plain() {
    let unit = |text: String| check(|it| it.unit = Some(text));
    let description = |text: String| check(|it| it.description = Some(text));
    for (takes, most) in [
        (&unit as &dyn Fn(String) -> bool, SENSOR_UNIT_CHARS_MAX),
        (&description, SENSOR_DESCRIPTION_CHARS_MAX),
    ] {
        assert!(takes("x".repeat(most - 1)));
        assert!(takes("x".repeat(most)));
        assert!(!takes("x".repeat(most + 1)));
        assert!(takes("°".repeat(most)) && !takes("°".repeat(most + 1)));
        for bad in ["", "a\0", "a\nb", "\u{7f}"] {
            assert!(!takes(bad.to_owned()), "{bad:?}");
        }
    }
    assert!(unit("°C".to_owned()) && unit("kW.h".to_owned()));
}

#[test]
fn numbers_are_bounded() {
    let range = |min, max| check(|it| (it.min, it.max) = (min, max));
    assert!(range(Some(1.0), Some(1.0)) && range(Some(-1.0), None) && range(None, Some(0.0)));
    assert!(!range(Some(1.1), Some(1.0)));
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert!(!range(Some(bad), None) && !range(None, Some(bad)));
        assert!(!check(|it| it.precision = Some(Precision::Step(bad))));
    }
    let decimals = |count| check(|it| it.precision = Some(Precision::Decimals(count)));
    assert!(decimals(0) && decimals(SENSOR_DECIMALS_MAX - 1) && decimals(SENSOR_DECIMALS_MAX));
    assert!(!decimals(SENSOR_DECIMALS_MAX + 1));
    let step = |step| check(|it| it.precision = Some(Precision::Step(step)));
    assert!(step(f64::MIN_POSITIVE) && !step(0.0) && !step(-1.0));
    let interval = |ms| check(|it| it.interval_ms = Some(ms));
    let most = SENSOR_INTERVAL_MS_MAX;
    assert!(interval(1) && interval(most - 1) && interval(most));
    assert!(!interval(0) && !interval(most + 1));
}

#[test]
fn only_numbers_have_a_range_and_a_precision() {
    for value_type in ValueType::ALL {
        let is_number = matches!(value_type, ValueType::Float | ValueType::Integer);
        let takes = |change: &dyn Fn(&mut SensorDeclaration)| {
            check(|it| {
                it.value_type = Some(value_type);
                change(it);
            })
        };
        assert!(takes(&|it| it.unit = Some("1".to_owned())));
        assert_eq!(takes(&|it| it.min = Some(0.0)), is_number);
        assert_eq!(takes(&|it| it.max = Some(0.0)), is_number);
        let precision = Some(Precision::Decimals(1));
        assert_eq!(takes(&|it| it.precision = precision), is_number);
    }
}

#[test]
fn a_value_becomes_what_its_sensor_is_declared_as_where_nothing_is_guessed() {
    use ValueType::{Boolean, Float, Integer, Text};
    let text = || Value::Text("20".into());
    for (declared, value, expected) in [
        (Float, Value::I64(20), Some(Value::F64(20.0))),
        (Float, Value::F64(20.5), Some(Value::F64(20.5))),
        // The nearest float, as 0.1 is.
        (
            Float,
            Value::I64((1 << 53) + 1),
            Some(Value::F64(9_007_199_254_740_992.0)),
        ),
        (Float, Value::Bool(true), None),
        (Float, text(), None),
        (Integer, Value::I64(-3), Some(Value::I64(-3))),
        (Integer, Value::F64(20.0), Some(Value::I64(20))),
        (Integer, Value::F64(-0.0), Some(Value::I64(0))),
        (Integer, Value::F64(20.5), None),
        (
            Integer,
            Value::F64(-9_223_372_036_854_775_808.0),
            Some(Value::I64(i64::MIN)),
        ),
        (
            Integer,
            Value::F64(9_223_372_036_854_774_784.0),
            Some(Value::I64(9_223_372_036_854_774_784)),
        ),
        (Integer, Value::F64(9_223_372_036_854_775_808.0), None),
        (Integer, Value::F64(f64::INFINITY), None),
        (Integer, Value::Bool(false), None),
        (Integer, text(), None),
        (Boolean, Value::Bool(true), Some(Value::Bool(true))),
        (Boolean, Value::I64(0), Some(Value::Bool(false))),
        (Boolean, Value::I64(1), Some(Value::Bool(true))),
        (Boolean, Value::F64(1.0), Some(Value::Bool(true))),
        (Boolean, Value::I64(2), None),
        (Boolean, Value::F64(0.5), None),
        (Boolean, text(), None),
        (Text, text(), Some(text())),
        (Text, Value::I64(20), None),
        (Text, Value::F64(20.0), None),
        (Text, Value::Bool(true), None),
    ] {
        let mut taken = value.clone();
        let outcome = declared.take(&mut taken);
        assert_eq!(outcome.is_ok(), expected.is_some(), "{declared} {value:?}");
        assert_eq!(
            taken,
            expected.unwrap_or_else(|| value.clone()),
            "{declared}"
        );
    }
    assert!(Integer.take(&mut Value::F64(f64::NAN)).is_err());
    let mut value = Value::F64(20.5);
    assert_eq!(
        Integer.take(&mut value).unwrap_err().to_string(),
        "a number that is not whole where the sensor is declared as integer: send a whole number \
         without quotes, or declare another type"
    );
}

#[test]
fn types_are_written_alike_everywhere() {
    for (number, value_type) in ValueType::ALL.into_iter().enumerate() {
        let name = value_type.as_str();
        assert_eq!(
            serde_json::to_string(&value_type).unwrap(),
            format!("{name:?}")
        );
        assert_eq!(postcard::to_allocvec(&value_type).unwrap(), [number as u8]);
        assert_eq!(name.parse(), Ok(value_type));
    }
    assert_eq!("Float".parse::<ValueType>(), Err(NoValueType));
}

#[test]
fn what_one_does_not_say_another_does() {
    let one = of(|it| {
        it.unit = Some("Cel".to_owned());
        it.max = Some(5.0);
    });
    let other = of(|it| {
        it.unit = Some("K".to_owned());
        it.description = Some("oil".to_owned());
        it.min = Some(9.0);
    });
    let both = one.clone().or(&other);
    assert_eq!(both.unit.as_deref(), Some("Cel"));
    assert_eq!(both.description.as_deref(), Some("oil"));
    // A range is one thing: half of each would be none.
    assert_eq!((both.min, both.max), (None, Some(5.0)));
    let text = of(|it| it.value_type = Some(ValueType::Text));
    assert!(text.or(&other).validate().is_ok());
}

fn number() -> impl Strategy<Value = Option<f64>> {
    proptest::option::of(any::<f64>())
}

fn any_declaration() -> impl Strategy<Value = SensorDeclaration> {
    let texts = (
        proptest::option::of(".{0,80}"),
        proptest::option::of(".{0,700}"),
    );
    let precision = proptest::option::of(prop_oneof![
        any::<u8>().prop_map(Precision::Decimals),
        any::<f64>().prop_map(Precision::Step),
    ]);
    let value_type = proptest::option::of(prop::sample::select(&ValueType::ALL[..]));
    let interval = proptest::option::of(any::<u64>());
    (texts, value_type, number(), number(), precision, interval).prop_map(
        |((unit, description), value_type, min, max, precision, interval_ms)| SensorDeclaration {
            unit,
            description,
            value_type,
            min,
            max,
            precision,
            interval_ms,
        },
    )
}

proptest! {
    #[test]
    fn what_is_fitted_is_sound_and_what_is_sound_fits(one in any_declaration(), other in any_declaration()) {
        let fitted = one.clone().fitted();
        prop_assert_eq!(fitted.validate(), Ok(()));
        prop_assert_eq!(&fitted.clone().fitted(), &fitted);
        prop_assert_eq!(fitted.or(&other.fitted()).validate(), Ok(()));
    }

    #[test]
    fn a_float_is_whole_or_refused_but_never_changed(number in any::<f64>()) {
        let mut value = Value::F64(number);
        match ValueType::Integer.take(&mut value) {
            Ok(()) => {
                let Value::I64(whole) = value else { panic!("{value:?}") };
                prop_assert_eq!(whole as f64, number);
            }
            Err(_) => prop_assert!(number.fract() != 0.0 || number.abs() >= 9.2e18),
        }
    }
}
