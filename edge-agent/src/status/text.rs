//! The status for people: a line for each thing, its name before it.

use std::fmt::{self, Display};
use std::time::Duration;

use super::{InFlight, NextProbe, Rates, Room, Status, Waiting};
use crate::buffer::Storage;
use crate::twin::local::rfc3339;

/// Columns of a name.
pub(crate) const NAME: usize = 16;

impl Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: &dyn Display| writeln!(f, "{name:<NAME$}{value}");
        line("device", &self.device)?;
        line("epoch", &self.epoch)?;
        let version = &self.version;
        match self.started_ms {
            Some(at) => line(
                "version",
                &format_args!("{version}, runs since {}", rfc3339(at)),
            )?,
            None => line("version", version)?,
        }
        line("connected", &if self.connected { "yes" } else { "no" })?;
        self.write_link(&mut line)?;
        line("accepted", &self.balance.accepted)?;
        line("committed", &self.balance.committed)?;
        line("pending", &self.balance.pending)?;
        if let Some(oldest) = &self.oldest {
            let age = duration(Duration::from_millis(oldest.age_ms));
            let at = schema::timestamp::rfc3339(oldest.observed_at_us);
            line("oldest unsent", &format_args!("{age} old, observed {at}"))?;
        }
        if let Some(rates) = &self.rates {
            line("rates", rates)?;
        }
        self.write_set_aside(&mut line)?;
        let mut reasons = String::new();
        for (reason, count) in &self.evicted_by {
            let between = if reasons.is_empty() { ": " } else { ", " };
            reasons += &format!("{between}{count} {}", reason.as_str());
        }
        let evicted = self.balance.evicted;
        line("evicted", &format_args!("{evicted}{reasons}"))?;
        line("discarded", &self.balance.discarded)?;
        let InFlight {
            batches,
            rows,
            bytes,
        } = self.in_flight;
        line(
            "in flight",
            &format_args!("{batches} batches, {rows} rows, {bytes} bytes"),
        )?;
        let Waiting {
            fresh,
            history,
            suspect,
            untimed,
            alarm,
        } = self.waiting;
        if alarm > 0 {
            line("alarms", &format_args!("{alarm} wait, and go first"))?;
        }
        line(
            "waiting",
            &format_args!(
                "{fresh} fresh, {history} history, {suspect} suspect, {untimed} for the time"
            ),
        )?;
        self.write_clock(&mut line)?;
        self.write_storage(&mut line)?;
        for (name, source) in &self.sources {
            // A long name still has a space behind it.
            let name = format!("source {name}");
            line(&format!("{name:<15} "), source)?;
        }
        self.write_settings(&mut line)?;
        if let Some(error) = &self.last_error {
            line("last error", error)?;
        }
        Ok(())
    }
}

type Line<'a> = dyn FnMut(&str, &dyn Display) -> fmt::Result + 'a;

impl Status {
    fn write_link(&self, line: &mut Line<'_>) -> fmt::Result {
        if let Some(link) = &self.link {
            let state = match (self.connected, &link.last_error) {
                (true, _) => "up",
                (false, Some(_)) => "down",
                (false, None) => "connecting",
            };
            let since = rfc3339(link.since_ms);
            line(
                "link",
                &format_args!("{state} since {since}, broker {}", link.broker),
            )?;
            if let Some(error) = &link.last_error {
                line("link error", error)?;
            }
            if let Some(help) = link.help.as_ref().filter(|_| !self.connected) {
                line("what to do", help)?;
            }
        }
        for (name, shown) in self.traffic.lines() {
            line(name, &shown)?;
        }
        if let Some(seconds) = self.ack_latency_seconds {
            line("ack latency", &format_args!("{:.1} ms", seconds * 1000.0))?;
        }
        if let Some(certificate) = &self.certificate {
            let at = schema::timestamp::rfc3339(certificate.expires_ms.saturating_mul(1000));
            match certificate.is_valid {
                true => line("certificate", &format_args!("valid until {at}"))?,
                false => line(
                    "certificate",
                    &format_args!("NOT VALID by this machine's clock; it ends {at}"),
                )?,
            }
        }
        Ok(())
    }

    fn write_settings(&self, line: &mut Line<'_>) -> fmt::Result {
        let Some(settings) = &self.settings else {
            return Ok(());
        };
        line(
            "settings",
            &format_args!("of {}", rfc3339(settings.read_at_ms)),
        )?;
        if !settings.needs_restart.is_empty() {
            line("needs restart", &settings.needs_restart.join(", "))?;
        }
        if let Some(reason) = &settings.refused {
            line("not taken", reason)?;
        }
        Ok(())
    }

    fn write_set_aside(&self, line: &mut Line<'_>) -> fmt::Result {
        let mut reasons = String::new();
        for (reason, count) in &self.quarantine {
            let between = if reasons.is_empty() { ": " } else { ", " };
            reasons += &format!("{between}{count} {}", reason.as_str());
        }
        let quarantined = self.balance.quarantined;
        line("quarantined", &format_args!("{quarantined}{reasons}"))?;
        if let Some(NextProbe { reason, at_ms }) = &self.next_probe {
            let (reason, at) = (reason.as_str(), rfc3339(*at_ms));
            line(
                "offered again",
                &format_args!("some {reason} at {at}, all once one is taken"),
            )?;
        }
        Ok(())
    }

