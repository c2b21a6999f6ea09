//! `meshctl netcheck`: what lies around this machine's node.

use crate::{
    arguments::Common,
    client::Client,
    out,
    output::{bad, good, list, table, whole},
};
use anyhow::Result;
use meshward_api_types::diagnosis::{Nat, Netcheck, RelayCheck};
use meshward_types::relay::RelayNumber;
use std::process::ExitCode;

/// # Errors
/// If no node daemon answers.
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
    let port = match found.nat_keeps_port {
        Some(true) => "; it kept the port",
        Some(false) => "; it gave another port",
        None => "",
    };
    out!("  NAT           {}{port}", nat(found.nat));
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
    out!("  reached by    {}", list(found.homes.iter().map(|home| format!("relay {home}"))));
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
            yes_no(found.homes.contains(&relay.number)),
        ]
    };
    table(
        common,
        ["RELAY", "WHAT", "ADDRESS", "BY UDP", "BY TCP", "HOME"],
        found.relays.iter().map(row),
    );
}

fn nat(nat: Nat) -> String {
    match nat {
        Nat::None => good("none"),
        Nat::EndpointIndependent => {
            good("one port for all (endpoint-independent): other nodes can come in by it")
        }
        Nat::EndpointDependent => bad(
            "another port for each place (endpoint-dependent): other nodes come in only where they \
             are reached themselves, or by a relay",
        ),
        Nat::Undetermined => {
            "there is one, of unknown kind: servers at two addresses tell (a relay elsewhere, or \
             --stun), and those at one answered"
                .into()
        }
        Nat::Unknown => "unknown: no server answers by UDP that is not on this machine".into(),
    }
}
