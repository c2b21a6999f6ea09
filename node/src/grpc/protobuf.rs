//! Messages of Protocol Buffers, field by field:
//! <https://protobuf.dev/programming-guides/encoding/>. What is asked of services has few fields,
//! so they are written and read here.

/// The wire types.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const FIXED_32: u64 = 5;

/// The value of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// A number.
    Number(u64),
    /// A text, a message, or bytes.
    Bytes(&'a [u8]),
    /// A number of a fixed length, which nothing here has.
    Fixed,
}

impl<'a> Value<'a> {
    /// Returns the number; 0 for a value of another kind, as for a field that is left out.
    pub(crate) fn number(self) -> u64 {
        if let Self::Number(number) = self { number } else { 0 }
    }

    /// Returns the bytes; none for a value of another kind.
    pub(crate) fn bytes(self) -> &'a [u8] {
        if let Self::Bytes(bytes) = self { bytes } else { &[] }
    }

    /// Returns the text; empty if it is none.
    pub(crate) fn text(self) -> &'a str {
        std::str::from_utf8(self.bytes()).unwrap_or_default()
    }
}

/// Appends a text, or a message, unless it is empty.
pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_listed(out, field, bytes);
    }
}

/// Appends an element of a list.
pub(crate) fn put_listed(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(out, field << 3 | BYTES);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a number.
pub(crate) fn put_number(out: &mut Vec<u8>, field: u64, number: u64) {
    put_varint(out, field << 3 | VARINT);
    put_varint(out, number);
}

/// Reads a message: its fields with their numbers, in their order. `None` if it is none.
pub(crate) fn fields(message: &[u8]) -> Option<Vec<(u64, Value<'_>)>> {
    let (mut rest, mut fields) = (message, Vec::new());
    while !rest.is_empty() {
        let tag = take_varint(&mut rest)?;
        let value = match tag & 7 {
            VARINT => Value::Number(take_varint(&mut rest)?),
            FIXED_64 => take(&mut rest, 8).map(|_| Value::Fixed)?,
            BYTES => {
                let length = usize::try_from(take_varint(&mut rest)?).ok()?;
                Value::Bytes(take(&mut rest, length)?)
            }
            FIXED_32 => take(&mut rest, 4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        fields.push((tag >> 3, value));
    }
    Some(fields)
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for at in 0..10 {
        let byte = *take(rest, 1)?.first()?;
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_fields_of_other_kinds_are_passed_over() {
        let mut message = vec![];
        put_bytes(&mut message, 1, b"shop");
        put_bytes(&mut message, 2, b"");
        put_listed(&mut message, 3, b"");
        put_number(&mut message, 4, 300);
        assert_eq!(&message[..6], b"\x0a\x04shop");
        message.extend([0x29, 1, 2, 3, 4, 5, 6, 7, 8, 0x35, 1, 2, 3, 4]);
        let read = fields(&message).unwrap();
        let expected = [
            (1, Value::Bytes(b"shop")),
            (3, Value::Bytes(b"")),
            (4, Value::Number(300)),
            (5, Value::Fixed),
            (6, Value::Fixed),
        ];
        assert_eq!(read, expected);
        assert_eq!((read[0].1.text(), read[0].1.number(), read[2].1.bytes()), ("shop", 0, &[][..]));
    }

    #[test]
    fn messages_cut_anywhere_or_changed_anywhere_are_read_or_refused() {
        let whole = [0x12, 2, 9, 9, 0x19, 1, 2, 3, 4, 5, 6, 7, 8, 8, 1];
        assert!(fields(&whole).is_some());
        for length in [1, 2, 3, 5, 12, 14] {
            assert_eq!(fields(&whole[..length]), None, "{length}");
        }
        for at in 0..whole.len() {
            for byte in 0..=255 {
                let mut changed = whole;
                changed[at] = byte;
                let _ = fields(&changed);
            }
        }
        assert_eq!(fields(&[0x12, 0xff, 0xff, 0x7f]), None);
        assert_eq!(fields(&[0xff; 11]), None, "a number that is too long");
    }
}
