//! Certificates for a test server of PostgreSQL: an authority, the server's, and those of one user who
//! is let in with a certificate alone. Made with openssl, so that what is tested is not its own judge.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use daemon::{Class, Failure};

use super::postgres::Account;
use crate::programs;

/// Below the server's folder.
pub(super) const FOLDER: &str = "trust";

/// The role that needs a certificate of this name.
pub(super) const USER: &str = "tideline_tls";

/// The name that the server's certificate holds.
const SERVER: &str = "localhost";

/// Makes the certificates, and has the server ask the user for one.
pub(super) fn prepare(folder: &Path, account: Option<Account>) -> Result<(), Failure> {
    let trust = folder.join(FOLDER);
    let broken = |error: std::io::Error| failed().because(error);
    fs::create_dir(&trust).map_err(broken)?;
    openssl(
        &trust,
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
         -subj /CN=test-database -keyout ca.key -out ca.pem",
    )?;
    // With an extension a certificate is of version 3, as rustls wants it.
    for (name, subject, extension) in [
        ("server", SERVER, "subjectAltName=DNS:localhost"),
        ("client", USER, "extendedKeyUsage=clientAuth"),
    ] {
        openssl(
            &trust,
            &format!(
                "req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
                 -subj /CN={subject} -addext {extension} -keyout {name}.key -out {name}.csr"
            ),
        )?;
        openssl(
            &trust,
            &format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
                 -copy_extensions copy -out {name}.pem"
            ),
        )?;
    }
    let key = trust.join("server.key");
    fs::set_permissions(&key, Permissions::from_mode(0o600)).map_err(broken)?;
    if let Some(Account { user, group }) = account {
        chown(&key, Some(user), Some(group)).map_err(broken)?;
    }
    let rules = folder.join("data/pg_hba.conf");
    let others = fs::read_to_string(&rules).map_err(broken)?;
    // The first rule that fits decides.
    let ours = format!("hostssl all {USER} all cert\nhost all {USER} all reject\n");
    fs::write(&rules, ours + &others).map_err(broken)?;
    let config = folder.join("data/postgresql.auto.conf");
    let file = |name: &str| trust.join(name).display().to_string();
    let settings = format!(
        "ssl = on\nssl_ca_file = '{}'\nssl_cert_file = '{}'\nssl_key_file = '{}'\n",
        file("ca.pem"),
        file("server.pem"),
        file("server.key"),
    );
    fs::write(config, settings).map_err(broken)
}

fn openssl(folder: &Path, arguments: &str) -> Result<(), Failure> {
    let program = programs::find("openssl").ok_or_else(|| {
        failed()
            .because("openssl is not installed")
            .help("`cargo xtask test --list-requirements` says what to install")
    })?;
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .output()
        .map_err(|error| failed().because(error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed().because(String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn failed() -> Failure {
    Failure::new(Class::Storage, "make certificates for a PostgreSQL server")
}
