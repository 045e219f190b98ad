//! A rehearsal of `docker compose up` on this machine: volumes are folders, every one-shot job
//! runs for real, and every long-running process is told to `check` what it would run with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use loadtest::process::binary;

use super::compose::{self, Compose, Condition, Service, Source};
use super::{assert_none, dockerfile, root};

/// Names the PostgreSQL that tests may use.
const DATABASE: &str = "TIDELINE_TEST_POSTGRES_URL";

/// Where the stage keeps what the containers would see.
struct Stage {
    folder: tempfile::TempDir,
}

#[test]
fn jobs_run_and_processes_accept_their_settings() {
    let compose = compose::read();
    let stage = Stage {
        folder: tempfile::tempdir().unwrap(),
    };
    let jobs = jobs(&compose);
    let mut problems = Vec::new();
    for name in in_order(&compose) {
        let service = &compose.services[&name];
        if !service.is_ours() {
            continue;
        }
        let problem = stage.perform(&name, service, jobs.contains(&name));
        problems.extend(problem.err().map(|problem| format!("{name}: {problem}")));
    }
    assert_none(&problems);
}

#[test]
fn every_command_line_is_understood() {
    let compose = compose::read();
    let mut problems = Vec::new();
    for (name, service) in &compose.services {
        if !service.is_ours() {
            continue;
        }
        let (program, arguments) = match command(service) {
            Ok(words) => words,
            Err(problem) => {
                problems.push(format!("{name}: {problem}"));
                continue;
            }
        };
        // Arguments are read up to `--help`: one that is not known is refused before.
        let output = Command::new(program)
            .args(arguments)
            .arg("--help")
            .output()
            .unwrap();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            problems.push(format!("{name}: {:?}: {said}", service.command));
        }
    }
    assert_none(&problems);
}

impl Stage {
    /// Runs a job, or lets a process check its settings.
    fn perform(&self, name: &str, service: &Service, is_job: bool) -> Result<(), String> {
        let container = self.set(name, service)?;
        let (program, arguments) = command(service)?;
        let mut arguments: Vec<String> = arguments
            .iter()
            .map(|argument| moved(argument, &container))
            .collect();
        if !is_job {
            match arguments.first_mut() {
                Some(first) if first == "run" => "check".clone_into(first),
                _ => return Err(format!("{:?} does not `run`", service.command)),
            }
        }
        let output = Command::new(program)
            .args(&arguments)
            .envs(environment(service))
            .env("HOME", &container)
            .current_dir(&container)
            .output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!(
            "{arguments:?} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ))
    }

    /// Sets up the file tree that a service would see.
    fn set(&self, name: &str, service: &Service) -> Result<PathBuf, String> {
        let container = self.folder.path().join("containers").join(name);
        fs::create_dir_all(&container).unwrap();
        for mount in service.mounts() {
            let target = inside(&container, &mount.target);
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            match mount.source {
                Source::Volume(volume) => {
                    let volume = self.folder.path().join("volumes").join(volume);
                    fs::create_dir_all(&volume).unwrap();
                    symlink(volume, target).unwrap();
                }
                Source::Repository(path) => {
                    let text = fs::read_to_string(root().join(&path))
                        .map_err(|error| format!("{}: {error}", path.display()))?;
                    let text = text.replace("\"/", &format!("\"{}/", container.display()));
                    fs::write(target, text).unwrap();
                }
            }
        }
        Ok(container)
    }
}

/// The program and its arguments.
fn command(service: &Service) -> Result<(PathBuf, &[String]), String> {
    let Some((program, arguments)) = service.command.split_first() else {
        return Err("has no command".to_owned());
    };
    if !dockerfile::binaries().contains(program) {
        return Err(format!("{program} is no binary of the workspace"));
    }
    let program = binary(program).map_err(|error| error.to_string())?;
    Ok((program, arguments))
}

/// The service's variables; a database of the stage takes the place of that of another service.
fn environment(service: &Service) -> BTreeMap<&str, String> {
    let mut environment = BTreeMap::new();
    for (name, value) in &service.environment {
        let value = if value.starts_with("postgresql://") {
            std::env::var(DATABASE).expect("run through `cargo xtask test`: it starts PostgreSQL")
        } else {
            value.clone()
        };
        environment.insert(name.as_str(), value);
    }
    environment
}

/// An argument whose path, alone or after `=`, lies in the container's folder.
fn moved(argument: &str, container: &Path) -> String {
    let (option, value) = match argument.split_once('=') {
        Some((option, value)) => (format!("{option}="), value),
        None => (String::new(), argument),
    };
    if value.starts_with('/') {
        format!("{option}{}", inside(container, Path::new(value)).display())
    } else {
        argument.to_owned()
    }
}

fn inside(container: &Path, path: &Path) -> PathBuf {
    container.join(path.strip_prefix("/").unwrap())
}

/// The services that end by themselves, since others wait for that.
fn jobs(compose: &Compose) -> BTreeSet<String> {
    compose
        .services
        .values()
        .flat_map(|service| &service.depends_on)
        .filter(|(_, dependency)| dependency.condition == Condition::Completed)
        .map(|(name, _)| name.clone())
        .collect()
}

/// Every service after those that it waits for.
fn in_order(compose: &Compose) -> Vec<String> {
    let mut left: BTreeMap<&String, &Service> = compose.services.iter().collect();
    let mut order = Vec::new();
    while !left.is_empty() {
        let next = left
            .iter()
            .find(|(_, service)| {
                !service
                    .depends_on
                    .keys()
                    .any(|other| left.contains_key(other))
            })
            .map(|(name, _)| (*name).clone())
            .expect("services do not wait for each other in a circle");
        left.remove(&next);
        order.push(next);
    }
    order
}
