//! The protocol between a client and PostgreSQL, as far as the check speaks and hears it (version 3.0).
//!
//! ```text
//! first:  length (4), code (4), rest            a startup, or one of the requests before it
//! then:   type (1), length (4), rest            the length counts itself
//! ```

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;

/// What a client asks before it starts: to speak TLS, to speak through GSS, or to cancel another's query.
const REQUESTS: [u32; 3] = [80_877_103, 80_877_104, 80_877_102];
const VERSION: u32 = 196_608;

/// Longer messages are data: rows and arrays.
const LENGTH_MAX: usize = 1 << 20;

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// Its parameters.
    Startup(BTreeMap<String, String>),
    /// A statement with the types of its arguments, as object ids.
    Parse(String, Vec<u32>),
    /// Statements.
    Query(String),
}

/// Listens to what one client says, in whatever pieces it comes.
#[derive(Debug, Default)]
pub(super) struct Listener {
    heard: Vec<u8>,
    /// How much of a long message is still to come.
    rest: usize,
    has_started: bool,
}

impl Listener {
    /// Takes the next bytes; returns what was said with them.
    pub(super) fn hear(&mut self, bytes: &[u8]) -> Vec<Said> {
        let passed = self.rest.min(bytes.len());
        self.rest -= passed;
        self.heard.extend_from_slice(&bytes[passed..]);
        let mut said = Vec::new();
        while let Some(what) = self.next() {
            said.extend(what);
        }
        said
    }

    /// One whole message, if it is here; what it says, if that matters.
    fn next(&mut self) -> Option<Option<Said>> {
        let head = usize::from(self.has_started);
        let length: [u8; 4] = self.heard.get(head..head + 4)?.try_into().ok()?;
        let end = head + u32::from_be_bytes(length) as usize;
        if end > LENGTH_MAX {
            self.rest = end.saturating_sub(self.heard.len());
            self.heard.drain(..end.min(self.heard.len()));
            return Some(None);
        }
        if self.heard.len() < end {
            return None;
        }
        let message: Vec<u8> = self.heard.drain(..end).collect();
        let body = Body(&message[head + 4..]);
        if self.has_started {
            return Some(body.said(message[0]));
        }
        let mut body = body;
        let code = body.number()?;
        if REQUESTS.contains(&code) {
            return Some(None);
        }
        self.has_started = true;
        let mut parameters = BTreeMap::new();
        while let (Some(name), Some(value)) = (body.text(), body.text()) {
            parameters.insert(name, value);
        }
        Some(Some(Said::Startup(parameters)))
    }
}

/// What is left of a message.
struct Body<'m>(&'m [u8]);

impl Body<'_> {
    fn said(mut self, kind: u8) -> Option<Said> {
        match kind {
            b'Q' => self.text().map(Said::Query),
            b'P' => {
                let (_name, sql) = (self.text()?, self.text()?);
                let count = self.short()?;
                let types: Option<Vec<u32>> = (0..count).map(|_| self.number()).collect();
                Some(Said::Parse(sql, types?))
            }
            _ => None,
        }
    }

    fn take(&mut self, length: usize) -> Option<&[u8]> {
        let (taken, left) = self.0.split_at_checked(length)?;
        self.0 = left;
        Some(taken)
    }

    fn text(&mut self) -> Option<String> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let text = String::from_utf8_lossy(self.take(end)?).into_owned();
        self.take(1)?;
        Some(text)
    }

    fn short(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }
}

/// A connection of our own to a server that trusts us.
#[derive(Debug)]
pub(super) struct Client {
    server: BufReader<TcpStream>,
}

