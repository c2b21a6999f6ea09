use super::*;
use meshward_control_proto::{Change, ResourceKey};
use meshward_types::IdentityId;

fn changes(identity: u32) -> EncodedChanges {
    EncodedChanges::of(&[Change::Drop(ResourceKey::Identity(
        "shop".parse().unwrap(),
        IdentityId(identity),
    ))])
}

fn delta(revision: u64, identity: u32) -> QueuedDelta {
    QueuedDelta { revision: Revision(revision), changes: changes(identity), is_urgent: false }
}

fn urgent(revision: u64, identity: u32) -> QueuedDelta {
    QueuedDelta { is_urgent: true, ..delta(revision, identity) }
}

fn send_urgent<const N: usize>(revision: u64, identities: [u32; N]) -> NextStep {
    let revision = Revision(revision);
    NextStep::Send { revision, changes: identities.map(changes).to_vec(), urgent: true }
}

#[test]
fn a_backlog_keeps_order_and_holds_back_half_a_revision() {
    let mut backlog = Backlog::default();
    backlog.push(delta(1, 1));
    backlog.push(urgent(1, 2));
    backlog.push(delta(2, 3));
    assert!(backlog.is_urgent());
    assert!(!backlog.push(urgent(2, 4)), "the session was woken before");
    assert_eq!(backlog.next_step(Revision(0)), NextStep::Wait);
    assert_eq!(backlog.next_step(Revision(1)), send_urgent(1, [1, 2]));
    assert_eq!(backlog.next_step(Revision(2)), send_urgent(2, [3, 4]));
    assert_eq!((backlog.changes, backlog.is_urgent()), (0, false));
}

#[test]
fn deltas_of_a_revision_under_delivery_stay_queued_and_urgent() {
    let mut backlog = Backlog::default();
    assert!(backlog.push(delta(1, 1)), "the session is woken");
    assert!(backlog.push(urgent(2, 2)));
    assert!(!backlog.push(urgent(2, 3)), "it is not woken again");
    assert_eq!(backlog.next_step(Revision(1)), send_urgent(1, [1]));
    assert!(backlog.has_deltas() && backlog.is_urgent(), "so it has to come back by itself");
    assert_eq!(backlog.next_step(Revision(2)), send_urgent(2, [2, 3]));
    assert!(!backlog.has_deltas() && !backlog.is_urgent());
}

#[test]
fn a_backlog_is_bounded() {
    let mut backlog = Backlog::default();
    let identity = |at| Change::Forget("shop".parse().unwrap(), IdentityId(at));
    let changes = EncodedChanges::of(&(0..1000).map(identity).collect::<Vec<_>>());
    for revision in (0..1000).map(Revision) {
        backlog.push(QueuedDelta { revision, changes: changes.clone(), is_urgent: false });
        assert!(backlog.deltas.len() <= MAX_CHANGES / 1000);
    }
    assert_eq!(backlog.next_step(Revision(1000)), NextStep::Compare);
    assert_eq!(backlog.next_step(Revision(1000)), NextStep::Compare, "until it was compared");
}
