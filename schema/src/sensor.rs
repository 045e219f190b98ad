//! What a sensor is: the unit of its values, what it measures, of which type they are, and how often they come. Declared
//! by the settings of an agent or by its sources, sent once per change ([`crate::message::DeclaredSensor`]).
//!
//! A declaration says what is known and leaves out the rest. It judges no reading but by its type: see
//! [`ValueType::take`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Value;
use crate::limits::{
    SENSOR_DECIMALS_MAX, SENSOR_DESCRIPTION_CHARS_MAX, SENSOR_INTERVAL_MS_MAX,
    SENSOR_UNIT_CHARS_MAX,
};

/// What is known of a sensor. The order of fields is the wire format.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SensorDeclaration {
    /// Unit of its values: a code of UCUM where there is one (`Cel`, `kW.h`, `%`, `By`), or any other text.
    pub unit: Option<String>,
    /// What it measures, for people.
    pub description: Option<String>,
    /// Of which type its values are.
    pub value_type: Option<ValueType>,
    /// The lowest value that it can have.
    pub min: Option<f64>,
    /// The highest value that it can have.
    pub max: Option<f64>,
    /// How exact its values are.
    pub precision: Option<Precision>,
    /// How often a reading is to be expected, in milliseconds.
    pub interval_ms: Option<u64>,
}

/// A type of values. Append only: the position is the wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ValueType {
    /// [`Value::F64`].
    Float,
    /// [`Value::I64`].
    Integer,
    /// [`Value::Bool`].
    Boolean,
    /// [`Value::Text`].
    Text,
}

/// How exact values are. Append only: the position is the wire format.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Digits behind the point that mean something.
    Decimals(u8),
    /// Values are multiples of it.
    Step(f64),
}

/// Why a declaration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeclarationError {
    /// A text that is empty, too long, or holds control characters.
    #[error(
        "{what} has {chars} characters: 1 to {max} are allowed, none of them a control character"
    )]
    Text {
        /// The field.
        what: &'static str,
        /// Characters found.
        chars: usize,
        /// The most.
        max: usize,
    },
    /// A number that means nothing.
    #[error("{what} is to be {allowed}")]
    Number {
        /// The field.
        what: &'static str,
        /// What it may be.
        allowed: &'static str,
    },
    /// Both ends of the range, the wrong way round.
    #[error("min is above max")]
    Range,
    /// A range or a precision of what is no number.
    #[error("{what} is for numbers, and type is {value_type}")]
    NoNumber {
        /// The field.
        what: &'static str,
        /// The type that is declared.
        value_type: ValueType,
    },
}

/// A text that is no type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no type: float, integer, boolean or text")]
pub struct NoValueType;

/// A value that its declared type does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found} where the sensor is declared as {declared}: send {wanted}, or declare another type"
)]
pub struct TypeError {
    /// The declared type.
    pub declared: ValueType,
    /// What came.
    pub found: &'static str,
    /// What would be right.
    pub wanted: &'static str,
}

impl SensorDeclaration {
    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Checks what every store must be able to hold, and that it makes sense.
    ///
    /// # Errors
    /// [`DeclarationError`], of the first field that is wrong.
    pub fn validate(&self) -> Result<(), DeclarationError> {
        check_text("unit", self.unit.as_deref(), SENSOR_UNIT_CHARS_MAX)?;
        let description = self.description.as_deref();
        check_text("description", description, SENSOR_DESCRIPTION_CHARS_MAX)?;
        for (what, number) in [("min", self.min), ("max", self.max)] {
            check_number(what, number.is_none_or(f64::is_finite), "a finite number")?;
        }
        if let (Some(min), Some(max)) = (self.min, self.max)
            && min > max
        {
            return Err(DeclarationError::Range);
        }
        match self.precision {
            Some(Precision::Decimals(count)) => {
                check_number("decimals", count <= SENSOR_DECIMALS_MAX, "0 to 17")?;
            }
            Some(Precision::Step(step)) => {
                check_number("step", step.is_finite() && step > 0.0, "above 0")?;
            }
            None => {}
        }
        if let Some(ms) = self.interval_ms {
            let is_sound = (1..=SENSOR_INTERVAL_MS_MAX).contains(&ms);
            check_number("interval", is_sound, "1 ms to 366 days")?;
        }
        let is_number = |of| matches!(of, ValueType::Float | ValueType::Integer);
        if let Some(value_type) = self.value_type.filter(|of| !is_number(*of)) {
            for (what, is_there) in [
                ("min", self.min.is_some()),
                ("max", self.max.is_some()),
                ("precision", self.precision.is_some()),
            ] {
                if is_there {
                    return Err(DeclarationError::NoNumber { what, value_type });
                }
            }
        }
        Ok(())
    }

