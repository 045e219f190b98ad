//! A PostgreSQL server of our own, SERIALIZABLE by default as CockroachDB is.
//!
//! It refuses to run as root, so root runs it as `postgres` or `nobody`. It listens on one free
//! port of 127.0.0.1 and trusts whoever connects: nothing but test data is ever in it.

use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use daemon::{Class, Failure};
use rustix::process::{Pid, Signal, geteuid, kill_process};

use super::trust;
use crate::programs;

/// How long the server may take to accept connections.
const START_TIME_MAX: Duration = Duration::from_secs(60);
/// How long it may take to stop before it is killed.
const STOP_TIME_MAX: Duration = Duration::from_secs(10);
/// How often it is looked at meanwhile.
const POLL: Duration = Duration::from_millis(20);
/// A free port may be taken by another program before the server has it.
const PORT_ATTEMPTS_MAX: usize = 3;
/// Tests of several crates run at once, each with a few connections.
const CONNECTIONS_MAX: usize = 200;
/// Who runs the server when root may not, the first one that exists.
const SERVER_USERS: [&str; 2] = ["postgres", "nobody"];

/// Whether commits wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// As in production: for benchmarks.
    Synced,
    /// Survives no power cut: for tests, which kill processes but no machines.
    Fast,
}

/// A server and its folder. Dropping it stops the one and removes the other.
#[derive(Debug)]
pub(crate) struct Postgres {
    // Fields are dropped in this order: the server stops before its folder goes.
    server: Server,
    _folder: tempfile::TempDir,
}

/// A server process on a port. Dropping it stops it.
#[derive(Debug)]
struct Server {
    process: Child,
    port: u16,
}

/// A user of this machine, as in `/etc/passwd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) user: u32,
    pub(super) group: u32,
}

impl Postgres {
    /// Makes a new database cluster in a temporary folder and starts a server on it.
    pub(crate) fn start(durability: Durability) -> Result<Self, Failure> {
        Self::on(durability, initialise)
    }

    /// As [`Self::start`], with certificates, for [`Self::tls_url`].
    pub(crate) fn start_with_certificates() -> Result<Self, Failure> {
        let server = Self::on(Durability::Fast, |binaries, account, folder| {
            initialise(binaries, account, folder)?;
            trust::prepare(folder, account)
        })?;
        server.create_user()?;
        Ok(server)
    }

    /// Makes the role that [`Self::tls_url`] speaks of.
    fn create_user(&self) -> Result<(), Failure> {
        let psql = programs::find("psql").ok_or_else(|| {
            failed()
                .because("psql is not installed")
                .help("`cargo xtask test --list-requirements` says what to install")
        })?;
        let made = Command::new(psql)
            .args([
                "--no-psqlrc",
                "--quiet",
                "--dbname",
                &self.url(),
                "--command",
            ])
            .arg(format!("CREATE ROLE {} LOGIN SUPERUSER", trust::USER))
            .output()
            .map_err(|error| failed().because(error))?;
        match made.status.success() {
            true => Ok(()),
            false => Err(failed().because(String::from_utf8_lossy(&made.stderr).into_owned())),
        }
    }

    /// Starts a server on the files that `fill` makes in a temporary folder.
    fn on(
        durability: Durability,
        fill: impl FnOnce(&Path, Option<Account>, &Path) -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        let binaries = programs::postgres_folder().ok_or_else(|| {
            failed()
                .because("initdb, postgres and pg_basebackup are not installed")
                .help("`cargo xtask test --list-requirements` says what to install")
        })?;
        let account = account()?;
        let folder = tempfile::Builder::new()
            .prefix("tideline-postgres-")
            .tempdir()
            .map_err(|error| failed().because(error))?;
        if let Some(Account { user, group }) = account {
            chown(folder.path(), Some(user), Some(group))
                .map_err(|error| failed().because(error))?;
        }
        fill(&binaries, account, folder.path())?;
        for _ in 0..PORT_ATTEMPTS_MAX {
            if let Some(server) = serve(&binaries, account, folder.path(), durability)? {
                return Ok(Self {
                    server,
                    _folder: folder,
                });
            }
        }
        Err(failed().because("every free port was taken before the server had it"))
    }

