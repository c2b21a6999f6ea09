//! Validation of requests by the API's document: what it does not name is refused, with a guess at
//! what was meant.

use super::problem::ApiError;
use axum::http::Method;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// The forms of all requests, by method and path.
pub(super) struct Shapes {
    operations: HashMap<(Method, String), Operation>,
    schemas: serde_json::Map<String, Value>,
}

/// The form of a request.
#[derive(Default)]
struct Operation {
    parameters: Vec<String>,
    body: Option<Value>,
}

impl Shapes {
    /// Reads the forms from an OpenAPI 3.1 document.
    pub(super) fn of(document: &Value) -> Self {
        let mut operations = HashMap::new();
        for (path, item) in document["paths"].as_object().into_iter().flatten() {
            for (method, operation) in item.as_object().into_iter().flatten() {
                let Ok(method) = method.to_uppercase().parse::<Method>() else { continue };
                operations.insert((method, path.clone()), Operation::of(operation));
            }
        }
        let schemas = document["components"]["schemas"].as_object().cloned().unwrap_or_default();
        Self { operations, schemas }
    }

    /// Refuses unknown parameters, and those that are given twice.
    pub(super) fn check_query(
        &self,
        method: &Method,
        path: &str,
        query: &str,
    ) -> Result<(), ApiError> {
        // HEAD is what GET answers, without the body (RFC 9110 §9.3.2).
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let none = Operation::default();
        let operation = self.operations.get(&(method.clone(), path.to_owned())).unwrap_or(&none);
        let mut values: BTreeMap<String, String> = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let (name, value) = (name.into_owned(), value.into_owned());
            if !operation.parameters.contains(&name) {
                let known = operation.parameters.iter().map(String::as_str);
                return Err(ApiError::malformed(format!(
                    "unknown parameter `{}`{}",
                    short(&name),
                    meant(&name, known)
                ))
                .about(short(&name)));
            }
            if values.insert(name.clone(), value).is_some() {
                return Err(ApiError::malformed(format!("the parameter `{name}` is there twice"))
                    .about(name));
            }
        }
        Ok(())
    }

    /// Refuses a body that does not conform to the operation's schema.
    pub(super) fn check_body(
        &self,
        method: &Method,
        path: &str,
        body: &Value,
    ) -> Result<(), ApiError> {
        match self.operations.get(&(method.clone(), path.to_owned())) {
            Some(Operation { body: Some(schema), .. }) => self.check(schema, body, ""),
            _ => Ok(()),
        }
    }

    /// Checks only what serde does not notice, or reports less clearly: values of another type,
    /// `null`, unknown and missing fields, empty lists.
    fn check(&self, schema: &Value, value: &Value, at: &str) -> Result<(), ApiError> {
        if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
            return self.schemas.get(name).map_or(Ok(()), |schema| self.check(schema, value, at));
        }
        for part in schema["allOf"].as_array().into_iter().flatten() {
            self.check(part, value, at)?;
        }
        if let [only] = schema["oneOf"].as_array().map(Vec::as_slice).unwrap_or_default() {
            self.check(only, value, at)?;
        }
        if value.is_null() {
            let text = "is null; leave it out, or give a value";
            return Err(wrong(at, text));
        }
        if let Some(wanted) = schema["type"].as_str().filter(|wanted| !is(wanted, value)) {
            return Err(wrong(
                at,
                &format!("is {}, and must be {}", named(value), article(wanted)),
            ));
        }
        match value {
            Value::Object(fields) => self.check_object(schema, fields, at),
            Value::Array(items) => {
                let least = schema["minItems"].as_u64().unwrap_or(0);
                if (items.len() as u64) < least {
                    let text = schema["x-empty"].as_str();
                    let text = text.unwrap_or("is empty; name at least one, or leave it out");
                    return Err(wrong(at, text));
                }
                let mut each = items.iter().enumerate();
                each.try_for_each(|(index, item)| {
                    self.check(&schema["items"], item, &format!("{at}[{index}]"))
                })
            }
            _ => Ok(()),
        }
    }

    fn check_object(
        &self,
        schema: &Value,
        fields: &serde_json::Map<String, Value>,
        at: &str,
    ) -> Result<(), ApiError> {
        let known = schema["properties"].as_object();
        for (name, value) in fields {
            let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
            match known.and_then(|known| known.get(name)) {
                Some(schema) => self.check(schema, value, &path)?,
                None if schema["additionalProperties"] == Value::Bool(false) => {
                    let known = known.into_iter().flatten().map(|(name, _)| name.as_str());
                    let text = format!("unknown field `{}`{}", short(&path), meant(name, known));
                    return Err(ApiError::malformed(text).about(short(&path)));
                }
                None if schema["additionalProperties"].is_object() => {
                    self.check(&schema["additionalProperties"], value, &path)?;
                }
                None => {}
            }
        }
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                let path = if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
                return Err(
                    ApiError::malformed(format!("the field `{path}` is missing")).about(path)
                );
            }
        }
        Ok(())
    }
}

