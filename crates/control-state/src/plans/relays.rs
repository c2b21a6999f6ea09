//! Relays: joining, addresses and removal.

use super::{
    nodes,
    tokens::{self, Joining},
};
use crate::{
    Plan, Refusal,
    records::{Mutation, Record, RecordKey, RelayRecord},
    world::World,
};
use meshward_control_proto::JoinRequest;
use meshward_types::{NodeName, relay::RelayNumber};

/// The largest number of relays of a mesh: every node measures the latency of each.
const MOST_RELAYS: usize = 64;
/// The largest number of addresses of a relay.
const MOST_ADDRESSES: usize = 8;

/// Makes a machine a relay, and spends one use of its token. A machine that asks again with the
/// same key and name gets the same answer. The outcome is its site.
///
/// # Errors
/// Fails if the token or the request is invalid; the refusal says what is wrong.
pub fn join(
    world: &World,
    request: &JoinRequest,
    key: &str,
    now: i64,
) -> Result<Plan<Option<String>>, Refusal> {
    let known =
        world.relays.get(&request.name).map(|relay| (relay.key.as_str(), relay.site.clone()));
    let token = match tokens::join(world, request, key, known, now)? {
        Joining::Again(site) => return Ok(Plan::nothing(site)),
        Joining::New(token) => token,
    };
    nodes::check_certificate_key(world, &request.name, key)?;
    if world.relays.len() >= MOST_RELAYS {
        return Err(Refusal::Conflict(format!(
            "a mesh has at most {MOST_RELAYS} relays; remove one first"
        )));
    }
    let last = world.relays.values().map(|relay| relay.number).max();
    let number = last.map_or(RelayNumber::COORDINATOR.0 + 1, |last| last + 1);
    let relay = RelayRecord {
        name: request.name.clone(),
        number,
        site: token.site.clone(),
        key: key.to_owned(),
        addresses: vec![],
        stun_port: 0,
    };
    let site = relay.site.clone();
    Ok(Plan::new(
        format!("relay {} joined with token {}", relay.name, token.id),
        vec![tokens::spend(token), Mutation::Put(Record::Relay(relay))],
        site,
    ))
}

/// Removes a relay.
///
/// # Errors
/// [`Refusal::Missing`] if it does not exist.
pub fn remove(world: &World, name: &NodeName) -> Result<Plan<()>, Refusal> {
    if !world.relays.contains_key(name) {
        return Err(Refusal::Missing(format!(
            "there is no relay `{name}`; `meshctl relay list` shows them"
        )));
    }
    Ok(Plan::new(
        format!("removed relay {name}"),
        vec![Mutation::Delete(RecordKey::Relay(name.clone()))],
        (),
    ))
}

/// Stores the addresses of a relay and its port for STUN.
///
/// # Errors
/// [`Refusal::Missing`] if it was removed, [`Refusal::Invalid`] if an address is malformed.
pub fn set_addresses(
    world: &World,
    name: &NodeName,
    addresses: &[String],
    stun_port: u16,
) -> Result<Plan<()>, Refusal> {
    let addresses: Vec<String> = addresses.iter().take(MOST_ADDRESSES).cloned().collect();
    if let Some(bad) = addresses.iter().find(|address| !is_address(address)) {
        return Err(Refusal::Invalid(format!("`{bad}` is no HOST:PORT")));
    }
    change(world, name, "told where it is", |relay| {
        (relay.addresses, relay.stun_port) = (addresses.clone(), stun_port);
    })
}

/// Stores the key of a renewed certificate.
///
/// # Errors
/// [`Refusal::Missing`] if it was removed, [`Refusal::Conflict`] if another member has the key.
pub fn set_key(world: &World, name: &NodeName, key: &str) -> Result<Plan<()>, Refusal> {
    nodes::check_certificate_key(world, name, key)?;
    change(world, name, "has a new certificate key", |relay| key.clone_into(&mut relay.key))
}

fn change(
    world: &World,
    name: &NodeName,
    what: &str,
    change: impl FnOnce(&mut RelayRecord),
) -> Result<Plan<()>, Refusal> {
    let known = world.relays.get(name);
    let known = known
        .ok_or_else(|| Refusal::Missing(format!("relay `{name}` was removed from the mesh")))?;
    let mut relay = known.clone();
    change(&mut relay);
    if relay == *known {
        return Ok(Plan::nothing(()));
    }
    Ok(Plan::new(format!("relay {name} {what}"), vec![Mutation::Put(Record::Relay(relay))], ()))
}

fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    !bare.is_empty() && text.len() <= 260 && port.parse::<u16>().is_ok_and(|port| port != 0)
}
