//! The gallery's node in Rust: a WASI command with nothing but the standard library.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::process::exit;

/// Finds the member "document" of the input and decodes its text.
fn document(input: &str) -> Option<String> {
    let name = "\"document\"";
    let rest = &input[input.find(name)? + name.len()..];
    let mut chars = rest[rest.find('"')? + 1..].chars();
    let mut text = String::with_capacity(rest.len());
    loop {
        match chars.next()? {
            '"' => return Some(text),
            '\\' => match chars.next()? {
                'n' => text.push('\n'),
                'r' => text.push('\r'),
                't' => text.push('\t'),
                'b' => text.push('\u{8}'),
                'f' => text.push('\u{c}'),
                'u' => {
                    chars.nth(3)?;
                    text.push('?'); // other characters do not matter to the totals
                }
                c => text.push(c),
            },
            c => text.push(c),
        }
    }
}

/// Reads up to ten digits.
fn number(s: &str, most: u64) -> Option<u64> {
    if s.is_empty() || s.len() > 10 || !s.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    s.parse().ok().filter(|n| *n <= most)
}

/// Reads one line as country, units and cents, or says which field is wrong.
fn parse(line: &str) -> Result<(&str, u64, u64), &'static str> {
    let f: Vec<&str> = line.split(',').collect();
    if f.len() != 5 {
        return Err("fields");
    }
    if f[0].is_empty() {
        return Err("id");
    }
    if f[2].len() != 2 || !f[2].bytes().all(|b| b.is_ascii_uppercase()) {
        return Err("country");
    }
    let qty = number(f[3], 1_000_000).filter(|n| *n > 0).ok_or("qty")?;
    let price = number(f[4], 1_000_000_000).ok_or("price")?;
    Ok((f[2], qty, qty * price))
}

fn summarize(document: &str) -> String {
    let mut rejected = Vec::new();
    let mut totals: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
    let mut accepted = 0;
    for (i, line) in document.split('\n').enumerate().skip(1).filter(|(_, l)| !l.is_empty()) {
        match parse(line) {
            Ok((country, units, cents)) => {
                let t = totals.entry(country).or_default();
                *t = (t.0 + 1, t.1 + units, t.2 + cents);
                accepted += 1;
            }
            Err(reason) => rejected.push(format!(r#"{{"line":{},"reason":"{}"}}"#, i + 1, reason)),
        }
    }
    eprintln!("summarized {} lines, rejected {}", accepted, rejected.len());
    let countries: Vec<String> = totals
        .iter()
        .map(|(c, t)| format!(r#"{{"country":"{}","orders":{},"units":{},"cents":{}}}"#, c, t.0, t.1, t.2))
        .collect();
    format!(r#"{{"accepted":{},"rejected":[{}],"countries":[{}]}}"#, accepted, rejected.join(","), countries.join(","))
}

fn main() -> io::Result<()> {
    let mut input = String::new();
    io::stdin().read_to_string(&mut input)?;
    match document(&input) {
        Some(d) => io::stdout().write_all(summarize(&d).as_bytes()),
        None => {
            print!(r#"{{"error":{{"class":"failed","message":"the input has no text called document"}}}}"#);
            exit(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_by_the_first_wrong_field() {
        for (line, want) in [("1,2", "fields"), (",a,DE,1,1", "id"), ("a,a,de,1,1", "country"), ("a,a,DE,0,1", "qty"), ("a,a,DE,1,", "price")] {
            assert_eq!(parse(line), Err(want));
        }
        assert_eq!(parse("a,Ada,DE,2,250"), Ok(("DE", 2, 500)));
    }
}
