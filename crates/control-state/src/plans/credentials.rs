//! Credentials for the API, and their rights.

use super::networks::find;
use crate::{
    Plan, Refusal,
    records::{CredentialRecord, Mutation, Record, RecordKey},
    timestamp,
    world::World,
};
use meshward_api_types::{ChangeCredential, CreateCredential, Credential, Role};
use meshward_types::{NetworkName, token::secret_hash};
use time::OffsetDateTime;

/// The longest lifetime, in seconds: ten years.
const MOST_LIFETIME: u64 = 10 * 365 * 24 * 3600;
/// The time for which an expired credential is still listed, and its bearer gets an error that says
/// so, in seconds.
const KEPT_EXPIRED: i64 = 30 * 24 * 3600;

/// Creates a credential, in place of an expired one of the same name. Deletes those that expired
/// long ago.
///
/// # Errors
/// Fails if a field of the body is invalid or another credential has the name; the refusal says
/// which.
pub fn create(
    world: &World,
    wanted: &CreateCredential,
    secret: &str,
    now: i64,
) -> Result<Plan<Credential>, Refusal> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    if !(1..=63).contains(&wanted.name.len()) || !wanted.name.chars().all(allowed) {
        return Err(Refusal::Invalid(format!(
            "`{}` cannot name a credential: use 1 to 63 letters, digits, `-`, `_`, `.` and `@`",
            wanted.name.chars().take(80).collect::<String>()
        ))
        .about("name"));
    }
    if world.credentials.get(&wanted.name).is_some_and(|known| !known.is_expired(now)) {
        let text = format!("there is a credential `{}` already", wanted.name);
        return Err(Refusal::Conflict(text).about("name"));
    }
    check_reach(world, wanted.role, &wanted.networks)?;
    let expires = expiry(wanted.lifetime_seconds, now)?;
    let mut plan = add(wanted, secret, expires);
    let long_ago = world.credentials.values().filter(|known| known.is_expired(now - KEPT_EXPIRED));
    let forgotten = long_ago.filter(|known| known.name != wanted.name);
    plan.mutations
        .extend(forgotten.map(|known| Mutation::Delete(RecordKey::Credential(known.name.clone()))));
    Ok(plan)
}

/// Returns the end of a lifetime that begins now, in seconds since the Unix epoch.
fn expiry(lifetime: Option<u64>, now: i64) -> Result<Option<i64>, Refusal> {
    match lifetime {
        None => Ok(None),
        Some(seconds @ 1..=MOST_LIFETIME) => Ok(Some(now + seconds as i64)),
        Some(seconds) => {
            let text = format!(
                "a credential is good for 1 second to 3650 days, not for {seconds} seconds"
            );
            Err(Refusal::Invalid(text).about("lifetime_seconds"))
        }
    }
}

/// Changes the rights of a credential.
///
/// # Errors
/// [`Refusal::Missing`] if it does not exist, [`Refusal::Conflict`] if no admin would be left, or
/// the field of the body that is wrong.
pub fn change(
    world: &World,
    name: &str,
    wanted: &ChangeCredential,
    now: i64,
) -> Result<Plan<Credential>, Refusal> {
    let known = find_credential(world, name)?;
    let expires = match (wanted.no_expiry, expiry(wanted.lifetime_seconds, now)?) {
        (true, Some(_)) => {
            let text = "name a lifetime, or say `no_expiry`, not both";
            return Err(Refusal::Invalid(text.into()).about("no_expiry"));
        }
        (true, None) => None,
        (false, until) => until.or(known.expires),
    };
    if wanted.all_networks && !wanted.networks.is_empty() {
        let text = "name networks, or say `all_networks`, not both";
        return Err(Refusal::Invalid(text.into()).about("all_networks"));
    }
    let role = wanted.role.unwrap_or(known.role);
    let networks = match wanted.networks.is_empty() && !wanted.all_networks {
        true => known.networks.clone(),
        false => wanted.networks.clone(),
    };
    let reach = check_reach(world, role, &networks);
    // Half of it is what is there already.
    let whole = wanted.role.is_some() && (wanted.all_networks || !wanted.networks.is_empty());
    reach.map_err(|refusal| if whole { refusal } else { as_things_are(refusal) })?;
    if role != Role::Admin {
        keep_an_admin(world, known).map_err(|refusal| refusal.about("role"))?;
    } else if expires.is_some() {
        keep_an_admin(world, known).map_err(|refusal| refusal.about("lifetime_seconds"))?;
    }
    let record = CredentialRecord { role, networks, expires, ..CredentialRecord::clone(known) };
    let outcome = describe(&record);
    if record == *known {
        return Ok(Plan::nothing(outcome));
    }
    Ok(Plan::new(
        format!("changed the credential `{name}` ({})", role_name(role)),
        vec![Mutation::Put(Record::Credential(record))],
        outcome,
    ))
}

