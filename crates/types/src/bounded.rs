//! Lists and text of bounded length, for messages from outside.
//!
//! Lists are counted while they are decoded, so that a short message never takes much memory. Text
//! is made safe to show, since it reaches operators' terminals.

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};
use std::{fmt, marker::PhantomData};

/// Decodes a list of at most `N` elements, for `#[serde(deserialize_with = "...")]`.
///
/// # Errors
/// Fails at the first element beyond `N`.
pub fn at_most<'de, D, T, const N: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Counting<T, const N: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Counting<T, N> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {N} elements")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            // The announced length reserves no memory: the list grows as elements arrive.
            let mut all = Vec::new();
            while let Some(element) = list.next_element()? {
                if all.len() == N {
                    return Err(A::Error::custom(format_args!(
                        "a list has more than {N} elements"
                    )));
                }
                all.push(element);
            }
            Ok(all)
        }
    }

    deserializer.deserialize_seq(Counting::<T, N>(PhantomData))
}

/// The largest length of text that a member reports about itself, in characters.
const LONGEST_TEXT: usize = 1024;

/// Cuts text to 1,024 characters and replaces what is no visible character or space: control
/// characters, which move a terminal's cursor (ECMA-48), and those that change the direction of
/// writing (Unicode Standard Annex 9).
pub fn printable(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let shown = |c: char| match c {
        '\n' | '\t' => ' ',
        c if c.is_control() || turns(c) => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().take(LONGEST_TEXT).map(shown).collect()
}

/// Decodes [`printable`] text, for `#[serde(deserialize_with = "...")]`.
///
/// # Errors
/// Fails if the value is not a string.
pub fn as_printable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(printable(&String::deserialize(deserializer)?))
}

/// Decodes optional [`printable`] text.
///
/// # Errors
/// Fails if the value is present and not a string.
pub fn as_printable_if_any<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(|text| printable(&text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_moves_no_cursor_and_is_not_long() {
        assert_eq!(printable("disk full: /var (ü, 日本)"), "disk full: /var (ü, 日本)");
        assert_eq!(printable("a\u{1b}[2J\nb\u{202e}c\u{9b}"), "a\u{fffd}[2J b\u{fffd}c\u{fffd}");
        assert_eq!(printable(&"x".repeat(1 << 20)).len(), LONGEST_TEXT);
        assert_eq!(printable(&printable("a\u{1b}")), printable("a\u{1b}"));
    }

    #[derive(Debug, Deserialize)]
    struct Short(#[serde(deserialize_with = "at_most::<_, _, 3>")] Vec<u8>);

    #[test]
    fn a_list_that_is_too_long_is_refused() {
        let decode = |all: &[u8]| postcard::from_bytes::<Short>(&postcard::to_stdvec(all).unwrap());
        assert_eq!(decode(&[1, 2, 3]).unwrap().0, [1, 2, 3]);
        assert!(decode(&[1, 2, 3, 4]).is_err());
        assert!(postcard::from_bytes::<Short>(&[0xff, 0xff, 0xff, 0x7f, 1]).is_err());
    }
}
