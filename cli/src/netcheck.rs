//! `meshctl netcheck`: the network around this machine's node.

use crate::{
    arguments::Common,
    client::Client,
    out,
    output::{bad, good, list, table, whole},
};
use anyhow::Result;
use meshward_api_types::diagnosis::{NatMapping, Netcheck, RelayCheck};
use meshward_types::relay::RelayNumber;
use std::process::ExitCode;

/// # Errors
/// Fails if no node daemon answers.
pub(crate) async fn netcheck(common: &Common) -> Result<ExitCode> {
    let found: Netcheck = Client::node(common).get("/v1/netcheck").await?;
    if !whole(common, &found)? {
        print(common, &found);
    }
    let reached = found.relays.iter().any(|relay| relay.udp_us.or(relay.tcp_us).is_some());
    Ok(if reached { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(common: &Common, found: &Netcheck) {
    let yes_no = |yes: bool| if yes { good("yes") } else { bad("no") };
    out!("node {}", found.node);
    out!("  coordinator   {}", if found.connected { good("connected") } else { bad("no session") });
    let udp = match found.udp {
        Some(true) => good("passes"),
        Some(false) => bad("blocked: everything goes by TLS, and is relayed"),
        None => bad("unknown: nobody answers, by TCP either"),
    };
    out!("  UDP           {udp}");
    out!("  seen by IPv4  {}", found.ipv4.map_or("-".into(), |seen| seen.to_string()));
    let v6 = match (found.ipv6, found.has_ipv6) {
        (Some(seen), _) => seen.to_string(),
        (None, true) => "- (there is an address, but no answer came by it)".into(),
        (None, false) => "- (no address)".into(),
    };
    out!("  seen by IPv6  {v6}");
    let port = match found.nat.preserves_port {
        Some(true) => "; the port is preserved",
        Some(false) => "; the port is not preserved",
        None => "",
    };
    out!("  NAT           {}{port}", nat(found.nat.mapping));
    let mapping = &found.port_mapping;
    let mapped = match (mapping.mapped.as_slice(), mapping.router) {
        _ if !mapping.wanted => "not wanted (port_mapping)".into(),
        ([], None) => "the router does not answer".into(),
        ([], Some(router)) => {
            format!("the router answers, outside it is {router}; nothing is mapped")
        }
        (mapped, _) => good(list(mapped)),
    };
    out!("  port mapping  {mapped}");
    out!("  home relays   {}", list(&found.home_relays));
    let row = |relay: &RelayCheck| {
        let time = |micros: Option<u64>| match micros {
            Some(micros) => format!("{:.2} ms", micros as f64 / 1000.0),
            None => bad("no answer"),
        };
        let what = if relay.number == RelayNumber::COORDINATOR { "coordinator" } else { "relay" };
        [
            relay.number.to_string(),
            what.to_owned(),
            relay.address.clone(),
            time(relay.udp_us),
            time(relay.tcp_us),
            yes_no(found.home_relays.contains(&relay.number)),
        ]
    };
    table(
        common,
        ["RELAY", "WHAT", "ADDRESS", "BY UDP", "BY TCP", "HOME"],
        found.relays.iter().map(row),
    );
}

fn nat(mapping: NatMapping) -> String {
    match mapping {
        NatMapping::None => good("none"),
        NatMapping::EndpointIndependent => {
            good("endpoint-independent mapping: peers can connect by hole punching")
        }
        NatMapping::EndpointDependent => bad(
            "endpoint-dependent mapping (symmetric NAT): a peer that is behind a NAT or a firewall \
             itself connects by a relay",
        ),
        NatMapping::Undetermined => {
            "yes, mapping unknown: that takes STUN servers at two addresses, and one answered (add \
            a relay elsewhere, or meshward-node --stun)"
                .into()
        }
        NatMapping::Unknown => "unknown: no STUN server outside this machine answers".into(),
    }
}
