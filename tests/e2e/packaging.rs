//! The units of systemd: well-formed, and allowed as little as the daemons need.

use meshward_lab::Binaries;
use std::{fs, path::Path, process::Command};

#[test]
fn units_are_well_formed_and_allowed_little() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("packaging/systemd");
    let root = tempfile::tempdir().unwrap();
    let binaries = Binaries::beside_this_test().unwrap();
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let unit = path.file_name().unwrap().to_str().unwrap().to_owned();
        let copy = root.path().join(&unit);
        fs::copy(&path, &copy).unwrap();
        // What a unit starts is there, and is a program of ours.
        let text = fs::read_to_string(&path).unwrap();
        let program = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let name = program.strip_prefix("/usr/local/bin/").unwrap();
        assert_eq!(unit, format!("{name}.service"));
        assert!(binaries.path(name).exists(), "{name} is not built");
        let exposed = Command::new("systemd-analyze")
            .args(["security", "--offline=yes", "--threshold=40"])
            .arg(&copy)
            .output()
            .unwrap();
        assert!(exposed.status.success(), "{}", String::from_utf8_lossy(&exposed.stdout));
        seen += 1;
    }
    assert_eq!(seen, 3, "coordinator, relay and node");
}
