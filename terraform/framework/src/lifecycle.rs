//! The lifecycle of a resource as far as its schema determines it: the validation of a
//! configuration, the plan, and the state after the plan was applied.

use crate::{
    Attribute, Block, Diagnostic, Diagnostics, Nesting, OnChange, Path, Presence, Schema, Value,
    schema::{Check, Nested, Type},
};

/// Runs the checks of a schema's attributes on a configuration. Terraform has checked the types.
pub(crate) fn validate(schema: &Schema, config: &Value) -> Diagnostics {
    let mut diagnostics = Vec::new();
    validate_block(&schema.block, config, &Path::default(), &mut diagnostics);
    diagnostics
}

fn validate_block(block: &Block, value: &Value, path: &Path, diagnostics: &mut Diagnostics) {
    for attribute in &block.attributes {
        if let Some(check) = attribute.check {
            let path = path.attribute(&attribute.name);
            check_value(
                check,
                &attribute.kind,
                value.get(&attribute.name),
                &path,
                &mut |path, text| {
                    let summary = format!("Invalid value of \"{}\"", attribute.name);
                    diagnostics.push(Diagnostic::error(summary, text).at(path.clone()));
                },
            );
        }
    }
    for nested in &block.blocks {
        let (value, path) = (value.get(&nested.name), path.attribute(&nested.name));
        match nested.nesting {
            Nesting::Single => validate_block(&nested.block, value, &path, diagnostics),
            // The elements of a set have no path of their own.
            Nesting::Set => value
                .elements()
                .iter()
                .for_each(|one| validate_block(&nested.block, one, &path, diagnostics)),
            Nesting::List => value.elements().iter().enumerate().for_each(|(index, one)| {
                validate_block(&nested.block, one, &path.index(index), diagnostics);
            }),
        }
    }
}

/// Runs a check on a value, or on each of its elements if it is a collection. `wrong` gets the path
/// and the text of each failure.
fn check_value(
    check: Check,
    kind: &Type,
    value: &Value,
    path: &Path,
    wrong: &mut impl FnMut(&Path, String),
) {
    match (kind, value) {
        (_, Value::Null | Value::Unknown) => {}
        (Type::List(of), Value::List(all)) => {
            for (index, one) in all.iter().enumerate() {
                check_value(check, of, one, &path.index(index), wrong);
            }
        }
        (Type::Set(of), Value::List(all)) => {
            for one in all {
                check_value(check, of, one, path, wrong);
            }
        }
        (Type::Map(of), Value::Map(all)) => {
            for (key, one) in all {
                check_value(check, of, one, &path.key(key), wrong);
            }
        }
        (_, value) => {
            if let Err(text) = check(value) {
                wrong(path, text);
            }
        }
    }
}

/// A planned change.
pub(crate) struct Planned {
    pub state: Value,
    /// The attributes whose change makes Terraform replace the resource.
    pub replaces: Vec<Path>,
}

/// Plans a resource's new state. `prior` is null if the resource is to be created; `proposed` is
/// the configuration, with the values of `prior` for computed attributes that are not configured.
pub(crate) fn plan(schema: &Schema, prior: &Value, proposed: Value, config: &Value) -> Planned {
    let block = &schema.block;
    let mut state = block.conform(proposed);
    for attribute in &block.attributes {
        let unset = config.get(&attribute.name).is_null();
        match &attribute.default {
            Some(default) if unset => state.set(&attribute.name, default.clone()),
            _ if unset && attribute.presence.is_computed() && prior.is_null() => {
                state.set(&attribute.name, Value::Unknown);
            }
            _ => {}
        }
    }
    if prior.is_null() {
        for nested in &block.blocks {
            let unknown = unknown_in(nested, state.get(&nested.name), config.get(&nested.name));
            state.set(&nested.name, unknown);
        }
        return Planned { state, replaces: vec![] };
    }
    let prior = block.conform(prior.clone());
    if block.same(&prior, &state) {
        return Planned { state: prior, replaces: vec![] };
    }
    let changed = |own: &&Attribute| {
        let only_computed = own.presence == Presence::Computed;
        let (was, is) = (prior.get(&own.name), state.get(&own.name));
        !(only_computed || own.kind.same(was, is) || own.unread && was.is_null())
    };
    let replaces =
        block.attributes.iter().filter(|own| own.on_change == OnChange::Replace).filter(changed);
    let replaces = replaces.map(|own| Path::of(&own.name)).collect();
    for attribute in block.attributes.iter().filter(|own| own.on_change == OnChange::Follow) {
        if config.get(&attribute.name).is_null() {
            state.set(&attribute.name, Value::Unknown);
        }
    }
    Planned { state, replaces }
}

/// Returns the blocks of one kind, in which the computed attributes that are not configured are
/// unknown.
fn unknown_in(nested: &Nested, blocks: &Value, config: &Value) -> Value {
    let one = |value: &Value, config: &Value| {
        let mut value = value.clone();
        if value.is_null() {
            return value;
        }
        for own in nested.block.attributes.iter().filter(|own| own.presence.is_computed()) {
            if config.get(&own.name).is_null() {
                value.set(&own.name, own.default.clone().unwrap_or(Value::Unknown));
            }
        }
        for inner in &nested.block.blocks {
            let unknown = unknown_in(inner, value.get(&inner.name), config.get(&inner.name));
            value.set(&inner.name, unknown);
        }
        value
    };
    match (blocks, config) {
        (Value::List(all), Value::List(config)) => {
            Value::List(all.iter().zip(config).map(|(value, config)| one(value, config)).collect())
        }
        (value @ Value::Map(_), config) => one(value, config),
        (value, _) => value.clone(),
    }
}

