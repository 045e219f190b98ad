//! Whether a device is there: the one expression of it, for the API, the command line, alerts and configuration alike.
//! `d` is a row of `devices`.
//!
//! A device is there when its last message on `up/status` was a birth **and** it gave a sign of life since `$cutoff`: a birth
//! of a new connection, a report, or readings. A will that nobody fired, because the broker died with it, or whose
//! bridge was not there, changes nothing then. What a broker retains is no sign of life.

/// The last sign of life, in both databases.
macro_rules! last_seen {
    () => {
        "greatest(d.last_seen, coalesce((SELECT max(s.last_seen) FROM sync_status AS s \
             WHERE s.device_id = d.device_id), d.last_seen))"
    };
}

/// Whether its last sign of life is not before `$cutoff`, in both databases. The books are looked at only where
/// the device's own row does not say: first those of its newest epoch, because each start leaves one behind.
macro_rules! is_heard {
    ($cutoff:literal) => {
        concat!(
            "(d.last_seen >= ",
            $cutoff,
            " OR EXISTS (SELECT 1 FROM sync_status AS s \
                 WHERE s.device_id = d.device_id AND s.epoch = d.epoch AND s.last_seen >= ",
            $cutoff,
            ") OR EXISTS (SELECT 1 FROM sync_status AS s \
                 WHERE s.device_id = d.device_id AND s.last_seen >= ",
            $cutoff,
            "))"
        )
    };
}

/// Whether it is there, in both databases.
macro_rules! is_online {
    ($cutoff:literal) => {
        concat!("(d.online AND ", is_heard!($cutoff), ")")
    };
}
