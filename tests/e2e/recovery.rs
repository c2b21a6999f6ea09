//! A disk that is full, and one that is lost.

use crate::support::{Echo, PATIENCE, Shop, allow, mesh, tcp_echoes};
use meshward_api_types::Quarantine;
use meshward_lab::{Binaries, Internet, Mesh};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// A small file system of its own, until it is dropped.
struct Disk(PathBuf);

impl Disk {
    fn at(path: &Path, size: &str) -> Self {
        fs::create_dir_all(path).unwrap();
        let options = format!("size={size}");
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .unwrap();
        Self(path.to_owned())
    }

    /// Writes until there is no room left, and gives the file.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = fs::File::options().create(true).append(true).open(&path).unwrap();
        for size in [1 << 16, 4096, 512, 1] {
            while file.write_all(&vec![7; size]).is_ok() {}
        }
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn metric(mesh: &Mesh, name: &str) -> String {
    use std::io::Read;
    let stream = mesh.site.netns.run(|| std::net::TcpStream::connect("127.0.0.1:7480")).unwrap();
    let mut stream = stream.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned()
}

#[test]
fn a_full_disk_lets_a_quarantine_through_and_mends_itself() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::at(&folder.path().join("disk"), "40m");
    let data = disk.0.join("coordinator").to_string_lossy().into_owned();
    let binaries = Binaries::beside_this_test().unwrap();
    let mut internet = Internet::new().unwrap();
    let site = internet.site("coordinator").unwrap();
    let mut mesh =
        Mesh::builder(binaries).at(internet, site).data(Path::new(&data)).start().unwrap();
    mesh.meshctl(&["network", "create", "shop", "--cidr", "10.42.0.0/16"]).unwrap();
    let node = mesh.node("cloud").start().unwrap();
    let workload = node.attach("shop", "app=web").unwrap();
    mesh.apply(&allow("tcp/80")).unwrap();

    let filler = disk.fill();
    let refused = loop {
        // The log has some room that it was given before.
        match mesh.apply(&allow("tcp/81")).and_then(|_| mesh.apply(&allow("tcp/80"))) {
            Ok(_) => drop(disk.fill()),
            Err(error) => break error.to_string(),
        }
    };
    assert!(refused.contains("full"), "{refused}");
    for _ in 0..20 {
        mesh.meshctl(&["quarantine", &workload.id]).unwrap();
        let _ = mesh.meshctl(&["release", &workload.id]);
    }
    assert!(metric(&mesh, "meshward_coordinator_disk_full").ends_with('1'));
    assert!(node.is_connected(), "{}", node.printed());
    let second = node.attach("shop", "app=api");

    // A coordinator that is started again on the full disk is there, too.
    mesh.coordinator.kill();
    mesh.restart_coordinator().unwrap();
    mesh.wait(|| node.is_connected()).unwrap();
    let quarantines: Vec<Quarantine> = mesh.list("quarantines").unwrap();
    assert_eq!(quarantines.len(), 1, "what was acknowledged is there: {quarantines:?}");

    fs::remove_file(filler).unwrap();
    mesh.wait(|| mesh.apply(&allow("tcp/82")).is_ok()).unwrap();
    mesh.wait(|| metric(&mesh, "meshward_coordinator_disk_full").ends_with('0')).unwrap();
    assert!(Path::new(&data).join("mesh.reserve").metadata().unwrap().len() >= 8 << 20);
    mesh.wait(|| mesh.nodes().is_ok_and(|nodes| nodes[0].connected)).unwrap();
    mesh.meshctl(&["release", &workload.id]).unwrap();
    drop(second);
    let third = node.attach("shop", "app=third").unwrap();
    mesh.wait(|| mesh.meshctl(&["workloads"]).unwrap().contains(&third.id)).unwrap();
}

