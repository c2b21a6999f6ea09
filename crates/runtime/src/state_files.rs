//! Files of state in JSON: each kind has a type of its own and says which format it has.
//!
//! Format 1 is what release 0.1.0 wrote, without a number. From format 2 on, a file is an object
//! with the number in its field `format`. A release reads all formats up to the one that it writes;
//! a newer one is refused with an error that says so.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A kind of file of state. The type is the file's content alone: programs convert it into what
/// they work with.
pub trait StateFile: Serialize + DeserializeOwned {
    /// The format that is written, and the newest that is read: at least 2.
    const FORMAT: u32 = 2;

    /// Reads a file of format 1.
    ///
    /// # Errors
    /// Fails if it is not of this kind.
    fn read_format_1(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }
}

/// The error for bytes that are no file of state.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// The bytes were written by a later release.
    #[error(transparent)]
    Newer(#[from] NewerFormat),
    /// The bytes are damaged, or of another kind.
    #[error(transparent)]
    Damaged(#[from] serde_json::Error),
}

/// The error for a file that a later release has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "written by a newer release: format {found}, this one reads up to {newest}; upgrade this \
    program and put the file back under its name, or go on without it"
)]
pub struct NewerFormat {
    /// The file's format.
    pub found: u32,
    /// The newest format that this program reads.
    pub newest: u32,
}

#[derive(Serialize)]
struct Numbered<'a, T> {
    format: u32,
    #[serde(flatten)]
    content: &'a T,
}

#[derive(Deserialize)]
struct Number {
    format: u32,
}

/// Returns a file's bytes in the newest format.
///
/// # Errors
/// Fails if the content is no object in JSON.
pub fn encode<T: StateFile>(content: &T) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec_pretty(&Numbered { format: T::FORMAT, content })
}

/// Reads a file of any format up to the newest.
///
/// # Errors
/// [`StateFileError`].
pub fn decode<T: StateFile>(bytes: &[u8]) -> Result<T, StateFileError> {
    match serde_json::from_slice::<Number>(bytes) {
        Ok(Number { format }) if format > T::FORMAT => {
            Err(NewerFormat { found: format, newest: T::FORMAT }.into())
        }
        Ok(Number { format: 2.. }) => Ok(serde_json::from_slice(bytes)?),
        _ => Ok(T::read_format_1(bytes)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Port {
        port: u16,
    }

    impl StateFile for Port {}

    #[test]
    fn a_file_says_its_format_and_a_newer_one_is_refused() {
        let written = encode(&Port { port: 7 }).unwrap();
        assert_eq!(String::from_utf8_lossy(&written), "{\n  \"format\": 2,\n  \"port\": 7\n}");
        assert_eq!(decode::<Port>(&written).unwrap(), Port { port: 7 });
        assert_eq!(decode::<Port>(br#"{"port":8}"#).unwrap(), Port { port: 8 }, "of format 1");
        let said = decode::<Port>(br#"{"format":4,"socket":9}"#).unwrap_err().to_string();
        assert!(said.contains("format 4, this one reads up to 2; upgrade"), "{said}");
        for damaged in ["", "{", "7", r#"{"format":2}"#, r#"{"format":4"#] {
            let error = decode::<Port>(damaged.as_bytes()).unwrap_err();
            assert!(matches!(error, StateFileError::Damaged(_)), "{damaged}");
        }
    }
}
