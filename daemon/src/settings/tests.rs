use std::fs;
use std::os::unix::ffi::OsStringExt as _;

use serde::Deserialize;

use super::*;

#[derive(Debug, PartialEq, Deserialize)]
struct Raw {
    name: String,
    #[serde(default)]
    mqtt: Option<Mqtt>,
    #[serde(default)]
    rule: Vec<Rule>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    source: std::collections::BTreeMap<String, Table>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Mqtt {
    address: String,
    port: Option<u16>,
    #[serde(default)]
    keep_alive: bool,
    when: Option<When>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum When {
    DropOldest,
    DropNewest,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Rule {
    most: u32,
}

const PREFIX: &str = "TIDELINE_AGENT_";

/// A folder with these files, read with these variables and options.
struct Rig {
    folder: tempfile::TempDir,
    environment: Vec<(OsString, OsString)>,
    options: Vec<String>,
}

impl Rig {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self {
            folder,
            environment: Vec::new(),
            options: Vec::new(),
        }
    }

    fn set(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    fn option(mut self, option: &str) -> Self {
        self.options.push(option.to_owned());
        self
    }

    fn given(&self) -> Given {
        Given::new(
            &self.folder.path().join("agent.toml"),
            PREFIX,
            &["TIDELINE_AGENT_CONFIG"],
        )
        .with_environment(self.environment.clone())
        .with_options(&self.options)
    }

    /// What was read; or the problems, with the folder left out.
    fn read(&self) -> Result<Raw, Vec<String>> {
        self.given().load().map_err(|failure| {
            assert_eq!(failure.exit_code(), 2);
            let text = failure.to_string();
            let folder = format!("{}/", self.folder.path().display());
            text.lines()
                .skip(1)
                .map(|line| line.trim().replace(&folder, ""))
                .collect()
        })
    }

    fn problems(&self) -> Vec<String> {
        self.read().unwrap_err()
    }

    fn effective(&self) -> Vec<String> {
        let mut problems = Problems::default();
        let _: Raw = self.given().read(&mut problems).unwrap();
        let folder = format!("{}/", self.folder.path().display());
        problems
            .effective()
            .keys()
            .iter()
            .map(|origin| {
                let over: Vec<String> = origin.over.iter().map(Place::to_string).collect();
                format!("{} {} {}", origin.key, origin.from, over.join(" "))
                    .trim()
                    .replace(&folder, "")
            })
            .collect()
    }
}

const GOOD: &str = "name = 'x'\n[mqtt]\naddress = 'a:1'\n[[rule]]\nmost = 1\n";

#[test]
fn all_unknown_keys_are_named_together_with_their_lines() {
    let error = parse::<Raw>(
        "name = 'x'\nnam = 'y'\n[mqqt]\nport = 1\n[mqtt]\nadress = 'a'\naddress = 'a'\n",
        Path::new("a.toml"),
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to accept settings a.toml:\n  \
         a.toml:2: nam is not a known key; did you mean name?\n  \
         a.toml:3: mqqt is not a known key; did you mean mqtt?\n  \
         a.toml:6: mqtt.adress is not a known key; did you mean address?"
    );
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn what_is_written_like_nothing_is_compared_with_nothing() {
    let rig = Rig::new(&[("agent.toml", "name = 'x'\ncolour = 1\nport = 2\n")]);
    assert_eq!(
        rig.problems(),
        [
            "agent.toml:2: colour is not a known key",
            "agent.toml:3: port is not a known key"
        ],
        "nothing knows of mqtt while it is not there"
    );
    let rig = Rig::new(&[(
        "agent.toml",
        "name = 'x'\nport = 2\n[mqtt]\naddress = 'a'\n",
    )]);
    assert_eq!(
        rig.problems(),
        ["agent.toml:2: port is not a known key; did you mean mqtt.port?"]
    );
}

#[test]
fn every_wrong_value_is_found_in_one_go() {
    let text = "name = 3\n\
                tags = ['a', 7, 'b', 8]\n\
                [mqtt]\n\
                port = 65_536\n\
                keep_alive = 'yes'\n\
                when = 'drop-oldst'\n\
                [[rule]]\n\
                most = 1\n\
                least = 0\n\
                [[rule]]\n\
                most = 'many'\n\
                [[rule]]\n\
                most = -1\n\
                [[rule]]\n";
    let rig = Rig::new(&[("agent.toml", text)]);
    let problems = rig.problems();
    let expected = [
        "agent.toml:1: name cannot be used: invalid type: integer `3`, expected a string",
        "agent.toml:2: tags[1] cannot be used: ",
        "agent.toml:2: tags[3] cannot be used: ",
        "agent.toml:3: mqtt.address is missing",
        "agent.toml:4: mqtt.port cannot be used: invalid value: integer `65536`, expected u16",
        "agent.toml:5: mqtt.keep_alive cannot be used: ",
        "agent.toml:6: mqtt.when cannot be used: unknown variant `drop-oldst`",
        "agent.toml:9: rule[0].least is not a known key",
        "agent.toml:11: rule[1].most cannot be used: invalid type: string \"many\", expected u32",
        "agent.toml:13: rule[2].most cannot be used: ",
        "agent.toml:14: rule[3].most is missing",
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (found, expected) in problems.iter().zip(expected) {
        assert!(found.starts_with(expected), "{expected} in {problems:#?}");
    }
    assert!(
        problems[6].ends_with("; did you mean drop-oldest?"),
        "{problems:#?}"
    );
}

#[test]
fn everything_that_is_missing_is_named_at_once() {
    #[derive(Debug, Deserialize)]
    #[allow(dead_code, reason = "they are read")]
    struct Whole {
        one: Option<Many>,
        #[serde(default)]
        rule: Vec<Many>,
    }
    #[derive(Debug, Deserialize)]
    #[allow(dead_code, reason = "they are read")]
    struct Many {
        text: String,
        number: u16,
        is: bool,
        part: f64,
        list: Vec<u8>,
        word: When,
        table: std::collections::BTreeMap<String, u8>,
        path: PathBuf,
    }
    let names = [
        "is", "list", "number", "part", "path", "table", "text", "word",
    ];
    let mut problems = Problems::default();
    let whole: Option<Whole> =
        parse_noting("[one]\n[[rule]]\n", Path::new("a.toml"), &mut problems);
    let whole = whole.unwrap();
    assert!(
        whole.one.is_none() && whole.rule.is_empty(),
        "nothing is made up: {whole:?}"
    );
    let mut found: Vec<String> = problems.list().iter().map(Listed::to_string).collect();
    found.sort();
    let expected = names
        .map(|name| format!("a.toml:1: one.{name} is missing"))
        .into_iter()
        .chain(names.map(|name| format!("a.toml:2: rule[0].{name} is missing")));
    assert_eq!(found, expected.collect::<Vec<_>>());
    // A struct at the top is as good as any.
    let mut problems = Problems::default();
    let many: Option<Many> = parse_noting("number = 'x'\n", Path::new("a.toml"), &mut problems);
    assert!(many.is_none());
    assert_eq!(problems.list().len(), names.len());
}

#[test]
fn of_very_many_wrong_values_the_first_are_told() {
    for (wrong, told) in [(31, 31), (32, 32), (33, 33), (5_000, 33)] {
        let rules = "[[rule]]\nmost = 'a'\n".repeat(wrong);
        let rig = Rig::new(&[("agent.toml", &format!("name = 'x'\n{rules}"))]);
        let problems = rig.problems();
        assert_eq!(problems.len(), told, "{wrong}");
        let has_more = problems[0].ends_with("has more that cannot be used: mend these first");
        assert_eq!(has_more, wrong > 32, "{wrong}: {}", problems[0]);
    }
}

#[test]
fn keys_of_a_section_that_is_read_later_are_named_whole() {
    #[derive(Debug, Deserialize)]
    struct Section {
        #[serde(default)]
        rule: Vec<Rule>,
    }
    let read = |text: &str| {
        let rig = Rig::new(&[("agent.toml", &format!("name = 'x'\n[source.press]\n{text}"))]);
        let mut problems = Problems::default();
        let raw: Raw = rig.given().read(&mut problems).unwrap();
        let table = raw.source["press"].clone();
        let section: Option<Section> = problems.read_beside("source.press", table, &["interval"]);
        let listed = problems.list();
        let shown = listed.iter().map(|listed| {
            let line = listed.to_string();
            line.replace(&format!("{}/", rig.folder.path().display()), "")
        });
        (
            section.map(|section| section.rule.len()),
            shown.collect::<Vec<_>>(),
        )
    };
    assert_eq!(read("[[source.press.rule]]\nmost = 1"), (Some(1), vec![]));
    assert_eq!(
        read("intervall = 1\nrules = 2\n[[source.press.rule]]\nmost = 1\nleast = 0"),
        (
            Some(1),
            vec![
                "agent.toml:3: source.press.intervall is not a known key; did you mean interval?"
                    .to_owned(),
                "agent.toml:4: source.press.rules is not a known key; did you mean rule?"
                    .to_owned(),
                "agent.toml:7: source.press.rule[0].least is not a known key".to_owned(),
            ]
        )
    );
    let (section, listed) = read("rule = 7");
    assert_eq!(section.unwrap(), 0, "the rest is checked without it");
    assert!(
        listed[0].starts_with("agent.toml:3: source.press.rule cannot be used: "),
        "{listed:?}"
    );
}

#[test]
fn later_places_overrule_earlier_ones_and_each_key_knows_its_place() {
    let rig = Rig::new(&[
        (
            "agent.toml",
            "name = 'x'\ntags = ['a']\n[mqtt]\naddress = 'a:1'\nport = 1\n[[rule]]\nmost = 1\n",
        ),
        ("conf.d/20-b.toml", "[mqtt]\nport = 3\n[[rule]]\nmost = 3\n"),
        (
            "conf.d/10-a.toml",
            "tags = ['b', 'c']\nmqtt.port = 2\nrule = [{ most = 2 }]\n",
        ),
        ("conf.d/.30-hidden.toml", "broken"),
        ("conf.d/40-note.txt", "broken"),
    ])
    .set("TIDELINE_AGENT_MQTT__ADDRESS", "b:2")
    .set("TIDELINE_AGENT_CONFIG", "elsewhere.toml")
    .set("TIDELINE_BROKER_MQTT__ADDRESS", "c:3")
    .option("mqtt.address = d:4");
    let raw = rig.read().unwrap();
    assert_eq!(raw.tags, ["b", "c"]);
    let most: Vec<u32> = raw.rule.iter().map(|rule| rule.most).collect();
    assert_eq!(most, [1, 2, 3], "rules come behind each other");
    let mqtt = raw.mqtt.unwrap();
    assert_eq!((mqtt.address.as_str(), mqtt.port), ("d:4", Some(3)));
    assert_eq!(
        rig.effective(),
        [
            "mqtt.address --set mqtt.address TIDELINE_AGENT_MQTT__ADDRESS agent.toml:4",
            "mqtt.port conf.d/20-b.toml:2 conf.d/10-a.toml:2 agent.toml:5",
            "name agent.toml:1",
            "rule[0].most agent.toml:7",
            "rule[1].most conf.d/10-a.toml:3",
            "rule[2].most conf.d/20-b.toml:4",
            "tags conf.d/10-a.toml:1 agent.toml:2",
        ]
    );
}

#[test]
fn an_empty_array_or_a_variable_replaces_rules() {
    let rig = Rig::new(&[("agent.toml", GOOD), ("conf.d/a.toml", "rule = []")]);
    assert!(rig.read().unwrap().rule.is_empty());
    let rig = Rig::new(&[("agent.toml", GOOD)]).set("TIDELINE_AGENT_RULE", "[{ most = 9 }]");
    assert_eq!(rig.read().unwrap().rule, [Rule { most: 9 }]);
    // A table that stands where a number stood is no table of it.
    let rig = Rig::new(&[("agent.toml", GOOD), ("conf.d/a.toml", "mqtt = 7")]);
    assert_eq!(
        rig.problems(),
        ["conf.d/a.toml:1: mqtt cannot be used: must be a table"]
    );
}

#[test]
fn variables_are_values_of_toml_or_texts() {
    let rig = Rig::new(&[("agent.toml", "[source.Press-1]\ninterval = '1s'\n")])
        .set("TIDELINE_AGENT_NAME", "007")
        .set("TIDELINE_AGENT_MQTT__ADDRESS", "broker:8883")
        .set("TIDELINE_AGENT_MQTT__PORT", "8_883")
        .set("TIDELINE_AGENT_MQTT__KEEP_ALIVE", "true")
        .set("TIDELINE_AGENT_MQTT__WHEN", "drop-newest")
        .set("TIDELINE_AGENT_TAGS", "")
        .set("TIDELINE_AGENT_SOURCE__PRESS_1__INTERVAL", "10s")
        .set("TIDELINE_AGENT_SOURCE__NEW", "{ kind = 'host' }");
    let raw = rig.read().unwrap();
    assert_eq!(raw.name, "007", "a text that reads as a number");
    let mqtt = raw.mqtt.unwrap();
    assert_eq!(
        (mqtt.address.as_str(), mqtt.port, mqtt.keep_alive),
        ("broker:8883", Some(8883), true)
    );
    assert_eq!(mqtt.when, Some(When::DropNewest));
    assert_eq!(raw.source["Press-1"]["interval"].as_str(), Some("10s"));
    assert_eq!(raw.source["new"]["kind"].as_str(), Some("host"));
    let rig = Rig::new(&[("agent.toml", GOOD)]).set("TIDELINE_AGENT_NAME", "true");
    assert_eq!(rig.read().unwrap().name, "true");
}

#[test]
fn variables_may_be_all_there_is() {
    let rig = Rig::new(&[]).set("TIDELINE_AGENT_NAME", "x");
    assert_eq!(rig.read().unwrap().name, "x");
    let error = Rig::new(&[]).given().load::<Raw>().unwrap_err().to_string();
    assert!(error.ends_with("agent.toml: does not exist"), "{error}");
    let rig = Rig::new(&[]).set("TIDELINE_AGENT_TAGS", "[]");
    assert_eq!(rig.problems(), ["name is missing"]);
    let rig = Rig::new(&[]).set("TIDELINE_AGENT_MQTT__PORT", "1");
    let problems = rig.problems();
    assert_eq!(problems, ["mqtt.address is missing", "name is missing"]);
}

#[test]
fn variables_that_mean_nothing_are_named_with_the_nearest() {
    let rig = Rig::new(&[("agent.toml", GOOD)])
        .set("TIDELINE_AGENT_MQTT__ADRESS", "a")
        .set("TIDELINE_AGENT_MQTT_PORT", "1")
        .set("TIDELINE_AGENT_COMPLETELY_DIFFERENT", "1")
        .set("TIDELINE_AGENT_MQTT__PORT", "high")
        .set("TIDELINE_AGENT___NAME", "a")
        .set("TIDELINE_AGENT_", "a")
        .option("mqtt.prot=1")
        .option("mqtt.port")
        .option("a\nb=1")
        .option("=1");
    let mut problems = rig.problems();
    problems.sort();
    assert_eq!(
        problems,
        [
            "--set : must be KEY=VALUE, as mqtt.address=broker.example.com",
            "--set a\\nb: must be KEY=VALUE, as mqtt.address=broker.example.com",
            "--set mqtt.port: must be KEY=VALUE, as mqtt.address=broker.example.com",
            "--set mqtt.prot: mqtt.prot is not a known key; did you mean port?",
            "TIDELINE_AGENT_: names no key: write MQTT__ADDRESS for mqtt.address",
            "TIDELINE_AGENT_COMPLETELY_DIFFERENT: completely_different is not a known key",
            "TIDELINE_AGENT_MQTT_PORT: mqtt_port is not a known key; did you mean TIDELINE_AGENT_MQTT__PORT?",
            "TIDELINE_AGENT_MQTT__ADRESS: mqtt.adress is not a known key; did you mean TIDELINE_AGENT_MQTT__ADDRESS?",
            "TIDELINE_AGENT_MQTT__PORT: mqtt.port cannot be used: invalid type: string \"high\", expected u16",
            "TIDELINE_AGENT___NAME: names no key: write MQTT__ADDRESS for mqtt.address",
        ]
    );
}

#[test]
fn a_variable_that_is_no_text_is_named() {
    let mut rig = Rig::new(&[("agent.toml", GOOD)]);
    let bad = OsString::from_vec(vec![0xff, 0xfe]);
    rig.environment.push(("TIDELINE_AGENT_NAME".into(), bad));
    assert_eq!(rig.problems(), ["TIDELINE_AGENT_NAME: is no UTF-8 text"]);
}

#[test]
fn a_value_may_be_in_a_file() {
    let rig = Rig::new(&[
        ("agent.toml", GOOD),
        ("secret", "pass: word\r\n"),
        ("number", "12\n"),
    ]);
    let path = |name: &str| rig.folder.path().join(name).display().to_string();
    let (secret, number, none) = (path("secret"), path("number"), path("none"));
    let rig = rig
        .set("TIDELINE_AGENT_NAME__FILE", &secret)
        .set("TIDELINE_AGENT_MQTT__PORT__FILE", &number);
    let raw = rig.read().unwrap();
    assert_eq!(raw.name, "pass: word");
    assert_eq!(raw.mqtt.unwrap().port, Some(12));
    let rig = rig
        .set("TIDELINE_AGENT_NAME", "both")
        .set("TIDELINE_AGENT_TAGS__FILE", &none)
        .set("TIDELINE_AGENT_RULE__FILE", "relative");
    assert_eq!(
        rig.problems(),
        [
            "TIDELINE_AGENT_NAME__FILE: and TIDELINE_AGENT_NAME are both set: one of them must go",
            "TIDELINE_AGENT_RULE__FILE: names relative, which must be an absolute path",
            "TIDELINE_AGENT_TAGS__FILE: names none, which does not exist",
        ]
    );
}

#[test]
fn values_in_files_are_bounded() {
    let most = usize::try_from(VALUE_BYTES_MAX).unwrap();
    for (bytes, valid) in [(most - 1, true), (most, true), (most + 1, false)] {
        let rig = Rig::new(&[("agent.toml", GOOD), ("value", &"v".repeat(bytes))]);
        let path = rig.folder.path().join("value").display().to_string();
        let rig = rig.set("TIDELINE_AGENT_NAME__FILE", &path);
        assert_eq!(rig.read().is_ok(), valid, "{bytes}");
    }
}

#[test]
fn files_are_bounded() {
    let most = usize::try_from(FILE_BYTES_MAX).unwrap() - GOOD.len();
    for (bytes, valid) in [(most - 1, true), (most, true), (most + 1, false)] {
        let text = format!("{GOOD}#{}", "x".repeat(bytes - 1));
        let rig = Rig::new(&[("agent.toml", &text)]);
        assert_eq!(rig.read().is_ok(), valid, "{bytes}");
    }
    for (count, valid) in [
        (FILES_MAX - 1, true),
        (FILES_MAX, true),
        (FILES_MAX + 1, false),
    ] {
        let rig = Rig::new(&[("agent.toml", GOOD), ("conf.d/a.toml", "")]);
        for number in 1..count {
            fs::write(rig.folder.path().join(format!("conf.d/{number}.toml")), "").unwrap();
        }
        assert_eq!(rig.read().is_ok(), valid, "{count}");
    }
}

#[test]
fn whatever_stands_at_the_path_is_an_error_that_names_it() {
    let deep = format!("name = {}1{}\n", "[".repeat(100_000), "]".repeat(100_000));
    let dotted = format!("a{} = 1\n", ".a".repeat(100_000));
    let header = format!("[a{}]\n", ".a".repeat(100_000));
    let many: String = std::iter::once("name = 'x'\n".to_owned())
        .chain((0..50_000).map(|at| format!("key{at} = 1\n")))
        .collect();
    for (text, expected) in [
        (deep.as_str(), "agent.toml:1: is no TOML: "),
        (dotted.as_str(), "agent.toml:1: is no TOML: "),
        (header.as_str(), "agent.toml:1: is no TOML: "),
        (
            "name = 'x'\nname = 'y'",
            "agent.toml:2: is no TOML: duplicate key",
        ),
        ("name = 'x'\n\0", "agent.toml:2: is no TOML: "),
        (
            "name = 99999999999999999999",
            "agent.toml:1: name must be a number of 64 bits",
        ),
        (many.as_str(), "agent.toml:2: key0 is not a known key"),
    ] {
        let problems = Rig::new(&[("agent.toml", text)]).problems();
        assert!(
            problems[0].starts_with(expected),
            "{expected}: {:?}",
            problems.first()
        );
        assert!(problems.len() <= 101, "{}", problems.len());
    }
    let rig = Rig::new(&[]);
    let path = rig.folder.path().join("agent.toml");
    fs::write(&path, b"name = 'x'\nx = '\xff'\n").unwrap();
    assert_eq!(
        rig.problems(),
        ["agent.toml: is no UTF-8 text: byte 16, in line 2"]
    );
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(rig.problems(), ["agent.toml: is a folder, not a file"]);
    fs::remove_dir(&path).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap();
    assert!(
        rig.problems()[0].starts_with("agent.toml: cannot be read: "),
        "{:?}",
        rig.problems()
    );
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    assert!(
        rig.problems()[0].starts_with("agent.toml: has more than "),
        "{:?}",
        rig.problems()
    );
}

#[test]
fn whatever_stands_in_the_folder_is_an_error_that_names_it() {
    let rig = Rig::new(&[
        ("agent.toml", GOOD),
        ("conf.d/a.toml", "nam = 1\n"),
        ("conf.d/b.toml", "=\n"),
    ]);
    fs::create_dir(rig.folder.path().join("conf.d/c.toml")).unwrap();
    let problems = rig.problems();
    assert!(
        problems[0].starts_with("conf.d/b.toml:1: is no TOML: "),
        "{problems:?}"
    );
    assert_eq!(problems[1], "conf.d/c.toml: is a folder, not a file");
    let rig = Rig::new(&[("agent.toml", GOOD), ("conf.d", "a file")]);
    assert!(
        rig.problems()[0].starts_with("conf.d: cannot be read: "),
        "{:?}",
        rig.problems()
    );
    let rig = Rig::new(&[("agent.toml", GOOD), ("conf.d/a.toml", "")]);
    std::os::unix::fs::symlink("/dev/zero", rig.folder.path().join("conf.d/z.toml")).unwrap();
    assert_eq!(rig.problems(), ["conf.d/z.toml: is no file"]);
}

#[test]
fn keys_that_a_terminal_would_obey_are_shown_as_text() {
    let rig = Rig::new(&[("agent.toml", "name = 'x'\n\"\\u001b[2J\" = 1\n")]);
    assert_eq!(
        rig.problems(),
        ["agent.toml:2: \"\\u{1b}[2J\" is not a known key"]
    );
}

#[test]
fn differences_are_the_innermost_keys() {
    let effective = |text: &str| {
        let mut problems = Problems::default();
        let _: Option<Raw> = parse_noting(text, Path::new("a.toml"), &mut problems);
        problems.effective()
    };
    let one = effective(GOOD);
    assert!(one.differences(&effective(GOOD)).is_empty());
    let other = effective("name = 'y'\n[mqtt]\naddress = 'a:1'\nport = 7\n");
    assert_eq!(one.differences(&other), ["mqtt.port", "name", "rule"]);
    assert!(!format!("{one:?}").contains("a:1"), "no value is shown");
    let without = effective("name = 'x'\n[[rule]]\nmost = 1\n[source.a]\n");
    assert_eq!(one.differences(&without), ["mqtt.address"]);
    assert_eq!(without.differences(&one), ["mqtt.address"]);
}

#[test]
fn the_nearest_word_is_much_like_it() {
    let words = ["address", "keep_alive", "backoff_max", "port"];
    for (word, expected) in [
        ("adress", Some("address")),
        ("keepalive", Some("keep_alive")),
        ("backof_max", Some("backoff_max")),
        ("prot", Some("port")),
        ("colour", None),
        ("", None),
        ("x", None),
    ] {
        assert_eq!(nearest(word, words), expected, "{word}");
    }
    let at_most = "a".repeat(64);
    let long = "a".repeat(65);
    assert_eq!(nearest(&at_most, ["a"; 1]), None);
    let near = "a".repeat(63);
    assert_eq!(nearest(&at_most, [near.as_str()]), Some(near.as_str()));
    assert_eq!(nearest(&long, [at_most.as_str()]), None);
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}|([a-c.\\[\\]{}='\"0-9\\n -]{0,80})") {
        let _ = parse::<Raw>(&text, Path::new("a.toml"));
        let rig = Rig::new(&[("agent.toml", GOOD)]).set("TIDELINE_AGENT_NAME", &text.replace('\0', "")).option(&text);
        let _ = rig.read();
    }
}

#[test]
fn a_secret_of_a_wrong_type_is_in_no_message() {
    #[derive(Debug, serde::Deserialize)]
    struct Guarded {
        #[allow(dead_code)]
        password: String,
    }
    let error = parse::<Guarded>("password = 48151623", Path::new("a.toml")).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("a.toml:1: password cannot be used: it is no text in quotes"),
        "{text}"
    );
    assert!(!text.contains("48151623"), "{text}");
}

#[test]
fn a_list_in_a_variable_holds_what_its_quotes_say() {
    let rig = Rig::new(&[("agent.toml", GOOD)]).set("TIDELINE_AGENT_TAGS", "['a', 7]");
    let problems = rig.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].starts_with("TIDELINE_AGENT_TAGS: tags[1] cannot be used: "),
        "{problems:?}"
    );
}

#[test]
fn elements_behind_one_that_is_left_out_are_not_taken_for_it() {
    let text = "name = 'x'\n[[rule]]\nmost = 1\n[[rule]]\nmost = 'a'\n[[rule]]\nmost = 3\n";
    let mut problems = Problems::default();
    let raw: Raw = parse_noting(text, Path::new("a.toml"), &mut problems).unwrap();
    assert_eq!(raw.rule, [Rule { most: 1 }]);
    assert_eq!(problems.list().len(), 1);
}