impl Client {
    /// As this user, to this database of the server at `host:port`.
    pub(super) fn connect(address: &str, user: &str, database: &str) -> io::Result<Self> {
        let mut client = Self {
            server: BufReader::new(TcpStream::connect(address)?),
        };
        let mut body = VERSION.to_be_bytes().to_vec();
        for text in ["user", user, "database", database, ""] {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
        client.send(None, &body)?;
        client.answer()?.map_err(io::Error::other)?;
        Ok(client)
    }

    /// Runs statements.
    ///
    /// # Errors
    /// The inner one is what the server says against them.
    pub(super) fn run(&mut self, sql: &str) -> io::Result<Result<(), String>> {
        self.send(Some(b'Q'), &[sql.as_bytes(), b"\0"].concat())?;
        Ok(self.answer()?.map(drop))
    }

    /// Runs a query: what it returns in its first column, as text.
    ///
    /// # Errors
    /// The inner one is what the server says against it.
    #[cfg(test)]
    pub(super) fn ask(&mut self, sql: &str) -> io::Result<Result<Vec<String>, String>> {
        self.send(Some(b'Q'), &[sql.as_bytes(), b"\0"].concat())?;
        let mut found = Vec::new();
        let answer = self.answer_with(|row| found.extend(first_column(row)))?;
        Ok(answer.map(|_| found))
    }

    /// Prepares a statement for arguments of these types. Returns the types of what it returns.
    ///
    /// # Errors
    /// The inner one is what the server says against it.
    pub(super) fn prepare(
        &mut self,
        sql: &str,
        types: &[u32],
    ) -> io::Result<Result<Vec<u32>, String>> {
        let mut parse = [b"\0", sql.as_bytes(), b"\0"].concat();
        parse.extend_from_slice(&u16::try_from(types.len()).unwrap_or(u16::MAX).to_be_bytes());
        parse.extend(types.iter().flat_map(|kind| kind.to_be_bytes()));
        self.send(Some(b'P'), &parse)?;
        self.send(Some(b'D'), b"S\0")?;
        self.send(Some(b'S'), b"")?;
        self.answer()
    }

    fn send(&mut self, kind: Option<u8>, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len() + 4).map_err(io::Error::other)?;
        let mut message: Vec<u8> = kind.into_iter().collect();
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(body);
        self.server.get_mut().write_all(&message)
    }

    /// Reads until the server is ready: the types of the last row that it described, or its first error.
    fn answer(&mut self) -> io::Result<Result<Vec<u32>, String>> {
        self.answer_with(|_| ())
    }

    fn answer_with(&mut self, mut see: impl FnMut(&[u8])) -> io::Result<Result<Vec<u32>, String>> {
        let mut answer = Ok(Vec::new());
        loop {
            let mut head = [0; 5];
            self.server.read_exact(&mut head)?;
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let mut body = vec![0; length.saturating_sub(4)];
            self.server.read_exact(&mut body)?;
            match head[0] {
                b'Z' => return Ok(answer),
                b'D' => see(&body),
                b'E' if answer.is_ok() => answer = Err(error(&body)),
                b'T' if answer.is_ok() => answer = Ok(columns(&body).unwrap_or_default()),
                _ => {}
            }
        }
    }
}

/// The first column of a row, as text.
#[cfg(test)]
fn first_column(body: &[u8]) -> Option<String> {
    let mut body = Body(body);
    body.short()?;
    let length = usize::try_from(body.number()?).ok()?;
    Some(String::from_utf8_lossy(body.take(length)?).into_owned())
}

/// The types of the columns of a row.
fn columns(body: &[u8]) -> Option<Vec<u32>> {
    let mut body = Body(body);
    let count = body.short()?;
    let column = |_| {
        body.text()?;
        // Its table and its place there; behind the type its size, modifier and format.
        body.take(6)?;
        let kind = body.number()?;
        body.take(8)?;
        Some(kind)
    };
    (0..count).map(column).collect()
}

/// Code and message of an error.
fn error(body: &[u8]) -> String {
    let mut body = Body(body);
    let (mut code, mut message) = (String::new(), String::new());
    while let Some(field) = body.take(1).map(|field| field[0]) {
        match (field, body.text()) {
            (b'C', Some(text)) => code = text,
            (b'M', Some(text)) => message = text,
            _ => {}
        }
    }
    format!("{code} {message}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: Option<u8>, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        let kind: Vec<u8> = kind.into_iter().collect();
        [&kind[..], &length.to_be_bytes(), body].concat()
    }

    #[test]
    fn what_is_said_is_heard_in_pieces_of_any_size() {
        let startup = [&VERSION.to_be_bytes()[..], b"user\0u\0\0"].concat();
        let parse = [&b"s\0SELECT $1\0"[..], &[0, 1], &[0, 0, 0, 20]].concat();
        let said = [
            message(None, &REQUESTS[0].to_be_bytes()),
            message(None, &startup),
            message(Some(b'P'), &parse),
            message(Some(b'B'), &vec![7; LENGTH_MAX + 9]),
            message(Some(b'Q'), b"COMMIT\0"),
        ]
        .concat();
        for size in [1, 7, 4096, said.len()] {
            let mut listener = Listener::default();
            let heard: Vec<Said> = said
                .chunks(size)
                .flat_map(|some| listener.hear(some))
                .collect();
            let parameters = [("user".to_owned(), "u".to_owned())].into();
            let expected = [
                Said::Startup(parameters),
                Said::Parse("SELECT $1".to_owned(), vec![20]),
                Said::Query("COMMIT".to_owned()),
            ];
            assert_eq!(heard, expected, "{size}");
        }
    }
}
