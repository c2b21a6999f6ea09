//! The structures of a link's ACL: its ranges, as in all formats, and, in the newest, the rules
//! about what is behind an egress gateway.

use meshward_types::{
    Acl, AclEntry, OnDeny, Outside, OutsideTarget, PortRange, Protocol,
    outside::{Effect, OutsideRule, Precedence},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Serialize, Deserialize)]
pub(super) struct AclForm {
    allowed: Vec<EntryForm>,
    observed: Vec<EntryForm>,
    forensic: Vec<EntryForm>,
    rejected: Vec<EntryForm>,
    dropped: Vec<EntryForm>,
    otherwise: Option<AnswerForm>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct EntryForm {
    #[serde(with = "ProtocolForm")]
    protocol: Protocol,
    first: u16,
    last: u16,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Protocol")]
pub(super) enum ProtocolForm {
    Tcp,
    Udp,
    Sctp,
    Icmp,
    Other,
}

#[derive(Serialize, Deserialize)]
pub(super) struct AnswerForm(#[serde(with = "OnDenyForm")] OnDeny);

impl From<&AclEntry> for EntryForm {
    fn from(entry: &AclEntry) -> Self {
        let AclEntry { protocol, ports: PortRange { first, last } } = *entry;
        Self { protocol, first, last }
    }
}

impl From<EntryForm> for AclEntry {
    fn from(form: EntryForm) -> Self {
        let EntryForm { protocol, first, last } = form;
        Self { protocol, ports: PortRange { first, last } }
    }
}

/// The conversion of ACLs, which are made anew from their ranges, so that they are sorted and
/// merged whatever a file says.
pub(super) struct AclConversion;

impl AclConversion {
    pub(super) fn serialize<S: Serializer>(acl: &Acl, to: S) -> Result<S::Ok, S::Error> {
        let forms = |entries: &[AclEntry]| entries.iter().map(EntryForm::from).collect();
        AclForm {
            allowed: forms(acl.entries()),
            observed: forms(acl.observed()),
            forensic: forms(acl.forensic()),
            rejected: forms(acl.rejected()),
            dropped: forms(acl.dropped()),
            otherwise: acl.otherwise().map(AnswerForm),
        }
        .serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Acl, D::Error> {
        let entries = |forms: Vec<EntryForm>| forms.into_iter().map(AclEntry::from).collect();
        let form = AclForm::deserialize(from)?;
        Ok(Acl::new(entries(form.allowed))
            .with_observed(entries(form.observed))
            .with_forensics(entries(form.forensic))
            .with_answers(
                entries(form.rejected),
                entries(form.dropped),
                form.otherwise.map(|AnswerForm(answer)| answer),
            ))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "OnDeny")]
pub(super) enum OnDenyForm {
    Drop,
    Reject,
}

#[derive(Serialize, Deserialize)]
struct LinkForm {
    #[serde(with = "AclConversion")]
    acl: Acl,
    outside: Option<OutsideForm>,
}

#[derive(Serialize, Deserialize)]
struct OutsideForm {
    rules: Vec<OutsideRuleForm>,
    observes: bool,
}

#[derive(Serialize, Deserialize)]
struct OutsideRuleForm {
    /// As text.
    targets: Vec<OutsideTarget>,
    #[serde(with = "PrecedenceForm")]
    precedence: Precedence,
    #[serde(with = "EffectForm")]
    effect: Effect,
    ports: Vec<EntryForm>,
    on_deny: Option<AnswerForm>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Precedence")]
enum PrecedenceForm {
    Guardrail,
    Rule,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Effect")]
enum EffectForm {
    Allow,
    Deny,
    Observe,
}

impl From<&Outside> for OutsideForm {
    fn from(outside: &Outside) -> Self {
        let Outside { rules, observes } = outside;
        let form = |rule: &OutsideRule| {
            let OutsideRule { targets, precedence, effect, ports, on_deny } = rule;
            OutsideRuleForm {
                targets: targets.clone(),
                precedence: *precedence,
                effect: *effect,
                ports: ports.iter().map(EntryForm::from).collect(),
                on_deny: on_deny.map(AnswerForm),
            }
        };
        Self { rules: rules.iter().map(form).collect(), observes: *observes }
    }
}

impl From<OutsideForm> for Outside {
    fn from(form: OutsideForm) -> Self {
        let rule = |form: OutsideRuleForm| {
            let OutsideRuleForm { targets, precedence, effect, ports, on_deny } = form;
            let ports = ports.into_iter().map(AclEntry::from).collect();
            let on_deny = on_deny.map(|AnswerForm(answer)| answer);
            OutsideRule { targets, precedence, effect, ports, on_deny }
        };
        Self { rules: form.rules.into_iter().map(rule).collect(), observes: form.observes }
    }
}

/// The conversion of a link's ACL.
pub(super) struct LinkConversion;

impl LinkConversion {
    pub(super) fn serialize<S: Serializer>(acl: &Acl, to: S) -> Result<S::Ok, S::Error> {
        let outside = acl.outside().map(OutsideForm::from);
        LinkForm { acl: acl.clone(), outside }.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Acl, D::Error> {
        let LinkForm { acl, outside } = LinkForm::deserialize(from)?;
        Ok(acl.with_outside(outside.map(Outside::from)))
    }
}
