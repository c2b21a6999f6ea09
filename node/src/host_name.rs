//! A node's name, where nobody gives one: the first label of the host's.

use meshward_types::NodeName;

/// First labels of names that every machine has for itself, or that stand where none was set
/// (hosts(5), the kernel's `CONFIG_DEFAULT_HOSTNAME`).
const OF_NOBODY: [&str; 7] =
    ["localhost", "localhost4", "localhost6", "ip6-localhost", "ip6-loopback", "(none)", "unknown"];

/// The node's name that follows from the host's. What tells this machine from no other is refused.
/// One that another node has is refused by the coordinator.
///
/// # Errors
/// The reason for refusing the name, and the way to set another.
pub fn node_name(host: &str) -> Result<NodeName, String> {
    let host = host.trim().to_lowercase();
    let label = host.split('.').next().unwrap_or_default();
    let mend = "give one with --name, or set the host's (`hostnamectl set-hostname NAME`)";
    if label.is_empty() {
        return Err(format!("this host has no name that the node could have: {mend}"));
    }
    if OF_NOBODY.contains(&label) {
        return Err(format!(
            "this host is called `{host}`, which tells it from no other machine: {mend}"
        ));
    }
    // An address, or a number that somebody gave out.
    if label.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!(
            "this host is called `{host}`, which begins with a number alone: {mend}"
        ));
    }
    label
        .parse()
        .map_err(|error| format!("the host's name is of no use as the node's ({error}): {mend}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_is_called_like_all_others_names_no_node() {
        let long = "x".repeat(64);
        for host in [
            "localhost",
            "LOCALHOST",
            "localhost.localdomain",
            "localhost4.localdomain4",
            "ip6-localhost",
            "(none)",
            "",
            " ",
            ".",
            ".example",
            "192.168.1.5",
            "7",
            "my_host",
            "web 1",
            "-web",
            "web-",
            "wéb",
            "../x",
            &long,
        ] {
            let error = node_name(host).unwrap_err();
            assert!(error.contains("--name"), "{host:?}: {error}");
        }
    }

    #[test]
    fn a_node_is_called_by_the_first_label_of_its_host() {
        let names = [
            ("web-1", "web-1"),
            ("Rack7.Example.com", "rack7"),
            ("ip-10-0-0-1.ec2.internal", "ip-10-0-0-1"),
            ("debian\n", "debian"),
        ];
        for (host, name) in names {
            assert_eq!(node_name(host).unwrap().as_str(), name);
        }
    }
}
