//! Lists of bounded length: counted while they are decoded, so that a short message never becomes much memory.

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};
use std::{fmt, marker::PhantomData};

/// Decodes a list of at most `N` elements, for `#[serde(deserialize_with = "...")]`.
///
/// # Errors
/// At the first element beyond these.
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
            // Grown as elements come: an announced length alone takes no memory.
            let mut all = Vec::new();
            while let Some(element) = list.next_element()? {
                if all.len() == N {
                    return Err(A::Error::custom(format_args!("a list has more than {N} elements")));
                }
                all.push(element);
            }
            Ok(all)
        }
    }

    deserializer.deserialize_seq(Counting::<T, N>(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

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
