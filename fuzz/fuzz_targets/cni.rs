//! What a container runtime may say to the CNI plugin: each call is read, or refused with a code of the specification.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshward_cni::{Environment, read};

const NAMES: [&str; 5] = ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"];

fuzz_target!(|input: (u8, [String; 5], Vec<u8>)| {
    let (command, texts, stdin) = input;
    let mut variables: Vec<(String, String)> =
        NAMES.iter().zip(texts).map(|(name, text)| ((*name).to_owned(), text)).collect();
    let commands = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"];
    if let Some(command) = commands.get(usize::from(command)) {
        variables[0].1 = (*command).to_owned();
    }
    match read(&Environment(variables.into_iter().collect()), &stdin) {
        Ok(call) => assert!(call.config.declared.labels.check_unreserved().is_ok()),
        Err((version, error)) => assert!(error.to_json(&version)["code"].as_u64().is_some_and(|code| code > 0)),
    }
});