    /// Starts a second server that follows this one and answers queries.
    pub(crate) fn start_replica(&self) -> Result<Self, Failure> {
        Self::on(Durability::Fast, |binaries, account, folder| {
            copy(binaries, account, folder, &self.url())
        })
    }

    /// Where a user connects who must show a certificate, and checks the server's.
    pub(crate) fn tls_url(&self) -> String {
        let folder = self._folder.path().join(trust::FOLDER);
        let file = |name: &str| folder.join(name).display().to_string();
        format!(
            "postgres://{}@localhost:{}/postgres?sslmode=verify-full&sslrootcert={}&sslcert={}&sslkey={}",
            trust::USER,
            self.server.port,
            file("ca.pem"),
            file("client.pem"),
            file("client.key"),
        )
    }

    /// Where the administrator connects.
    pub(crate) fn url(&self) -> String {
        format!(
            "postgres://postgres@127.0.0.1:{}/postgres",
            self.server.port
        )
    }
}

impl Server {
    fn ends_within(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            if matches!(self.process.try_wait(), Ok(Some(_)) | Err(_)) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.process.id().cast_signed()) {
            // "Immediate": its data is about to be deleted.
            let _ = kill_process(pid, Signal::QUIT);
        }
        if !self.ends_within(STOP_TIME_MAX) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

fn failed() -> Failure {
    Failure::new(Class::Storage, "start a PostgreSQL server for tests")
}

fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}

fn log(folder: &Path) -> PathBuf {
    folder.join("server.log")
}

fn initialise(binaries: &Path, account: Option<Account>, folder: &Path) -> Result<(), Failure> {
    let initdb = binaries.join("initdb");
    let mut command = Command::new(&initdb);
    command
        .arg("--pgdata")
        .arg(data(folder))
        .args(["--username", "postgres", "--auth", "trust"])
        .args(["--encoding", "UTF8", "--no-sync"])
        .args(ordinary_locale(&said(&initdb, &["--version"])));
    run(&mut command, account, folder)
}

/// Names compare as people sort them, as in most databases that are made by hand: tests find then
/// what compares by a locale and should not. From PostgreSQL 15 on the server brings such a locale
/// along; before, the operating system may have one.
fn ordinary_locale(version: &str) -> Vec<String> {
    let major = version.split_whitespace().find_map(|word| {
        let digits = word.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse::<u32>().ok()
    });
    if major.is_some_and(|major| major >= 15) {
        return ["--locale-provider=icu", "--icu-locale=en-US", "--locale=C"]
            .map(str::to_owned)
            .to_vec();
    }
    let installed = said(Path::new("locale"), &["-a"]);
    match installed.lines().find(|name| is_ordinary(name)) {
        Some(name) => vec![format!("--locale={name}")],
        None => {
            eprintln!(
                "warning: PostgreSQL before 15 and no locale like en_US.UTF-8 here: names are \
                 tested as they compare in C (`apt-get install locales-all` brings locales)"
            );
            vec!["--no-locale".to_owned()]
        }
    }
}

/// `en_US.utf8` and its like.
fn is_ordinary(locale: &str) -> bool {
    let (language, encoding) = locale.split_once('.').unwrap_or((locale, ""));
    language.len() == 5
        && language.as_bytes()[2] == b'_'
        && encoding.replace('-', "").eq_ignore_ascii_case("utf8")
}

/// What a program prints, or nothing.
fn said(program: &Path, arguments: &[&str]) -> String {
    let asked = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    asked.map_or_else(
        |_| String::new(),
        |asked| String::from_utf8_lossy(&asked.stdout).into_owned(),
    )
}

/// Copies a running server's files, with what makes the copy follow it.
fn copy(
    binaries: &Path,
    account: Option<Account>,
    folder: &Path,
    url: &str,
) -> Result<(), Failure> {
    let mut command = Command::new(binaries.join("pg_basebackup"));
    command
        .arg("--pgdata")
        .arg(data(folder))
        .args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync"])
        .args(["--dbname", url]);
    run(&mut command, account, folder)
}

