//! Servers that a test may stop, promote and cut off: PostgreSQL with standbys, and pgbouncer before one.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use tempfile::TempDir;
use testkit::port::free_port;
use testkit::process::{Guard, Signal};
use testkit::wait;

/// A PostgreSQL.
pub(crate) struct Postgres {
    server: Guard,
    port: u16,
    _folder: TempDir,
}

/// A pgbouncer that ends with its test.
pub(crate) struct Pgbouncer {
    _server: Guard,
    pub(crate) url: String,
    _folder: TempDir,
}

impl Postgres {
    pub(crate) async fn primary() -> Self {
        let folder = folder();
        run(program("initdb", folder.path())
            .arg("--pgdata")
            .arg(data(folder.path()))
            .args(["--username", "postgres", "--auth", "trust"])
            .args(["--encoding", "UTF8", "--locale=C", "--no-sync"]));
        Self::serve(folder).await
    }

    /// A server that follows this one.
    pub(crate) async fn standby(&self) -> Self {
        let folder = folder();
        let of = format!("{}?application_name=follower", self.url());
        run(program("pg_basebackup", folder.path())
            .arg("--pgdata")
            .arg(data(folder.path()))
            .args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync"])
            .args(["--dbname", &of]));
        let standby = Self::serve(folder).await;
        let follows = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        wait::until("the standby follows", async || {
            self.number(follows).await == 1
        })
        .await;
        standby
    }

    async fn serve(folder: TempDir) -> Self {
        let port = free_port();
        let mut command = program("postgres", folder.path());
        command.arg("-D").arg(data(folder.path()));
        for setting in [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
            format!("unix_socket_directories={}", folder.path().display()),
            "max_connections=60".to_owned(),
            "shared_buffers=16MB".to_owned(),
            "fsync=off".to_owned(),
            "full_page_writes=off".to_owned(),
        ] {
            command.arg("-c").arg(setting);
        }
        let log = fs::File::create(folder.path().join("log")).unwrap();
        command.stderr(log);
        let server = Self {
            server: Guard::spawn(&mut command),
            port,
            _folder: folder,
        };
        let url = server.url();
        wait::until("the server answers", async || {
            PgConnection::connect(&url).await.is_ok()
        })
        .await;
        server
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.host())
    }

    /// One URL for several servers.
    pub(crate) fn url_of(servers: &[&Self]) -> String {
        let hosts: Vec<String> = servers.iter().map(|server| server.host()).collect();
        format!("postgres://postgres@{}/postgres", hosts.join(","))
    }

    pub(crate) async fn sql(&self, sql: &str) {
        let mut connection = PgConnection::connect(&self.url()).await.unwrap();
        for statement in sql.split(';') {
            let statement = AssertSqlSafe(statement.to_owned());
            connection.execute(statement).await.unwrap();
        }
    }

    pub(crate) async fn number(&self, sql: &'static str) -> i64 {
        let mut connection = PgConnection::connect(&self.url()).await.unwrap();
        connection.fetch_one(sql).await.unwrap().get(0)
    }

    /// It ends without a last word to anybody.
    pub(crate) fn crash(mut self) {
        self.server.ends_on(Signal::QUIT);
    }
}

impl Pgbouncer {
    /// Before this database, in a mode, with further lines of its settings.
    pub(crate) async fn start(before: &str, mode: &str, settings: &str) -> Self {
        let (_, host, name) = testkit::database::around_host(before);
        let (host, port_behind) = host.rsplit_once(':').unwrap();
        let folder = folder();
        let port = free_port();
        let file = folder.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host={host} port={port_behind} user=postgres\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = {mode}\n{settings}\n"
        );
        fs::write(&file, text).unwrap();
        let mut command = program("pgbouncer", folder.path());
        command.arg("--quiet").arg(&file).stderr(Stdio::null());
        let server = Guard::spawn(&mut command);
        let address = ("127.0.0.1", port);
        wait::until("pgbouncer listens", async || {
            tokio::net::TcpStream::connect(address).await.is_ok()
        })
        .await;
        Self {
            _server: server,
            url: format!("postgres://postgres@127.0.0.1:{port}{name}"),
            _folder: folder,
        }
    }
}

fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}

/// A folder of the user that servers run as.
fn folder() -> TempDir {
    let folder = TempDir::with_prefix("tideline-own-").unwrap();
    if let Some((user, group)) = account() {
        chown(folder.path(), Some(user), Some(group)).unwrap();
    }
    folder
}

/// A program in a folder, as a user who is not root: servers refuse root.
fn program(name: &str, folder: &Path) -> Command {
    let mut command = Command::new(name);
    command.current_dir(folder).stdin(Stdio::null());
    if let Some((user, group)) = account() {
        command.uid(user).gid(group);
    }
    command
}

/// Whom root runs servers as.
fn account() -> Option<(u32, u32)> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let is_root = status.lines().any(|line| line.starts_with("Uid:\t0\t"));
    if !is_root {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let named = |name: &str| {
        let line = users
            .lines()
            .find(|line| line.split(':').next() == Some(name))?;
        let mut numbers = line.split(':').skip(2).map(|field| field.parse().unwrap());
        Some((numbers.next()?, numbers.next()?))
    };
    named("postgres").or_else(|| named("nobody"))
}

fn run(command: &mut Command) {
    let made = command.output().unwrap();
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{command:?}: {said}");
}
