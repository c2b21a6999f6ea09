//! A node whose disk is full or damaged.

use crate::support::{Echo, PATIENCE, SILENCE, Shop, Stream, allow, tcp_echoes};
use meshward_api_types::local::State;
use meshward_lab::Node;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::{fs, path::PathBuf};

/// A small disk in the place of a node's data folder, until it is dropped.
struct SmallDisk {
    place: PathBuf,
}

impl SmallDisk {
    fn under(node: &Node) -> Self {
        let place = node.data();
        let aside = place.with_extension("aside");
        fs::rename(&place, &aside).unwrap();
        fs::create_dir(&place).unwrap();
        let options = Some("size=256k,mode=700");
        mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::empty(), options).unwrap();
        copy(&aside, &place);
        Self { place }
    }

    fn fill(&self) {
        let filler = self.place.join("filler");
        let mut size = 1 << 20;
        while size > 0 {
            // What does not fit is cut where it ends.
            let before = fs::metadata(&filler).map_or(0, |found| found.len());
            let mut grown = fs::read(&filler).unwrap_or_default();
            grown.resize(grown.len() + size, 7);
            let _ = fs::write(&filler, grown);
            let after = fs::metadata(&filler).map_or(0, |found| found.len());
            if after <= before {
                size /= 2;
            }
        }
        assert!(fs::write(self.place.join("another"), [7; 5000]).is_err(), "the disk is full");
        let _ = fs::remove_file(self.place.join("another"));
    }

    fn empty(&self) {
        fs::remove_file(self.place.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.place, MntFlags::MNT_DETACH);
    }
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    for entry in fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir_all(&to).unwrap();
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn a_node_with_a_full_disk_enforces_says_that_it_is_degraded_and_writes_again_when_there_is_room() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    shop.nodes[1].kill();
    let disk = SmallDisk::under(&shop.nodes[1]);
    shop.nodes[1].start().unwrap();
    shop.mesh.wait(|| shop.nodes[1].is_connected()).unwrap();
    let stream = Stream::start(&shop.web.netns, shop.api.v4(), 8080);
    assert!(stream.flows(PATIENCE));

    disk.fill();
    let another = shop.nodes[1].attach("shop", "app=other").unwrap();
    assert_eq!(another.state, State::Open, "workloads start");
    let said = shop.mesh.meshctl(&["quarantine", "app=api"]).unwrap();
    assert!(said.contains("2 of 2 nodes enforce it"), "{said}");
    assert!(!stream.flows(SILENCE));
    let degraded = || shop.nodes[1].status().unwrap().degraded;
    shop.mesh.wait(|| degraded().is_some()).unwrap();
    assert!(degraded().unwrap().contains("No space left"), "{:?}", degraded());
    let listed = || shop.mesh.node_named("rack").unwrap().degraded;
    shop.mesh.wait(|| listed().is_some_and(|why| why.contains("No space left"))).unwrap();
    assert!(shop.nodes[1].is_connected(), "it keeps its session");

    // A daemon that starts on a full disk starts, and learns what it could not write down.
    shop.nodes[1].kill();
    shop.nodes[1].start().unwrap();
    shop.mesh.wait(|| shop.nodes[1].is_connected()).unwrap();
    assert!(!tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, SILENCE));
    shop.mesh.meshctl(&["release", "app=api"]).unwrap();
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, PATIENCE));

    disk.empty();
    let well = || shop.nodes[1].status().unwrap().degraded.is_none();
    shop.mesh.wait(|| well() && listed().is_none()).unwrap();
    shop.mesh.coordinator.kill();
    shop.nodes[1].kill();
    shop.nodes[1].start().unwrap();
    assert!(
        tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, PATIENCE),
        "what was released is on disk by now"
    );
}

#[test]
fn a_node_comes_back_when_all_that_it_has_written_is_damaged() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    let data = shop.nodes[1].data();
    for junk in [&b""[..], b"junk", &[0; 4096]] {
        shop.nodes[1].kill();
        let workload = fs::read(data.join(format!("workloads/{}.json", shop.api.id))).unwrap();
        for folder in ["", "endpoints", "workloads"] {
            for entry in fs::read_dir(data.join(folder)).unwrap().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let is_own =
                    ["node.json", "node.key", "node.der", "ca.der"].contains(&name.as_str());
                if entry.path().is_file() && !is_own && !name.contains(".damaged-") {
                    fs::write(entry.path(), junk).unwrap();
                }
            }
        }
        // Nobody else knows what was attached; what of it is whole is taken up.
        fs::write(data.join(format!("workloads/{}.json", shop.api.id)), workload).unwrap();
        fs::write(data.join("workloads/w-000000000000.json"), junk).unwrap();
        shop.nodes[1].start().unwrap();
        shop.mesh.wait(|| shop.nodes[1].is_connected()).unwrap();
        let comes_back = || tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, SILENCE);
        shop.mesh.wait(comes_back).unwrap();
    }
    assert!(shop.nodes[1].printed().contains("was set aside as"));
}

#[test]
fn a_damaged_certificate_or_key_of_a_member_is_named_and_not_made_up() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    let data = shop.nodes[1].data();
    for (name, whole) in
        ["node.der", "node.key"].map(|name| (name, fs::read(data.join(name)).unwrap()))
    {
        shop.nodes[1].kill();
        fs::write(data.join(name), &whole[..whole.len() / 2]).unwrap();
        shop.nodes[1].start().unwrap();
        assert!(
            tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, PATIENCE),
            "what was decided stays"
        );
        shop.mesh.wait(|| shop.nodes[1].printed().contains("join again")).unwrap();
        fs::write(data.join(name), &whole).unwrap();
        shop.mesh.wait(|| shop.nodes[1].is_connected()).unwrap();
    }
    shop.nodes[1].kill();
    let whole = fs::read(data.join("node.json")).unwrap();
    fs::write(data.join("node.json"), &whole[..9]).unwrap();
    let error = format!("{:#}", shop.nodes[1].start().unwrap_err());
    assert!(error.contains("node.json is damaged") && error.contains("join again"), "{error}");
}
