//! The file's schema: numbered steps, forward only; `user_version` says how far it is.

use super::super::{Migration, StoreError};
use super::file::File;

/// In order; the position is the version.
const STEPS: [(&str, &str); 13] = [
    (
        "telemetry and ledger",
        include_str!("../../../migrations/embedded/0001_telemetry_and_ledger.sql"),
    ),
    (
        "commands",
        include_str!("../../../migrations/embedded/0002_commands.sql"),
    ),
    (
        "configuration",
        include_str!("../../../migrations/embedded/0003_configuration.sql"),
    ),
    (
        "access",
        include_str!("../../../migrations/embedded/0004_access.sql"),
    ),
    (
        "fleet",
        include_str!("../../../migrations/embedded/0005_fleet.sql"),
    ),
    (
        "alerts",
        include_str!("../../../migrations/embedded/0006_alerts.sql"),
    ),
    (
        "fates",
        include_str!("../../../migrations/embedded/0007_fates.sql"),
    ),
    (
        "request keys",
        include_str!("../../../migrations/embedded/0008_request_keys.sql"),
    ),
    (
        "revoked subjects",
        include_str!("../../../migrations/embedded/0009_revoked_subjects.sql"),
    ),
    (
        "rounds",
        include_str!("../../../migrations/embedded/0010_rounds.sql"),
    ),
    (
        "readings that leave",
        include_str!("../../../migrations/embedded/0011_readings_that_leave.sql"),
    ),
    (
        "quotas",
        include_str!("../../../migrations/embedded/0012_quotas.sql"),
    ),
    (
        "sensors",
        include_str!("../../../migrations/embedded/0013_sensors.sql"),
    ),
];

const NEWEST: i64 = STEPS.len() as i64;

pub(super) fn check(file: &mut File) -> Result<(), StoreError> {
    let found = version(file)?;
    if found < NEWEST {
        return Err(StoreError::NotMigrated {
            found,
            wanted: NEWEST,
        });
    }
    Ok(())
}

pub(super) fn pending(file: &mut File) -> Result<Vec<Migration>, StoreError> {
    let found = version(file)?;
    Ok((1..)
        .zip(STEPS)
        .filter(|(version, _)| *version > found)
        .map(|(version, (description, _))| Migration {
            version,
            description: description.to_owned(),
        })
        .collect())
}

/// Runs within the writer's transaction, which one process holds at a time.
pub(super) fn migrate(file: &mut File) -> Result<Vec<Migration>, StoreError> {
    let pending = pending(file)?;
    let steps = (1..).zip(STEPS);
    for (version, (_, sql)) in steps.filter(|(at, _)| pending.iter().any(|m| m.version == *at)) {
        file.batch(sql)?;
        file.batch(&format!("PRAGMA user_version = {version}"))?;
    }
    Ok(pending)
}

fn version(file: &mut File) -> Result<i64, StoreError> {
    let found = file.number("PRAGMA user_version")?;
    if found > NEWEST {
        return Err(StoreError::TooNew {
            found,
            newest: NEWEST,
        });
    }
    Ok(found)
}