impl Operation {
    fn of(operation: &Value) -> Self {
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let in_query = parameters.filter(|parameter| parameter["in"] == "query");
        let mut parameters: Vec<String> = in_query
            .filter_map(|parameter| parameter["name"].as_str().map(ToOwned::to_owned))
            .collect();
        if operation.get(super::document::WATCHABLE).is_some() {
            parameters.extend(["watch", "revision"].map(ToOwned::to_owned));
        }
        let body = &operation["requestBody"]["content"]["application/json"]["schema"];
        Self { parameters, body: body.is_object().then(|| body.clone()) }
    }
}

fn wrong(at: &str, text: &str) -> ApiError {
    match at.is_empty() {
        true => ApiError::malformed(format!("the body {text}")),
        false => ApiError::malformed(format!("the field `{}` {text}", short(at))).about(short(at)),
    }
}

fn is(wanted: &str, value: &Value) -> bool {
    match wanted {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        _ => true,
    }
}

fn named(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a fraction, or too large",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn article(name: &str) -> String {
    let article = if name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {name}")
}

/// Returns a guess at what was meant by a name, as the end of a sentence.
fn meant<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let mut known: Vec<&str> = known.collect();
    let near = |one: &&&str| strsim::damerau_levenshtein(one, name);
    let closest = known.iter().min_by_key(near).filter(|one| near(one) <= (one.len() / 3).max(2));
    if let Some(closest) = closest {
        return format!("; did you mean `{closest}`?");
    }
    known.sort_unstable();
    match known.is_empty() {
        true => "; there are none here".into(),
        false => format!("; there are {}", known.join(", ")),
    }
}

/// Returns the part of a text that an answer repeats: at most 80 characters.
fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shapes() -> Shapes {
        Shapes::of(&crate::api::router::openapi())
    }

    fn check(method: &Method, path: &str, body: &Value) -> Result<(), String> {
        shapes().check_body(method, path, body).map_err(|error| error.problem().detail)
    }

    #[test]
    fn a_field_that_is_not_known_is_refused_with_what_was_meant() {
        let body = json!({ "name": "shop", "prefixs": ["10.42.0.0/16"] });
        let error = check(&Method::POST, "/v1/networks", &body).unwrap_err();
        assert_eq!(error, "unknown field `prefixs`; did you mean `prefixes`?");
        let body = json!({ "selector": { "app": "web" }, "secs": 3 });
        let error = check(&Method::POST, "/v1/quarantines", &body).unwrap_err();
        assert!(error.starts_with("unknown field `secs`"), "{error}");
        let body = json!({ "files": [{ "name": "a", "text": "b", "txt": "c" }] });
        let error = check(&Method::POST, "/v1/policies", &body).unwrap_err();
        assert_eq!(error, "unknown field `files[0].txt`; did you mean `text`?");
    }

    #[test]
    fn nothing_but_an_object_stands_for_an_object_and_null_for_nothing() {
        for (path, body) in [
            ("/v1/keys/rotate", json!([null, null])),
            ("/v1/keys/rotate", json!({ "node": null })),
            ("/v1/policies", json!({ "files": [["a.yaml", "network: shop"]] })),
            ("/v1/tokens", json!({ "networks": [] })),
            ("/v1/credentials", json!({ "name": "a", "role": "viewer", "networks": [] })),
            ("/v1/networks", json!({ "name": "shop", "prefixes": [] })),
            ("/v1/quarantines", json!({ "selector": null })),
            ("/v1/routes/approve", json!(["shop", "10.0.0.0/8", "node-a"])),
        ] {
            assert!(check(&Method::POST, path, &body).is_err(), "{path} {body}");
        }
    }

    #[test]
    fn a_parameter_that_is_not_known_is_refused_with_what_was_meant() {
        let check = |query| {
            let done = shapes().check_query(&Method::POST, "/v1/networks", query);
            done.map_err(|error| error.problem().detail)
        };
        assert_eq!(check("dry_run=true"), Ok(()));
        assert_eq!(
            check("dryrun=true").unwrap_err(),
            "unknown parameter `dryrun`; did you mean `dry_run`?"
        );
        assert_eq!(
            check("dry_run=true&dry_run=false").unwrap_err(),
            "the parameter `dry_run` is there twice"
        );
    }

    #[test]
    fn every_write_can_be_a_dry_run_and_no_read_can() {
        for one in meshward_api_types::operations::ALL {
            let method: Method = one.method.to_uppercase().parse().unwrap();
            let allowed = shapes().check_query(&method, one.path, "dry_run=true").is_ok();
            assert_eq!(allowed, one.writes(), "{method} {}", one.path);
        }
    }
}
