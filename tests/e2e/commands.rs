//! The invariants of every command: a dry run changes nothing, a closed pipe ends it silently, and
//! JSON is JSON.

use crate::support::{Shop, allow};
use meshward_api_types::{CreatedToken, Token};
use meshward_lab::{Relay, Workload, output};
use meshward_netns::Netns;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// The host that a command runs on.
#[derive(Clone, Copy, PartialEq)]
enum At {
    Coordinator,
    Node,
}
use At::{Coordinator, Node};

/// A command as it is tried: its name, where, its arguments, and what its dry run says; nothing, if
/// it only reads.
type Row = (&'static str, At, Vec<String>, &'static str);

/// Every command: its name as its man page has it, what is tried, and behind `=>` what its dry run
/// says, if it writes. Those with `@` are run on a node.
const COMMANDS: &str = r"
status              status
context             context
context-list        context list
context-show        context show one
context-use         context use two => would use context two
context-rename      context rename one three => would rename context one to three
context-delete      context delete one => would delete context one
context-import      context import CONTEXT --name new => would import context new
token               token
token-create        token create --uses 3 => would create a join token for 3 nodes
token-list          token list
token-revoke        token revoke TOKEN => would revoke token
network             network
network-create      network create two --cidr 10.9.0.0/16 => would create network two
network-list        network list
network-delete      network delete empty => would free block 10.77.
node                node -l !none
node-list           node list
node-approve        node approve later -l tier=db => would approve node later
node-remove         node remove cloud => app=spare
relay               relay
relay-list          relay list
relay-remove        relay remove relay1 => would remove relay relay1
route               route
route-advertise   @ route advertise 10.9.0.0/24 --network shop => would advertise 10.9.0.0/24
route-withdraw    @ route withdraw 10.8.0.0/24 --network shop => would withdraw 10.8.0.0/24
route-list          route list
route-approve       route approve 10.9.0.0/24 --node rack --network shop => approve 10.9.0.0/24
route-disapprove    route disapprove 10.8.0.0/24 --node cloud => would disapprove 10.8.0.0/24
egress              egress
egress-list         egress list
egress-start      @ egress start --network shop --ipv6 => would advertise ::/0
egress-stop       @ egress stop --network shop => would end the egress gateway of network shop
egress-approve      egress approve rack => would approve 0.0.0.0/0
egress-disapprove   egress disapprove cloud => would disapprove 0.0.0.0/0
device              device
device-create       device create --name pad --network shop --gateway rack => create device pad
device-list         device list
device-remove       device remove phone --network shop => would remove device phone
key-rotate          key rotate --network shop => would rotate key of node cloud
workload            workload -l app=web
workload-list       workload list
service             service
service-list        service list
service-show        service show api --network shop
service-drain       service drain SPARE => would drain 1 workload
drain               drain SPARE => would drain 1 workload
undrain             undrain API => would end the drain of 1 workload
link                link
link-list           link list
credential          credential
credential-create   credential create new --role viewer => would create credential new
credential-change   credential change guest --role operator => would change credential guest
credential-list     credential list
credential-revoke   credential revoke guest => would revoke the credential guest
policy-apply        policy apply POLICY => tcp/9090
policy-check        policy check POLICY
policy-diff         policy diff -f POLICY
policy-get          policy get shop
policy-edit         policy edit shop => tcp/9090
policy-log          policy log --network shop
policy-show         policy show 1 --network shop
policy-rollback     policy rollback 1 --network shop => would get 0 rules
policy-suggest      policy suggest --network shop
policy-schema       policy schema
explain             explain --network shop --from app=web --to app=api --port tcp/8080
quarantine          quarantine app=web => app=web
quarantine-list     quarantine list
release             release app=spare => app=spare
audit               audit --after 1
backup              backup MAN => would write a backup of the mesh to
run               @ run --network shop -l app=new -- touch MAN => would run `touch
attach            @ attach --network shop -l app=new --netns FREE => would attach
detach            @ detach SPARE => would detach
label             @ label SPARE app=other => app=other
attached          @ attached
ping              @ ping rack -c 1
netcheck          @ netcheck
debug-bundle      @ debug bundle MAN => would write part node/status.json
completions         completions bash
man                 man MAN => would write page meshctl.1
";

/// A policy that opens these ports, with a service.
fn policy(ports: &str) -> String {
    let service = "{ name: api, for: { app: api }, ports: [{ port: 80, to: 8080 }] }";
    format!("{}services: [{service}]\n", allow(ports))
}

/// A mesh with one of everything.
struct Everything {
    shop: Shop,
    _relay: Relay,
    spare: Workload,
    free: Netns,
    home: PathBuf,
    next: String,
    token: String,
    device: &'static str,
}

impl Everything {
    fn new() -> Self {
        let mut shop = Shop::new(&policy("tcp/8080"));
        let relay = shop.mesh.relay("relay1").unwrap();
        let spare = shop.nodes[0].attach("shop", "app=spare").unwrap();
        let free = Netns::create().unwrap();
        let home = shop.mesh.folder().join("home");
        fs::create_dir_all(&home).unwrap();
        let next = shop.mesh.folder().join("next.yaml").display().to_string();
        fs::write(&next, policy("tcp/8080, tcp/9090")).unwrap();
        for node in &shop.nodes {
            let here = &node.site.netns;
            let forwarding = ["-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"];
            output(here, Command::new("sysctl").args(forwarding)).unwrap();
            node.meshctl(&["egress", "start", "--network", "shop", "--ipv4"]).unwrap();
        }
        shop.nodes[0].meshctl(&["route", "advertise", "10.8.0.0/24", "--network", "shop"]).unwrap();
        let mesh = &shop.mesh;
        for arguments in [
            &["route", "approve", "10.8.0.0/24", "--node", "cloud"][..],
            &["egress", "approve", "cloud"],
            &["device", "create", "--name", "phone", "--network", "shop", "--gateway", "rack"],
            &["credential", "create", "guest", "--role", "viewer"],
            &["quarantine", "app=spare"],
            &["drain", &shop.api.id, "--no-wait"],
            &["network", "create", "empty", "--cidr", "10.77.0.0/16"],
        ] {
            mesh.meshctl(arguments).unwrap();
        }
        let CreatedToken { kept: Token { id: token, .. }, .. } =
            mesh.read_as(&["token", "create"]).unwrap();
        let everything =
            Self { _relay: relay, spare, free, home, next, token, device: "phone", shop };
        let context = everything.shop.mesh.context().display().to_string();
        for name in ["one", "two"] {
            let done =
                everything.run(Coordinator, &["context", "import", &context, "--name", name]);
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        everything
    }

    fn rows(&self) -> Vec<Row> {
        COMMANDS.trim().lines().map(|line| self.row(line)).collect()
    }

    fn row(&self, line: &'static str) -> Row {
        let (name, rest) = line.split_once(' ').unwrap();
        let (tried, says) = rest.split_once(" => ").unwrap_or((rest, ""));
        let (at, tried) = match tried.trim_start().strip_prefix('@') {
            Some(tried) => (Node, tried),
            None => (Coordinator, tried),
        };
        let fill = |word: &str| match word {
            "POLICY" => self.next.clone(),
            "TOKEN" => self.token.clone(),
            "SPARE" => self.spare.id.clone(),
            "API" => self.shop.api.id.clone(),
            "FREE" => self.free.path().display().to_string(),
            "CONTEXT" => self.shop.mesh.context().display().to_string(),
            "MAN" => self.home.join("man").display().to_string(),
            word => word.to_owned(),
        };
        (name, at, tried.split_whitespace().map(fill).collect(), says)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.shop.mesh.binaries.path("meshctl"));
        command.arg("--socket").arg(self.shop.nodes[0].socket());
        if arguments.first().is_none_or(|noun| *noun != "context") {
            command.arg("--context").arg(self.shop.mesh.context());
        }
        command.args(arguments).env("HOME", &self.home).env_remove("NO_COLOR").stdin(Stdio::null());
        command.env("EDITOR", "sed -i s#tcp/8080#tcp/9090#").env("TMPDIR", self.shop.mesh.folder());
        command
    }

    fn netns(&self, at: At) -> &Netns {
        match at {
            Coordinator => &self.shop.mesh.site.netns,
            Node => &self.shop.nodes[0].site.netns,
        }
    }

    fn run(&self, at: At, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        self.netns(at).run(|| command.output()).unwrap().unwrap()
    }

    /// Everything that a command could change.
    fn state(&self) -> BTreeMap<String, String> {
        let mut state = BTreeMap::new();
        for noun in [
            "networks",
            "nodes",
            "workloads",
            "services",
            "drain",
            "tokens",
            "routes",
            "devices",
            "relays",
            "credentials",
            "quarantines",
            "audit",
            "links",
        ] {
            let mut all = self.shop.mesh.read(&[noun]).unwrap();
            forget_counters(&mut all);
            state.insert(noun.to_owned(), all.to_string());
        }
        state.insert("revision".into(), self.shop.mesh.revision().unwrap().to_string());
        state.insert("policy".into(), self.shop.mesh.meshctl(&["policy", "get", "shop"]).unwrap());
        for (number, node) in self.shop.nodes.iter().enumerate() {
            state.insert(
                format!("attached {number}"),
                node.meshctl(&["attached", "-o", "json"]).unwrap(),
            );
            let links =
                output(&node.site.netns, Command::new("ip").args(["-o", "address"])).unwrap();
            // Lifetimes count down, and new addresses are tentative for a moment (RFC 4862 §5.4).
            let links: String = links
                .lines()
                .map(|line| {
                    line.split("valid_lft").next().unwrap_or(line).replace(" tentative", "")
                })
                .collect();
            state.insert(format!("interfaces {number}"), links);
            files_below(&node.data(), &mut state);
        }
        let inside = output(&self.free, Command::new("ip").args(["-o", "link"])).unwrap();
        state.insert("a free namespace".into(), inside);
        files_below(&self.home, &mut state);
        state
    }
}

/// Removes the values that change by themselves.
fn forget_counters(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for moving in ["packets", "bytes", "enforced", "handshake_age", "sent", "received"] {
                fields.remove(moving);
            }
            fields.values_mut().for_each(forget_counters);
        }
        Value::Array(all) => all.iter_mut().for_each(forget_counters),
        _ => {}
    }
}

fn files_below(folder: &Path, state: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        match path.is_dir() {
            // Flows are written down every 30 s, whatever is asked.
            true if path.ends_with("flows") => {}
            true => files_below(&path, state),
            false => {
                let bytes = fs::read(&path).unwrap_or_default();
                state.insert(path.display().to_string(), format!("{bytes:?}"));
            }
        }
    }
}

/// The names of all commands, as the man pages have them: these are made of the tree that parses
/// the command line.
fn all_commands(everything: &Everything) -> BTreeSet<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    let done = everything.run(Coordinator, &["man", &path]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let names = fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.file_name());
    let names =
        names.filter_map(|name| Some(name.to_string_lossy().strip_suffix(".1")?.to_owned()));
    let names: BTreeSet<String> = names.filter(|name| !name.ends_with("-help")).collect();
    // A noun that takes a verb and nothing else does nothing by itself.
    let only_nouns = ["meshctl", "meshctl-policy", "meshctl-key", "meshctl-debug"];
    names
        .into_iter()
        .filter(|name| !only_nouns.contains(&name.as_str()))
        .map(|name| name.trim_start_matches("meshctl-").to_owned())
        .collect()
}

#[test]
fn a_dry_run_of_any_command_changes_nothing_and_says_by_name_what_it_would_change() {
    let everything = Everything::new();
    let rows = everything.rows();
    let known: BTreeSet<String> = rows.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(
        all_commands(&everything),
        known,
        "every command has a row here, and every row a command"
    );
    let before = everything.state();
    for (name, at, arguments, says) in &rows {
        for form in ["table", "json"] {
            // A command's own arguments come last.
            let mut all = vec!["--dry-run", "-o", form];
            if form == "table" {
                all.truncate(1);
            }
            let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let at_noun = usize::from(arguments.first() == Some(&"context"));
            arguments.splice(at_noun..at_noun, all);
            let done = everything.run(*at, &arguments);
            let (out, err) =
                (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
            if *name == "completions" && form == "json" {
                assert!(
                    done.status.code() == Some(2) && err.contains("leave out --output"),
                    "{name}: {err}"
                );
                continue;
            }
            assert!(done.status.success(), "{name}: {:?}: {out}{err}", done.status.code());
            if form == "json" {
                let value: Value = serde_json::from_str(&out)
                    .unwrap_or_else(|error| panic!("{name}: {error}: {out}"));
                let is_write = !says.is_empty() && !name.starts_with("policy-");
                assert!(!is_write || value["dry_run"] == true, "{name}: {out}");
                assert!(
                    !out.contains("mwj1_") && !out.contains("PrivateKey"),
                    "{name} shows a secret that is none"
                );
            } else {
                assert!(out.contains(says), "{name} does not say `{says}`: {out}{err}");
            }
            let now = everything.state();
            for (what, value) in &now {
                assert_eq!(
                    before.get(what),
                    Some(value),
                    "the dry run of {name} has changed {what}"
                );
            }
            assert_eq!(before.len(), now.len(), "the dry run of {name} has taken something away");
        }
    }
    assert_eq!(everything.device, "phone");
}

/// A pipe that nobody reads.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn every_command_ends_silently_when_nobody_reads_what_it_prints() {
    let everything = Everything::new();
    for (name, at, arguments, _) in everything.rows() {
        let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        arguments.insert(1, "--dry-run");
        let open = everything.run(at, &arguments).status.code();
        for both in [false, true] {
            let mut command = everything.command(&arguments);
            command.stdout(closed_pipe()).stderr(if both { closed_pipe() } else { Stdio::piped() });
            let mut child = everything.netns(at).run(|| command.spawn()).unwrap().unwrap();
            let mut said = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                stderr.read_to_string(&mut said).unwrap();
            }
            let code = child.wait().unwrap().code();
            assert_eq!(code, open, "{name}: {said}");
            assert!(!said.contains("panicked") && !said.contains("roken pipe"), "{name}: {said}");
        }
    }
}

#[test]
fn every_program_ends_silently_when_nobody_reads_what_it_prints() {
    let mut shop = Shop::new("network: shop");
    for program in [
        "meshctl",
        "meshward-node",
        "meshward-coordinator",
        "meshward-cni",
        "shop",
        "terraform-provider-meshward",
    ] {
        for arguments in [&["--help"][..], &["--version"], &["--nonsense"], &["join", "nonsense"]] {
            let mut command = Command::new(shop.mesh.binaries.path(program));
            command
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(closed_pipe())
                .stderr(closed_pipe());
            let status = shop.mesh.site.netns.run(|| command.status()).unwrap().unwrap();
            // 101 is what a panic ends with.
            assert!(
                status.code().is_some_and(|code| code != 101),
                "{program} {arguments:?}: {status}"
            );
        }
    }
    // Daemons go on.
    shop.nodes[0].kill();
    let node = &shop.nodes[0];
    let mut command = Command::new(shop.mesh.binaries.path("meshward-node"));
    command.arg("--data-dir").arg(node.data()).arg("--socket").arg(node.socket());
    command.stdin(Stdio::null()).stdout(closed_pipe()).stderr(closed_pipe());
    let mut child = node.site.netns.run(|| command.spawn()).unwrap().unwrap();
    let connected = shop.mesh.wait(|| node.is_connected());
    let runs = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    connected.unwrap();
    assert!(runs);
}