/// Returns the state after a plan was applied: the planned values, and the provider's where the
/// plan had unknown ones.
///
/// # Errors
/// Fails if a value is unknown even now, which is a bug in the provider. The state comes with the
/// diagnostic; such values are null in it.
pub(crate) fn resolve_unknowns(
    schema: &Schema,
    planned: &Value,
    done: Value,
) -> Result<Value, (Value, Diagnostic)> {
    let done = schema.block.conform(done);
    let mut missing = Vec::new();
    let resolved = overlay(planned, done, "", &mut missing);
    if missing.is_empty() {
        return Ok(resolved);
    }
    let text = format!(
        "{} is unknown after the operation. This is a bug in the provider.",
        missing.join(", ")
    );
    Err((resolved, Diagnostic::error("The provider did not say everything", text)))
}

fn overlay(planned: &Value, done: Value, path: &str, missing: &mut Vec<String>) -> Value {
    match (planned, done) {
        (Value::Unknown, Value::Unknown) => {
            missing.push(path.to_owned());
            Value::Null
        }
        (Value::Unknown, done) => done,
        (Value::Map(planned), done) => {
            let of = |name: &str| done.get(name).clone();
            let own = planned.iter().map(|(name, one)| {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                (name.clone(), overlay(one, of(name), &path, missing))
            });
            Value::Map(own.collect())
        }
        (Value::List(planned), Value::List(done)) if planned.len() == done.len() => Value::List(
            planned.iter().zip(done).map(|(one, done)| overlay(one, done, path, missing)).collect(),
        ),
        (planned, _) => planned.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Schema {
        let even = |value: &Value| match value.text() {
            Some(text) if text.len() % 2 == 0 => Ok(()),
            _ => Err("an even length is wanted".to_owned()),
        };
        Schema::new(
            "Something.",
            Block::of(vec![
                Attribute::id("Its id."),
                Attribute::required("name", Type::String, "The name.").replaces().checked(even),
                Attribute::optional("tags", Type::set(), "Tags.").checked(even),
                Attribute::optional("size", Type::Number, "Its size.").or(7),
                Attribute::computed("summary", Type::String, "All of it.").follows(),
            ]),
        )
    }

    fn value(json: serde_json::Value) -> Value {
        Value::from_json(json)
    }

    #[test]
    fn a_check_names_the_element() {
        let config = value(serde_json::json!({ "name": "abc", "tags": ["ab", "abc"] }));
        let said = validate(&schema(), &config);
        let paths: Vec<&Path> = said.iter().map(|one| &one.path).collect();
        assert_eq!(paths, [&Path::of("name"), &Path::of("tags")]);
        assert!(validate(&schema(), &value(serde_json::json!({ "name": null }))).is_empty());
    }

    #[test]
    fn what_is_made_has_defaults_and_what_only_the_provider_knows() {
        let config = value(serde_json::json!({ "name": "ab" }));
        let planned = plan(&schema(), &Value::Null, config.clone(), &config).state;
        assert_eq!(planned.get("size"), &Value::from(7));
        assert_eq!((planned.get("id"), planned.get("summary")), (&Value::Unknown, &Value::Unknown));
        assert!(planned.get("tags").is_null());

        let done =
            value(serde_json::json!({ "id": "1", "name": "other", "size": 9, "summary": "s" }));
        let state = resolve_unknowns(&schema(), &planned, done).unwrap();
        assert_eq!((state.get("name").text(), state.get("id").text()), (Some("ab"), Some("1")));
        let (_, said) =
            resolve_unknowns(&schema(), &planned, value(serde_json::json!({ "id": "1" })))
                .map_or_else(|error| error, |state| (state, Diagnostic::error("nothing", "")));
        assert_eq!(said.summary, "nothing", "what is not set is known");
    }

    #[test]
    fn a_set_has_no_order_and_what_has_not_changed_is_as_it_was() {
        let prior = serde_json::json!({
            "id": "1",
            "name": "ab",
            "tags": ["ab", "cd"],
            "size": 7,
            "summary": "s",
        });
        let config = value(serde_json::json!({ "name": "ab", "tags": ["cd", "ab"] }));
        let mut proposed = value(prior.clone());
        proposed.set("tags", config.get("tags").clone());
        let planned = plan(&schema(), &value(prior.clone()), proposed, &config);
        assert_eq!(planned.state, value(prior));
        assert!(planned.replaces.is_empty());
    }

    #[test]
    fn a_change_replaces_only_where_the_schema_says_so() {
        let prior = value(serde_json::json!({
            "id": "1",
            "name": "ab",
            "tags": ["ab"],
            "size": 7,
            "summary": "s",
        }));
        let config = value(serde_json::json!({ "name": "ab", "tags": [], "size": 8 }));
        let mut proposed = prior.clone();
        proposed.set("tags", Value::List(vec![]));
        proposed.set("size", 8);
        let planned = plan(&schema(), &prior, proposed.clone(), &config);
        assert!(planned.replaces.is_empty());
        assert_eq!(planned.state.get("summary"), &Value::Unknown);
        assert_eq!(planned.state.get("id").text(), Some("1"));

        proposed.set("name", Value::Unknown);
        let planned = plan(&schema(), &prior, proposed, &config);
        assert_eq!(planned.replaces, [Path::of("name")]);
    }
}