/// The commands of docs/recovery.md, in their order.
fn commands() -> Vec<Vec<String>> {
    let text =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/recovery.md")).unwrap();
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let lines = blocks.flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>());
    lines.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn a_mesh_comes_back_from_a_backup_by_the_commands_of_the_document() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    let api = shop.api.addresses[0];
    assert!(tcp_echoes(&shop.web.netns, api, 8080, 100, PATIENCE));
    shop.mesh.meshctl(&["credential", "create", "viewer", "--role", "viewer"]).unwrap();

    let commands = commands();
    assert_eq!(commands.len(), 3, "{commands:?}");
    let folder = shop.mesh.folder().to_owned();
    let at = |name: &str| folder.join(name).to_string_lossy().into_owned();
    for command in &commands[..2] {
        assert_eq!(command[..2], ["meshctl", "backup"]);
        let mut arguments: Vec<String> = command[1..].to_vec();
        let file = arguments.pop().unwrap();
        arguments.push(at(&file));
        shop.mesh.meshctl(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    }
    let file = |name: &str| fs::read(at(name)).unwrap();
    let key = fs::read_to_string(folder.join("coordinator/ca.key")).unwrap();
    let secret = key.lines().nth(1).unwrap().as_bytes().to_vec();
    let holds = |name: &str| file(name).windows(secret.len()).any(|part| part == secret);
    assert!(holds("mesh-backup.db") && !holds("mesh-state.db"));
    assert_eq!(fs::metadata(at("mesh-backup.db")).unwrap().permissions().mode() & 0o777, 0o600);
    let audit = shop.mesh.meshctl(&["audit"]).unwrap();
    assert!(audit.contains("made a backup"), "{audit}");

    // After the backup: what is lost, and is told back.
    shop.mesh.apply(&allow("tcp/9090")).unwrap();
    assert!(!tcp_echoes(&shop.web.netns, api, 8080, 100, crate::support::SILENCE));
    shop.mesh.coordinator.kill();
    let data = folder.join("coordinator");
    fs::rename(&data, folder.join("lost")).unwrap();

    let restore = |from: &str| {
        let mut command = Command::new(shop.mesh.binaries.path(&commands[2][0]));
        assert_eq!(commands[2][1], "restore");
        command.args(["restore", from, "--data-dir"]).arg(&data);
        meshward_lab::output(&shop.mesh.site.netns, &mut command)
    };
    let damaged = at("damaged.db");
    let mut bytes = file("mesh-backup.db");
    bytes.truncate(bytes.len() / 2);
    fs::write(&damaged, bytes).unwrap();
    for (from, says) in [
        (damaged.as_str(), "damaged"),
        (&at("mesh-state.db"), "no CA"),
        (&at("none.db"), "no file"),
    ] {
        let said = restore(from).unwrap_err().to_string();
        assert!(said.contains(says), "{said}");
    }
    restore(&at("mesh-backup.db")).unwrap();
    let again = restore(&at("mesh-backup.db")).unwrap_err().to_string();
    assert!(again.contains("a mesh in"), "{again}");
    fs::copy(folder.join("lost/admin.json"), data.join("admin.json")).unwrap();
    shop.mesh.restart_coordinator().unwrap();
    shop.mesh.wait(|| shop.nodes.iter().all(meshward_lab::Node::is_connected)).unwrap();
    shop.mesh.wait(|| tcp_echoes(&shop.web.netns, api, 8080, 100, PATIENCE)).unwrap();
    let credentials = shop.mesh.meshctl(&["credential", "list"]).unwrap();
    assert!(credentials.contains("viewer"), "{credentials}");
}

#[test]
fn a_viewer_gets_no_backup() {
    let mesh = mesh();
    let file = mesh.folder().join("viewer.json");
    let context = mesh.meshctl(&["credential", "create", "viewer", "--role", "viewer"]).unwrap();
    fs::write(&file, context).unwrap();
    let mut command = Command::new(mesh.binaries.path("meshctl"));
    command.arg("--context").arg(&file).arg("backup").arg(mesh.folder().join("stolen.db"));
    let said = meshward_lab::output(&mesh.site.netns, &mut command).unwrap_err().to_string();
    assert!(said.contains("viewer"), "{said}");
    assert!(
        !mesh.folder().join("stolen.db").exists()
            && !mesh.folder().join("stolen.db.partial").exists()
    );
}
