//! Join tokens.

use crate::{
    Plan, Refusal,
    records::{Mutation, Record, RecordKey, TokenRecord},
    timestamp,
    world::World,
};
use meshward_api_types::{CreateToken, Token};
use meshward_control_proto::{JoinRequest, MemberKind};
use meshward_types::{
    labels::check_value,
    token::{Fingerprint, JoinToken, SECRET, secret_hash},
};
use time::OffsetDateTime;

const MAX_USES: u32 = 100_000;
const MAX_TTL: u64 = 365 * 24 * 3600;
/// The shortest time after which an ephemeral node is removed, in seconds: it may be restarting.
const SOONEST_FORGOTTEN: u64 = 10;
/// The time for which an expired token is still listed, and machines that join with it get an error
/// that says so, in seconds.
const KEPT_EXPIRED: i64 = 24 * 3600;

/// Random numbers for a join token.
#[derive(Debug, Clone)]
pub struct TokenSeed {
    /// The token's id: 64 random bits in hexadecimal.
    pub id: String,
    /// The secret.
    pub secret: [u8; SECRET],
}

/// Makes a join token and its record.
///
/// # Errors
/// Fails if a field of the body is invalid; the refusal names it.
pub fn make(
    ca: Fingerprint,
    wanted: &CreateToken,
    seed: TokenSeed,
    now: i64,
) -> Result<(JoinToken, TokenRecord), Refusal> {
    if !(1..=MAX_USES).contains(&wanted.uses) {
        let text = format!("a token can have 1 to {MAX_USES} uses, not {}", wanted.uses);
        return Err(Refusal::Invalid(text).about("uses"));
    }
    if !(1..=MAX_TTL).contains(&wanted.ttl_seconds) {
        let text = "a token can be good for one second to 365 days";
        return Err(Refusal::Invalid(text.into()).about("ttl_seconds"));
    }
    if let Some(site) = &wanted.site {
        check_value(site)
            .map_err(|error| Refusal::Invalid(format!("the site: {error}")).about("site"))?;
    }
    if wanted.relay && !wanted.networks.is_empty() {
        let text = "a relay serves all networks; leave the networks out";
        return Err(Refusal::Invalid(text.into()).about("networks"));
    }
    if wanted.relay && wanted.needs_approval {
        let text = "a relay serves no network, so there is nothing to approve; revoke the token to \
            keep relays out";
        return Err(Refusal::Invalid(text.into()).about("needs_approval"));
    }
    check_forget_after(wanted.forget_after_seconds)
        .map_err(|refusal| refusal.about("forget_after_seconds"))?;
    if wanted.relay && wanted.forget_after_seconds.is_some() {
        let text = "a relay stays until it is removed; leave `--ephemeral` out";
        return Err(Refusal::Invalid(text.into()).about("forget_after_seconds"));
    }
    let token = JoinToken::new(ca, seed.secret);
    let record = TokenRecord {
        id: seed.id,
        secret_hash: secret_hash(&token.secret()),
        uses_left: wanted.uses,
        expires: now + wanted.ttl_seconds as i64,
        site: wanted.site.clone(),
        networks: wanted.networks.clone(),
        relay: wanted.relay,
        needs_approval: wanted.needs_approval,
        forget_after: wanted.forget_after_seconds,
    };
    Ok((token, record))
}

/// Refuses a time after which an ephemeral node is removed.
///
/// # Errors
/// [`Refusal::Invalid`] if it is too short for a restart, or longer than a year.
pub fn check_forget_after(seconds: Option<u64>) -> Result<(), Refusal> {
    match seconds {
        Some(seconds) if !(SOONEST_FORGOTTEN..=MAX_TTL).contains(&seconds) => {
            Err(Refusal::Invalid(format!(
                "an ephemeral node can be removed {SOONEST_FORGOTTEN} seconds to 365 days after it \
                was seen last, not {seconds} seconds"
            )))
        }
        _ => Ok(()),
    }
}

/// Stores a token, and deletes those that expired more than a day ago.
///
/// # Errors
/// Fails if a network of the token does not exist.
pub fn create(world: &World, record: &TokenRecord, now: i64) -> Result<Plan<()>, Refusal> {
    if let Some(missing) = record.networks.iter().find(|name| !world.networks.contains_key(name)) {
        return Err(Refusal::Missing(format!(
            "there is no network `{missing}`; make it first with `meshctl network create {missing} \
            --cidr ...`"
        ))
        .about("networks"));
    }
    let uses = record.uses_left;
    let long_ago = world.tokens.values().filter(|token| token.expires + KEPT_EXPIRED <= now);
    let mut mutations: Vec<Mutation> =
        long_ago.map(|token| Mutation::Delete(RecordKey::Token(token.id.clone()))).collect();
    mutations.push(Mutation::Put(Record::Token(record.clone())));
    Ok(Plan::new(
        format!(
            "created join token {} for {uses} {}s",
            record.id,
            if record.relay { MemberKind::Relay } else { MemberKind::Node }
        ),
        mutations,
        (),
    ))
}