/// Runs a program that makes a database cluster.
fn run(command: &mut Command, account: Option<Account>, folder: &Path) -> Result<(), Failure> {
    let made = as_account(command, account, folder)
        .output()
        .map_err(|error| failed().because(error))?;
    if made.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&made.stderr).trim().to_owned();
    Err(Failure::new(
        Class::Storage,
        format!("make a database cluster in {}", folder.display()),
    )
    .because(said)
    .help("the server's user must reach that folder; TMPDIR chooses another place"))
}

/// Starts a server; `None` when its port was taken by another program.
fn serve(
    binaries: &Path,
    account: Option<Account>,
    folder: &Path,
    durability: Durability,
) -> Result<Option<Server>, Failure> {
    let broken = |error: io::Error| failed().because(error);
    let port = free_port().map_err(broken)?;
    // A new file each time, so that a failed attempt's words are not read again.
    let output = File::create(log(folder)).map_err(broken)?;
    let mut command = Command::new(binaries.join("postgres"));
    command.arg("-D").arg(data(folder));
    for setting in settings(folder, port, durability) {
        command.arg("-c").arg(setting);
    }
    let process = as_account(&mut command, account, folder)
        // Ctrl-C is for us: the server stops after those who use it.
        .process_group(0)
        .stdout(output.try_clone().map_err(broken)?)
        .stderr(output)
        .spawn()
        .map_err(broken)?;
    let mut server = Server { process, port };
    let said = || fs::read_to_string(log(folder)).unwrap_or_default();
    let deadline = Instant::now() + START_TIME_MAX;
    while !is_ready(folder) {
        if server.ends_within(POLL) {
            let said = said();
            if said.contains("Address already in use") {
                return Ok(None);
            }
            return Err(failed().because(said));
        }
        if Instant::now() >= deadline {
            let late = format!("it was not ready after {START_TIME_MAX:?}: {}", said());
            return Err(failed().because(late));
        }
    }
    Ok(Some(server))
}

/// The server keeps its state in the eighth line of a file, for `pg_ctl`.
fn is_ready(folder: &Path) -> bool {
    fs::read_to_string(data(folder).join("postmaster.pid"))
        .is_ok_and(|text| text.lines().nth(7).map(str::trim) == Some("ready"))
}

fn settings(folder: &Path, port: u16, durability: Durability) -> Vec<String> {
    let mut settings = vec![
        "listen_addresses=127.0.0.1".to_owned(),
        format!("port={port}"),
        format!("unix_socket_directories={}", folder.display()),
        format!("max_connections={CONNECTIONS_MAX}"),
        "default_transaction_isolation=serializable".to_owned(),
    ];

    if durability == Durability::Fast {
        settings.extend(
            [
                "fsync=off",
                "synchronous_commit=off",
                "full_page_writes=off",
            ]
            .map(str::to_owned),
        );
    }
    settings
}

/// Not testkit's, which brings the store and both databases' libraries: tests are run also when these do not build.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Lets a program run as the server's user, in a folder that this user can enter.
fn as_account<'a>(
    command: &'a mut Command,
    account: Option<Account>,
    folder: &Path,
) -> &'a mut Command {
    command.current_dir(folder).stdin(Stdio::null());
    if let Some(Account { user, group }) = account {
        command.uid(user).gid(group);
    }
    command
}

/// The user that the server runs as; `None` is whoever runs this program.
fn account() -> Result<Option<Account>, Failure> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd").map_err(|error| failed().because(error))?;
    SERVER_USERS
        .iter()
        .find_map(|name| find_account(&users, name))
        .map(Some)
        .ok_or_else(|| {
            failed()
                .because("it refuses to run as root, and there is no user `postgres` or `nobody`")
                .help("run as another user, or create the user `postgres`")
        })
}

