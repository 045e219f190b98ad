//! SQL as tokens, with what stands in parentheses as one of them: enough to see which clause a word
//! belongs to, without a grammar.

/// A word, a number, a text, an operator, or a pair of parentheses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// A keyword or a name, as it is written.
    Word(String),
    Number(String),
    /// Between single quotes.
    Text(String),
    /// `$7`.
    Argument(String),
    Symbol(&'static str),
    Group(Vec<Token>),
}

/// Longer ones first.
const SYMBOLS: [&str; 43] = [
    "->>", "#>>", "!~*", "::", "->", "#>", "<=", ">=", "<>", "!=", "||", "~*", "!~", "@>", "<@",
    "&&", "//", "<<", ">>", "?|", "?&", "#-", ",", ".", "=", "<", ">", "+", "-", "*", "%", "/",
    "^", "#", "~", "|", "&", "@", "!", "?", "[", "]", ":",
];

impl Token {
    /// Whether it is this keyword.
    pub(super) fn is(&self, word: &str) -> bool {
        matches!(self, Self::Word(own) if own.eq_ignore_ascii_case(word))
    }

    /// Whether it is one of these keywords.
    pub(super) fn is_any(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.is(word))
    }

    pub(super) fn is_symbol(&self, symbol: &str) -> bool {
        matches!(self, Self::Symbol(own) if *own == symbol)
    }

    /// The word in small letters, if it is one.
    pub(super) fn word(&self) -> Option<String> {
        match self {
            Self::Word(word) => Some(word.to_ascii_lowercase()),
            _ => None,
        }
    }

    pub(super) fn group(&self) -> Option<&[Self]> {
        match self {
            Self::Group(inner) => Some(inner),
            _ => None,
        }
    }
}

/// The statements of a text, each as tokens.
pub(super) fn statements(sql: &str) -> Result<Vec<Vec<Token>>, String> {
    let mut open: Vec<Vec<Token>> = vec![Vec::new()];
    let mut done = Vec::new();
    let mut rest = sql.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            ';' => {
                done.append(&mut open);
                open.push(Vec::new());
                (None, 1)
            }
            '(' => {
                open.push(Vec::new());
                (None, 1)
            }
            ')' => {
                let inner = open.pop().unwrap_or_default();
                (Some(Token::Group(inner)), 1)
            }
            '-' if rest.starts_with("--") => (None, rest.find('\n').unwrap_or(rest.len())),
            '\'' => {
                let length = quoted(rest, '\'')?;
                (Some(Token::Text(rest[1..length - 1].to_owned())), length)
            }
            '"' => {
                let length = quoted(rest, '"')?;
                (Some(Token::Word(rest[1..length - 1].to_owned())), length)
            }
            '$' => {
                let length = 1 + run(&rest[1..], |c| c.is_ascii_digit());
                (Some(Token::Argument(rest[..length].to_owned())), length)
            }
            c if c.is_ascii_digit() => {
                let length = run(rest, |c| c.is_ascii_digit() || c == '.');
                (Some(Token::Number(rest[..length].to_owned())), length)
            }
            c if c.is_ascii_alphabetic() || c == '_' => {
                let length = run(rest, |c| c.is_ascii_alphanumeric() || c == '_');
                (Some(Token::Word(rest[..length].to_owned())), length)
            }
            _ => {
                let symbol = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol));
                let symbol = symbol.ok_or_else(|| format!("unreadable at {rest:.20}"))?;
                (Some(Token::Symbol(symbol)), symbol.len())
            }
        };
        if let Some(token) = token {
            let level = open.last_mut().ok_or("a parenthesis is closed twice")?;
            level.push(token);
        }
        rest = rest[length..].trim_start();
    }
    if open.len() != 1 {
        return Err("a parenthesis is not closed".to_owned());
    }
    done.append(&mut open);
    done.retain(|statement| !statement.is_empty());
    Ok(done)
}

/// Where a quoted text ends; two quotes within are one.
fn quoted(text: &str, quote: char) -> Result<usize, String> {
    let mut inside = text[1..].char_indices().peekable();
    while let Some((at, c)) = inside.next() {
        if c == quote && inside.next_if(|(_, next)| *next == quote).is_none() {
            return Ok(at + 2);
        }
    }
    Err("a quote is not closed".to_owned())
}

fn run(text: &str, is_part: impl Fn(char) -> bool) -> usize {
    text.find(|c| !is_part(c)).unwrap_or(text.len())
}

/// A level and every one within it, outermost first, each with how deep it is.
pub(super) fn levels(statement: &[Token]) -> Vec<(usize, &[Token])> {
    let mut found = vec![(0, statement)];
    let mut at = 0;
    while let Some((depth, level)) = found.get(at).copied() {
        let inner = level.iter().filter_map(Token::group);
        found.extend(inner.map(|inner| (depth + 1, inner)));
        at += 1;
    }
    found
}

/// The tokens in one line of small words, so that two ways to write the same are equal.
pub(super) fn plain(tokens: &[Token]) -> String {
    let words = tokens.iter().map(|token| match token {
        Token::Word(word) => word.to_ascii_lowercase(),
        Token::Number(text) | Token::Argument(text) => text.clone(),
        Token::Text(text) => format!("'{text}'"),
        Token::Symbol(symbol) => (*symbol).to_owned(),
        Token::Group(inner) => format!("({})", plain(inner)),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_read_with_their_groups() {
        let found = statements("-- x;\nSELECT a->>'b''c' FROM f($1::TEXT[]) ; COMMIT;").unwrap();
        let shown: Vec<String> = found.iter().map(|tokens| plain(tokens)).collect();
        assert_eq!(
            shown,
            ["select a ->> 'b''c' from f ($1 :: text [ ])", "commit"]
        );
        assert_eq!(levels(&found[0]).len(), 2);
        for wrong in ["a)", "(a", "'a", "a ; b)"] {
            assert!(statements(wrong).is_err(), "{wrong}");
        }
    }
}
