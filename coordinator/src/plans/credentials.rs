//! Credentials for the API, and what they may do.

use super::networks::find;
use crate::{
    mesh::{Plan, Refusal},
    records::{CredentialRecord, Mutation, Record, RecordKey},
    world::World,
};
use meshward_model::{
    NetworkName,
    api::{CreateCredential, Credential, Role},
    token::secret_hash,
};

/// Makes a credential.
pub fn create(world: &World, wanted: &CreateCredential, secret: &str) -> Result<Plan<Credential>, Refusal> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    if !(1..=63).contains(&wanted.name.len()) || !wanted.name.chars().all(allowed) {
        return Err(Refusal::Invalid(format!(
            "`{}` cannot name a credential: use 1 to 63 letters, digits, `-`, `_`, `.` and `@`",
            wanted.name.chars().take(80).collect::<String>()
        )));
    }
    if world.credentials.contains_key(&wanted.name) {
        return Err(Refusal::Conflict(format!("there is a credential `{}` already", wanted.name)));
    }
    if wanted.role == Role::Owner && wanted.networks.is_empty() {
        return Err(Refusal::Invalid("an owner owns at least one network; add `--network NAME`".into()));
    }
    if wanted.role == Role::Admin && !wanted.networks.is_empty() {
        return Err(Refusal::Invalid("an admin's word holds in every network; leave out `--network`".into()));
    }
    for network in &wanted.networks {
        find(world, network)?;
    }
    Ok(add(wanted, secret))
}

/// The same, for one that is known to be fine.
pub fn add(wanted: &CreateCredential, secret: &str) -> Plan<Credential> {
    let record = CredentialRecord {
        name: wanted.name.clone(),
        secret_hash: secret_hash(secret),
        role: wanted.role,
        networks: wanted.networks.clone(),
    };
    Plan {
        action: format!("made the credential `{}` ({})", wanted.name, role_name(wanted.role)),
        outcome: describe(&record),
        mutations: vec![Mutation::Put(Record::Credential(record))],
    }
}

/// Forgets a credential. The last admin's stays.
pub fn revoke(world: &World, name: &str) -> Result<Plan<()>, Refusal> {
    let Some(known) = world.credentials.get(name) else {
        return Err(Refusal::Missing(format!(
            "there is no credential `{name}`; `meshctl credential list` shows them"
        )));
    };
    let admins = world.credentials.values().filter(|credential| credential.role == Role::Admin).count();
    if known.role == Role::Admin && admins == 1 {
        return Err(Refusal::Conflict(format!(
            "`{name}` is the last admin: nobody could manage the mesh any more; make another first"
        )));
    }
    Ok(Plan {
        mutations: vec![Mutation::Delete(RecordKey::Credential(name.to_owned()))],
        action: format!("revoked the credential `{name}`"),
        outcome: (),
    })
}

/// A credential as the API shows it.
pub fn describe(record: &CredentialRecord) -> Credential {
    Credential { name: record.name.clone(), role: record.role, networks: record.networks.clone() }
}

/// A role as people call it.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::Owner => "owner",
        Role::Admin => "admin",
    }
}

/// Whether something that is limited to `networks` may be done in one.
pub fn covers(networks: &[NetworkName], network: &NetworkName) -> bool {
    networks.is_empty() || networks.contains(network)
}
