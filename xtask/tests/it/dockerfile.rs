//! The Dockerfile: what it copies exists, what it builds is ours, what it names is built.

use super::{assert_none, root, text};

/// One instruction, with its continuation lines joined.
#[derive(Debug)]
struct Instruction {
    name: String,
    words: Vec<String>,
}

#[test]
fn everything_it_copies_and_builds_exists() {
    let instructions = read();
    let mut problems = Vec::new();
    let mut stages: Vec<String> = Vec::new();
    let binaries = binaries();
    for Instruction { name, words } in &instructions {
        match name.as_str() {
            "FROM" => {
                if let Some(position) = words.iter().position(|word| word == "AS") {
                    stages.push(words[position + 1].clone());
                }
            }
            "COPY" | "ADD" => problems.extend(check_copy(words, &stages)),
            "RUN" => problems.extend(check_build(words, &binaries)),
            _ => {}
        }
    }
    assert!(!stages.is_empty(), "the Dockerfile has no named stage");
    assert_none(&problems);
}

#[test]
fn the_image_starts_a_binary_of_ours() {
    let binaries = binaries();
    for Instruction { name, words } in read() {
        if name == "CMD" || name == "ENTRYPOINT" {
            let started: Vec<String> = serde_json::from_str(&words.join(" "))
                .expect("CMD and ENTRYPOINT are lists, so that signals reach the process");
            assert!(binaries.contains(&started[0]), "{} is not ours", started[0]);
        }
    }
}

/// Where the image asks for health.
pub(crate) fn health_port() -> u16 {
    let asked = read()
        .into_iter()
        .find(|instruction| instruction.name == "HEALTHCHECK")
        .expect("the Dockerfile has a HEALTHCHECK")
        .words
        .join(" ");
    port_asked_for_health(&asked).expect("it asks http://127.0.0.1:PORT/readyz")
}

/// The port of `http://127.0.0.1:PORT/readyz` in a command.
pub(crate) fn port_asked_for_health(command: &str) -> Option<u16> {
    let (_, rest) = command.split_once("http://127.0.0.1:")?;
    let (port, path) = rest.split_once('/')?;
    path.starts_with("readyz").then(|| port.parse().ok())?
}

/// The binaries of the workspace.
pub(crate) fn binaries() -> Vec<String> {
    let manifest: toml::Table = toml::from_str(&text("Cargo.toml")).unwrap();
    let members = manifest["workspace"]["members"].as_array().unwrap();
    members
        .iter()
        .filter_map(|member| member.as_str())
        .filter(|member| root().join(member).join("src/main.rs").is_file())
        .map(str::to_owned)
        .collect()
}

fn check_copy(words: &[String], stages: &[String]) -> Vec<String> {
    let from = words.iter().find_map(|word| word.strip_prefix("--from="));
    let mut problems = Vec::new();
    if let Some(stage) = from {
        if !stages.iter().any(|known| known == stage) {
            problems.push(format!("Dockerfile copies from {stage}, which is no stage"));
        }
        return problems;
    }
    let paths: Vec<&String> = words
        .iter()
        .filter(|word| !word.starts_with("--"))
        .collect();
    let Some((_, sources)) = paths.split_last() else {
        return problems;
    };
    for source in sources {
        if !root().join(source).exists() {
            problems.push(format!("Dockerfile copies {source}, which does not exist"));
        }
    }
    problems
}

/// `cargo build --package NAME …` and `cp target/dist/NAME …`.
fn check_build(words: &[String], binaries: &[String]) -> Vec<String> {
    let mut problems = Vec::new();
    let after_flag = words
        .windows(2)
        .filter(|pair| pair[0] == "--package" || pair[0] == "--bin")
        .map(|pair| pair[1].as_str());
    let by_path = words
        .iter()
        .filter_map(|word| word.strip_prefix("target/dist/"));
    for binary in after_flag.chain(by_path) {
        if !binaries.iter().any(|known| known == binary) {
            problems.push(format!(
                "Dockerfile builds {binary}, which is no binary of the workspace"
            ));
        }
    }
    problems
}

fn read() -> Vec<Instruction> {
    let text = text("Dockerfile");
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .collect();
    lines
        .join("\n")
        .replace("\\\n", " ")
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().map(str::to_owned);
            Some(Instruction {
                name: words.next()?.to_uppercase(),
                words: words.collect(),
            })
        })
        .collect()
}