/// Deletes a token.
///
/// # Errors
/// [`Refusal::Missing`] if it does not exist.
pub fn revoke(world: &World, id: &str) -> Result<Plan<()>, Refusal> {
    if !world.tokens.contains_key(id) {
        return Err(Refusal::Missing(format!(
            "there is no join token `{id}`; `meshctl token list` shows them"
        )));
    }
    Ok(Plan::new(
        format!("revoked join token {id}"),
        vec![Mutation::Delete(RecordKey::Token(id.to_owned()))],
        (),
    ))
}

fn find<'a>(world: &'a World, secret: &str) -> Result<&'a TokenRecord, Refusal> {
    let hash = secret_hash(secret);
    world.tokens.values().find(|token| token.secret_hash == hash).ok_or_else(|| {
        Refusal::Missing(
            "the join token is unknown: it was revoked, has expired long ago, or was never made by \
            this mesh"
                .into(),
        )
    })
}

/// Refuses a secret that belongs to no token, valid or not.
///
/// # Errors
/// Fails if no token has this secret.
pub fn check_known(world: &World, secret: &str) -> Result<(), Refusal> {
    find(world, secret).map(drop)
}

/// Finds the token of a secret, if a machine may join with it.
///
/// # Errors
/// Fails if no token has this secret, or if the token does not allow it; the refusal says why.
fn redeem<'a>(
    world: &'a World,
    secret: &str,
    kind: MemberKind,
    now: i64,
) -> Result<&'a TokenRecord, Refusal> {
    let token = find(world, secret)?;
    match (token.relay, kind) {
        (true, MemberKind::Relay) | (false, MemberKind::Node) => {}
        (true, MemberKind::Node) => {
            return Err(Refusal::Conflict(
                "the join token is for relays: `meshward-relay join` takes it; make one for nodes \
                without `--relay`"
                    .into(),
            ));
        }
        (false, MemberKind::Relay) => {
            return Err(Refusal::Conflict(
                "the join token is for nodes; make one for relays with `meshctl token create \
                --relay`"
                    .into(),
            ));
        }
    }
    if token.expires <= now {
        let expired = describe(token).expires;
        return Err(Refusal::Conflict(format!(
            "the join token expired at {expired}; make another"
        )));
    }
    if token.uses_left == 0 {
        return Err(Refusal::Conflict(
            "the join token is spent: as many nodes have joined with it as it allows; make another"
                .into(),
        ));
    }
    Ok(token)
}

/// The result of a request to join.
pub enum Joining<'a> {
    /// The machine is a member already, at this site: its first answer may have been lost, and it
    /// spends nothing.
    Again(Option<String>),
    /// The machine becomes a member, by this token.
    New(&'a TokenRecord),
}

/// Checks a request to join. `known` has the key and the site of the member with this name.
///
/// # Errors
/// Fails if the token does not allow it, with the reason, or if another machine has the name.
pub fn join<'a>(
    world: &'a World,
    request: &JoinRequest,
    key: &str,
    known: Option<(&str, Option<String>)>,
    now: i64,
) -> Result<Joining<'a>, Refusal> {
    let token = redeem(world, &request.secret, request.kind, now);
    let Some((known_key, site)) = known else { return token.map(Joining::New) };
    if known_key == key && !matches!(token, Err(Refusal::Missing(_))) {
        return Ok(Joining::Again(site));
    }
    token?;
    let (kind, name) = (request.kind, &request.name);
    let command = match kind {
        MemberKind::Node => "nodes",
        MemberKind::Relay => "relay",
    };
    Err(Refusal::Conflict(format!(
        "there is a {kind} `{name}` already; join with another `--name`, or remove the old one \
        with `meshctl {command} remove {name}`"
    )))
}

/// Returns the mutation that spends one use of a token.
pub fn spend(token: &TokenRecord) -> Mutation {
    let mut token = token.clone();
    token.uses_left -= 1;
    Mutation::Put(Record::Token(token))
}

/// Returns a token in the form of the API.
pub fn describe(record: &TokenRecord) -> Token {
    let expires =
        OffsetDateTime::from_unix_timestamp(record.expires).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    Token {
        id: record.id.clone(),
        uses_left: record.uses_left,
        expires: timestamp(expires),
        site: record.site.clone(),
        networks: record.networks.clone(),
        relay: record.relay,
        needs_approval: record.needs_approval,
        forget_after_seconds: record.forget_after,
    }
}
