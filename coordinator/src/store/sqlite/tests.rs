use super::*;
use meshward_api_types::Role;
use meshward_control_state::records::{CredentialRecord, PolicyRecord};
use meshward_types::PolicyFile;
use time::OffsetDateTime;

fn note() -> Note {
    Note {
        at: "2026-01-01T00:00:00Z".into(),
        actor: "user:test".into(),
        action: "test".into(),
        why: Some("because".into()),
        origin: None,
    }
}

fn credential(name: &str) -> Record {
    Record::Credential(CredentialRecord {
        name: name.into(),
        secret_hash: "x".into(),
        role: Role::Admin,
        networks: vec![],
        expires: None,
    })
}

#[test]
fn what_was_committed_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mesh.db");
    let mut store = Sqlite::open(&path).unwrap();
    let put = [Mutation::Put(credential("a")), Mutation::Put(credential("b"))];
    assert_eq!(store.commit(Revision(0), &put, &note()).unwrap(), Revision(1));
    let delete = [Mutation::Delete(RecordKey::Credential("a".into()))];
    assert_eq!(store.commit(Revision(1), &delete, &note()).unwrap(), Revision(2));
    drop(store);
    let mut store = Sqlite::open(&path).unwrap();
    let contents = store.load().unwrap();
    assert_eq!(contents.revision, Revision(2));
    assert_eq!(contents.records, [credential("b")]);
    assert_eq!(store.audit(None, 10).unwrap().len(), 2);
}

#[test]
fn a_write_planned_at_an_older_revision_is_refused_whole() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Sqlite::open(&folder.path().join("mesh.db")).unwrap();
    store.commit(Revision(0), &[Mutation::Put(credential("a"))], &note()).unwrap();
    let late = store.commit(Revision(0), &[Mutation::Put(credential("b"))], &note());
    assert!(matches!(late, Err(StoreError::Conflict { .. })));
    assert_eq!(store.load().unwrap().records, [credential("a")]);
}

#[test]
fn a_damaged_record_fails_the_whole_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Sqlite::open(&folder.path().join("mesh.db")).unwrap();
    store.commit(Revision(0), &[Mutation::Put(credential("a"))], &note()).unwrap();
    store.connection.execute("INSERT INTO records VALUES ('node', 'x', '{}', 1)", []).unwrap();
    assert!(matches!(store.load(), Err(StoreError::Damaged(name, _)) if name == "node/x"));
}

#[test]
fn old_lines_and_states_are_forgotten_and_the_rest_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mesh.db");
    let mut store = Sqlite::open(&path).unwrap();
    let policy = |text: usize| {
        let files = vec![PolicyFile { name: "a".into(), text: text.to_string() }].into();
        Record::Policy(PolicyRecord { network: "shop".parse().unwrap(), files, resets: 0 })
    };
    let key = policy(0).key();
    for at in 0..100 {
        let put = if at % 10 == 0 { policy(at) } else { credential("a") };
        store.commit(Revision(at as u64), &[Mutation::Put(put)], &note()).unwrap();
    }
    let retention = Retention { audit_lines: 20, audit_days: 36_500, history_states: 4 };
    let now = OffsetDateTime::now_utc().unix_timestamp();
    assert!(!store.forget(&retention, now).unwrap());
    let states = store.history(&key, None, 100).unwrap();
    assert_eq!(
        states.iter().map(|state| state.line.revision.0).collect::<Vec<_>>(),
        [91, 81, 71, 61]
    );
    assert_eq!(store.as_of(Revision(65)).unwrap(), [policy(60)]);
    assert!(matches!(store.as_of(Revision(55)), Err(StoreError::Forgotten(Revision(61)))));
    let audit = store.audit(None, 1000).unwrap();
    assert!((20..=23).contains(&audit.len()), "{}", audit.len());
    drop(store);
    let mut store = Sqlite::open(&path).unwrap();
    assert_eq!(store.load().unwrap().revision, Revision(100));
    let by_age = Retention { audit_lines: 1_000_000, audit_days: 0, history_states: 1000 };
    store.forget(&by_age, now + 10).unwrap();
    assert_eq!(store.history(&key, None, 100).unwrap().len(), 4, "what stands is kept");
    let delete = [Mutation::Delete(key.clone())];
    store.commit(Revision(100), &delete, &note()).unwrap();
    store.commit(Revision(101), &[Mutation::Put(credential("b"))], &note()).unwrap();
    store.forget(&by_age, now + 10).unwrap();
    assert_eq!(
        store.history(&key, None, 100).unwrap().len(),
        0,
        "what was deleted long ago is not"
    );
    assert_eq!(store.load().unwrap().revision, Revision(102));
}

#[test]
fn a_store_has_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mesh.db");
    let store = Sqlite::open(&path).unwrap();
    assert!(matches!(Sqlite::open(&path), Err(StoreError::InUse(own)) if own == folder.path()));
    drop(store);
    Sqlite::open(&path).unwrap();
}

#[test]
fn a_copy_is_of_one_revision_and_no_write_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Sqlite::open(&folder.path().join("mesh.db")).unwrap();
    // Some 40 MB.
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
        INSERT INTO audit SELECT i, '', '', hex(randomblob(1000)), NULL, NULL FROM n";
    store.connection.execute(fill, []).unwrap();
    let (copier, file) = (store.copier(), folder.path().join("copy.db"));
    let copy = file.clone();
    let copying = std::thread::spawn(move || copier(&copy));
    let mut at = Revision(20_000);
    while !copying.is_finished() {
        at = store.commit(at, &[Mutation::Put(credential("a"))], &note()).unwrap();
    }
    copying.join().unwrap().unwrap();
    assert!(at.0 > 20_002, "writes went on: {at}");
    let copied = read(&Connection::open(&file).unwrap()).unwrap();
    assert!(copied.revision >= Revision(20_000) && copied.revision <= at);
}

#[test]
fn every_state_of_a_policy_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Sqlite::open(&folder.path().join("mesh.db")).unwrap();
    let policy = |text: &str| {
        let files = vec![PolicyFile { name: "a".into(), text: text.into() }];
        Record::Policy(PolicyRecord {
            resets: 0,
            network: "shop".parse().unwrap(),
            files: files.into(),
        })
    };
    let key = policy("").key();
    let steps = [
        Mutation::Put(policy("one")),
        Mutation::Put(policy("two")),
        Mutation::Delete(key.clone()),
        Mutation::Put(credential("a")),
        Mutation::Put(policy("three")),
    ];
    for (at, step) in steps.into_iter().enumerate() {
        store.commit(Revision(at as u64), &[step], &note()).unwrap();
    }
    let states = store.history(&key, None, 10).unwrap();
    let known: Vec<_> =
        states.iter().map(|state| (state.line.revision.0, state.record.clone())).collect();
    let expected =
        [(5, Some(policy("three"))), (3, None), (2, Some(policy("two"))), (1, Some(policy("one")))];
    assert_eq!(known, expected);
    assert_eq!(states[0].line.note.why.as_deref(), Some("because"));
    assert_eq!(store.as_of(Revision(1)).unwrap(), [policy("one")]);
    assert_eq!(store.as_of(Revision(2)).unwrap(), [policy("two")]);
    assert_eq!(store.as_of(Revision(4)).unwrap(), []);
    assert_eq!(store.as_of(Revision(9)).unwrap(), [policy("three")]);
}
