//! A whole Tideline of real processes on this machine: broker, bridges, agents behind links that
//! can be cut, all below one folder. What is dropped is killed.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use certs::{CertsError, Folder, Identity, TlsFiles};
use schema::DeviceId;
use testkit::port::free_port;

use crate::process::{Process, ProcessError, binary};

/// What a stack is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many agents.
    pub agents: usize,
    /// How many bridges; more than one needs a database that they can share.
    pub bridges: usize,
    /// The database's URL; a file of the stack's when left out.
    pub database: Option<String>,
}

/// The processes and their files.
#[derive(Debug)]
pub struct Stack {
    folder: PathBuf,
    broker_port: u16,
    /// The broker.
    pub broker: Slot,
    /// The bridges.
    pub bridges: Vec<Slot>,
    /// The agents.
    pub agents: Vec<Slot>,
}

/// A process that may be killed and started again.
#[derive(Debug)]
pub struct Slot {
    name: String,
    program: &'static str,
    config: PathBuf,
    log: PathBuf,
    process: Option<Process>,
}

/// What went wrong with a stack.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// With a process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// With a certificate.
    #[error(transparent)]
    Certs(#[from] CertsError),
    /// With a file or a port.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Stack {
    /// Writes certificates and settings below `folder`. `links` says under which port each agent
    /// reaches the broker, whose own port comes in.
    ///
    /// # Errors
    /// When a file cannot be written or no port is free.
    pub fn prepare(
        folder: &Path,
        plan: &Plan,
        broker_port: u16,
        links: impl Fn(usize) -> u16,
    ) -> Result<Self, StackError> {
        let certs = Folder::new(folder.join("certs"));
        let hosts = ["127.0.0.1".to_owned()];
        let first = device(0);
        let set = certs::set::MachineSet::ensure(&certs, &first, &hosts)?;
        let authority = certs::Authority::open(certs.clone())?;
        let slot = |name: String, program: &'static str, settings: String| -> io::Result<Slot> {
            let config = folder.join(format!("{name}.toml"));
            fs::write(&config, settings)?;
            Ok(Slot {
                log: folder.join(format!("{name}.log")),
                name,
                program,
                config,
                process: None,
            })
        };
        let tls = |files: &TlsFiles| {
            format!(
                "[tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n",
                files.ca, files.cert, files.key
            )
        };
        let broker = slot(
            "broker".to_owned(),
            "broker",
            format!(
                "[mqtt]\naddress = \"127.0.0.1:{broker_port}\"\n{}[admin]\nhttp = \"127.0.0.1:{}\"\n",
                tls(&set.server),
                free_port()
            ),
        )?;
        let database = match &plan.database {
            Some(url) => url.clone(),
            None => folder.join("store.db").display().to_string(),
        };
        let bridges = (0..plan.bridges)
            .map(|number| {
                slot(
                    format!("bridge{number}"),
                    "bridge",
                    format!(
                        "[mqtt]\naddress = \"127.0.0.1:{broker_port}\"\nkeep_alive = \"5s\"\n{}\
                         [store]\nurl = {database:?}\n[http]\naddress = \"127.0.0.1:{}\"\n\
                         [alerts]\noffline_after = \"20s\"\n",
                        tls(&set.bridge),
                        free_port()
                    ),
                )
            })
            .collect::<io::Result<_>>()?;
        let agents = (0..plan.agents)
            .map(|number| {
                let files = if number == 0 {
                    set.device.clone()
                } else {
                    let identity = Identity::of_device(device(number));
                    authority.issue(&identity, &[], 30, certs::Overwrite::Allow)?
                };
                let name = format!("agent{number}");
                let settings = format!(
                    "[mqtt]\naddress = \"127.0.0.1:{}\"\nkeep_alive = \"5s\"\nbackoff_first = \"100ms\"\nbackoff_max = \"2s\"\n{}\
                     [buffer]\npath = {:?}\nlinger = \"20ms\"\n\
                     [session]\nlinger = \"50ms\"\nack_timeout_max = \"5s\"\nreport_interval = \"5s\"\n\
                     [source.socket]\nunix = {:?}\n[admin]\nhttp = \"127.0.0.1:{}\"\n\
                     [commands.exec.mark]\nprogram = \"/bin/sh\"\nargs = [\"-c\", {:?}]\n\
                     [commands.exec.hang]\nprogram = \"/bin/sh\"\nargs = [\"-c\", {:?}]\ntimeout = \"1s\"\n\
                     [commands.exec.nap]\nprogram = \"/bin/sh\"\nargs = [\"-c\", {:?}]\ntimeout = \"5m\"\n",
                    links(number),
                    tls(&files),
                    buffer(folder, number),
                    socket(folder, number),
                    free_port(),
                    script(folder, number, "sleep 0.2; echo marked"),
                    script(folder, number, "exec sleep 300"),
                    script(folder, number, "exec sleep 300"),
                );
                Ok(slot(name, "edge-agent", settings)?)
            })
            .collect::<Result<_, StackError>>()?;
        Ok(Self {
            folder: folder.to_owned(),
            broker_port,
            broker,
            bridges,
            agents,
        })
    }

    /// Makes sure that each process that was started and not killed since still runs.
    ///
    /// # Errors
    /// With the first that has ended by itself, and the end of its log.
    pub fn check_running(&mut self) -> Result<(), StackError> {
        for process in self.slots().filter_map(Slot::process) {
            process.check_running()?;
        }
        Ok(())
    }

    fn slots(&mut self) -> impl Iterator<Item = &mut Slot> {
        std::iter::once(&mut self.broker)
            .chain(&mut self.bridges)
            .chain(&mut self.agents)
    }

    /// Starts everything that does not run.
    ///
    /// # Errors
    /// When a binary is missing or cannot be started.
    pub fn start(&mut self) -> Result<(), StackError> {
        for slot in self.slots() {
            slot.start()?;
        }
        Ok(())
    }

    /// Where the broker listens.
    #[must_use]
    pub fn broker_addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.broker_port))
    }

    /// An agent's buffer.
    #[must_use]
    pub fn buffer(&self, agent: usize) -> PathBuf {
        buffer(&self.folder, agent)
    }

    /// Where the programs `mark`, `hang` and `nap`, which commands may start, write their ids, a line
    /// each. The last two do not end: `hang` is killed after a second.
    #[must_use]
    pub fn marks(&self, agent: usize) -> PathBuf {
        marks(&self.folder, agent)
    }

    /// Where an agent takes readings.
    #[must_use]
    pub fn socket(&self, agent: usize) -> PathBuf {
        socket(&self.folder, agent)
    }

    /// The URL of a bridge's API.
    ///
    /// # Errors
    /// When its settings cannot be read back.
    pub fn api(&self, bridge: usize) -> Result<String, StackError> {
        let address = self.bridges[bridge].setting("[http]\naddress = \"")?;
        Ok(format!("http://{address}"))
    }

    /// The URL of the broker's metrics.
    ///
    /// # Errors
    /// When its settings cannot be read back.
    pub fn broker_metrics(&self) -> Result<String, StackError> {
        let address = self.broker.setting("[admin]\nhttp = \"")?;
        Ok(format!("http://{address}/metrics"))
    }

    /// The URL of an agent's status.
    ///
    /// # Errors
    /// When its settings cannot be read back.
    pub fn agent_status(&self, agent: usize) -> Result<String, StackError> {
        let address = self.agents[agent].setting("[admin]\nhttp = \"")?;
        Ok(format!("http://{address}/status"))
    }
}

