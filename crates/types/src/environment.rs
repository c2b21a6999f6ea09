//! Environment variables: settings, mistyped settings, and variables that Kubernetes makes.
//!
//! Kubernetes gives every container variables for each service of its namespace, derived from the
//! service's name (kubernetes.io, "Discovering services"): a service `meshward-coordinator` makes
//! `MESHWARD_COORDINATOR_SERVICE_HOST` and more. None of them is a setting.

/// A variable that begins like a setting and is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// The variable's name.
    pub name: String,
    /// The setting that was probably meant.
    pub meant: Option<String>,
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the environment variable {} is not known, and does nothing", self.name)?;
        match &self.meant {
            Some(meant) => write!(f, "; did you mean {meant}?"),
            None => Ok(()),
        }
    }
}

/// Returns the variables that begin with `prefix`, are not in `known`, and were not made by
/// Kubernetes.
pub fn unknown(
    prefix: &str,
    known: &[&str],
    names: impl IntoIterator<Item = String>,
) -> Vec<Unknown> {
    let names: Vec<String> = names.into_iter().filter(|name| name.starts_with(prefix)).collect();
    let mut unknown: Vec<Unknown> = names
        .iter()
        .filter(|name| !known.contains(&name.as_str()) && !is_of_kubernetes(name, &names))
        .map(|name| Unknown { name: name.clone(), meant: nearest(name, known) })
        .collect();
    unknown.sort_by(|a, b| a.name.cmp(&b.name));
    unknown
}

/// Returns `true` for a variable that Kubernetes makes for a service. Those of a service come
/// together, always with `..._SERVICE_HOST`. So a name that could also be a setting, such as
/// `MESHWARD_FIRST_PORT`, is recognized by the others.
pub fn is_of_kubernetes(name: &str, all: &[String]) -> bool {
    let services = all.iter().filter_map(|other| other.strip_suffix("_SERVICE_HOST"));
    services.filter_map(|service| name.strip_prefix(service)).any(|rest| {
        matches!(rest, "_SERVICE_HOST" | "_SERVICE_PORT" | "_PORT")
            || rest.starts_with("_SERVICE_PORT_")
            || rest.strip_prefix("_PORT_").is_some_and(is_link)
    })
}

/// Returns `true` for text such as `80_TCP`, with or without `_PROTO`, `_PORT` or `_ADDR` at the
/// end.
fn is_link(text: &str) -> bool {
    let text =
        ["_PROTO", "_PORT", "_ADDR"].iter().find_map(|end| text.strip_suffix(end)).unwrap_or(text);
    let number = ["_TCP", "_UDP", "_SCTP"].iter().find_map(|end| text.strip_suffix(end));
    number.is_some_and(|number| number.parse::<u16>().is_ok())
}

fn nearest(name: &str, known: &[&str]) -> Option<String> {
    let distances = known.iter().map(|known| (strsim::damerau_levenshtein(name, known), *known));
    distances.min().filter(|(distance, _)| *distance <= 3).map(|(_, known)| known.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KNOWN: [&str; 2] = ["MESHWARD_FIRST_PORT", "MESHWARD_DATA_DIR"];

    fn names(all: &[&str]) -> Vec<String> {
        all.iter().map(ToString::to_string).collect()
    }

    /// Returns the variables that Kubernetes makes for a service (pkg/kubelet/envvars).
    fn of_service(service: &str, port: u16, protocol: &str, port_name: &str) -> Vec<String> {
        let base = service.to_uppercase().replace('-', "_");
        let port_name = port_name.to_uppercase().replace('-', "_");
        let link = format!("{base}_PORT_{port}_{protocol}");
        vec![
            format!("{base}_SERVICE_HOST"),
            format!("{base}_SERVICE_PORT"),
            format!("{base}_SERVICE_PORT_{port_name}"),
            format!("{base}_PORT"),
            link.clone(),
            format!("{link}_PROTO"),
            format!("{link}_PORT"),
            format!("{link}_ADDR"),
        ]
    }

    proptest! {
        #[test]
        fn no_variable_of_a_service_is_taken_for_ours(
            rest in "(-[a-z0-9]{1,8}){0,3}",
            port in 1u16..,
            protocol in "TCP|UDP|SCTP",
            port_name in "[a-z]{1,6}(-[a-z]{1,4})?",
        ) {
            let all = of_service(&format!("meshward{rest}"), port, &protocol, &port_name);
            prop_assert_eq!(unknown("MESHWARD_", &KNOWN, all.clone()), vec![]);
            for name in &all {
                prop_assert!(is_of_kubernetes(name, &all), "{}", name);
            }
        }
    }

    #[test]
    fn a_setting_is_one_unless_it_comes_with_a_service() {
        let alone = names(&["MESHWARD_FIRST_PORT"]);
        assert!(!is_of_kubernetes("MESHWARD_FIRST_PORT", &alone));
        assert!(is_of_kubernetes(
            "MESHWARD_FIRST_PORT",
            &of_service("meshward-first", 80, "TCP", "http")
        ));
    }

    #[test]
    fn a_mistake_is_told_with_what_was_meant() {
        let said =
            unknown("MESHWARD_", &KNOWN, names(&["MESHWARD_DATADIR", "MESHWARD_COLOUR", "PATH"]));
        let said: Vec<String> = said.iter().map(ToString::to_string).collect();
        assert!(said[1].contains("did you mean MESHWARD_DATA_DIR?"), "{said:?}");
        assert!(
            said.len() == 2 && said[0].ends_with("MESHWARD_COLOUR is not known, and does nothing"),
            "{said:?}"
        );
    }
}
