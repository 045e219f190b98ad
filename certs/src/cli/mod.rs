//! The `certs` command line: arguments → the library → text or JSON.

mod output;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use daemon::{Failure, say};
use schema::{CommonName, DeviceId};
use time::OffsetDateTime;

use crate::authority::{Authority, Key, default_name};
use crate::error::CertsError;
use crate::folder::{Folder, Overwrite};
use crate::identity::{Identity, Role};
use crate::inventory::{self, Entry, State};
use crate::profile::{AUTHORITY_DAYS, DAYS_MAX, LOCAL_HOSTS, SERVER_NAME, default_days};
use crate::serial::Serial;
use crate::set::MachineSet;
use crate::verify::Verifier;

/// Makes and checks the certificates of a fleet.
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "\
A first set:
  certs init
  certs server --host broker.example.com --host 192.0.2.7
  certs service bridge --role bridge
  certs service watcher --role observer
  certs device press-7

To a machine go its own certificate and key and ca.pem; to the broker also crl.pem.
ca.key stays here.

Exit codes: 0 done, 1 failed (for `verify`: the certificate does not hold), 2 wrong arguments
or a file or folder that they name wrongly."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The folder that holds authority, certificates and keys
    #[arg(
        long,
        global = true,
        env = "TIDELINE_CERTS_DIR",
        default_value = "tideline-certs"
    )]
    dir: PathBuf,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the authority that signs all others, and an empty revocation list
    Init {
        /// What the authority calls itself; without it a name with a random end
        #[arg(long, value_parser = authority_name)]
        name: Option<String>,
        /// Days until it ends
        #[arg(long, value_parser = days(), default_value_t = AUTHORITY_DAYS)]
        days: u32,
        /// Replace an existing authority: every certificate it signed becomes worthless
        #[arg(long)]
        force: bool,
    },
    /// Issue the broker's certificate
    Server {
        /// DNS name or IP address that clients connect to; repeat it for each
        #[arg(long = "host", value_name = "HOST", default_values = LOCAL_HOSTS)]
        hosts: Vec<String>,
        #[command(flatten)]
        issue: Issue,
    },
    /// Issue the certificate of a bridge or of an observer
    Service {
        /// The service's name; no device may have it
        name: CommonName,
        /// What it may do
        #[arg(long)]
        role: ServiceRole,
        #[command(flatten)]
        issue: Issue,
    },
    /// Issue devices' certificates
    Device {
        /// The device id: 1 to 64 characters of A-Z a-z 0-9 . _ -
        #[arg(value_name = "ID", required = true)]
        ids: Vec<DeviceId>,
        #[command(flatten)]
        issue: Issue,
    },
    /// Make what is missing of all that one machine needs: authority, broker, bridge, observer
    /// and one device; safe to run again and again
    Ensure {
        /// The device id of the agent
        #[arg(long, value_name = "ID")]
        device: DeviceId,
        /// DNS name or IP address that clients reach the broker under; repeat it for each
        #[arg(long = "host", value_name = "HOST", default_values = LOCAL_HOSTS)]
        hosts: Vec<String>,
        /// Copy what each of them needs, and no more, to DIR/broker, DIR/bridge, DIR/observer
        /// and DIR/agent
        #[arg(long, value_name = "DIR")]
        hand_out: Option<PathBuf>,
    },
    /// Show every certificate that was issued, and how it stands
    List,
    /// Check a certificate: signature, time, identity, revocation, and the key beside it
    Verify {
        /// The certificate
        file: PathBuf,
        /// The authority to check against; without it that of --dir
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
        /// The revocation list to check against; without it that of --dir, if --ca is not given
        #[arg(long, value_name = "FILE", requires = "ca")]
        crl: Option<PathBuf>,
        /// Also check that a server can be reached under this name or address
        #[arg(long)]
        host: Option<String>,
    },
    /// Put certificates on the revocation list, which the broker reads while it runs
    #[command(group = ArgGroup::new("which").required(true).multiple(true))]
    Revoke {
        /// A certificate file, or a serial number as `list` shows it
        #[arg(value_name = "FILE|SERIAL", group = "which")]
        certificates: Vec<String>,
        /// Every certificate that was issued to this name: what a stolen device needs
        #[arg(long = "name", value_name = "NAME", group = "which")]
        names: Vec<CommonName>,
    },
    /// Issue a certificate again for the same identity and hosts, in its place
    ///
    /// The key stays the same, so that pins hold and only a public file has to travel. The old
    /// certificate holds until it ends; revoke it if it must not. `renew` on ca.pem prolongs the
    /// authority itself.
    Renew {
        /// The certificate
        file: PathBuf,
        /// Days until it ends [default: 397 for servers and services, 825 for devices]
        #[arg(long, value_parser = days())]
        days: Option<u32>,
        /// Make a new key, too, and put it beside the certificate
        #[arg(long)]
        new_key: bool,
    },
}