impl Slot {
    /// Starts the process if it does not run.
    ///
    /// # Errors
    /// When the binary is missing or cannot be started.
    pub fn start(&mut self) -> Result<(), StackError> {
        self.start_with(&[])
    }

    /// As [`Self::start`], with more arguments.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(&mut self, arguments: &[String]) -> Result<(), StackError> {
        if let Some(process) = &mut self.process
            && process.is_running()?
        {
            return Ok(());
        }
        // A shell first: it lets writes beyond a limit fail, instead of ending the process.
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]);
        command
            .arg(binary(self.program)?)
            .arg("run")
            .arg("--config")
            .arg(&self.config);
        command.args(arguments).env("RUST_BACKTRACE", "0");
        self.process = Some(Process::start(&self.name, &mut command, &self.log)?);
        Ok(())
    }

    /// The process, if it was started.
    pub fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<(), StackError> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
        }
        Ok(())
    }

    fn setting(&self, before: &str) -> Result<String, StackError> {
        let text = fs::read_to_string(&self.config)?;
        let value = text
            .split_once(before)
            .and_then(|(_, rest)| rest.split_once('"'))
            .map(|(value, _)| value.to_owned());
        value.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData).into())
    }
}

/// The id of the agent with this number.
///
/// # Panics
/// Never: the name is made of allowed characters.
#[must_use]
pub fn device(number: usize) -> DeviceId {
    format!("device-{number}")
        .parse()
        .expect("a fixed name is an identity")
}

fn buffer(folder: &Path, agent: usize) -> PathBuf {
    folder.join(format!("agent{agent}.db"))
}

fn marks(folder: &Path, agent: usize) -> PathBuf {
    folder.join(format!("agent{agent}.marks"))
}

/// What a program does that leaves a mark first.
fn script(folder: &Path, agent: usize, then: &str) -> String {
    let marks = marks(folder, agent);
    format!("echo $TIDELINE_COMMAND_ID >> {}; {then}", marks.display())
}

fn socket(folder: &Path, agent: usize) -> PathBuf {
    folder.join(format!("agent{agent}.sock"))
}