    /// The same as far as it is sound: what a source learnt elsewhere is cut to what may be declared.
    #[must_use]
    pub fn fitted(mut self) -> Self {
        self.unit = self.unit.map(|unit| plain(&unit)).filter(|unit| {
            // Half a unit is another unit.
            (1..=SENSOR_UNIT_CHARS_MAX).contains(&unit.chars().count())
        });
        self.description = self.description.map(|text| {
            let text = plain(&text);
            let cut: String = text.chars().take(SENSOR_DESCRIPTION_CHARS_MAX).collect();
            cut.trim_end().to_owned()
        });
        self.description = self.description.filter(|text| !text.is_empty());
        let is_number = matches!(
            self.value_type,
            None | Some(ValueType::Float | ValueType::Integer)
        );
        let sound = |number: &f64| is_number && number.is_finite();
        (self.min, self.max) = (self.min.filter(sound), self.max.filter(sound));
        if matches!((self.min, self.max), (Some(min), Some(max)) if min > max) {
            (self.min, self.max) = (None, None);
        }
        self.precision = self.precision.filter(|precision| {
            is_number
                && match precision {
                    Precision::Decimals(count) => *count <= SENSOR_DECIMALS_MAX,
                    Precision::Step(step) => step.is_finite() && *step > 0.0,
                }
        });
        let sound = |ms: &u64| (1..=SENSOR_INTERVAL_MS_MAX).contains(ms);
        self.interval_ms = self.interval_ms.filter(sound);
        self
    }

    /// This one, and of another what this one does not say. A range is one thing, and so is a precision.
    #[must_use]
    pub fn or(mut self, other: &Self) -> Self {
        self.unit = self.unit.or_else(|| other.unit.clone());
        self.description = self.description.or_else(|| other.description.clone());
        if self.min.is_none() && self.max.is_none() {
            (self.min, self.max) = (other.min, other.max);
        }
        self.value_type = self.value_type.or(other.value_type);
        self.precision = self.precision.or(other.precision);
        self.interval_ms = self.interval_ms.or(other.interval_ms);
        // Of two that are sound apart, one may speak of the range of what the other calls a text.
        self.fitted()
    }

    /// Orders two of one version, so that whoever sees both keeps the same: XXH3, 63 bits.
    #[must_use]
    pub fn digest(&self) -> i64 {
        // Plain values always encode; were they not to, all would be equal.
        let bytes = postcard::to_allocvec(self).unwrap_or_default();
        (xxhash_rust::xxh3::xxh3_64(&bytes) >> 1).cast_signed()
    }
}

impl ValueType {
    /// All types.
    pub const ALL: [Self; 4] = [Self::Float, Self::Integer, Self::Boolean, Self::Text];

    /// The type as it stands in settings, tables and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::Integer => "integer",
            Self::Boolean => "boolean",
            Self::Text => "text",
        }
    }

    /// The type of a value.
    #[must_use]
    pub const fn of(value: &Value) -> Self {
        match value {
            Value::F64(_) => Self::Float,
            Value::I64(_) => Self::Integer,
            Value::Bool(_) => Self::Boolean,
            Value::Text(_) => Self::Text,
        }
    }

    /// A value as one of this type: a whole number is a float, the nearest one; a float that is whole is an integer; 0
    /// and 1 are truth values. Nothing is read out of a text, and nothing is rounded to be whole.
    ///
    /// # Errors
    /// [`TypeError`] for any other.
    pub fn take(self, value: &mut Value) -> Result<(), TypeError> {
        let taken = match (self, &*value) {
            (Self::Float, Value::I64(number)) => Value::F64(*number as f64),
            (Self::Integer, Value::F64(number)) => match whole(*number) {
                Some(number) => Value::I64(number),
                None => return Err(self.refusal("a number that is not whole")),
            },
            (Self::Boolean, Value::I64(0)) => Value::Bool(false),
            (Self::Boolean, Value::I64(1)) => Value::Bool(true),
            (Self::Boolean, Value::F64(number)) if *number == 0.0 => Value::Bool(false),
            (Self::Boolean, Value::F64(number)) if *number == 1.0 => Value::Bool(true),
            (_, value) if Self::of(value) == self => return Ok(()),
            (_, Value::F64(_) | Value::I64(_)) => return Err(self.refusal("a number")),
            (_, Value::Bool(_)) => return Err(self.refusal("true or false")),
            (_, Value::Text(_)) => return Err(self.refusal("a text")),
        };
        *value = taken;
        Ok(())
    }

    const fn refusal(self, found: &'static str) -> TypeError {
        TypeError {
            declared: self,
            found,
            wanted: match self {
                Self::Float => "a number without quotes",
                Self::Integer => "a whole number without quotes",
                Self::Boolean => "true or false, or 0 or 1",
                Self::Text => "a text in quotes",
            },
        }
    }
}

/// A number that is whole and that an integer holds. NaN and infinities are none; they are refused as what they are.
fn whole(number: f64) -> Option<i64> {
    // 2^63, the first that does not fit.
    const END: f64 = 9_223_372_036_854_775_808.0;
    let fits = number.fract() == 0.0 && (-END..END).contains(&number);
    fits.then_some(number as i64)
}

fn plain(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    text.trim().to_owned()
}

fn check_text(what: &'static str, text: Option<&str>, max: usize) -> Result<(), DeclarationError> {
    let is_sound = |text: &str| {
        (1..=max).contains(&text.chars().count()) && !text.chars().any(char::is_control)
    };
    match text {
        Some(text) if !is_sound(text) => Err(DeclarationError::Text {
            what,
            chars: text.chars().count(),
            max,
        }),
        _ => Ok(()),
    }
}

const fn check_number(
    what: &'static str,
    is_sound: bool,
    allowed: &'static str,
) -> Result<(), DeclarationError> {
    match is_sound {
        true => Ok(()),
        false => Err(DeclarationError::Number { what, allowed }),
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ValueType {
    type Err = NoValueType;

    fn from_str(text: &str) -> Result<Self, NoValueType> {
        let mut all = Self::ALL.into_iter();
        all.find(|of| of.as_str() == text).ok_or(NoValueType)
    }
}

#[cfg(test)]
mod tests;
