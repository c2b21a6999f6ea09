//! `terraform-provider-meshward`: the mesh, planned with the clouds that it spans.
#![forbid(unsafe_code)]

mod checks;
mod lookup;
mod mesh;
mod provider;
mod resources;
mod services;
mod sources;
mod written;

use provider::Meshward;
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    meshward_terraform::serve(Meshward::new()).await
}

#[cfg(test)]
mod tests {
    use super::Meshward;
    use std::{fs, path::Path};

    #[test]
    fn the_reference_in_the_tree_is_that_of_the_schema() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let example = |path: &str| fs::read_to_string(root.join("examples").join(path)).ok();
        let pages = meshward_terraform::pages(&Meshward::new(), "meshward", example);
        let write = std::env::var_os("MESHWARD_WRITE_REFERENCE").is_some();
        for (path, text) in &pages {
            let file = root.join("docs").join(path);
            if write {
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(&file, text).unwrap();
            }
            let mend = "write the reference anew with MESHWARD_WRITE_REFERENCE=1 cargo nextest run \
                -p terraform-provider-meshward reference";
            assert!(fs::read_to_string(&file).unwrap_or_default() == *text, "{path}: {mend}");
            assert!(text.contains("## Example Usage"), "{path} has no example below examples/");
        }
        for folder in ["resources", "data-sources", "ephemeral-resources"] {
            for page in fs::read_dir(root.join("docs").join(folder)).unwrap() {
                let path = format!("{folder}/{}", page.unwrap().file_name().to_string_lossy());
                assert!(pages.contains_key(&path), "docs/{path} is about nothing that there is");
            }
        }
    }
}
