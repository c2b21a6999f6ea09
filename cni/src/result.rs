//! Results, in the form of the version that was asked for.

use crate::{NEWEST, VERSIONS};
use ipnet::IpNet;
use meshward_types::dns::servers_for;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// An interface that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// The interface's name.
    pub interface: String,
    /// The namespace's path.
    pub sandbox: String,
    /// The MTU, in bytes.
    pub mtu: u16,
    /// The interface's addresses.
    pub addresses: Vec<IpAddr>,
    /// The prefixes that are routed through the interface.
    pub prefixes: Vec<IpNet>,
    /// The addresses at which the node answers DNS.
    pub resolver: Vec<IpAddr>,
    /// The configuration's own `dns`, which goes before.
    pub dns: Option<Dns>,
}

/// The settings of DNS, in a configuration and in a result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// The name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The domain of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The search domains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver in the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// The result of ADD, added to that of the plugins before this one.
pub fn added(version: &str, added: &Added, previous: Option<&Value>) -> Value {
    let list = |key: &str| -> Vec<Value> {
        previous.and_then(|result| result.get(key)?.as_array()).cloned().unwrap_or_default()
    };
    let (mut interfaces, mut ips, mut routes) = (list("interfaces"), list("ips"), list("routes"));
    let number = interfaces.len();
    let mut interface =
        json!({ "name": added.interface, "mac": mac(added), "sandbox": added.sandbox });
    if version.starts_with("1.1") {
        interface["mtu"] = added.mtu.into();
    }
    interfaces.push(interface);
    for address in &added.addresses {
        let mut ip = json!({ "address": IpNet::from(*address).to_string(), "interface": number });
        if version.starts_with("0.") {
            ip["version"] = if address.is_ipv4() { "4" } else { "6" }.into();
        }
        ips.push(ip);
    }
    let reached = added.prefixes.iter().filter(|prefix| {
        added.addresses.iter().any(|address| address.is_ipv4() == prefix.addr().is_ipv4())
    });
    routes.extend(reached.map(|prefix| json!({ "dst": prefix.to_string() })));
    let mut result = match previous {
        Some(Value::Object(previous)) => previous.clone(),
        _ => Map::new(),
    };
    for (key, value) in [("interfaces", interfaces), ("ips", ips), ("routes", routes)] {
        result.insert(key.to_owned(), value.into());
    }
    // A plugin before this one may have set it, and so may the configuration.
    let dns = dns(added);
    if dns != Dns::default() && result.get("dns").is_none_or(has_no_server) {
        result.insert("dns".to_owned(), json!(dns));
    }
    result.insert("cniVersion".to_owned(), version.into());
    Value::Object(result)
}

/// Returns the settings of DNS: the configuration's, with the node as name server unless it names
/// others. There is no search domain that nobody has asked for.
fn dns(added: &Added) -> Dns {
    let mut dns = added.dns.clone().unwrap_or_default();
    if dns.nameservers.is_empty() {
        let servers = servers_for(&added.addresses, added.resolver.iter().copied());
        dns.nameservers = servers.iter().map(IpAddr::to_string).collect();
    }
    dns
}

fn has_no_server(dns: &Value) -> bool {
    dns.get("nameservers").and_then(Value::as_array).is_none_or(Vec::is_empty)
}

/// A TUN device has no hardware address, but some runtimes want to see one: a locally administered
/// one (IEEE 802), made of the address.
fn mac(added: &Added) -> String {
    let bytes = match added.addresses.first() {
        Some(IpAddr::V4(address)) => address.octets(),
        Some(IpAddr::V6(address)) => {
            let [.., a, b, c, d] = address.octets();
            [a, b, c, d]
        }
        None => [0; 4],
    };
    let [a, b, c, d] = bytes;
    format!("0a:58:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// The answer to VERSION.
pub fn versions() -> Value {
    json!({ "cniVersion": NEWEST, "supportedVersions": VERSIONS })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Added {
        Added {
            interface: "eth0".into(),
            sandbox: "/run/netns/a".into(),
            mtu: 1420,
            addresses: vec!["10.42.3.7".parse().unwrap(), "fd42::7".parse().unwrap()],
            prefixes: vec!["10.42.0.0/16".parse().unwrap(), "fd42::/48".parse().unwrap()],
            resolver: vec!["10.42.255.53".parse().unwrap()],
            dns: None,
        }
    }

    #[test]
    fn a_result_has_the_form_of_its_version() {
        let result = added("1.1.0", &example(), None);
        assert_eq!(result["interfaces"][0]["mac"], "0a:58:0a:2a:03:07");
        assert_eq!(result["interfaces"][0]["mtu"], 1420);
        assert_eq!(result["ips"][0], json!({ "address": "10.42.3.7/32", "interface": 0 }));
        assert_eq!(result["routes"][1]["dst"], "fd42::/48");
        assert_eq!(result["dns"], json!({ "nameservers": ["10.42.255.53"] }));
        let old = added("0.4.0", &example(), None);
        assert_eq!(old["ips"][1]["version"], "6");
        assert!(old["interfaces"][0].get("mtu").is_none());
    }

    #[test]
    fn what_the_plugins_before_have_made_stays() {
        let previous = json!({
            "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0" }],
            "dns": { "nameservers": ["192.0.2.1"] },
            "ips": [{ "address": "192.0.2.7/24", "interface": 0 }],
        });
        let result = added("1.0.0", &example(), Some(&previous));
        assert_eq!(result["interfaces"].as_array().unwrap().len(), 2);
        assert_eq!(result["ips"][1]["interface"], 1);
        assert_eq!(result["dns"]["nameservers"][0], "192.0.2.1");
    }

    #[test]
    fn the_configuration_may_set_search_domains_and_name_servers() {
        let with = |dns: Value| {
            let dns = serde_json::from_value(dns).unwrap();
            added("1.0.0", &Added { dns, ..example() }, None)["dns"].clone()
        };
        let search = json!({ "search": ["shop.mesh"] });
        let own = json!({ "nameservers": ["10.42.255.53"], "search": ["shop.mesh"] });
        assert_eq!(with(search), own);
        let servers = json!({ "nameservers": ["192.0.2.1"] });
        assert_eq!(with(servers.clone()), servers);
        let none = Added { resolver: vec![], ..example() };
        assert!(added("1.0.0", &none, None).get("dns").is_none());
    }
}
