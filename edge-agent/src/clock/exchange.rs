//! When the time is requested from a bridge, and which answer counts. Pure: times are arguments, in
//! microseconds since boot.
//!
//! ```text
//! birth ──Hello──► new bridge ──TimeRequest──► Hello ──… every ten minutes
//!   └── none within 5 s ──► requested, ever more rarely ──Hello──► new bridge
//!                             └── the bridge sends something else: it is there ──► requested at once
//!                                   └── three requests unanswered while it is there ──► silent: an old
//!                                       bridge, the clock is followed as it is
//! ```
//!
//! Silence alone proves nothing: the bridge may be away. Only one that is there and does not answer is an
//! old one, and only for a device that no bridge ever sent the time: bridges are not downgraded. A device
//! whose readings wait for the time gives an old bridge no reason to send anything; so a request comes with
//! an event that old bridges answer as well ([`Due::Request`]).
//!
//! These three may be of several connections: a link may never stay up for long. A request counts only if its
//! connection lasted as long as an answer may take.
//!
//! After a slow answer the time is requested again, a few times, before the best of them counts.

use schema::message::Hello;

/// How long a bridge has to answer a birth, or one of the first requests.
const SILENCE: i64 = 5_000_000;

/// Requests without an answer that show a bridge to be an old one, if it is there.
const SILENT_AFTER: u32 = 3;

/// Pause between two requests that are answered. Two good clocks drift apart by a tenth of a second in this
/// time.
const INTERVAL: i64 = 600_000_000;

/// The first pause after those requests, which then doubles; and the longest, for a bridge that may
/// keep each as a dead letter.
const AGAIN: i64 = 10_000_000;
const AGAIN_MAX: i64 = 6 * 3_600_000_000;

/// After an answer that took longer, the time is requested again.
const TRIP_GOOD: i64 = 200_000;

/// Pause before a request is repeated whose answer was slow.
const SLOW_PAUSE: i64 = 1_000_000;

/// Slow answers in a row of which the best counts: the link is that slow.
const SLOW_MAX: u32 = 4;

/// The exchange with the bridges, one connection after the other.
#[derive(Debug, Clone, Default)]
pub struct Exchange {
    /// A bridge has sent this device the time, now or in an earlier run.
    is_new: bool,
    /// Requests in a row that a bridge which was there has left unanswered, over connections.
    ignored: u32,
    /// All requests since then that were not answered, and when the last one was sent.
    unanswered: u32,
    requested_at: i64,
    /// The bridge was found to be an old one.
    is_silent: bool,
    /// Answers in a row that were slow.
    slow: u32,
    connection: Connection,
}

/// What is forgotten with the connection.
#[derive(Debug, Clone, Default)]
struct Connection {
    /// The birth's session, and when it was sent at the earliest.
    birth: Option<(u64, i64)>,
    /// Until when a `Hello` is waited for before anything else is sent.
    greeted_by: Option<i64>,
    /// The protocol that the bridge understands; `None` before its first `Hello`.
    protocol: Option<u16>,
    /// The nonce of the open request and when it was sent, and whether the bridge was there then.
    request: Option<(u64, i64)>,
    was_bridge_there: bool,
    /// The bridge sent something else, after the first request and before the time.
    has_spoken: bool,
    next_at: Option<i64>,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Request the time.
    Request {
        /// Identifies the request; the answer repeats it.
        nonce: u64,
        /// Whether to publish, too, what makes an old bridge answer.
        is_probing: bool,
    },
    /// This bridge does not send the time.
    Silent,
}

/// An answer to a request of this device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// When the request was sent, microseconds since boot.
    pub requested_at: i64,
    /// Whether it counts, because no better one is waited for.
    pub is_last: bool,
}

impl Exchange {
    /// Before the first connection; whether a bridge has sent this device the time in an earlier run.
    #[must_use]
    pub fn new(is_new: bool) -> Self {
        Self {
            is_new,
            ..Self::default()
        }
    }

    /// A connection is up, whose birth was sent at `born` at the earliest.
    pub fn up(&mut self, session: u64, born: i64, now: i64) {
        let soon = now + SILENCE;
        let next = match self.is_silent {
            true => soon.max(self.requested_at.saturating_add(self.pause())),
            false => soon,
        };
        self.connection = Connection {
            birth: Some((session, born)),
            greeted_by: Some(soon),
            next_at: Some(next),
            ..Connection::default()
        };
    }

    /// The connection is gone, and with it what is known of its bridge.
    pub fn down(&mut self) {
        self.connection = Connection::default();
    }

