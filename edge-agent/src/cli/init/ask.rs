//! Questions to the person at the terminal; without one, each is answered by its default.

use std::io::{self, BufRead as _, Read as _, Write as _};

use daemon::{Class, Failure};

/// Longest answer.
const ANSWER_BYTES_MAX: u64 = 1024;

/// How often a question is repeated.
const TRIES: usize = 5;

/// Asks, or not.
pub(super) struct Asker {
    is_asked: bool,
}

impl Asker {
    pub(super) const fn new(is_asked: bool) -> Self {
        Self { is_asked }
    }

    /// A question whose usual answer is yes.
    pub(super) fn yes(&mut self, question: &str) -> Result<bool, Failure> {
        if !self.is_asked {
            return Ok(true);
        }
        for _ in 0..TRIES {
            match answer(&format!("{question} [Y/n] "))?
                .to_lowercase()
                .as_str()
            {
                "" | "y" | "yes" => return Ok(true),
                "n" | "no" => return Ok(false),
                _ => tell("answer y or n"),
            }
        }
        Err(given_up())
    }

    /// A question for a text that passes `check`; `None` when nobody can be asked and there is no default.
    pub(super) fn text(
        &mut self,
        question: &str,
        default: Option<&str>,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Result<Option<String>, Failure> {
        if !self.is_asked {
            return Ok(default.map(str::to_owned));
        }
        let shown = default.map(|default| format!(" [{default}]"));
        let prompt = format!("{question}{}: ", shown.unwrap_or_default());
        for _ in 0..TRIES {
            let answer = answer(&prompt)?;
            let answer = match (answer.as_str(), default) {
                ("", Some(default)) => default.to_owned(),
                _ => answer,
            };
            match check(&answer) {
                Ok(()) => return Ok(Some(answer)),
                Err(reason) => tell(&format!("{answer:?} cannot be used: {reason}")),
            }
        }
        Err(given_up())
    }
}

fn given_up() -> Failure {
    Failure::new(Class::Configuration, "understand the answers")
        .because("nothing is written")
        .help("give them as options instead: edge-agent init --help")
}

fn tell(text: &str) {
    // Who cannot read it is asked again all the same.
    let _ = writeln!(io::stdout(), "  {text}");
}

/// One line, without the spaces around it.
fn answer(prompt: &str) -> Result<String, Failure> {
    let failed =
        |error: io::Error| Failure::new(Class::Configuration, "ask").because(error.to_string());
    let mut out = io::stdout();
    out.write_all(prompt.as_bytes()).map_err(failed)?;
    out.flush().map_err(failed)?;
    let mut line = Vec::new();
    let mut limited = io::stdin().lock().take(ANSWER_BYTES_MAX);
    limited.read_until(b'\n', &mut line).map_err(failed)?;
    if line.last() != Some(&b'\n') {
        // The end of input, or an answer without end.
        tell("");
        return Err(given_up());
    }
    Ok(String::from_utf8_lossy(&line).trim().to_owned())
}
