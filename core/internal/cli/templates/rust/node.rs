//! NAME, a node of a Keyfire workflow: a program that reads its input from standard input and writes its output to standard output, both as JSON.
//! What it writes to standard error is the log of its step.
//!
//! It has no dependency, so it reads JSON by hand; with cargo, use serde.

use std::io::{self, Read};
use std::process::exit;

/// Returns the text of a member, as it stands in the JSON: escapes are kept, which is right for putting it into JSON again.
fn text<'a>(json: &'a str, name: &str) -> Option<&'a str> {
    let key = format!("\"{}\"", name);
    let rest = &json[json.find(&key)? + key.len()..];
    let rest = rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    let mut escaped = false;
    for (i, c) in rest.char_indices() {
        match c {
            '"' if !escaped => return Some(&rest[..i]),
            _ => escaped = c == '\\' && !escaped,
        }
    }
    None
}

fn main() -> io::Result<()> {
    let mut input = String::new();
    io::stdin().read_to_string(&mut input)?;
    match text(&input, "name").filter(|n| !n.is_empty()) {
        Some(name) => println!("{{\"greeting\": \"Hello, {}\"}}", name),
        None => {
            println!("{{\"error\": {{\"class\": \"failed\", \"message\": \"a name is needed to greet somebody\"}}}}");
            exit(1)
        }
    }
    Ok(())
}
