//! `meshctl policy edit`, with editors that are scripts.

use crate::support::{Shop, allow};
use meshward_api_types::{Policy, PolicyRevision};
use meshward_lab::Mesh;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Output,
};

/// A script that edits the file `$1`.
fn editor(mesh: &Mesh, script: &str) -> PathBuf {
    let path = mesh.folder().join("editor");
    fs::write(&path, format!("#!/bin/sh\nset -e\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

struct Edited {
    code: i32,
    said: String,
    /// The file that was kept, if one was.
    kept: Option<String>,
}

/// Edits with a script.
fn edit(mesh: &Mesh, script: &str, more: &[&str]) -> Edited {
    let temporary = mesh.folder().join("tmp");
    fs::create_dir_all(&temporary).unwrap();
    let mut command = mesh.meshctl_command(&[&["policy", "edit"], more].concat());
    command.env_remove("VISUAL").env("EDITOR", editor(mesh, script)).env("TMPDIR", &temporary);
    let out: Output = mesh.site.netns.run(|| command.output()).unwrap().unwrap();
    let said =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    let mut left = files(&temporary);
    assert!(left.len() <= 1, "{left:?}");
    let kept = left.pop().map(|path| {
        assert!(said.contains(&format!("what you wrote is in {}", path.display())), "{said}");
        let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
        fs::remove_file(path).unwrap();
        text
    });
    Edited { code: out.status.code().unwrap(), said, kept }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn policy(mesh: &Mesh, network: &str) -> String {
    mesh.meshctl(&["policy", "get", network]).unwrap()
}

/// The policy of `shop` that was applied last.
fn newest(mesh: &Mesh) -> PolicyRevision {
    let log: Vec<PolicyRevision> = mesh.read_as(&["policy", "log", "--network", "shop"]).unwrap();
    log.into_iter().next().unwrap()
}

#[test]
fn what_is_saved_in_the_editor_is_the_policy_and_what_is_left_as_it_was_changes_nothing() {
    let shop = Shop::new(&allow("tcp/8080"));
    let mesh = &shop.mesh;
    let was = newest(mesh).revision;
    for script in [
        "true",
        "cat \"$1\" > \"$1.x\"; mv \"$1.x\" \"$1\"",
        ": > \"$1\"",
        "echo '#| a remark' >> \"$1\"",
    ] {
        let done = edit(mesh, script, &[]);
        assert!(done.code == 0 && done.said.contains("stays as it is"), "{script}: {}", done.said);
        assert!(done.kept.is_none() && newest(mesh).revision == was, "{script}");
    }
    let done = edit(mesh, "sed -i s#tcp/8080#tcp/9090# \"$1\"", &["shop", "-m", "another port"]);
    assert!(
        done.code == 0 && done.said.contains("tcp/9090") && done.kept.is_none(),
        "{}",
        done.said
    );
    assert_eq!(policy(mesh, "shop"), allow("tcp/9090"));
    let PolicyRevision { why, files, .. } = newest(mesh);
    assert_eq!((why.as_deref(), files), (Some("another port"), 1));

    let done = edit(mesh, "sed -i s#tcp/9090#tcp/1# \"$1\"", &["shop", "--dry-run", "-o", "json"]);
    assert!(done.code == 0 && done.said.contains("\"tcp/1\""), "{}", done.said);
    assert_eq!(done.kept, Some(allow("tcp/1")), "what a dry run was about can be applied");
    assert_eq!(policy(mesh, "shop"), allow("tcp/9090"));
}

#[test]
fn mistakes_are_shown_in_the_editor_until_they_are_mended_or_given_up() {
    let shop = Shop::new(&allow("tcp/8080"));
    let mesh = &shop.mesh;
    // Wrong at first; then it is looked that the mistake is told below its line, and mended.
    let script = r#"
if grep -q alow "$1"; then
  grep -q '^#| Not applied' "$1"
  grep -A 3 alow: "$1" | grep -q '^#|  *^ `alow` is not known here; .*did you mean `allow`'
  sed -i 's/alow:/allow:/; s#tcp/8080#tcp/7070#' "$1"
else
  sed -i 's/allow:/alow:/' "$1"
fi"#;
    let done = edit(mesh, script, &[]);
    assert!(done.code == 0 && done.kept.is_none(), "{}", done.said);
    assert_eq!(policy(mesh, "shop"), allow("tcp/7070"));

    // What only the coordinator knows is told so, too, and what is left so is kept.
    let tests = "tests: [{ from: { app: web }, to: { app: api }, port: tcp/7070, expect: deny }]";
    for (script, says, kept) in [
        (
            "sed -i 's/allow:/alow:/' \"$1\"".to_owned(),
            "`alow` is not known here",
            allow("tcp/7070").replace("allow:", "alow:"),
        ),
        (
            format!("grep -q tests: \"$1\" || echo '{tests}' >> \"$1\""),
            "policy test 1 failed",
            allow("tcp/7070") + tests + "\n",
        ),
        (
            "sed -i 's/network: shop/network: other/' \"$1\"".into(),
            "this is about network other",
            allow("tcp/7070").replace("shop", "other"),
        ),
    ] {
        let done = edit(mesh, &script, &[]);
        assert!(
            done.code == 2 && done.said.contains(says),
            "{script}: {}: {}",
            done.code,
            done.said
        );
        assert_eq!(done.kept, Some(kept), "{script}");
    }
    assert_eq!(policy(mesh, "shop"), allow("tcp/7070"));
}

#[test]
fn what_somebody_else_has_changed_meanwhile_is_not_overwritten_and_the_text_is_kept() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let theirs = shop.mesh.folder().join("theirs.yaml");
    fs::write(&theirs, allow("tcp/1")).unwrap();
    let mesh = &shop.mesh;
    let meshctl = mesh.meshctl_command(&["policy", "apply", &theirs.to_string_lossy()]);
    let words = [meshctl.get_program()].into_iter().chain(meshctl.get_args());
    let apply: Vec<_> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
    let script = format!("{}\nsed -i s#tcp/8080#tcp/9090# \"$1\"", apply.join(" "));
    let done = edit(mesh, &script, &[]);
    assert!(
        done.code == 2 && done.said.contains("somebody else has changed"),
        "{}: {}",
        done.code,
        done.said
    );
    assert_eq!((policy(mesh, "shop"), done.kept), (allow("tcp/1"), Some(allow("tcp/9090"))));

    // An editor that fails, one that is not there, one that is left with its file gone.
    let done = edit(mesh, "sed -i s#tcp/1#tcp/2# \"$1\"; exit 3", &[]);
    assert!(done.code == 1 && done.said.contains("exit code 3"), "{}: {}", done.code, done.said);
    assert_eq!(done.kept, Some(allow("tcp/2")));
    let done = edit(mesh, "nosuchcommand", &[]);
    assert!(
        done.code == 2 && done.said.contains("there is no editor"),
        "{}: {}",
        done.code,
        done.said
    );
    let done = edit(mesh, "true", &["nope"]);
    assert!(done.code == 2 && done.said.contains("there is no network `nope`"), "{}", done.said);
    let done = edit(mesh, "printf '# \\377\\n' >> \"$1\"", &[]);
    assert!(done.code == 2 && done.said.contains("UTF-8"), "{}", done.said);
    assert_eq!(policy(mesh, "shop"), allow("tcp/1"));

    // A coordinator that dies while the editor is open: nothing that was written is lost.
    let pid = shop.mesh.coordinator.pid();
    let done = edit(&shop.mesh, &format!("kill -9 {pid}; sed -i s#tcp/1#tcp/3# \"$1\""), &[]);
    assert!(
        done.code == 1 && done.said.contains("cannot reach the coordinator"),
        "{}: {}",
        done.code,
        done.said
    );
    assert_eq!(done.kept, Some(allow("tcp/3")));
    shop.mesh.coordinator.kill();
}

#[test]
fn a_policy_of_several_files_stays_one_of_several_files_and_other_networks_keep_theirs() {
    let mesh = crate::support::mesh();
    mesh.meshctl(&["network", "create", "office", "--cidr", "10.50.0.0/16"]).unwrap();
    let folder = mesh.folder().join("policies");
    fs::create_dir_all(&folder).unwrap();
    let office = "---\nnetwork: office\nrules: [{ name: all, from: {}, to: {}, allow: [tcp/1] }]\n";
    fs::write(folder.join("a.yaml"), allow("tcp/8080") + office).unwrap();
    fs::write(folder.join("b.yaml"), "network: shop\nmode: observe").unwrap();
    mesh.meshctl(&["policy", "apply", &folder.to_string_lossy()]).unwrap();
    let other = policy(&mesh, "office");

    let done = edit(&mesh, "true", &[]);
    assert!(
        done.code == 2 && done.said.contains("several networks") && done.said.contains("office"),
        "{}",
        done.said
    );
    let script = "if grep -q office \"$1\"; then exit 9; fi; sed -i 's/observe/enforce/; \
        s/8080/9090/' \"$1\"";
    let done = edit(&mesh, script, &["shop"]);
    assert!(done.code == 0, "{}", done.said);
    let Policy { files, .. } = mesh.read_as(&["policy", "get", "shop"]).unwrap();
    assert!(files[0].name.ends_with("policies/a.yaml"), "{files:?}");
    assert_eq!(files[0].text, allow("tcp/9090"));
    assert_eq!(files[1].text, "network: shop\nmode: enforce\n");
    assert_eq!(policy(&mesh, "office"), other);

    // What was kept of several files is applied as one.
    let done = edit(&mesh, "sed -i 's/9090/7070/' \"$1\"; exit 1", &["shop"]);
    let kept = folder.join("kept.yaml");
    fs::write(&kept, done.kept.unwrap()).unwrap();
    mesh.meshctl(&["policy", "apply", &kept.to_string_lossy()]).unwrap();
    assert!(policy(&mesh, "shop").contains("7070"));

    // A network without policy gets one.
    mesh.meshctl(&["network", "create", "new", "--cidr", "10.51.0.0/16"]).unwrap();
    let done = edit(&mesh, "true", &["new"]);
    assert!(done.code == 0 && done.said.contains("stays as it is"), "{}", done.said);
    let done = edit(&mesh, "echo 'mode: observe' >> \"$1\"", &["new"]);
    assert!(done.code == 0, "{}", done.said);
    assert_eq!(policy(&mesh, "new"), "network: new\nmode: observe\n");
}