#[derive(Debug, Args)]
struct Issue {
    /// Days until it ends [default: 397 for servers and services, 825 for devices]
    #[arg(long, value_parser = days())]
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

/// Runs one command.
///
/// # Errors
/// The [`Failure`] that ended it.
pub fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let folder = Folder::new(cli.dir);
    let json = cli.json;
    match cli.command {
        Command::Init { name, days, force } => {
            let name = name.unwrap_or_else(default_name);
            Authority::init_for_days(folder.clone(), &name, days, overwrite(force))?;
            let files = folder.ca_files();
            output::made(json, &folder, &files.cert, &files.key)?;
        }
        Command::Server { hosts, issue } => {
            let name = SERVER_NAME.parse().expect("a fixed name is an identity");
            let role = Role::Server;
            self::issue(json, folder, &[Identity { name, role }], &hosts, &issue)?;
        }
        Command::Service { name, role, issue } => {
            let role = match role {
                ServiceRole::Bridge => Role::Bridge,
                ServiceRole::Observer => Role::Observer,
            };
            self::issue(json, folder, &[Identity { name, role }], &[], &issue)?;
        }
        Command::Device { ids, issue } => {
            let identities: Vec<_> = ids.into_iter().map(Identity::of_device).collect();
            self::issue(json, folder, &identities, &[], &issue)?;
        }
        Command::Ensure {
            device,
            hosts,
            hand_out,
        } => {
            let set = MachineSet::ensure(&folder, &device, &hosts)?;
            if let Some(out) = hand_out {
                set.hand_out(&folder, &out)?;
            }
            for files in [&set.server, &set.bridge, &set.observer, &set.device] {
                output::made(json, &folder, &files.cert, &files.key)?;
            }
        }
        Command::List => return list(json, &folder),
        Command::Verify {
            file,
            ca,
            crl,
            host,
        } => {
            let verifier = match ca {
                Some(ca) => Verifier::new(&ca, crl.as_deref())?,
                None => Verifier::of(&folder)?,
            };
            return verify(json, &verifier, &file, host.as_deref());
        }
        Command::Revoke {
            certificates,
            names,
        } => revoke(json, folder, &certificates, &names)?,
        Command::Renew {
            file,
            days,
            new_key,
        } => {
            let key = if new_key { Key::Replace } else { Key::Keep };
            Authority::open(folder.clone())?.renew(&file, days, key)?;
            output::made(json, &folder, &file, &file.with_extension("key"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn issue(
    json: bool,
    folder: Folder,
    identities: &[Identity],
    hosts: &[String],
    issue: &Issue,
) -> Result<(), Failure> {
    let authority = Authority::open(folder.clone())?;
    for identity in identities {
        let days = issue.days.unwrap_or_else(|| default_days(identity.role));
        let files = authority.issue(identity, hosts, days, overwrite(issue.force))?;
        output::made(json, &folder, &files.cert, &files.key)?;
    }
    Ok(())
}

fn list(json: bool, folder: &Folder) -> Result<ExitCode, Failure> {
    let (entries, unreadable) = inventory::list(folder, OffsetDateTime::now_utc())?;
    if json {
        entries.iter().for_each(output::json);
    } else if entries.is_empty() && unreadable.is_empty() {
        say!("nothing was issued from {} yet", folder.root().display());
    } else {
        output::table(&entries);
    }
    let mut code = ExitCode::SUCCESS;
    for error in unreadable {
        code = Failure::from(error).report();
    }
    Ok(code)
}

fn verify(
    json: bool,
    verifier: &Verifier,
    file: &Path,
    host: Option<&str>,
) -> Result<ExitCode, Failure> {
    let now = OffsetDateTime::now_utc();
    let mut entry = Entry::judge(verifier, file, now)?;
    if let Some(host) = host {
        entry.check_host(verifier, host, now)?;
    }
    if json {
        output::json(&entry);
    } else {
        output::entry(&entry);
    }
    Ok(if entry.problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn revoke(
    json: bool,
    folder: Folder,
    certificates: &[String],
    names: &[CommonName],
) -> Result<(), Failure> {
    let authority = Authority::open(folder.clone())?;
    let mut serials = Vec::new();
    for which in certificates {
        serials.push(serial(&folder, which)?);
    }
    for name in names {
        let before = serials.len();
        for role in Role::ALL {
            let issued = folder.issued(role)?.into_iter();
            serials.extend(issued.filter(|i| i.name == name.as_str()).map(|i| i.serial));
        }
        if serials.len() == before {
            return Err(CertsError::UnknownName(name.as_str().to_owned()).into());
        }
    }
    serials.sort();
    serials.dedup();
    let crl = authority.revoke(&serials)?;
    if json {
        output::json(&output::Revoked {
            crl: &crl,
            revoked: &serials,
        });
    } else {
        output::revoked(&crl, &serials, &others_that_hold(&folder, &serials));
    }
    Ok(())
}

/// Certificates of the names that were just revoked, which a thief could use instead. They are
/// mentioned only: whatever goes wrong in finding them, the revocation stands.
fn others_that_hold(folder: &Folder, revoked: &[Serial]) -> Vec<Entry> {
    let (mut entries, _) = inventory::list(folder, OffsetDateTime::now_utc()).unwrap_or_default();
    let names: Vec<_> = entries
        .iter()
        .filter(|entry| revoked.contains(&entry.serial))
        .map(|entry| entry.identity.clone())
        .collect();
    entries.retain(|entry| {
        names.contains(&entry.identity) && matches!(entry.state, State::Valid | State::Replaced)
    });
    entries
}

/// The serial number of a certificate file, or in hexadecimal.
fn serial(folder: &Folder, which: &str) -> Result<Serial, CertsError> {
    let path = Path::new(which);
    if path.exists() {
        return Ok(Entry::read(folder, path, OffsetDateTime::now_utc())?.serial);
    }
    which
        .parse()
        .map_err(|_| CertsError::NeitherFileNorSerial(which.to_owned()))
}

const fn overwrite(force: bool) -> Overwrite {
    if force {
        Overwrite::Allow
    } else {
        Overwrite::Refuse
    }
}

fn days() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(DAYS_MAX))
}

/// X.509 allows 64 characters.
fn authority_name(text: &str) -> Result<String, String> {
    match text.chars().count() {
        1..=64 if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err("use 1 to 64 characters, no control characters".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
