//! The `certs` command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use daemon::Failure;
use schema::DeviceId;
use serde::Serialize;
use time::OffsetDateTime;

use crate::authority::{Authority, default_days};
use crate::folder::{CertsError, Folder, Overwrite};
use crate::identity::{Identity, Role};
use crate::inventory::Entry;

/// Makes and checks the certificates of a fleet.
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "A first set:\n  certs init\n  certs server --host broker.example.com --host 192.0.2.7\n  \
                  certs service bridge --role bridge\n  certs service observer --role observer\n  certs device press-7\n\n\
                  Exit codes: 0 done, 1 failed (for `verify`: also when the certificate does not hold), 2 wrong arguments."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The folder that holds authority, certificates and keys
    #[arg(long, global = true, default_value = "tideline-certs")]
    dir: PathBuf,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the authority that signs all others
    Init {
        /// What the authority calls itself
        #[arg(long, default_value = "Tideline authority")]
        name: String,
        /// Replace an existing authority: every certificate it signed becomes worthless
        #[arg(long)]
        force: bool,
    },
    /// Issue the broker's certificate
    Server {
        /// Name or address that clients connect to; repeat it for each
        #[arg(long = "host", required = true)]
        hosts: Vec<String>,
        #[command(flatten)]
        issue: Issue,
    },
    /// Issue the certificate of a bridge or of an observer
    Service {
        /// The service's name
        name: DeviceId,
        /// What it may do
        #[arg(long)]
        role: ServiceRole,
        #[command(flatten)]
        issue: Issue,
    },
    /// Issue a device's certificate
    Device {
        /// The device id
        id: DeviceId,
        #[command(flatten)]
        issue: Issue,
    },
    /// Show what was issued, and what is wrong with it
    List,
    /// Check one certificate: signature, validity, identity, revocation
    Verify {
        /// The certificate
        file: PathBuf,
    },
    /// Put certificates on the revocation list, which the broker reads while it runs
    Revoke {
        /// A certificate file, or a serial number as `list` shows it
        #[arg(required = true)]
        which: Vec<String>,
    },
    /// Issue a certificate again for the same identity and hosts, with a new key
    Renew {
        /// The certificate
        file: PathBuf,
        /// Days until it ends
        #[arg(long)]
        days: Option<u32>,
    },
}

