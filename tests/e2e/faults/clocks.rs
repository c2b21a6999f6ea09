//! Clocks that are wrong, and clocks that stand still while a machine is suspended.

use super::surroundings::fake_time;
use crate::support::{Echo, PATIENCE, SILENCE, Shop, allow, mesh, tcp_echoes};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

/// Adds what a file says, in seconds, to `CLOCK_BOOTTIME` alone: as if the machine had been
/// suspended for so long.
const SUSPENDED: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    int done = syscall(SYS_clock_gettime, clock, now);
    if (done == 0 && clock == CLOCK_BOOTTIME) {
        char text[32] = {0};
        int file = open(getenv("SUSPENDED_FOR"), O_RDONLY | O_CLOEXEC);
        if (file >= 0) {
            if (read(file, text, sizeof text - 1) > 0)
                now->tv_sec += atol(text);
            close(file);
        }
    }
    return done;
}
"#;

fn suspended(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("suspended.c"), folder.join("suspended.so"));
    fs::write(&source, SUSPENDED).unwrap();
    let made = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library)
        .arg(&source)
        .status();
    assert!(made.expect("cc is missing; install the package `gcc`").success());
    library
}

fn variable(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[test]
fn after_a_suspend_no_session_of_before_is_used() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    let (library, file) = (suspended(shop.mesh.folder()), shop.mesh.folder().join("suspended-for"));
    fs::write(&file, "0").unwrap();
    shop.nodes[0].kill();
    shop.nodes[0].environment = vec![
        variable("LD_PRELOAD", &library.to_string_lossy()),
        variable("SUSPENDED_FOR", &file.to_string_lossy()),
    ];
    shop.nodes[0].start().unwrap();
    let echoes = || tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, 2 * PATIENCE);
    assert!(echoes());
    // The other node was not suspended: it knows how old the session is.
    let age = || shop.nodes[1].peer().unwrap().handshake_age;
    thread::sleep(Duration::from_secs(4));
    assert!(echoes());
    assert!(age().unwrap() >= 3, "nothing has begun another session");
    fs::write(&file, "170").unwrap();
    assert!(echoes());
    fs::write(&file, "200").unwrap();
    assert!(echoes(), "another session carries it");
    assert!(age().unwrap() < 3, "the session of before is over: {:?}", age());
}

/// The dates that a text has, in the form of RFC 3339.
fn dates(text: &str) -> usize {
    let is_date = |word: &&str| {
        let word = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        word.len() == 20 && word.ends_with('Z') && word.as_bytes()[10] == b'T'
    };
    text.split_whitespace().filter(is_date).count()
}

#[test]
fn whoever_joins_with_a_wrong_clock_is_told_so_with_both_times() {
    let mut mesh = mesh();
    let token = mesh.token(&["--uses", "9"]).unwrap();
    let site = mesh.internet.site("wrong").unwrap();
    for step in ["+2d", "-1h", "-18h"] {
        let mut command = Command::new(mesh.binaries.path("meshward-node"));
        command.args([
            "join",
            &format!("{token}@{}", mesh.site.v4),
            "--name",
            "wrong",
            "--data-dir",
        ]);
        command.arg(mesh.folder().join("wrong"));
        command
            .env("LD_PRELOAD", fake_time())
            .env("FAKETIME", step)
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let said = meshward_lab::output(&site.netns, &mut command).unwrap_err().to_string();
        assert!(said.contains("this machine's clock"), "{step}: {said}");
        assert!(dates(&said) >= 2, "{step}: {said}");
    }
}

#[test]
fn a_node_whose_clock_is_wrong_says_so_and_does_not_renew_without_end() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    for step in ["+2d", "-1h", "-18h"] {
        let node = &mut shop.nodes[0];
        node.kill();
        let before = node.printed().len();
        node.environment = vec![
            variable("LD_PRELOAD", &fake_time().to_string_lossy()),
            variable("FAKETIME", step),
            variable("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        node.start().unwrap();
        thread::sleep(Duration::from_secs(12));
        let node = &shop.nodes[0];
        let printed = node.printed()[before..].to_owned();
        let count = |text: &str| printed.lines().filter(|line| line.contains(text)).count();
        let renewals = count("asking for a new one") + count("certificate renewed");
        assert!(renewals <= 2, "{step}: {renewals} renewals\n{printed}");
        assert!(count("no session with the coordinator") <= 8, "{step}: it backs off\n{printed}");
        let told = printed.lines().find(|line| line.contains("clock"));
        let told = told.map(ToOwned::to_owned).or_else(|| {
            let own = shop.mesh.node_named(&node.site.name).ok()?;
            Some(format!("{own:?}")).filter(|text| text.contains("clock"))
        });
        let told = told.unwrap_or_else(|| panic!("{step}: nobody speaks of the clock\n{printed}"));
        assert!(told.contains("clock"), "{told}");
        if node.is_connected() {
            let nodes = shop.mesh.read(&["nodes"]).unwrap().to_string();
            assert!(nodes.contains("the coordinator's ("), "{step}: {nodes}");
        }
    }
}

#[test]
fn sessions_come_up_with_a_clock_that_is_eighteen_hours_back_and_no_coordinator() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, PATIENCE));
    shop.mesh.coordinator.kill();
    for at in [0, 1] {
        shop.nodes[at].kill();
        shop.nodes[at].environment = vec![
            variable("LD_PRELOAD", &fake_time().to_string_lossy()),
            variable("FAKETIME", "-18h"),
            variable("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        shop.nodes[at].start().unwrap();
        assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, 2 * PATIENCE), "node {at}");
        assert!(!tcp_echoes(&shop.web.netns, shop.api.v4(), 22, 64, SILENCE));
    }
}
