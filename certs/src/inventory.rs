//! What was issued, and how each certificate stands: for `certs list` and `certs verify`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};
use time::OffsetDateTime;

use crate::certificate::Certificate;
use crate::error::CertsError;
use crate::folder::Folder;
use crate::identity::{Identity, Role};
use crate::profile::RENEW_DAYS;
use crate::serial::Serial;
use crate::verify::{Problem, Verifier, problem_with_key, rfc3339};

/// A certificate, read from its file and held against an authority.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// The file.
    pub path: PathBuf,
    /// Whom it speaks for, if anybody.
    #[serde(flatten)]
    pub identity: Option<Identity>,
    /// Names and addresses that a server is reached under.
    pub hosts: Vec<String>,
    /// The authority's number for it.
    pub serial: Serial,
    /// SHA-256 of its public key.
    pub pin: String,
    /// RFC 3339.
    pub not_before: String,
    /// RFC 3339.
    pub not_after: String,
    /// Whole days until it ends; negative when it has.
    pub days_left: i64,
    /// How it stands.
    pub state: State,
    /// What is wrong with it; nothing when it holds.
    #[serde(serialize_with = "as_texts")]
    pub problems: Vec<Problem>,
    /// What should be seen to although it holds.
    pub warnings: Vec<String>,
}

/// How a certificate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It holds.
    Valid,
    /// It holds, but another has taken its place.
    Replaced,
    /// Its time is over.
    Expired,
    /// It is on the revocation list.
    Revoked,
    /// It does not hold for another reason.
    Invalid,
}

impl State {
    /// The state as it is printed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Replaced => "replaced",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Invalid => "invalid",
        }
    }
}

impl Entry {
    /// Reads a certificate file and checks signature, validity, identity, revocation, and the key
    /// beside it if there is one.
    ///
    /// # Errors
    /// [`CertsError`] when a file cannot be read or holds no certificate.
    pub fn read(folder: &Folder, path: &Path, now: OffsetDateTime) -> Result<Self, CertsError> {
        Self::judge(&Verifier::of(folder)?, path, now)
    }

    /// As [`Self::read`], against any authority.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn judge(
        verifier: &Verifier,
        path: &Path,
        now: OffsetDateTime,
    ) -> Result<Self, CertsError> {
        let certificate = Certificate::read(path)?;
        let mut entry = Self::of(verifier, path, &certificate, now);
        let key = path.with_extension("key");
        if key.exists() {
            entry.problems.extend(problem_with_key(path, &key));
            entry.warnings.extend(warning_of_key(&key));
            entry.state = state(&entry.problems);
        }
        Ok(entry)
    }

    /// Also holds the certificate against a host that a server is to be reached under.
    ///
    /// # Errors
    /// [`CertsError`] when the file cannot be read again.
    pub fn check_host(
        &mut self,
        verifier: &Verifier,
        host: &str,
        now: OffsetDateTime,
    ) -> Result<(), CertsError> {
        let certificate = Certificate::read(&self.path)?;
        if let Some(problem) = verifier.problem_with_host(&certificate, host, now)
            && !self.problems.contains(&problem)
        {
            self.problems.push(problem);
            self.state = state(&self.problems);
        }
        Ok(())
    }

    /// Finds out whether the certificate is the one in use.
    fn in_place(mut self, folder: &Folder, certificate: &Certificate) -> Self {
        if let Some(identity) = &self.identity {
            let place = folder.files_of(identity).cert;
            if Certificate::read(&place).is_ok_and(|found| found.der == certificate.der) {
                self.path = place;
            } else if self.state == State::Valid {
                self.state = State::Replaced;
                self.warnings.clear();
            }
        }
        self
    }

    fn of(
        verifier: &Verifier,
        path: &Path,
        certificate: &Certificate,
        now: OffsetDateTime,
    ) -> Self {
        let problems = verifier.problems(certificate, now);
        let days_left = (certificate.validity.not_after - now).whole_days();
        let mut warnings = Vec::new();
        if problems.is_empty() && days_left < RENEW_DAYS {
            warnings.push(format!("it ends in {days_left} days: renew it"));
        }
        Self {
            path: path.to_owned(),
            identity: certificate.identity.as_ref().ok().cloned(),
            hosts: certificate.hosts.clone(),
            serial: certificate.serial.clone(),
            pin: certificate.pin.to_string(),
            not_before: rfc3339(certificate.validity.not_before),
            not_after: rfc3339(certificate.validity.not_after),
            days_left,
            state: state(&problems),
            problems,
            warnings,
        }
    }
}

/// Every certificate that was issued from a folder, by role and name. One that is still in its
/// place is listed with that place, another with the copy that the folder kept. A copy that
/// cannot be read is named among the errors; the others are listed all the same.
///
/// # Errors
/// [`CertsError`] when the folder has no authority or cannot be listed.
pub fn list(
    folder: &Folder,
    now: OffsetDateTime,
) -> Result<(Vec<Entry>, Vec<CertsError>), CertsError> {
    let verifier = Verifier::of(folder)?;
    let (mut entries, mut unreadable) = (Vec::new(), Vec::new());
    for role in Role::ALL {
        for issued in folder.issued(role)? {
            match Certificate::read(&issued.path) {
                Ok(certificate) => {
                    let entry = Entry::of(&verifier, &issued.path, &certificate, now);
                    entries.push(entry.in_place(folder, &certificate));
                }
                Err(error) => unreadable.push(error),
            }
        }
    }
    Ok((entries, unreadable))
}

fn state(problems: &[Problem]) -> State {
    // Revoked first: it stays true when the certificate has ended, too.
    if problems.contains(&Problem::Revoked) {
        State::Revoked
    } else if problems.iter().any(|p| matches!(p, Problem::Expired(_))) {
        State::Expired
    } else if problems.is_empty() {
        State::Valid
    } else {
        State::Invalid
    }
}

fn warning_of_key(key: &Path) -> Option<String> {
    let mode = fs::metadata(key).ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then(|| {
        format!(
            "others may use {} (mode {mode:04o}): chmod 600 it",
            key.display()
        )
    })
}

fn as_texts<S: Serializer>(problems: &[Problem], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(problems.iter().map(ToString::to_string))
}
