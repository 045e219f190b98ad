//! P3 for configuration: however changes at both ends race, and whatever is lost, doubled, late or
//! restarted, all ends with one document: on the device, in the database, and at every bridge.
//!
//! The device is the agent's own document, kept in memory or in a real buffer. The database is the
//! rule that stores apply, or a real store. Time is made up and moves little, so that stamps collide.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use daemon::SystemClock;
use edge_agent::buffer::{Buffer, BufferSettings, Origin, StoredSetting};
use edge_agent::twin::document::Document;
use loadtest::scratch::Scratch;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt, SeedableRng};
use schema::DeviceId;
use schema::message::{ConfigEntry, DesiredConfig, ReportedConfig};
use schema::setting::{CLOCK_AHEAD_MS_MAX, Setting};
use schema::time::ReceivedAt;
use store::Store;
use store::config::{Changed, ConfigChange, ConfigReport, DeviceConfig, ReportedEntry, stamped};
use store::fleet::Author;
use store::location::Location;
use store::overrides::overrides;

use testkit::database::postgres_url;

/// Edits of one run, at both ends together.
const EDITS: usize = 1_000;

/// Runs without a store and a disk.
const SEEDS: u64 = 40;

/// Keys that are set, each with values that it may have.
const VALUES: [(&str, [&str; 3]); 4] = [
    (Setting::COMMANDS_PARALLEL, ["1", "2", "null"]),
    (Setting::LOG_LEVEL, ["\"info\"", "\"debug\"", "null"]),
    (Setting::HOST_INTERVAL, ["1", "2.5", "null"]),
    (Setting::BATCH_ROWS, ["10", "20", "null"]),
];

fn device() -> DeviceId {
    "press-7".parse().unwrap()
}

/// Where the bridges keep what is desired and reported.
enum Books {
    /// By the rule alone.
    Pure(Mutex<DeviceConfig>),
    /// Each bridge with its own connections, or all with one.
    Real(Vec<Arc<dyn Store>>),
}

impl Books {
    async fn config(&self, bridge: usize) -> DeviceConfig {
        match self {
            Self::Pure(config) => config.lock().unwrap().clone(),
            Self::Real(stores) => {
                let store = &stores[bridge % stores.len()];
                store.config(&device()).await.unwrap()
            }
        }
    }

