//! What docker-compose.yml names exists: files, volumes, services, variables, ports, hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::compose::{self, Compose, Condition, Service, Source};
use super::settings::{self, Address};
use super::{assert_none, dockerfile, root};

/// Ports of images that are not ours: CockroachDB's SQL and HTTP.
const FOREIGN_PORTS: [(&str, [u16; 2]); 1] = [("cockroachdb/cockroach:", [26257, 8080])];
/// Variables that no code of ours reads, by the image that does.
const FOREIGN_VARIABLES: [(&str, &[&str]); 1] =
    [("cockroachdb/cockroach:", &["COCKROACH_DATABASE"])];

#[test]
fn files_and_volumes_exist() {
    let compose = compose::read();
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    for (name, service) in &compose.services {
        if let Some(context) = &service.build
            && !root().join(context).join("Dockerfile").is_file()
        {
            problems.push(format!("{name}: {context}/Dockerfile does not exist"));
        }
        for mount in service.mounts() {
            match mount.source {
                Source::Repository(path) if !root().join(&path).exists() => {
                    problems.push(format!("{name}: {} does not exist", path.display()));
                }
                Source::Volume(volume) if !compose.volumes.contains_key(&volume) => {
                    problems.push(format!("{name}: volume {volume} is not declared"));
                }
                Source::Volume(volume) => {
                    used.insert(volume);
                }
                Source::Repository(_) => {}
            }
        }
    }
    for volume in compose.volumes.keys().filter(|name| !used.contains(*name)) {
        problems.push(format!("volume {volume} is declared and not used"));
    }
    assert_none(&problems);
}

#[test]
fn services_wait_for_services_that_can_get_there() {
    let compose = compose::read();
    let mut problems = Vec::new();
    for (name, service) in &compose.services {
        for (other, dependency) in &service.depends_on {
            let Some(awaited) = compose.services.get(other) else {
                problems.push(format!("{name}: waits for {other}, which is no service"));
                continue;
            };
            let reachable = match dependency.condition {
                Condition::Started => true,
                Condition::Healthy => has_healthcheck(awaited),
                // One that is restarted when it ends never counts as completed.
                Condition::Completed => awaited.restart.as_deref() == Some("no"),
            };
            if !reachable {
                problems.push(format!(
                    "{name}: {other} never is {:?}",
                    dependency.condition
                ));
            }
        }
    }
    assert_none(&problems);
}

#[test]
fn variables_are_known() {
    let compose = compose::read();
    let sources = sources();
    let mut problems = Vec::new();
    for (name, service) in &compose.services {
        let image = service.image.as_deref().unwrap_or("");
        for variable in service.environment.keys() {
            let is_read = if service.is_ours() {
                sources.contains(&format!("\"{variable}\""))
            } else {
                FOREIGN_VARIABLES.iter().any(|(prefix, known)| {
                    image.starts_with(prefix) && known.contains(&variable.as_str())
                })
            };
            if !is_read {
                problems.push(format!("{name}: nobody reads the variable {variable}"));
            }
        }
    }
    for variable in needed_variables(&super::text("docker-compose.yml")) {
        problems.push(format!("${variable} has neither a default nor a message"));
    }
    assert_none(&problems);
}

#[test]
fn a_variable_of_the_callers_has_a_default_or_a_message() {
    let text = "a: ${A:-1} $$B ${C:?say it} x$D- ${E}\n";
    assert_eq!(needed_variables(text), ["D", "{E}"]);
}

/// The variables that a caller must set and is not told about. `$$` is a dollar sign.
fn needed_variables(text: &str) -> Vec<String> {
    let text = text.replace("$$", "");
    let starts = text.match_indices('$').map(|(at, _)| &text[at + 1..]);
    starts
        .filter_map(|rest| match rest.strip_prefix('{') {
            Some(inner) => {
                let name = inner.split('}').next().unwrap_or(inner);
                let is_kind = name.contains(":-") || name.contains(":?");
                (!is_kind).then(|| format!("{{{name}}}"))
            }
            None => {
                let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
                Some(rest.chars().take_while(|letter| is_part(*letter)).collect())
            }
        })
        .collect()
}