    /// The protocol that the bridge of this connection understands, once it has sent it.
    #[must_use]
    pub const fn protocol(&self) -> Option<u16> {
        self.connection.protocol
    }

    /// Whether the bridge may still send soon which protocol it understands.
    #[must_use]
    pub fn may_greet(&self, now: i64) -> bool {
        self.connection.greeted_by.is_some_and(|by| now < by)
    }

    /// Takes an answer; `None` when it was not requested.
    pub fn hello(&mut self, hello: &Hello, now: i64) -> Option<Answer> {
        let answers =
            |request: &Option<(u64, i64)>| request.filter(|(nonce, _)| *nonce == hello.nonce);
        let connection = &mut self.connection;
        let (_, requested_at) =
            answers(&connection.request).or_else(|| answers(&connection.birth))?;
        if answers(&connection.request).is_some() {
            connection.request = None;
        }
        let is_first = connection.protocol.replace(hello.protocol).is_none();
        connection.greeted_by = None;
        (self.is_new, self.is_silent) = (true, false);
        (self.ignored, self.unanswered) = (0, 0);
        let is_slow = now - requested_at > TRIP_GOOD;
        self.slow = match is_slow {
            true => self.slow + 1,
            false => 0,
        };
        let is_last = !is_slow || self.slow >= SLOW_MAX;
        connection.next_at = Some(if is_last {
            self.slow = 0;
            now + INTERVAL
        } else if is_first {
            now
        } else {
            now + SLOW_PAUSE
        });
        Some(Answer {
            requested_at,
            is_last,
        })
    }

    /// The bridge sent something else than the time. The first time in a connection the time is requested again, at
    /// once: that a request from before the bridge was there is unanswered proves nothing.
    pub const fn received_other(&mut self, now: i64) {
        let is_first = !self.connection.has_spoken && self.connection.protocol.is_none();
        if self.connection.request.is_none() || !is_first {
            return;
        }
        self.connection.has_spoken = true;
        if !self.is_silent {
            self.unanswered = self.ignored;
            self.connection.next_at = Some(now);
        }
    }

    /// The clock was set, or is in doubt: the next request is due at once.
    pub const fn hurry(&mut self, now: i64) {
        if self.connection.protocol.is_some() {
            self.connection.next_at = Some(now);
            self.slow = 0;
        }
    }

    /// When [`Self::due`] has something, or [`Self::may_greet`] changes.
    #[must_use]
    pub fn next_at(&self) -> Option<i64> {
        let Connection {
            greeted_by,
            next_at,
            ..
        } = self.connection;
        [greeted_by, next_at, self.silent_at()]
            .into_iter()
            .flatten()
            .min()
    }

    /// What is due now; a request is sent with `nonce`.
    pub fn due(&mut self, nonce: u64, now: i64) -> Option<Due> {
        let is_due = |at: Option<i64>| at.is_some_and(|at| at <= now);
        if is_due(self.connection.greeted_by) {
            self.connection.greeted_by = None;
        }
        if is_due(self.silent_at()) {
            self.is_silent = true;
            return Some(Due::Silent);
        }
        if is_due(self.connection.next_at) {
            if self.requested_there_at().is_some() {
                // Not beyond what the decision needs: each connection begins with short pauses.
                self.ignored = (self.ignored + 1).min(SILENT_AFTER - 1);
            }
            self.connection.was_bridge_there = self.connection.has_spoken;
            self.connection.request = Some((nonce, now));
            self.requested_at = now;
            self.unanswered = self.unanswered.saturating_add(1);
            self.connection.next_at = Some(now.saturating_add(self.pause()));
            let is_probing = !self.is_new && !self.connection.has_spoken;
            return Some(Due::Request { nonce, is_probing });
        }
        None
    }

    /// When the bridge is shown to be an old one.
    fn silent_at(&self) -> Option<i64> {
        let is_last = self.ignored + 1 >= SILENT_AFTER;
        let requested_at = self
            .requested_there_at()
            .filter(|_| is_last && !self.is_new && !self.is_silent)?;
        Some(requested_at + SILENCE)
    }

    /// When the open request was sent, if the bridge was there.
    fn requested_there_at(&self) -> Option<i64> {
        let request = self
            .connection
            .request
            .filter(|_| self.connection.was_bridge_there);
        request.map(|(_, at)| at)
    }

