//! The unit of measure of a sensor, as its settings name it.

/// Longest unit, in bytes.
pub(crate) const UNIT_BYTES_MAX: usize = 64;

/// Checks the text of a unit, which may be of UCUM (`Cel`, `kW.h`) or any other (`°C`, `pieces/min`).
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check(text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > UNIT_BYTES_MAX {
        return Err(format!("must have 1 to {UNIT_BYTES_MAX} bytes"));
    }
    if text.chars().any(char::is_control) || text.trim() != text {
        return Err("must have no control characters, and no blanks around it".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_a_short_text() {
        for unit in ["%", "Cel", "°C", "m3/h", "pieces/min", &"x".repeat(64)] {
            assert_eq!(check(unit), Ok(()));
        }
        for other in ["", &"x".repeat(65), " m", "m ", "m\n", "a\u{0}b"] {
            assert!(check(other).is_err(), "{other:?}");
        }
    }
}
