//! The settings as they are written: what is in force stands, what may be wanted stands as a comment.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::find::{Exporter, Identity, MQTT};

/// What is to be written.
pub(super) struct Plan {
    pub(super) broker: String,
    pub(super) identity: Option<Identity>,
    /// The folder that was named, whether or not a certificate is there.
    pub(super) certs: Option<PathBuf>,
    pub(super) buffer: PathBuf,
    pub(super) http: Option<SocketAddr>,
    pub(super) picked: Picked,
    pub(super) serial: Vec<PathBuf>,
}

/// The sources that are wanted.
pub(super) struct Picked {
    pub(super) host: bool,
    pub(super) mqtt: bool,
    pub(super) exporters: Vec<Exporter>,
}

/// Metrics of exporters that have hundreds: those that people look at first.
const ALLOW: [(&str, &str); 3] = [
    (
        "node",
        r#"["node_load*", "node_memory_MemAvailable_bytes", "node_filesystem_avail_bytes", "node_network_*_bytes_total"]"#,
    ),
    (
        "cadvisor",
        r#"["container_cpu_usage_seconds_total", "container_memory_working_set_bytes"]"#,
    ),
    (
        "postgres",
        r#"["pg_up", "pg_stat_database_*", "pg_database_size_bytes"]"#,
    ),
];

/// The text of the file.
pub(super) fn settings(plan: &Plan) -> String {
    let mut text = String::from(
        "# Settings of the edge agent, as `edge-agent init` wrote them for this machine. All keys: docs/settings.md,\n\
         # docs/sources and the example agent.toml. `edge-agent check` names what is wrong with a change;\n\
         # SIGHUP has a running agent read it again. Relative paths start at this file's folder.\n",
    );
    head(plan, &mut text);
    sources(plan, &mut text);
    text
}

fn head(plan: &Plan, text: &mut String) {
    add(text, "\n[mqtt]\n# The fleet's broker.");
    add(text, &format!("address = {}", quoted(&plan.broker)));
    add(text, "\n[tls]");
    match &plan.identity {
        Some(identity) => {
            let device = &identity.device;
            add(
                text,
                &format!("# This device is {device}: its certificate says so."),
            );
            for (key, path) in [
                ("ca", &identity.ca),
                ("cert", &identity.cert),
                ("key", &identity.key),
            ] {
                add(text, &format!("{key} = {}", quoted_path(&absolute(path))));
            }
        }
        None => {
            add(
                text,
                "# The authority's certificate, and this device's with its key, as `certs device ID` writes them:",
            );
            add(text, "# copy them here, or name where they are.");
            let folder = plan
                .certs
                .as_deref()
                .map_or_else(|| "certs".into(), absolute);
            for (key, name) in [
                ("ca", "ca.pem"),
                ("cert", "device.pem"),
                ("key", "device.key"),
            ] {
                add(
                    text,
                    &format!("{key} = {}", quoted_path(&folder.join(name))),
                );
            }
        }
    }
    add(
        text,
        "\n[buffer]\n# Keeps readings until the database has them.",
    );
    add(text, &format!("path = {}", quoted_path(&plan.buffer)));
    if let Some(http) = plan.http {
        add(
            text,
            "\n[admin]\n# For `edge-agent status`, and for Prometheus.",
        );
        add(text, &format!("http = \"{http}\""));
    }
}

fn sources(plan: &Plan, text: &mut String) {
    let comment = if plan.picked.host { "" } else { "#" };
    add(
        text,
        "\n# This machine's processors, memory, disks, networks and temperatures.",
    );
    add(text, &format!("{comment}[source.host]"));
    add(text, &format!("{comment}interval = \"10s\""));
    for Exporter { name, url } in &plan.picked.exporters {
        add(
            text,
            "\n# An exporter of this machine. Without allow, all of its metrics are taken.",
        );
        add(text, &format!("[source.{name}]"));
        add(text, "kind = \"prometheus\"");
        add(text, &format!("url = {}", quoted(url)));
        add(text, "interval = \"15s\"");
        match ALLOW.iter().find(|(of, _)| of == name) {
            Some((_, allow)) => add(text, &format!("allow = {allow}")),
            None => add(text, "#allow = [\"*_up\"]"),
        }
    }
    if plan.picked.mqtt {
        add(
            text,
            "\n# The broker of this machine: what zigbee2mqtt sends. Others have other topics: docs/sources/mqtt.md.",
        );
        add(text, "[source.mqtt]");
        add(text, &format!("address = \"{MQTT}\""));
        add(
            text,
            "#user = \"tideline\"\n#password_file = \"mqtt.password\"",
        );
        add(
            text,
            "[[source.mqtt.take]]\nfilter = \"zigbee2mqtt/+\"\nsensor = \"zigbee/{2}/{name}\"\npayload = \"json\"",
        );
        add(
            text,
            "values = { celsius = \"/temperature\", humidity_percent = \"/humidity\", battery_percent = \"/battery\" }",
        );
    }
    for (at, line) in plan.serial.iter().enumerate() {
        let name = match at {
            0 => "line".to_owned(),
            _ => format!("line-{}", at + 1),
        };
        add(
            text,
            "\n# A serial line of this machine. Devices on it are read once their registers are named: docs/sources/modbus.md.",
        );
        add(text, &format!("#[source.{name}]\n#kind = \"modbus\""));
        add(text, &format!("#serial = {}", quoted_path(line)));
        add(
            text,
            &format!(
                "#baud = 19200\n#interval = \"5s\"\n#[[source.{name}.point]]\n#sensor = \"{name}/temperature_celsius\""
            ),
        );
        add(
            text,
            "#table = \"input\"\n#address = 0\n#type = \"i16\"\n#scale = 0.1",
        );
    }
    add(
        text,
        "\n# Other programs hand readings over here, as lines of JSON: docs/sources/socket.md.",
    );
    add(text, "#[source.socket]\n#unix = \"agent.sock\"");
}

fn add(text: &mut String, line: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

/// As TOML has it; what JSON escapes, TOML escapes alike.
fn quoted(text: &str) -> String {
    serde_json::Value::String(text.replace('\u{7f}', "")).to_string()
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

/// Wherever it was named from.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