#[derive(Debug, Args)]
struct Issue {
    /// Days until it ends; 397 for servers and services, 825 for devices
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: Option<u32>,
    /// Replace an existing certificate and key
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ServiceRole {
    /// Hears all devices and answers them
    Bridge,
    /// Hears everything, says nothing
    Observer,
}

/// What a command made.
#[derive(Debug, Serialize)]
struct Made {
    cert: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<PathBuf>,
}

/// Runs one command.
///
/// # Errors
/// The [`Failure`] that ended it.
pub fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let folder = Folder::new(cli.dir);
    let json = cli.json;
    match cli.command {
        Command::Init { name, force } => {
            let authority = Authority::init(folder, &name, overwrite(force))?;
            let files = authority.folder().ca_files();
            print_made(json, &files.cert, Some(&files.key));
        }
        Command::Server { hosts, issue } => {
            let name = "broker".parse().expect("a fixed name is an identity");
            let role = Role::Server;
            self::issue(json, folder, &Identity { name, role }, &hosts, &issue)?;
        }
        Command::Service { name, role, issue } => {
            let role = match role {
                ServiceRole::Bridge => Role::Bridge,
                ServiceRole::Observer => Role::Observer,
            };
            self::issue(json, folder, &Identity { name, role }, &[], &issue)?;
        }
        Command::Device { id, issue } => {
            let identity = Identity {
                name: id,
                role: Role::Device,
            };
            self::issue(json, folder, &identity, &[], &issue)?;
        }
        Command::List => list(json, &folder)?,
        Command::Verify { file } => return verify(json, &folder, &file),
        Command::Revoke { which } => {
            let serials = which
                .iter()
                .map(|which| serial(&folder, which))
                .collect::<Result<Vec<_>, _>>()?;
            let list = Authority::open(folder)?.revoke(&serials)?;
            print_made(json, &list, None);
        }
        Command::Renew { file, days } => {
            let entry = Entry::read(&folder, &file, OffsetDateTime::now_utc())?;
            let identity = entry.identity.ok_or_else(|| {
                CertsError::damaged(&file, &"it names nobody; issue a new one instead")
            })?;
            let issue = Issue { days, force: true };
            self::issue(json, folder, &identity, &entry.hosts, &issue)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn issue(
    json: bool,
    folder: Folder,
    identity: &Identity,
    hosts: &[String],
    issue: &Issue,
) -> Result<(), Failure> {
    let files = Authority::open(folder)?.issue(
        identity,
        hosts,
        issue.days.unwrap_or_else(|| default_days(identity.role)),
        overwrite(issue.force),
    )?;
    print_made(json, &files.cert, Some(&files.key));
    Ok(())
}

fn list(json: bool, folder: &Folder) -> Result<(), Failure> {
    let now = OffsetDateTime::now_utc();
    let entries = folder
        .certificates()?
        .iter()
        .map(|path| Entry::read(folder, path, now))
        .collect::<Result<Vec<_>, _>>()?;
    if json {
        print_json(&entries);
        return Ok(());
    }
    println!(
        "{:<10} {:<24} {:>9}  {:<40} STATE",
        "ROLE", "NAME", "DAYS LEFT", "SERIAL"
    );
    for entry in &entries {
        let (role, name) = match &entry.identity {
            Some(Identity { name, role }) => (role.as_str(), name.as_str()),
            None => ("-", "-"),
        };
        println!(
            "{role:<10} {name:<24} {:>9}  {:<40} {}",
            entry.days_left,
            entry.serial,
            state(entry)
        );
    }
    Ok(())
}

fn verify(json: bool, folder: &Folder, file: &Path) -> Result<ExitCode, Failure> {
    let entry = Entry::read(folder, file, OffsetDateTime::now_utc())?;
    if json {
        print_json(&entry);
    } else {
        match &entry.identity {
            Some(Identity { name, role }) => println!("identity   {role} {name}"),
            None => println!("identity   none"),
        }
        if !entry.hosts.is_empty() {
            println!("hosts      {}", entry.hosts.join(", "));
        }
        println!("serial     {}", entry.serial);
        println!("pin        {}", entry.pin);
        println!("valid      {} to {}", entry.not_before, entry.not_after);
        println!("state      {}", state(&entry));
    }
    Ok(if entry.problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The serial number of a file, or in hexadecimal.
fn serial(folder: &Folder, which: &str) -> Result<Vec<u8>, CertsError> {
    let path = Path::new(which);
    let digits = if path.exists() {
        Entry::read(folder, path, OffsetDateTime::now_utc())?.serial
    } else {
        which.to_owned()
    };
    match hex::decode(&digits) {
        // RFC 5280 allows 20 bytes; DER may add a zero before them.
        Ok(serial) if (1..=21).contains(&serial.len()) => Ok(serial),
        _ => Err(CertsError::Serial(which.to_owned())),
    }
}

fn state(entry: &Entry) -> String {
    if entry.problems.is_empty() {
        "holds".to_owned()
    } else {
        entry.problems.join("; ")
    }
}

fn print_made(json: bool, cert: &Path, key: Option<&Path>) {
    if json {
        print_json(&Made {
            cert: cert.to_owned(),
            key: key.map(Path::to_owned),
        });
    } else {
        println!("wrote {}", cert.display());
        if let Some(key) = key {
            println!("wrote {} (keep it secret)", key.display());
        }
    }
}

fn print_json(value: &impl Serialize) {
    let text = serde_json::to_string(value).expect("our own structs are JSON");
    println!("{text}");
}

const fn overwrite(force: bool) -> Overwrite {
    if force {
        Overwrite::Allow
    } else {
        Overwrite::Refuse
    }
}
