use super::*;
use meshward_control_proto::{Change, ResourceKey};
use meshward_types::IdentityId;

fn change(at: u32) -> EncodedChanges {
    EncodedChanges::of(&[Change::Drop(ResourceKey::Identity(
        "shop".parse().unwrap(),
        IdentityId(at),
    ))])
}

#[test]
fn a_backlog_keeps_order_and_holds_back_half_a_revision() {
    let mut backlog = Backlog::default();
    backlog.push(Revision(1), &change(1), false);
    backlog.push(Revision(1), &change(2), true);
    backlog.push(Revision(2), &change(3), false);
    assert!(backlog.urgent);
    assert!(!backlog.push(Revision(2), &change(4), true), "it knows already");
    assert_eq!(backlog.next(Revision(0)), Next::Wait);
    assert_eq!(backlog.next(Revision(1)), Next::Send(vec![change(1), change(2)], true));
    assert_eq!(backlog.next(Revision(2)), Next::Send(vec![change(3), change(4)], true));
    assert_eq!((backlog.changes, backlog.urgent), (0, false));
}

#[test]
fn what_a_revision_under_delivery_leaves_behind_is_known_to_wait_and_stays_urgent() {
    let mut backlog = Backlog::default();
    assert!(backlog.push(Revision(1), &change(1), false), "the session is told");
    assert!(backlog.push(Revision(2), &change(2), true));
    assert!(!backlog.push(Revision(2), &change(3), true), "nobody tells it again");
    assert_eq!(backlog.next(Revision(1)), Next::Send(vec![change(1)], true));
    assert!(backlog.waits() && backlog.urgent, "so it has to come back by itself");
    assert_eq!(backlog.next(Revision(2)), Next::Send(vec![change(2), change(3)], true));
    assert!(!backlog.waits() && !backlog.urgent);
}

#[test]
fn a_backlog_is_bounded() {
    let mut backlog = Backlog::default();
    let identity = |at| Change::Forget("shop".parse().unwrap(), IdentityId(at));
    let delta = EncodedChanges::of(&(0..1000).map(identity).collect::<Vec<_>>());
    for at in 0..1000 {
        backlog.push(Revision(at), &delta, false);
        assert!(backlog.deltas.len() <= BACKLOG / 1000);
    }
    assert_eq!(backlog.next(Revision(1000)), Next::Compare);
    assert_eq!(backlog.next(Revision(1000)), Next::Compare, "until it was compared");
}
