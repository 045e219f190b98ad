//! Every bound on what may travel, in one place. A decoder checks its bound before it allocates;
//! each has a test at, below and above it.

/// Longest device id, in characters (all ASCII, so also bytes).
pub const DEVICE_ID_CHARS_MAX: usize = 64;

/// Longest sensor name, in characters.
pub const SENSOR_NAME_CHARS_MAX: usize = 128;

/// Longest sensor name, in bytes of UTF-8 (four a character).
pub const SENSOR_NAME_BYTES_MAX: usize = 4 * SENSOR_NAME_CHARS_MAX;

/// Longest text value, in bytes of UTF-8.
pub const TEXT_BYTES_MAX: usize = 1024;

/// Largest MQTT payload that any part of Tideline sends or takes, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 256 * 1024;

/// Most readings in one batch.
pub const BATCH_ROWS_MAX: usize = 4096;

/// Most series (sensor, type) in one batch; a batch of fewer rows has at most as many as rows.
pub const BATCH_SERIES_MAX: usize = 1024;

/// Most bytes that the sensor names of one batch may expand to: front coding amplifies.
pub const BATCH_NAMES_BYTES_MAX: usize = 64 * 1024;

/// Most sequence ranges in one acknowledgement or report; more travel in the next one.
pub const MESSAGE_RANGES_MAX: usize = 1024;

/// Most epochs that one report may speak of: the current one and those not yet settled.
pub const REPORT_EPOCHS_MAX: usize = 16;

/// Longest name of a command or of a configuration key, in bytes.
pub const KEY_BYTES_MAX: usize = 128;

/// Largest arguments or output of one command, in bytes.
pub const COMMAND_BODY_BYTES_MAX: usize = 64 * 1024;

/// Most reports on commands that one message notes.
pub const NOTED_MAX: usize = 256;

/// Most keys in one configuration document.
pub const CONFIG_KEYS_MAX: usize = 256;

/// Largest JSON text of one configuration value, in bytes.
pub const CONFIG_VALUE_BYTES_MAX: usize = 4 * 1024;

/// Longest unit of a sensor, in characters: the longest of UCUM have some forty.
pub const SENSOR_UNIT_CHARS_MAX: usize = 64;

/// Longest description of a sensor, in characters.
pub const SENSOR_DESCRIPTION_CHARS_MAX: usize = 512;

/// Most digits behind the point that a sensor's precision may name: a double has no more.
pub const SENSOR_DECIMALS_MAX: u8 = 17;

/// Longest interval between two readings that may be declared, in milliseconds: 366 days.
pub const SENSOR_INTERVAL_MS_MAX: u64 = 366 * 86_400_000;

/// Most sensors that one message declares or answers.
pub const SENSORS_MESSAGE_MAX: usize = 256;

/// Most bytes of declarations that an agent puts into one message; one alone has fewer.
pub const SENSORS_MESSAGE_BYTES_MAX: usize = 16 * 1024;

/// Most declared sensors that are kept of one device.
pub const DECLARED_SENSORS_MAX: usize = 4096;

/// Highest number that SQL's eight-byte integer holds; sequences, epochs and clocks stay at or
/// below it so that every store keeps them as they are.
pub const SQL_INTEGER_MAX: u64 = i64::MAX as u64;