#[test]
fn ports_are_those_of_the_settings() {
    let compose = compose::read();
    let health_port = dockerfile::health_port();
    let mut problems = Vec::new();
    let mut taken: BTreeMap<u16, &str> = BTreeMap::new();
    for (name, service) in &compose.services {
        let listens = listens(service);
        for published in service.published() {
            if let Some(other) = taken.insert(published.host, name) {
                problems.push(format!(
                    "{name}: {other} has host port {} too",
                    published.host
                ));
            }
            let port = published.container;
            match listens.iter().find(|listens| listens.port == port) {
                None => problems.push(format!("{name}: nothing listens on port {port} in it")),
                Some(found) if !found.from_outside => problems.push(format!(
                    "{name}: port {port} is published, and listens on the loopback address alone"
                )),
                Some(_) => {}
            }
        }
        if service.is_ours() && has_healthcheck(service) {
            let asked = match &service.healthcheck {
                Some(healthcheck) => dockerfile::port_asked_for_health(&healthcheck.test.join(" ")),
                None => Some(health_port),
            };
            if !listens.iter().any(|listens| Some(listens.port) == asked) {
                problems.push(format!(
                    "{name}: is asked for health on port {asked:?}, where nothing listens"
                ));
            }
        }
    }
    assert_none(&problems);
}

#[test]
fn hosts_that_are_connected_to_are_services() {
    let compose = compose::read();
    let mut problems = Vec::new();
    for (name, service) in &compose.services {
        for (host, port) in reaches(service) {
            let Some(target) = find_host(&compose, &host) else {
                problems.push(format!("{name}: connects to {host}, which is no service"));
                continue;
            };
            if !listens(target)
                .iter()
                .any(|listens| listens.port == port && listens.from_outside)
            {
                problems.push(format!(
                    "{name}: connects to {host}:{port}, where nothing listens"
                ));
            }
        }
    }
    assert_none(&problems);
}

struct Listens {
    port: u16,
    from_outside: bool,
}

/// Where a service listens, by its image or its settings.
fn listens(service: &Service) -> Vec<Listens> {
    let image = service.image.as_deref().unwrap_or("");
    let foreign = FOREIGN_PORTS
        .iter()
        .filter(|(prefix, _)| image.starts_with(prefix))
        .flat_map(|(_, ports)| *ports)
        .map(|port| Listens {
            port,
            from_outside: true,
        });
    let ours = addresses(service)
        .into_iter()
        .filter_map(|address| match address {
            Address::Listens(address) => Some(Listens {
                port: address.port(),
                from_outside: !address.ip().is_loopback(),
            }),
            Address::Reaches { .. } => None,
        });
    foreign.chain(ours).collect()
}

/// Where a service connects to: in its settings and in the URLs of its environment.
fn reaches(service: &Service) -> Vec<(String, u16)> {
    let mut found: Vec<(String, u16)> = addresses(service)
        .into_iter()
        .filter_map(|address| match address {
            Address::Reaches { host, port } => Some((host, port)),
            Address::Listens(_) => None,
        })
        .collect();
    for value in service.environment.values() {
        let Some((_, rest)) = value.split_once("://") else {
            continue;
        };
        let authority = rest.split(['/', '?']).next().unwrap_or(rest);
        let host = authority.rsplit('@').next().unwrap_or(authority);
        match settings::address(host) {
            Some(Address::Reaches { host, port }) => found.push((host, port)),
            Some(Address::Listens(address)) => panic!("{value}: {address} is inside the container"),
            None => panic!("{value}: names no HOST:PORT"),
        }
    }
    found
}

fn addresses(service: &Service) -> Vec<Address> {
    service
        .mounts()
        .into_iter()
        .filter_map(|mount| match mount.source {
            Source::Repository(path) if is_settings(&path) => Some(settings::addresses(&path)),
            Source::Repository(_) | Source::Volume(_) => None,
        })
        .flatten()
        .collect()
}

fn is_settings(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "toml")
        && root().join(path).is_file()
}

fn find_host<'a>(compose: &'a Compose, host: &str) -> Option<&'a Service> {
    let known_as = |service: &Service| {
        let mut networks = service.networks.values();
        networks.any(|network| network.aliases.iter().any(|alias| alias == host))
    };
    compose.services.get(host).or_else(|| {
        let mut services = compose.services.values();
        services.find(|service| known_as(service))
    })
}

/// Its own, or that of our image.
fn has_healthcheck(service: &Service) -> bool {
    match &service.healthcheck {
        Some(healthcheck) => !healthcheck.disable && !healthcheck.test.is_empty(),
        None => service.is_ours(),
    }
}

/// The text of every source file of ours.
fn sources() -> String {
    let mut text = String::new();
    let mut folders: Vec<PathBuf> = dockerfile::binaries()
        .iter()
        .map(|member| root().join(member).join("src"))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    text
}
