//! How the clock of a start stands in the file, beside its epoch: one short line.

use schema::message::RejectReason;

use super::core::{Release, StartClock};

/// The first field: the version of the line's format.
const VERSION: &str = "1";

impl StartClock {
    /// The line as it is written.
    #[must_use]
    pub fn note(&self) -> String {
        let Self {
            boot,
            began,
            axis,
            wall,
            known,
            release,
        } = self;
        let known = known.map_or_else(|| "-".to_owned(), |known| known.to_string());
        let release = match release {
            Release::Held => "held".to_owned(),
            Release::Shifted(shift) => format!("shifted {shift}"),
            Release::Uncertain(shift) => format!("uncertain {shift}"),
            Release::Quarantined(reason) => format!("quarantined {}", reason.as_str()),
        };
        format!("{VERSION} {boot} {began} {axis} {wall} {known} {release}")
    }

    /// The clock that the line describes; `None` when this build does not understand it.
    #[must_use]
    pub fn parse(note: &str) -> Option<Self> {
        let mut words = note.split(' ');
        if words.next()? != VERSION {
            return None;
        }
        let boot = words.next()?.parse().ok()?;
        let mut number = || words.next()?.parse().ok();
        let (began, axis, wall) = (number()?, number()?, number()?);
        let known = match words.next()? {
            "-" => None,
            known => Some(known.parse().ok()?),
        };
        let release = match (words.next()?, words.next()) {
            ("held", None) => Release::Held,
            ("shifted", Some(shift)) => Release::Shifted(shift.parse().ok()?),
            ("uncertain", Some(shift)) => Release::Uncertain(shift.parse().ok()?),
            ("quarantined", Some(name)) => Release::Quarantined(RejectReason::named(name)?),
            _ => return None,
        };
        words.next().is_none().then_some(Self {
            boot,
            began,
            axis,
            wall,
            known,
            release,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_line_is_read_as_it_was_written(
            boot in any::<u64>(),
            numbers in any::<[i64; 4]>(),
            known in any::<Option<i64>>(),
            kind in 0..4u8,
        ) {
            let [began, axis, wall, shift] = numbers;
            let release = match kind {
                0 => Release::Held,
                1 => Release::Shifted(shift),
                2 => Release::Uncertain(shift),
                _ => Release::Quarantined(RejectReason::TooOld),
            };
            let clock = StartClock { boot, began, axis, wall, known, release };
            prop_assert_eq!(StartClock::parse(&clock.note()), Some(clock));
        }

        #[test]
        fn no_line_panics(note in "[0-9a-z -]{0,60}") {
            let _ = StartClock::parse(&note);
        }
    }

    #[test]
    fn what_is_not_understood_is_nothing() {
        for note in [
            "",
            "2 1 1 1 1 - held",
            "1 1 1 1 1 - held 3",
            "1 1 1 1 1 - shifted",
            "1 1",
        ] {
            assert_eq!(StartClock::parse(note), None, "{note}");
        }
    }
}
