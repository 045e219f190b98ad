//! Standard output of commands. All of them write through here: a reader that goes away (`… | head -1`) is no
//! error, and a disk that is full is one in words. `println!` panics at both.

use std::io::{self, ErrorKind, Write};

use crate::failure::{Class, Failure};

/// Prints a line as `println!` does, by [`print()`].
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => {
        $crate::stdout::print(&::std::format!($($argument)*))
    };
}

/// Prints a line, and ends the process where that cannot be: with 0 when nobody reads any more, else
/// with 1 and a sentence.
pub fn print(line: &str) {
    print_bytes(format!("{line}\n").as_bytes());
}

/// As [`print()`], bytes as they are.
pub fn print_bytes(bytes: &[u8]) {
    let code = match write(bytes) {
        Ok(()) => return,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => 0,
        Err(error) => {
            let _ = failed(error).report();
            1
        }
    };
    std::process::exit(code);
}

/// As [`print()`], of a command that has more to do than to print: it goes on where nobody reads any more.
///
/// # Errors
/// When the line cannot be written for another reason.
pub fn try_print(line: &str) -> Result<(), Failure> {
    try_print_bytes(format!("{line}\n").as_bytes())
}

/// As [`try_print`], bytes as they are.
///
/// # Errors
/// As [`try_print`].
pub fn try_print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    match write(bytes) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Nothing stays behind in a buffer, where an error would be nobody's.
fn write(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

fn failed(error: io::Error) -> Failure {
    Failure::new(Class::Storage, "write to standard output").because(error)
}
