//! All fuzz targets under libFuzzer. `MESHWARD_FUZZ_TARGET` selects one; its seeds are written to
//! the folder `MESHWARD_FUZZ_SEEDS` first.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshward_fuzzing::Target;
use std::{env, fs, path::Path, sync::OnceLock};

fn all() -> impl Iterator<Item = &'static Target> {
    [
        meshward_api_types::fuzzing::TARGETS,
        meshward_cni::fuzzing::TARGETS,
        meshward_control_proto::fuzzing::TARGETS,
        meshward_coordinator::fuzzing::TARGETS,
        meshward_runtime::fuzzing::TARGETS,
        meshward_datapath::fuzzing::TARGETS,
        meshward_names::fuzzing::TARGETS,
        meshward_wireguard::fuzzing::TARGETS,
        meshward_types::fuzzing::TARGETS,
        meshward_node::fuzzing::TARGETS,
        meshward_policy::fuzzing::TARGETS,
    ]
    .into_iter()
    .flatten()
}

fn target() -> &'static Target {
    static TARGET: OnceLock<&Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = env::var("MESHWARD_FUZZ_TARGET").unwrap_or_default();
        let names: Vec<&str> = all().map(|target| target.name).collect();
        all().find(|target| target.name == name).unwrap_or_else(|| panic!("no target `{name}`; \
            there are {names:?}"))
    })
}

fn begin() {
    let Some(folder) = env::var_os("MESHWARD_FUZZ_SEEDS") else { return };
    for (at, seed) in (target().seeds)().iter().enumerate() {
        fs::write(Path::new(&folder).join(format!("seed-{at}")), seed).expect("seeds can be \
            written");
    }
}

fuzz_target!(init: begin(), |data: &[u8]| target().check(data));