/// Finds a user in the text of `/etc/passwd`.
fn find_account(users: &str, name: &str) -> Option<Account> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        // name:password:user:group:…
        let mut number = || fields.next()?.parse().ok();
        let _password: Option<u32> = number();
        Some(Account {
            user: number()?,
            group: number()?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_its_whole_name() {
        let users = "root:x:0:0:root:/root:/bin/sh\npostgres2:x:7:8::/:\npostgres:x:105:110::/:\n";
        let expected = Account {
            user: 105,
            group: 110,
        };
        assert_eq!(find_account(users, "postgres"), Some(expected));
        assert_eq!(find_account(users, "nobody"), None);
        assert_eq!(find_account("nobody:x:many:1::/:", "nobody"), None);
    }

    #[test]
    fn a_server_gets_a_locale_by_which_people_sort() {
        let of = |version: &str| ordinary_locale(version).join(" ");
        for version in [
            "initdb (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)",
            "initdb (PostgreSQL) 17beta1",
            "initdb (PostgreSQL) 18.0\n",
        ] {
            assert!(of(version).contains("en-US"), "{version}");
        }
        assert!(!of("initdb (PostgreSQL) 13.4").contains("icu"));
        assert!(!of("").contains("icu"));
        for ordinary in ["en_US.utf8", "de_DE.UTF-8"] {
            assert!(is_ordinary(ordinary), "{ordinary}");
        }
        for other in ["C", "C.utf8", "POSIX", "en_US", "en_US.iso88591", ""] {
            assert!(!is_ordinary(other), "{other}");
        }
    }

    #[test]
    fn a_server_is_serializable_and_leaves_nothing_behind() {
        let server = Postgres::start(Durability::Fast)
            .expect("a PostgreSQL server; run through `cargo xtask test`");
        let folder = server._folder.path().to_owned();
        let asked = Command::new(programs::find("psql").expect("psql"))
            .arg(server.url())
            .args(["--no-psqlrc", "--tuples-only", "--no-align", "--command"])
            .args(["SHOW transaction_isolation", "--command"])
            .arg("SELECT 'a' < 'B'")
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&asked.stdout);
        let told: Vec<&str> = told.lines().collect();
        assert_eq!(told[0], "serializable");
        // By a locale, unless this machine has none.
        let initdb = programs::postgres_folder().unwrap().join("initdb");
        let is_plain = ordinary_locale(&said(&initdb, &["--version"])) == ["--no-locale"];
        assert!(told[1] == "t" || is_plain, "{told:?}");
        let port = server.server.port;
        drop(server);
        assert!(!folder.exists());
        TcpListener::bind(("127.0.0.1", port)).expect("the port is free again");
    }

    #[test]
    fn a_replica_follows() {
        let server = Postgres::start(Durability::Fast)
            .expect("a PostgreSQL server; run through `cargo xtask test`");
        let replica = server.start_replica().unwrap();
        let ask = |server: &Postgres, sql: &str| {
            let asked = Command::new(programs::find("psql").expect("psql"))
                // A replica cannot be serializable.
                .env(
                    "PGOPTIONS",
                    "-c default_transaction_isolation=read\\ committed",
                )
                .arg(server.url())
                .args(["--no-psqlrc", "--tuples-only", "--no-align", "--command"])
                .arg(sql)
                .output()
                .unwrap();
            String::from_utf8_lossy(&asked.stdout).trim().to_owned()
        };
        ask(
            &server,
            "CREATE TABLE t (a INT4); INSERT INTO t VALUES (42)",
        );
        let deadline = Instant::now() + START_TIME_MAX;
        while ask(&replica, "SELECT a FROM t") != "42" {
            assert!(Instant::now() < deadline, "the replica does not follow");
            std::thread::sleep(POLL);
        }
    }

    #[test]
    fn only_benchmarks_wait_for_the_disk() {
        let has =
            |durability| settings(Path::new("f"), 1, durability).contains(&"fsync=off".to_owned());
        assert!(has(Durability::Fast) && !has(Durability::Synced));
    }
}
