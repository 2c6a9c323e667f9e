//! What Redis speaks (RESP2, <https://redis.io/docs/latest/develop/reference/protocol-spec/>): values out of bytes, and commands as bytes.

/// Bytes of a string at most.
const LONGEST: usize = 64 << 20;
/// Values in an array at most.
const MOST: usize = 1 << 16;
/// Arrays in arrays.
const DEEPEST: usize = 6;
/// Bytes of a line at most.
const LONGEST_LINE: usize = 64 << 10;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A string, in either form.
    Bytes(&'a [u8]),
    /// An error, in its words.
    Error(&'a [u8]),
    /// A number.
    Number(i64),
    /// Nothing.
    Nil,
    /// Several.
    Array(Vec<Value<'a>>),
}

/// Why no more is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

impl<'a> Value<'a> {
    /// Its values, if it is an array.
    pub fn all(&self) -> &[Value<'a>] {
        if let Value::Array(all) = self { all } else { &[] }
    }

    /// Its bytes; empty, if it is no string.
    pub fn bytes(&self) -> &'a [u8] {
        if let Value::Bytes(bytes) = self { bytes } else { b"" }
    }

    /// Its number, in either form.
    pub fn number(&self) -> Option<u64> {
        match self {
            Value::Number(number) => u64::try_from(*number).ok(),
            Value::Bytes(bytes) => std::str::from_utf8(bytes).ok()?.parse().ok(),
            _ => None,
        }
    }
}

/// The first value of what has come, with how many bytes it takes; `None`: it is not whole.
///
/// # Errors
/// When no server says that.
pub fn take(input: &[u8]) -> Result<Option<(Value<'_>, usize)>, Broken> {
    let mut reader = Reader { input, at: 0 };
    Ok(reader.value(0)?.map(|value| (value, reader.at)))
}

struct Reader<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn line(&mut self) -> Result<Option<&'a [u8]>, Broken> {
        let rest = &self.input[self.at..];
        let Some(end) = memchr::memchr(b'\n', &rest[..rest.len().min(LONGEST_LINE)]) else {
            return if rest.len() < LONGEST_LINE { Ok(None) } else { Err(Broken) };
        };
        self.at += end + 1;
        rest[..end].strip_suffix(b"\r").map(Some).ok_or(Broken)
    }

    fn value(&mut self, depth: usize) -> Result<Option<Value<'a>>, Broken> {
        let Some(line) = self.line()? else { return Ok(None) };
        let (kind, rest) = line.split_first().ok_or(Broken)?;
        let number = || std::str::from_utf8(rest).ok().and_then(|text| text.parse::<i64>().ok()).ok_or(Broken);
        Ok(Some(match kind {
            b'+' => Value::Bytes(rest),
            b'-' => Value::Error(rest),
            b':' => Value::Number(number()?),
            b'$' | b'*' if number()? == -1 => Value::Nil,
            b'$' => {
                let length = usize::try_from(number()?).ok().filter(|length| *length <= LONGEST).ok_or(Broken)?;
                let Some(bytes) = self.input.get(self.at..self.at + length + 2) else { return Ok(None) };
                self.at += length + 2;
                Value::Bytes(bytes.strip_suffix(b"\r\n").ok_or(Broken)?)
            }
            b'*' if depth < DEEPEST => {
                let count = usize::try_from(number()?).ok().filter(|count| *count <= MOST).ok_or(Broken)?;
                let mut all = Vec::new();
                for _ in 0..count {
                    let Some(value) = self.value(depth + 1)? else { return Ok(None) };
                    all.push(value);
                }
                Value::Array(all)
            }
            _ => return Err(Broken),
        }))
    }
}

/// Puts a command behind what is there.
pub fn put(out: &mut Vec<u8>, words: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_as_they_are_written() {
        let text = b"*5\r\n$3\r\na\r\n\r\n:-7\r\n$-1\r\n*1\r\n+OK\r\n-ERR no\r\n";
        let (value, length) = take(text).unwrap().unwrap();
        assert_eq!(length, text.len());
        let inner = Value::Array(vec![Value::Bytes(b"OK")]);
        let all = [Value::Bytes(b"a\r\n"), Value::Number(-7), Value::Nil, inner, Value::Error(b"ERR no")];
        assert_eq!(value.all(), all);
        for short in 0..text.len() {
            assert_eq!(take(&text[..short]), Ok(None), "{short}");
        }
        let mut out = Vec::new();
        put(&mut out, &[b"GET", b"", b"\r\n"]);
        assert_eq!(out, b"*3\r\n$3\r\nGET\r\n$0\r\n\r\n$2\r\n\r\n\r\n");
        let all = [Value::Bytes(b"GET"), Value::Bytes(b""), Value::Bytes(b"\r\n")];
        assert_eq!(take(&out).unwrap().unwrap().0.all(), all);
    }

    #[test]
    fn what_no_server_says_is_refused() {
        let deep = b"*1\r\n".repeat(1000);
        let long = vec![b'+'; LONGEST_LINE];
        for text in [
            &b"x\r\n"[..],
            b"\r\n",
            b":\r\n",
            b":a\r\n",
            b"$-2\r\n",
            b"$1\r\nab\r\n",
            b"$99999999999\r\n",
            b"*65537\r\n",
            b"+a\n",
            &deep,
            &long,
        ] {
            assert_eq!(take(text), Err(Broken), "{}", String::from_utf8_lossy(&text[..text.len().min(20)]));
        }
        // Whatever a byte is changed to, nothing panics.
        let text = b"*2\r\n$3\r\nabc\r\n:1\r\n";
        for at in 0..text.len() {
            for byte in 0..=255 {
                let mut changed = text.to_vec();
                changed[at] = byte;
                if let Ok(Some((_, length))) = take(&changed) {
                    assert!(length <= changed.len());
                }
            }
        }
    }
}
