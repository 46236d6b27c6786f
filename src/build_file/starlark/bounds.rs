//! What a file may not be, found before the parser sees it: brackets, operators and blocks so deep
//! that parser and compiler, which recurse, would run out of stack.

use crate::error::{Error, Place, Result};

/// Brackets in brackets.
const BRACKETS: usize = 100;
/// Words and operators of one expression, between commas.
const TERMS: usize = 2_000;
/// Blocks in blocks.
const BLOCKS: usize = 50;
/// `elif` in one file: each is a block in the one before.
const ELIFS: usize = 1_000;

/// Refuses what is too deep, with the place.
pub fn check(name: &str, text: &str) -> Result<()> {
    let mut scan = Scan { bytes: text.as_bytes(), at: 0, terms: vec![0], blocks: vec![0], elifs: 0 };
    scan.run().map_err(|what| {
        Error::request(format!("{name} is too deep: {what}"))
            .at(place(name, text, scan.at), "here")
            .next("split it: name the parts, or use a list, join or a loop")
    })
}

fn place(name: &str, text: &str, at: usize) -> Place {
    let at = (0..=at.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    let start = text[..at].rfind('\n').map_or(0, |i| i + 1);
    let source: String = text[start..].lines().next().unwrap_or("").chars().take(200).collect();
    Place {
        file: name.to_string(),
        line: text[..at].matches('\n').count() + 1,
        column: text[start..at].chars().count() + 1,
        length: 1,
        source: Some(source),
    }
}

struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Terms since the last comma, for each open bracket and for the line itself.
    terms: Vec<usize>,
    /// Indentations of the open blocks.
    blocks: Vec<usize>,
    elifs: usize,
}

impl Scan<'_> {
    fn run(&mut self) -> Result<(), String> {
        self.indentation()?;
        while let Some(&byte) = self.bytes.get(self.at) {
            match byte {
                b'#' => self.skip(|b| b != b'\n'),
                b'"' | b'\'' => {
                    self.string(byte);
                    self.term()?;
                }
                b'(' | b'[' | b'{' => self.open()?,
                b')' | b']' | b'}' => self.close()?,
                b',' | b';' => {
                    self.at += 1;
                    *self.top() = 0;
                }
                b'\n' => {
                    self.at += 1;
                    if self.terms.len() == 1 {
                        self.terms[0] = 0;
                        self.indentation()?;
                    }
                }
                b' ' | b'\t' | b'\r' => self.at += 1,
                b'\\' => self.at += 2,
                _ if is_word(byte) => self.word()?,
                _ => {
                    self.at += 1;
                    self.term()?;
                }
            }
        }
        Ok(())
    }

    fn top(&mut self) -> &mut usize {
        if self.terms.is_empty() {
            self.terms.push(0);
        }
        let last = self.terms.len() - 1;
        &mut self.terms[last]
    }

    fn term(&mut self) -> Result<(), String> {
        *self.top() += 1;
        if *self.top() > TERMS {
            return Err(format!("an expression of more than {TERMS} words and operators"));
        }
        Ok(())
    }

    fn open(&mut self) -> Result<(), String> {
        self.terms.push(0);
        if self.terms.len() > BRACKETS + 1 {
            return Err(format!("more than {BRACKETS} brackets in brackets"));
        }
        self.at += 1;
        Ok(())
    }

    fn close(&mut self) -> Result<(), String> {
        // One too many is the parser's to report.
        if self.terms.len() > 1 {
            self.terms.pop();
        }
        self.at += 1;
        self.term()
    }

    fn word(&mut self) -> Result<(), String> {
        let start = self.at;
        self.skip(is_word);
        if &self.bytes[start..self.at] == b"elif" {
            self.elifs += 1;
            if self.elifs > ELIFS {
                return Err(format!("more than {ELIFS} elif"));
            }
        }
        self.term()
    }

    fn skip(&mut self, while_true: impl Fn(u8) -> bool) {
        while self.bytes.get(self.at).is_some_and(|b| while_true(*b)) {
            self.at += 1;
        }
    }

    fn string(&mut self, quote: u8) {
        let triple = self.bytes[self.at..].starts_with(&[quote; 3]);
        self.at += if triple { 3 } else { 1 };
        while let Some(&byte) = self.bytes.get(self.at) {
            match byte {
                b'\\' => self.at += 2,
                b'\n' if !triple => return,
                _ if byte == quote && !triple => {
                    self.at += 1;
                    return;
                }
                _ if byte == quote && self.bytes[self.at..].starts_with(&[quote; 3]) => {
                    self.at += 3;
                    return;
                }
                _ => self.at += 1,
            }
        }
    }

    /// At the start of a line outside of brackets.
    fn indentation(&mut self) -> Result<(), String> {
        let start = self.at;
        self.skip(|b| b == b' ' || b == b'\t');
        let depth = self.at - start;
        if matches!(self.bytes.get(self.at), None | Some(b'\n' | b'\r' | b'#')) {
            return Ok(());
        }
        self.blocks.retain(|block| *block < depth);
        self.blocks.push(depth);
        if self.blocks.len() > BLOCKS + 1 {
            return Err(format!("more than {BLOCKS} blocks in blocks"));
        }
        Ok(())
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_exhaust_the_stack_is_refused_with_its_line() {
        let cases = [
            ("nested brackets", format!("x = 1\ny = {}{}", "[".repeat(200_000), "]".repeat(200_000))),
            ("a long sum", format!("x = 1\ny = {}1", "1+".repeat(50_000))),
            ("many signs", format!("x = 1\ny = {}1", "+".repeat(20_000))),
            ("many nots", format!("x = 1\ny = {}1", "not ".repeat(20_000))),
            ("many calls", format!("x = 1\ny = f{}", "()".repeat(20_000))),
            ("a sum over lines", format!("x = 1\ny = ({}1)", "1 +\n".repeat(20_000))),
        ];
        for (what, text) in cases {
            let error = check("a/build.star", &text).unwrap_err();
            assert!(error.places()[0].0.line >= 2, "{what}: {:?}", error.places());
        }
        let elifs = format!("def f():\n  if 1:\n    pass\n{}", "  elif 1:\n    pass\n".repeat(5_000));
        assert!(check("x", &elifs).is_err());
        let blocks: String = (0..100).map(|i| format!("{}if 1:\n", " ".repeat(i))).collect();
        assert!(check("x", &blocks).is_err());
    }

    #[test]
    fn what_is_long_but_flat_is_fine() {
        let list = format!("x = [{}]\n", "\"a\", ".repeat(100_000));
        let text = format!("x = '''{}'''\n", "[".repeat(10_000));
        let lines = "rule('a', deps = [':b'])\n".repeat(10_000);
        let quoted = "x = 'it\\'s [[[' # [[[ ' \n".repeat(1000);
        for good in
            [list, text, lines, quoted, String::new(), "'".to_string(), "\\".to_string(), "x = 'é' + \"[\"".to_string()]
        {
            check("x", &good).unwrap();
        }
    }
}
