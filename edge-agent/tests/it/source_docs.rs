//! The documents of the sources: their settings are read by the real code, and run where nothing else is needed; their
//! conversations are held with a real socket.

use std::path::{Path, PathBuf};

use edge_agent::Settings;
use edge_agent::source::format::{Format, LineRules};
use edge_agent::source::socket::{SocketAddress, SocketSource};
use edge_agent::source::{SourceConfig, SourceState};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::broker::Broker;
use crate::edge::{Edge, config};
use crate::eventually;

/// Kinds that need nothing but this machine.
const RUN: [&str; 2] = ["host", "socket"];

fn documents() -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/sources");
    let mut documents: Vec<(PathBuf, String)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            (path, text)
        })
        .collect();
    documents.sort();
    documents
}

/// What stands between fences of this language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let begun = text.split(&fence).skip(1);
    begun
        .map(|rest| rest.split("```").next().unwrap().to_owned())
        .collect()
}

/// Reads settings as the agent does. Ports become free ones.
fn read(block: &str, folder: &Path) -> Result<Vec<SourceConfig>, String> {
    let path = folder.join("agent.toml");
    let block = block.replace(":9465\"", ":0\"").replace(":8094\"", ":0\"");
    std::fs::write(&path, block).unwrap();
    Settings::load_sources(&path).map_err(|failure| failure.to_string())
}

#[tokio::test]
async fn settings_in_the_documents_are_good_and_run() {
    let broker = Broker::start();
    let (mut read_well, mut run, mut wrong) = (0, 0, 0);
    for (path, text) in documents() {
        for block in blocks(&text, "toml") {
            let at = format!("{}:\n{block}", path.display());
            let folder = tempfile::tempdir().unwrap();
            let sources = read(&block, folder.path());
            if let Some(expected) = block.strip_prefix("# wrong: ") {
                let expected = expected.lines().next().unwrap();
                let error = sources.expect_err(&at);
                assert!(error.contains(expected), "{at}{error}");
                wrong += 1;
                continue;
            }
            let sources = sources.unwrap_or_else(|error| panic!("{at}{error}"));
            assert!(!sources.is_empty(), "{at}");
            read_well += 1;
            if !sources
                .iter()
                .all(|source| RUN.contains(&source.source.kind()))
            {
                continue;
            }
            let mut config = config(&broker, folder.path());
            config.sources = sources;
            let edge = Edge::start_with(config, folder).await;
            eventually(&format!("all run: {at}"), || {
                let sources = edge.agent.status().sources;
                let mut states = sources.values().map(|source| source.state);
                states.all(|state| state == SourceState::Running)
            })
            .await;
            edge.stop().await;
            run += 1;
        }
    }
    assert!(
        read_well >= 4 && run >= 4 && wrong >= 2,
        "{read_well} {run} {wrong}"
    );
}

#[tokio::test]
async fn conversations_in_the_documents_are_held() {
    let broker = Broker::start();
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&broker, folder.path());
    for (name, format) in [("json", Format::Json), ("influx", Format::Influx)] {
        let source = SocketSource {
            rules: LineRules::of(format),
            ..SocketSource::at(SocketAddress::Unix(folder.path().join(name)))
        };
        config
            .sources
            .push(SourceConfig::new(name, source).unwrap());
    }
    let edge = Edge::start_with(config, folder).await;
    eventually("both listen", || {
        let sources = edge.agent.status().sources;
        sources
            .values()
            .all(|source| source.state == SourceState::Running)
    })
    .await;
    let mut held = 0;
    for (path, text) in documents() {
        for block in blocks(&text, "text") {
            let mut lines = block.lines().peekable();
            while let Some(line) = lines.next() {
                let Some(sent) = line.strip_prefix("→ ") else {
                    continue;
                };
                let expected = lines
                    .next()
                    .and_then(|line| line.strip_prefix("← "))
                    .unwrap();
                let name = if sent.starts_with('{') {
                    "json"
                } else {
                    "influx"
                };
                let answer = ask(&edge.folder.path().join(name), sent).await;
                let expected: Value = serde_json::from_str(expected).unwrap();
                let at = format!("{}: {sent}", path.display());
                match expected.get("accepted") {
                    // Rows are numbered as they come.
                    Some(_) => assert!(answer["accepted"].is_u64(), "{at}: {answer}"),
                    None => assert_eq!(answer, expected, "{at}"),
                }
                held += 1;
            }
        }
    }
    assert!(held >= 9, "{held}");
}

async fn ask(path: &Path, line: &str) -> Value {
    let mut stream = BufReader::new(UnixStream::connect(path).await.unwrap());
    stream
        .write_all(format!("{line}\n").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_line(&mut answer).await.unwrap();
    serde_json::from_str(&answer).unwrap()
}