    /// How long to wait for the answer to the last request before the next one.
    fn pause(&self) -> i64 {
        let max = match self.is_new {
            true => INTERVAL,
            false => AGAIN_MAX,
        };
        match self.unanswered.checked_sub(SILENT_AFTER) {
            None => SILENCE,
            Some(times) => (AGAIN << times.min(20)).min(max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;
    const HOUR: i64 = 3_600 * SECOND;

    fn hello(nonce: u64) -> Hello {
        Hello {
            nonce,
            bridge_time_ms: 1_800_000_000_000,
            protocol: 2,
        }
    }

    const fn answer(requested_at: i64, is_last: bool) -> Option<Answer> {
        Some(Answer {
            requested_at,
            is_last,
        })
    }

    /// Goes on until `until`; what was due, and when. After each question a bridge says something else, if
    /// it is there.
    fn go_on(exchange: &mut Exchange, until: i64, is_there: bool) -> Vec<(i64, Due)> {
        let mut found = Vec::new();
        while let Some(now) = exchange.next_at().filter(|at| *at < until) {
            if let Some(due) = exchange.due(found.len() as u64, now) {
                found.push((now, due));
            }
            if is_there {
                exchange.received_other(now);
            }
            assert!(found.len() < 1000);
        }
        found
    }

    #[test]
    fn a_slow_birth_is_followed_by_a_question_and_that_by_rest() {
        let mut exchange = Exchange::new(false);
        exchange.up(7, 0, SECOND);
        assert!(exchange.may_greet(SECOND));
        assert_eq!(exchange.hello(&hello(8), SECOND), None, "not ours");
        assert_eq!(exchange.protocol(), None);
        assert_eq!(exchange.hello(&hello(7), 2 * SECOND), answer(0, false));
        assert_eq!(exchange.protocol(), Some(2));
        assert!(!exchange.may_greet(2 * SECOND));
        let request = Due::Request {
            nonce: 9,
            is_probing: false,
        };
        assert_eq!(exchange.due(9, 2 * SECOND), Some(request));
        assert_eq!(exchange.due(10, 2 * SECOND), None);
        let answered = 2 * SECOND + 50_000;
        assert_eq!(
            exchange.hello(&hello(9), answered),
            answer(2 * SECOND, true)
        );
        assert_eq!(exchange.next_at(), Some(answered + INTERVAL));
        // A second answer to the same request does not count.
        assert_eq!(exchange.hello(&hello(9), answered), None);
    }

    #[test]
    fn a_slow_answer_is_asked_for_again_but_not_for_ever_and_over_connections() {
        let mut exchange = Exchange::new(false);
        let (mut now, mut answers) = (0, 0);
        loop {
            // Each connection breaks after one answer.
            exchange.up(answers, now, now);
            now += SECOND;
            answers += 1;
            let answer = exchange.hello(&hello(answers - 1), now).unwrap();
            if answer.is_last {
                break;
            }
            exchange.down();
        }
        assert_eq!(answers, u64::from(SLOW_MAX));
        assert_eq!(exchange.next_at(), Some(now + INTERVAL));
        exchange.hurry(now);
        assert!(exchange.due(99, now).is_some());
        // It is lost.
        assert_eq!(exchange.next_at(), Some(now + SILENCE));
    }

    /// A bridge that is away, or slow to start: a fresh device goes on with requests, ever more rarely, and
    /// decides nothing.
    #[test]
    fn silence_alone_says_nothing() {
        for is_new in [false, true] {
            let mut exchange = Exchange::new(is_new);
            exchange.up(7, 0, 0);
            let found = go_on(&mut exchange, 24 * HOUR, false);
            assert!(!found.iter().any(|(_, due)| *due == Due::Silent));
            let at = |n: usize| found[n].0;
            assert_eq!([at(0), at(1), at(2)], [5, 10, 15].map(|at| at * SECOND));
            let pauses = found.windows(2).map(|pair| pair[1].0 - pair[0].0);
            assert!(pauses.is_sorted());
            let last = found.len() as u64 - 1;
            let requested_at = at(found.len() - 1);
            assert_eq!(
                exchange.hello(&hello(last), requested_at),
                answer(requested_at, true)
            );
        }
    }

    /// Requests that reached no bridge prove nothing about one that comes later.
    #[test]
    fn a_bridge_that_comes_back_is_asked_at_once_and_has_three_questions_of_its_own() {
        for is_new in [false, true] {
            let mut exchange = Exchange::new(is_new);
            exchange.up(7, 0, 0);
            go_on(&mut exchange, 24 * HOUR, false);
            // Over a new connection, and in the one that stands.
            for is_reconnected in [false, true] {
                let mut exchange = exchange.clone();
                if is_reconnected {
                    exchange.down();
                    exchange.up(8, 24 * HOUR, 24 * HOUR);
                    let request = exchange.due(98, 24 * HOUR + SILENCE);
                    assert!(matches!(request, Some(Due::Request { .. })), "{request:?}");
                }
                let back = 24 * HOUR + SILENCE + SECOND;
                exchange.received_other(back);
                assert_eq!(exchange.next_at(), Some(back));
                let request = Due::Request {
                    nonce: 99,
                    is_probing: false,
                };
                assert_eq!(exchange.due(99, back), Some(request));
                exchange.received_other(back);
                assert_eq!(exchange.next_at(), Some(back + SILENCE));
                // One that takes its time to answer is not taken for an old one.
                let mut answered = exchange.clone();
                let found = go_on(&mut answered, back + 3 * SILENCE, true);
                assert_eq!(found.len(), 2, "{found:?}");
                assert!(answered.hello(&hello(1), back + 3 * SILENCE).is_some());
                let found = go_on(&mut exchange, back + 4 * SILENCE, true);
                let is_silent = found.contains(&(back + 3 * SILENCE, Due::Silent));
                assert_eq!(is_silent, !is_new, "{found:?}");
            }
        }
    }

    #[test]
    fn an_old_bridge_is_known_over_connections_that_are_short() {
        let mut exchange = Exchange::new(false);
        let mut found = Vec::new();
        let connect = |exchange: &mut Exchange, up_at, seconds| {
            exchange.down();
            exchange.up(8, up_at, up_at);
            go_on(exchange, up_at + seconds * SECOND, true)
        };
        // A request that the end of the connection left no time to answer proves nothing.
        for n in 0..9 {
            let due = connect(&mut exchange, n * 60 * SECOND, 9);
            assert_eq!(due.len(), 2, "{due:?}");
        }
        let start = HOUR;
        for n in 0..3 {
            found.extend(connect(&mut exchange, start + n * 60 * SECOND, 12));
        }
        let silent: Vec<_> = found
            .iter()
            .filter(|(_, due)| *due == Due::Silent)
            .collect();
        // Two have left one question unanswered each, and the last leaves the third.
        assert_eq!(silent, [&(start + 130 * SECOND, Due::Silent)]);
        // A Hello begins the count anew.
        let mut exchange = Exchange::new(false);
        for n in 0..2 {
            connect(&mut exchange, n * 60 * SECOND, 12);
        }
        assert_eq!(exchange.ignored, 2);
        exchange.up(9, HOUR, HOUR);
        assert!(exchange.hello(&hello(9), HOUR).is_some());
        assert_eq!(exchange.ignored, 0);
    }

    #[test]
    fn a_bridge_that_speaks_and_does_not_answer_is_an_old_one() {
        let mut exchange = Exchange::new(false);
        exchange.up(7, 0, 0);
        // What it sends before a request proves nothing.
        exchange.received_other(0);
        let found = go_on(&mut exchange, 24 * HOUR, true);
        let ask = |nonce, is_probing| Due::Request { nonce, is_probing };
        // It sends something after the first request, and gets three from then on.
        let expected = [
            (5 * SECOND, ask(0, true)),
            (5 * SECOND, ask(1, false)),
            (10 * SECOND, ask(2, false)),
            (15 * SECOND, ask(3, false)),
            (20 * SECOND, Due::Silent),
        ];
        assert_eq!(found[..5], expected);
        // Each further question is a dead letter there.
        assert!(found.len() < 20, "{}", found.len());
        assert_eq!(
            found.iter().filter(|(_, due)| *due == Due::Silent).count(),
            1
        );
        // Nor does a link that flaps make more of them.
        let mut asked = 0;
        for now in (24 * 60..30 * 60).map(|minutes| minutes * 60 * SECOND) {
            exchange.down();
            exchange.up(8, now, now);
            asked += go_on(&mut exchange, now + 59 * SECOND, true).len();
        }
        assert!(asked <= 2, "{asked}");
        // A bridge that is upgraded says so.
        assert!(exchange.hello(&hello(8), 30 * HOUR).is_some());
        assert_eq!(exchange.protocol(), Some(2));
        exchange.down();
        assert_eq!((exchange.protocol(), exchange.next_at()), (None, None));
        // From then on a bridge that is there and does not answer is in trouble: it gets requests for ever.
        exchange.up(9, 31 * HOUR, 31 * HOUR);
        let found = go_on(&mut exchange, 32 * HOUR, true);
        let is_ask = |(_, due): &(i64, Due)| {
            matches!(
                due,
                Due::Request {
                    is_probing: false,
                    ..
                }
            )
        };
        assert!(found.len() > 10 && found.iter().all(is_ask), "{found:?}");
    }
}
