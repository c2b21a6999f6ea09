//! The real `terraform` with the built provider, against a live coordinator.

mod bootstrap;
mod lifecycle;
mod mistakes;
mod modules;
mod secrets;

use meshward_lab::{Binaries, Mesh};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const HEAD: &str = r#"
terraform {
  required_providers { meshward = { source = "meshward/meshward" } }
}
"#;

fn mesh() -> Mesh {
    Mesh::start(Binaries::beside_this_test().unwrap()).unwrap()
}

/// The folder of the modules.
fn modules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("terraform/modules")
}

/// A root module, and `terraform` in it, on the coordinator's site.
struct Terraform<'a> {
    mesh: &'a Mesh,
    folder: PathBuf,
    program: meshward_lab::Terraform,
}

impl<'a> Terraform<'a> {
    /// One whose provider is the one that was built, by `dev_overrides`.
    fn new(mesh: &'a Mesh, configuration: &str) -> Self {
        let folder = mesh.folder().join("root");
        fs::create_dir_all(&folder).unwrap();
        let built = [("meshward/meshward", mesh.binaries.folder())];
        let program =
            meshward_lab::Terraform::new(mesh.folder().join("terraform.rc"), &built).unwrap();
        let it = Self { mesh, folder, program };
        it.write(configuration);
        it
    }

    /// Another configuration, with the operator's credential.
    fn write(&self, configuration: &str) {
        let context = self.mesh.context();
        self.write_as(&context, configuration);
    }

    /// Another configuration, with the credential of a context file.
    fn write_as(&self, context: &Path, configuration: &str) {
        let provider =
            format!("provider \"meshward\" {{\n  context = \"{}\"\n}}\n", context.display());
        self.write_whole(&format!("{provider}{configuration}"));
    }

    /// Another configuration, its provider's included.
    fn write_whole(&self, configuration: &str) {
        fs::write(self.folder.join("main.tf"), format!("{HEAD}{configuration}")).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.program.command(&self.folder, arguments);
        command
            .env("HOME", self.mesh.folder())
            .env("TF_IN_AUTOMATION", "1")
            .env_remove("MESHCTL_CONTEXT");
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let run = || self.command(arguments).output();
        self.mesh.site.netns.run(run).unwrap().expect(
            "terraform is needed on the PATH: https://developer.hashicorp.com/terraform/install, \
             version 1.11 or newer",
        )
    }

    /// Runs it to its end, which must be a good one.
    fn ok(&self, arguments: &[&str]) -> String {
        let out = self.run(arguments);
        let (printed, said) =
            (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "terraform {arguments:?}:\n{printed}\n{said}");
        printed.into_owned()
    }

    fn apply(&self) -> String {
        self.ok(&["apply", "-auto-approve", "-no-color"])
    }

    /// Returns the changes of a plan, as `ADDRESS ACTION`, in the order of the addresses.
    fn plan(&self) -> Vec<String> {
        let out = self.run(&["plan", "-json", "-detailed-exitcode"]);
        let lines = messages(&out.stdout);
        let code = out.status.code().unwrap();
        assert!(code != 1, "the plan fails: {lines:#?}");
        let change = |line: &Value| {
            let (change, kind) = (&line["change"], line["type"].as_str()?);
            (kind == "planned_change").then(|| {
                format!(
                    "{} {}",
                    change["resource"]["addr"].as_str().unwrap(),
                    change["action"].as_str().unwrap()
                )
            })
        };
        let mut changes: Vec<String> = lines.iter().filter_map(change).collect();
        changes.sort();
        assert_eq!(code == 2, !changes.is_empty(), "{changes:?}");
        changes
    }

    /// Returns the errors of a configuration, each with the line that it points at.
    fn errors(&self, arguments: &[&str]) -> Vec<Said> {
        let out = self.run(arguments);
        let mut said = Vec::new();
        for line in messages(&out.stdout) {
            let inner = line["diagnostics"].as_array().cloned().unwrap_or_default();
            for one in
                inner.iter().chain([&line["diagnostic"]]).filter(|one| one["severity"] == "error")
            {
                said.push(Said {
                    text: format!(
                        "{}: {}",
                        one["summary"].as_str().unwrap(),
                        one["detail"].as_str().unwrap_or_default()
                    ),
                    at: one["snippet"]["code"].as_str().unwrap_or_default().trim().to_owned(),
                });
            }
        }
        assert!(
            !out.status.success() && !said.is_empty(),
            "{}",
            String::from_utf8_lossy(&out.stdout)
        );
        said
    }

    fn output(&self, name: &str) -> Value {
        serde_json::from_str(&self.ok(&["output", "-json", name])).unwrap()
    }

    /// Returns the addresses of the resources in the state.
    fn state(&self) -> Vec<String> {
        self.ok(&["state", "list"]).lines().map(ToOwned::to_owned).collect()
    }
}

/// An error.
#[derive(Debug)]
struct Said {
    text: String,
    /// The line that it points at.
    at: String,
}

impl Said {
    #[track_caller]
    fn is(&self, text: &str, at: &str) {
        assert!(
            self.text.contains(text) && self.at.contains(at),
            "wanted `{text}` at `{at}`, and it is {self:?}"
        );
    }
}

/// `-json` prints one object a line, `validate` one in all.
fn messages(printed: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(printed);
    match serde_json::from_str(&text) {
        Ok(whole) => vec![whole],
        Err(_) => text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect(),
    }
}

/// The coordinator's revision: each change raises it by one.
fn revision(mesh: &Mesh) -> u64 {
    mesh.revision().unwrap().0
}
