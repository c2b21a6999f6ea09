//! Prefixes as people write them, with mistakes told by the part that is wrong.

use ipnet::IpNet;
use std::net::IpAddr;

/// A prefix such as 10.42.0.0/16.
///
/// # Errors
/// The wrong part, and the right way to write it.
pub(crate) fn prefix(text: &str) -> Result<IpNet, String> {
    let Some((address, length)) = text.split_once('/') else {
        return Err(match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => {
                format!(
                    "the length is missing: write {text}/32 for that address alone, or such as \
                     {text}/24"
                )
            }
            Ok(IpAddr::V6(_)) => format!(
                "the length is missing: write {text}/128 for that address alone, or such as \
                 {text}/64"
            ),
            Err(_) => {
                "write an address, a slash and a length, such as 10.42.0.0/16 or fd42::/48".into()
            }
        });
    };
    let address: IpAddr = address.parse().map_err(|_| wrong_address(address))?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = length.parse::<u8>().ok().filter(|length| *length <= most).ok_or_else(|| {
        format!(
            "`{length}` is not the length of a prefix of {address}: write a number from 0 to {most}"
        )
    })?;
    IpNet::new(address, length).map_err(|error| error.to_string())
}

fn wrong_address(text: &str) -> String {
    let parts: Vec<&str> = text.split('.').collect();
    if text.contains(':') {
        return format!("`{text}` is not an IPv6 address: write such as fd42:: or 2001:db8:0:1::");
    }
    let wrong = parts
        .iter()
        .position(|part| part.parse::<u8>().is_err() || part.len() > 1 && part.starts_with('0'));
    match wrong {
        _ if parts.len() != 4 => {
            format!("`{text}` is not an IPv4 address: it has {} of 4 parts", parts.len())
        }
        Some(at) => format!(
            "part {} of the address, `{}`, is not a number from 0 to 255 without leading zeros",
            at + 1,
            parts[at]
        ),
        None => format!("`{text}` is not an address"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_in_a_prefix_is_told_by_its_part() {
        for (text, says) in [
            ("10.42.0.0", "write 10.42.0.0/32"),
            ("fd42::", "write fd42::/128"),
            ("shop", "a slash and a length"),
            ("10.42.0/16", "3 of 4 parts"),
            ("10.421.0.0/16", "part 2 of the address, `421`"),
            ("10.042.0.0/16", "part 2 of the address, `042`"),
            (
                "10.42.0.0/33",
                "`33` is not the length of a prefix of 10.42.0.0: write a number from 0 to 32",
            ),
            ("10.42.0.0/", "`` is not the length"),
            ("fd42::/129", "0 to 128"),
            ("fd4g::/48", "not an IPv6 address"),
        ] {
            let said = prefix(text).unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
        }
        assert_eq!(prefix("10.42.0.0/16").unwrap().to_string(), "10.42.0.0/16");
        assert_eq!(prefix("fd42::/48").unwrap().to_string(), "fd42::/48");
    }
}