    fn write_clock(&self, line: &mut Line<'_>) -> fmt::Result {
        let state = self.clock.state.as_str();
        match self.clock.offset_ms {
            Some(offset) => {
                let side = if offset < 0 { "behind" } else { "ahead of" };
                let by = offset.unsigned_abs();
                line(
                    "clock",
                    &format_args!("{state}, {by} ms {side} the database's"),
                )
            }
            None => line("clock", &state),
        }
    }

    fn write_storage(&self, line: &mut Line<'_>) -> fmt::Result {
        let Storage {
            trouble,
            set_aside,
            unreadable,
        } = &self.storage;
        match (trouble, &self.room) {
            (None, Some(room)) if room.is_full() => line(
                "buffer",
                &format_args!(
                    "FULL: {} of {} readings, {} of {} bytes; [buffer] when_full says what gives way",
                    room.rows, room.rows_max, room.bytes, room.bytes_max
                ),
            )?,
            (None, Some(room)) => {
                let Room {
                    rows,
                    rows_max,
                    bytes: taken,
                    bytes_max,
                } = *room;
                let (taken, most) = (bytes(taken), bytes(bytes_max));
                let (state, advice) = match self.filling {
                    true => ("FILLS:", "; [buffer] warn_at says when to warn"),
                    false => ("ok,", ""),
                };
                line(
                    "buffer",
                    &format_args!(
                        "{state} {rows} of {rows_max} readings, {taken} of {most}{advice}"
                    ),
                )?;
            }
            (None, None) => line("buffer", &"ok")?,
            (Some(trouble), _) => {
                line("buffer", &format_args!("FAILS: {}", trouble.what))?;
                line("what to do", &trouble.help)?;
            }
        }
        if let Some(files) = &self.files {
            line(
                "on disk",
                &format_args!(
                    "{} file, {} log, {} left on the disk",
                    bytes(files.file_bytes),
                    bytes(files.log_bytes),
                    bytes(files.disk_free_bytes)
                ),
            )?;
        }
        if *set_aside > 0 {
            line(
                "set aside",
                &format_args!("{set_aside} rows that made no sense, in the file's table set_aside"),
            )?;
        }
        if *unreadable > 0 {
            line(
                "unreadable",
                &format_args!("{unreadable} readings; a restart saves what the disk still gives"),
            )?;
        }
        Ok(())
    }
}

impl Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.1} accepted/s, {:.1} committed/s over {:.0} s",
            self.accepted_per_second, self.committed_per_second, self.seconds
        )
    }
}

/// Bytes as people read them.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut size = count as f64 / 1024.0;
    let mut unit = units[0];
    for next in &units[1..] {
        if size < 1024.0 {
            break;
        }
        size /= 1024.0;
        unit = next;
    }
    format!("{size:.1} {unit}")
}

/// A time in its two largest units.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// Breaks each line at blanks so that it fits `width` columns; what follows a name stays to the right of it.
pub(crate) fn wrapped(text: &str, width: usize) -> String {
    let room = width.saturating_sub(NAME).max(20);
    let mut wrapped = String::new();
    for line in text.lines() {
        let mut rest: Vec<&str> = line.split(' ').collect();
        let mut is_first = true;
        while !rest.is_empty() {
            let most = if is_first { room + NAME } else { room };
            let mut taken = 1;
            let mut columns = rest[0].chars().count();
            while let Some(word) = rest.get(taken) {
                columns += 1 + word.chars().count();
                if columns > most {
                    break;
                }
                taken += 1;
            }
            if !is_first {
                wrapped += &" ".repeat(NAME);
            }
            wrapped += &rest.drain(..taken).collect::<Vec<_>>().join(" ");
            wrapped.push('\n');
            is_first = false;
        }
    }
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_said_in_their_largest_units() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1024 * 1024, "1.0 MiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min 0 s"),
            (3599, "59 min 59 s"),
            (3600, "1 h 0 min"),
            (86_400, "1 d 0 h"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn lines_fit_the_terminal_and_lose_no_word() {
        let text = "link            down since 2026-11-30T07:00:00Z, broker broker.example.com:8883 and more\nshort\n\n";
        for width in [0, 40, 80, 200] {
            let wrapped = wrapped(text, width);
            let words = |text: &str| {
                text.split_whitespace()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            assert_eq!(words(&wrapped), words(text));
            let longest = wrapped.lines().map(|line| line.chars().count()).max();
            // A terminal too narrow for a single word breaks it itself.
            assert!(width == 0 || longest <= Some(width), "{wrapped}");
        }
        assert_eq!(wrapped("one\ntwo", 80), "one\ntwo\n");
    }
}