    /// Later than everything that is known; returns how the configuration is then.
    async fn change(&self, asked: &Asked) -> DeviceConfig {
        let Asked {
            bridge,
            wanted,
            author,
        } = asked;
        match self {
            Self::Pure(config) => {
                let config = &mut *config.lock().unwrap();
                put(config, &stamped(config.latest(), author, wanted));
                config.clone()
            }
            Self::Real(stores) => {
                let store = &stores[bridge % stores.len()];
                let changed = store.change_config(&device(), wanted, None, author).await;
                match changed.unwrap() {
                    Changed::Done(config) => config,
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    async fn report(&self, bridge: usize, report: &ConfigReport) {
        match self {
            Self::Pure(config) => {
                let config = &mut *config.lock().unwrap();
                let known: Vec<ConfigEntry> = config
                    .desired
                    .iter()
                    .map(|change| change.entry.clone())
                    .collect();
                put(config, &overrides(&known, report));
                let at = report.received_at;
                config.reported.retain(|known| known.reported_at > at);
                for entry in &report.reported.entries {
                    if config
                        .reported
                        .iter()
                        .all(|known| known.entry.key != entry.key)
                    {
                        config.reported.push(ReportedEntry {
                            entry: entry.clone(),
                            failure: None,
                            reported_at: at,
                        });
                    }
                }
                config
                    .reported
                    .sort_by(|a, b| a.entry.key.cmp(&b.entry.key));
            }
            Self::Real(stores) => {
                let store = &stores[bridge % stores.len()];
                store
                    .report_configs(std::slice::from_ref(report))
                    .await
                    .unwrap();
            }
        }
    }
}

fn put(config: &mut DeviceConfig, changes: &[ConfigChange]) {
    for change in changes {
        let key = &change.entry.key;
        config.desired.retain(|known| known.entry.key != *key);
        config.desired.push(change.clone());
    }
    config.desired.sort_by(|a, b| a.entry.key.cmp(&b.entry.key));
}

/// What the device has after a restart.
enum Disk {
    Memory(Vec<StoredSetting>),
    File(Box<BufferSettings>, Buffer),
}

impl Disk {
    async fn file(path: std::path::PathBuf) -> Self {
        let settings = BufferSettings::new(path);
        let buffer = open(&settings).await;
        Self::File(Box::new(settings), buffer)
    }

    async fn keep(&mut self, entries: &[ConfigEntry], origin: Origin) {
        match self {
            Self::Memory(kept) => {
                for entry in entries {
                    kept.retain(|known| known.entry.key != entry.key);
                    let entry = entry.clone();
                    kept.push(StoredSetting { entry, origin });
                }
            }
            Self::File(_, buffer) => buffer.keep_config(entries.to_vec(), origin).await.unwrap(),
        }
    }

    async fn restart(&mut self) -> Document {
        match self {
            Self::Memory(kept) => Document::restore(kept.clone()),
            Self::File(settings, buffer) => {
                buffer.close().await;
                *buffer = open(settings).await;
                Document::restore(buffer.config().await.unwrap())
            }
        }
    }
}

async fn open(settings: &BufferSettings) -> Buffer {
    let clock = Arc::new(SystemClock::default());
    Buffer::open(settings.clone(), clock).await.unwrap().buffer
}

/// A change that a bridge was asked for and has not written yet.
struct Asked {
    bridge: usize,
    wanted: Vec<(String, String)>,
    author: Author,
}

struct World {
    rng: SmallRng,
    books: Books,
    disk: Disk,
    document: Document,
    now_ms: u64,
    /// How far the device's clock is off.
    device_off_ms: i64,
    bridges_off_ms: Vec<i64>,
    is_up: bool,
    retained: Option<DesiredConfig>,
    down: Vec<DesiredConfig>,
    up: Vec<ReportedConfig>,
    asked: Vec<Asked>,
    edits: usize,
    /// The last word on each key, of all that were said.
    last: BTreeMap<String, ConfigEntry>,
    /// Whether the device's clock may be far off.
    is_wild: bool,
}

impl World {
    fn new(seed: u64, books: Books, disk: Disk, is_wild: bool) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let bridges_off_ms = (0..3).map(|_| rng.random_range(-3..=3)).collect();
        Self {
            rng,
            books,
            disk,
            document: Document::default(),
            now_ms: 1_700_000_000_000,
            device_off_ms: 0,
            bridges_off_ms,
            is_up: true,
            retained: None,
            down: Vec::new(),
            up: Vec::new(),
            asked: Vec::new(),
            edits: 0,
            last: BTreeMap::new(),
            is_wild,
        }
    }

    async fn run(&mut self) {
        while self.edits < EDITS {
            self.now_ms += self.rng.random_range(0..=1);
            match self.rng.random_range(0..20) {
                0..4 => self.ask(),
                4..8 => self.write().await,
                8..11 => self.edit_on_device().await,
                11..14 => self.deliver_down().await,
                14..17 => self.deliver_up().await,
                17 => self.publish().await,
                18 => self.toggle_link().await,
                _ => self.disturb_device().await,
            }
        }
        self.heal().await;
        self.check().await;
    }

    fn bridge(&mut self) -> usize {
        self.rng.random_range(0..self.bridges_off_ms.len())
    }

    fn bridge_ms(&self, bridge: usize) -> u64 {
        self.now_ms
            .saturating_add_signed(self.bridges_off_ms[bridge])
    }

    fn received_at(&self, bridge: usize) -> ReceivedAt {
        ReceivedAt::from_micros(i64::try_from(self.bridge_ms(bridge)).unwrap() * 1_000)
    }

    fn wanted(&mut self) -> BTreeMap<String, String> {
        let mut wanted = BTreeMap::new();
        for _ in 0..self.rng.random_range(1..=2) {
            let (key, values) = VALUES.choose(&mut self.rng).unwrap();
            let value = values.choose(&mut self.rng).unwrap();
            wanted.insert((*key).to_owned(), (*value).to_owned());
        }
        wanted
    }

    fn ask(&mut self) {
        let (bridge, wanted) = (self.bridge(), self.wanted());
        self.ask_at(bridge, wanted);
    }

    fn ask_at(&mut self, bridge: usize, wanted: BTreeMap<String, String>) {
        let author = Author {
            name: format!("bridge-{bridge}"),
            at: self.received_at(bridge),
        };
        self.asked.push(Asked {
            bridge,
            wanted: wanted.into_iter().collect(),
            author,
        });
    }

    /// Two at the same time, as far as there are, and in any order.
    async fn write(&mut self) {
        let (one, other) = (self.pick(), self.pick());
        let write = async |asked: Option<Asked>| match asked {
            Some(asked) => Some((self.books.change(&asked).await, asked)),
            None => None,
        };
        let (first, second) = tokio::join!(write(one), write(other));
        for (config, asked) in [first, second].into_iter().flatten() {
            for entry in config.document().entries {
                if asked.wanted.iter().any(|(key, _)| *key == entry.key) {
                    self.said(&entry);
                }
            }
            self.edits += 1;
            self.publish().await;
        }
    }

    fn pick(&mut self) -> Option<Asked> {
        let count = self.asked.len();
        (count > 0).then(|| self.asked.swap_remove(self.rng.random_range(0..count)))
    }

    async fn edit_on_device(&mut self) {
        let wanted = self.wanted();
        let now_ms = self.now_ms.saturating_add_signed(self.device_off_ms);
        let made = self.document.edit(&wanted, now_ms).unwrap();
        for entry in &made {
            self.said(entry);
        }
        self.take(made, Origin::Device).await;
        self.edits += 1;
        self.tell();
    }

    fn said(&mut self, entry: &ConfigEntry) {
        let last = self.last.entry(entry.key.clone()).or_insert(entry.clone());
        if (entry.hlc, &entry.value) > (last.hlc, &last.value) {
            *last = entry.clone();
        }
    }

    async fn take(&mut self, news: Vec<ConfigEntry>, origin: Origin) {
        self.disk.keep(&news, origin).await;
        // Killed between disk and memory.
        if self.rng.random_ratio(1, 50) {
            self.document = self.disk.restart().await;
        }
        for entry in news {
            self.document.take(entry, origin);
        }
    }

    fn tell(&mut self) {
        if let Some(report) = self.document.report()
            && self.is_up
        {
            self.up.push(report);
        }
    }

    /// A bridge publishes what is desired, retained; or is killed before it does.
    async fn publish(&mut self) {
        let bridge = self.bridge();
        if self.rng.random_ratio(1, 4) {
            return;
        }
        let document = self.books.config(bridge).await.document();
        self.retained = Some(document.clone());
        if self.is_up {
            self.down.push(document);
        }
    }

    async fn hear(&mut self, document: &DesiredConfig) {
        let news = self.document.news(document);
        if !news.is_empty() {
            self.take(news, Origin::Bridge).await;
        }
        self.tell();
    }

    async fn deliver_down(&mut self) {
        if let Some(document) = fate(&mut self.rng, &mut self.down) {
            self.hear(&document).await;
        }
    }

    async fn deliver_up(&mut self) {
        if let Some(reported) = fate(&mut self.rng, &mut self.up) {
            let bridge = self.bridge();
            self.report(bridge, reported).await;
        }
    }

    async fn report(&mut self, bridge: usize, reported: ReportedConfig) {
        let report = ConfigReport {
            device: device(),
            reported,
            received_at: self.received_at(bridge),
        };
        self.books.report(bridge, &report).await;
    }

    async fn toggle_link(&mut self) {
        self.is_up = !self.is_up;
        if self.is_up {
            // A broker may have lost what it retained.
            if let Some(retained) = self
                .retained
                .clone()
                .filter(|_| self.rng.random_ratio(3, 4))
            {
                self.hear(&retained).await;
            }
            self.tell();
        } else {
            self.down.clear();
            self.up.retain(|_| self.rng.random());
        }
    }

    async fn disturb_device(&mut self) {
        self.document = self.disk.restart().await;
        let ahead = i64::try_from(CLOCK_AHEAD_MS_MAX).unwrap();
        self.device_off_ms = match self.rng.random_range(0..6) {
            // Without a battery: 1970.
            0 => -1_700_000_000_000,
            1 => ahead / 200,
            2 if self.is_wild => 400 * 24 * 3_600_000,
            3 if self.is_wild => ahead + self.rng.random_range(0..10),
            _ => self.rng.random_range(-3..=3),
        };
    }

    /// Nothing is lost any more, clocks are right, and everybody says what they have to say.
    async fn heal(&mut self) {
        (self.is_up, self.device_off_ms) = (true, 0);
        while !self.asked.is_empty() {
            self.write().await;
        }
        while !(self.up.is_empty() && self.down.is_empty()) {
            self.deliver_up().await;
            self.deliver_down().await;
        }
        for round in 0..4 {
            // Later than the reports that were received before, by whichever bridge.
            self.now_ms += 10;
            self.tell();
            let told = self.up.pop().unwrap();
            self.up.clear();
            self.report(round % 3, told).await;
            let document = self.books.config(round % 3).await.document();
            self.hear(&document).await;
            if self.is_wild && round == 1 {
                // What nobody believes is set again by somebody who sees it.
                self.overrule().await;
            }
        }
    }

    async fn overrule(&mut self) {
        let config = self.books.config(0).await;
        let differs = |key: &str| {
            let desired = config.desired.iter().find(|it| it.entry.key == key);
            let reported = config.reported.iter().find(|it| it.entry.key == key);
            desired.map(|it| &it.entry) != reported.map(|it| &it.entry)
        };
        let again: BTreeMap<String, String> = VALUES
            .iter()
            .filter(|(key, _)| differs(key))
            .map(|(key, values)| ((*key).to_owned(), values[0].to_owned()))
            .collect();
        if !again.is_empty() {
            self.ask_at(0, again);
            while !self.asked.is_empty() {
                self.write().await;
            }
        }
    }

    async fn check(&mut self) {
        let expected: Vec<ConfigEntry> = self.last.values().cloned().collect();
        let on_device = self.document.report().unwrap();
        assert_eq!(on_device.entries, expected, "on the device");
        let restarted = self.disk.restart().await.report().unwrap();
        assert_eq!(restarted.entries, expected, "on its disk");
        for bridge in 0..3 {
            let config = self.books.config(bridge).await;
            assert_eq!(config.document().entries, expected, "desired at {bridge}");
            let reported: Vec<ConfigEntry> =
                config.reported.into_iter().map(|it| it.entry).collect();
            assert_eq!(reported, expected, "reported at {bridge}");
        }
    }
}

/// The next message in any order, doubled or lost at times.
fn fate<T: Clone>(rng: &mut SmallRng, messages: &mut Vec<T>) -> Option<T> {
    if messages.is_empty() {
        return None;
    }
    let at = rng.random_range(0..messages.len());
    if rng.random_ratio(1, 6) {
        return Some(messages[at].clone());
    }
    let message = messages.swap_remove(at);
    (!rng.random_ratio(1, 5)).then_some(message)
}

/// Prints the seed of a run that fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the failing seed is {}", self.0);
        }
    }
}