fn as_things_are(refusal: Refusal) -> Refusal {
    match refusal {
        Refusal::About { field, refusal } => as_things_are(*refusal).about(field),
        Refusal::Invalid(text) => Refusal::Conflict(text),
        other => other,
    }
}

/// Refuses networks for a role that has none, and networks that do not exist.
fn check_reach(world: &World, role: Role, networks: &[NetworkName]) -> Result<(), Refusal> {
    if role == Role::Owner && networks.is_empty() {
        let text = "an owner owns at least one network; name it (`--network NAME`)";
        return Err(Refusal::Invalid(text.into()).about("networks"));
    }
    if role == Role::Admin && !networks.is_empty() {
        let text = "an admin's word holds in every network; leave the networks out";
        return Err(Refusal::Invalid(text.into()).about("networks"));
    }
    for network in networks {
        find(world, network).map_err(|refusal| refusal.about("networks"))?;
    }
    Ok(())
}

fn find_credential<'a>(world: &'a World, name: &str) -> Result<&'a CredentialRecord, Refusal> {
    world.credentials.get(name).ok_or_else(|| {
        Refusal::Missing(format!(
            "there is no credential `{name}`; `meshctl credential list` shows them"
        ))
    })
}

fn keep_an_admin(world: &World, leaving: &CredentialRecord) -> Result<(), Refusal> {
    // One whose time will be over is none that stays.
    let stays = |known: &&CredentialRecord| known.role == Role::Admin && known.expires.is_none();
    let admins = world.credentials.values().filter(stays).count();
    if leaving.role != Role::Admin || leaving.expires.is_some() || admins > 1 {
        return Ok(());
    }
    Err(Refusal::Conflict(format!(
        "`{}` is the last admin that does not expire: nobody could manage the mesh any more; make \
        another first",
        leaving.name
    )))
}

/// Makes the plan of a credential that was checked.
pub fn add(wanted: &CreateCredential, secret: &str, expires: Option<i64>) -> Plan<Credential> {
    let record = CredentialRecord {
        name: wanted.name.clone(),
        secret_hash: secret_hash(secret),
        role: wanted.role,
        networks: wanted.networks.clone(),
        expires,
    };
    let until =
        expires.map_or_else(String::new, |expires| format!(", good until {}", shown_time(expires)));
    let outcome = describe(&record);
    Plan::new(
        format!("made the credential `{}` ({}){until}", wanted.name, role_name(wanted.role)),
        vec![Mutation::Put(Record::Credential(record))],
        outcome,
    )
}

/// Deletes a credential.
///
/// # Errors
/// [`Refusal::Missing`] if it does not exist, [`Refusal::Conflict`] if it is the last admin's.
pub fn revoke(world: &World, name: &str) -> Result<Plan<()>, Refusal> {
    keep_an_admin(world, find_credential(world, name)?)?;
    Ok(Plan::new(
        format!("revoked the credential `{name}`"),
        vec![Mutation::Delete(RecordKey::Credential(name.to_owned()))],
        (),
    ))
}

/// Returns a credential in the form of the API.
pub fn describe(record: &CredentialRecord) -> Credential {
    Credential {
        name: record.name.clone(),
        role: record.role,
        networks: record.networks.clone(),
        expires: record.expires.map(shown_time),
    }
}

/// Returns a time in seconds since the Unix epoch in the form of the API (RFC 3339).
pub fn shown_time(at: i64) -> String {
    timestamp(OffsetDateTime::from_unix_timestamp(at).unwrap_or(OffsetDateTime::UNIX_EPOCH))
}

/// Returns the name of a role.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::Owner => "owner",
        Role::Admin => "admin",
    }
}

/// Returns `true` if rights that are limited to `networks` cover a network; without any, they cover
/// all.
pub fn covers(networks: &[NetworkName], network: &NetworkName) -> bool {
    networks.is_empty() || networks.contains(network)
}