async fn run(seed: u64, books: Books, disk: Disk, is_wild: bool) {
    let seed = Seed(seed);
    World::new(seed.0, books, disk, is_wild).run().await;
}

#[tokio::test]
async fn a_thousand_racing_edits_end_with_one_document_for_any_seed() {
    for seed in 0..SEEDS {
        let books = Books::Pure(Mutex::default());
        run(seed, books, Disk::Memory(Vec::new()), false).await;
    }
}

/// A device whose clock is far ahead at times does not win for ever: setting a key again is enough.
#[tokio::test]
async fn a_wrong_clock_is_overruled_for_any_seed() {
    for seed in 0..SEEDS {
        let books = Books::Pure(Mutex::default());
        run(seed, books, Disk::Memory(Vec::new()), true).await;
    }
}

async fn run_on(stores: Vec<Arc<dyn Store>>, seed: u64) {
    let folder = tempfile::tempdir().unwrap();
    stores[0].migrate().await.unwrap();
    let disk = Disk::file(folder.path().join("buffer.db")).await;
    run(seed, Books::Real(stores), disk, seed % 2 == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_racing_edits_end_with_one_document_in_the_file() {
    for seed in [1_000, 1_001] {
        let folder = tempfile::tempdir().unwrap();
        let location = Location::Embedded(folder.path().join("bridge.db"));
        run_on(vec![location.open().await.unwrap()], seed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_racing_edits_end_with_one_document_in_postgres() {
    for seed in [2_000, 2_001] {
        let database = Scratch::create(&postgres_url()).await.unwrap();
        let location = Location::parse(database.url()).unwrap();
        let mut stores = Vec::new();
        for _ in 0..3 {
            stores.push(location.open().await.unwrap());
        }
        run_on(stores.clone(), seed).await;
        for store in stores {
            store.close().await;
        }
        database.drop_it().await.unwrap();
    }
}
