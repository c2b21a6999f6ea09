//! The API's document (OpenAPI 3.1): the routes' own descriptions, and what holds for all of them.

use super::problem::PROBLEM_JSON;
use axum::http::StatusCode;
use meshward_api_types::{MAX_PAGE, Problem, USUAL_PAGE, operations};
use meshward_types::schema;
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

/// Marks lists that can be watched.
pub(super) const WATCHABLE: &str = "x-meshward-watch";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Meshward coordinator",
        description = "Networks, nodes, workloads, policy and quarantine of one mesh.\n\n\
            **Refusals** are problem documents (RFC 9457). 400: the request does not conform \
            to this document; 422: it conforms, but its values are wrong; 409: it conflicts with \
            the present state.\n\n\
            **Dry runs**: every write has the parameter `dry_run`. With `?dry_run=true` it is \
            checked and answered as if it were carried out, and nothing is changed.\n\n\
            **Lists** come in pages, in the order of the entries' keys; `next` is the `cursor` of \
            the next page.\n\n\
            **Watching**: every list has the parameter `watch`. With `?watch=1`, and any filters, \
            it answers with server-sent events (`text/event-stream`) until one side closes the \
            connection: `put` (an entry is new or has changed), `gone` (an entry was removed, or \
            no longer matches the filter), `synced` (all changes of a revision were sent), each \
            with a `Change` as its data; the id of `synced` is the revision. With `revision=N`, \
            or the header `Last-Event-ID: N`, the watch goes on from a list of that revision; the \
            answer is 410 if that is too long ago: list again. Without, it begins with every \
            entry.\n\n\
            **Retries**: a POST with the header `Idempotency-Key` is carried out once. For an \
            hour, or until the coordinator restarts, the same request of the same credential with \
            the same key gets the first answer again.\n\n\
            **Overwriting**: an answer with one resource that can be overwritten has an `ETag`; a \
            write with `If-Match` is refused with 412 if the resource has changed meanwhile.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(Problem))
)]
pub(super) struct Document;

/// Path of the document.
pub(super) const DOCUMENT: &str = "/v1/openapi.json";

/// Returns the document that is served.
pub(super) fn document(routes: &utoipa::openapi::OpenApi) -> Value {
    let mut document = serde_json::to_value(routes).unwrap_or_default();
    document["servers"] =
        json!([{ "url": "/", "description": "The coordinator that serves this document" }]);
    document["components"]["securitySchemes"] = json!({ "bearer": {
        "type": "http", "scheme": "bearer", "description": "The token of a credential (`meshctl \
            credential create`)."
    } });
    document["security"] = json!([{ "bearer": [] }]);
    schemas(&mut document);
    if let Some(paths) = document["paths"].as_object_mut() {
        for (path, item) in paths {
            for (method, operation) in item.as_object_mut().into_iter().flatten() {
                finish(path, method, operation);
            }
        }
    }
    join_lines(&mut document);
    document
}

/// Joins the lines of paragraphs in descriptions, which come from doc comments: how these are
/// wrapped is of no concern to readers of the document.
fn join_lines(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(text) if name == "description" || name == "summary" => {
                        let paragraphs: Vec<String> =
                            text.split("\n\n").map(|part| part.replace('\n', " ")).collect();
                        *text = paragraphs.join("\n\n");
                    }
                    other => join_lines(other),
                }
            }
        }
        Value::Array(elements) => elements.iter_mut().for_each(join_lines),
        _ => {}
    }
}

fn schemas(document: &mut Value) {
    let requests = reachable_from_requests(document);
    let Some(all) = document["components"]["schemas"].as_object_mut() else { return };
    for (name, form) in schema::forms() {
        all.insert(name.to_owned(), form);
    }
    let before = all.clone();
    for (name, schema) in all.iter_mut() {
        merge(schema, &before);
        if requests.contains(name) {
            without_null(schema);
            if schema["type"] == "object" && schema.get("additionalProperties").is_none() {
                schema["additionalProperties"] = Value::Bool(false);
            }
        }
    }
    for (name, word, forms) in together() {
        if let Some(schema) = all.get_mut(name) {
            schema[word] = forms;
        }
    }
    if let Some(target) = all.get_mut("Impose") {
        for name in ["selector", "allow_from"] {
            // Leaving a selector out must not mean everything.
            let selector = target["properties"][name].take();
            target["properties"][name] =
                json!({ "allOf": [selector, { "type": "object", "minProperties": 1 }] });
        }
    }
}

/// Adds constraints between fields: they cannot be attributes of one field.
fn together() -> [(&'static str, &'static str, Value); 8] {
    let target = || json!([{ "required": ["selector"] }, { "required": ["workload"] }]);
    let drained = || json!([{ "required": ["workload"] }, { "required": ["node"] }]);
    let role = |roles: Value| json!({ "enum": roles });
    [
        ("BeginDrain", "oneOf", drained()),
        ("DrainTarget", "oneOf", drained()),
        ("Impose", "oneOf", target()),
        ("QuarantineTarget", "oneOf", target()),
        (
            "RotateKeys",
            "anyOf",
            json!([
                { "required": ["node"], "properties": { "all": { "const": false } } },
                { "required": ["network"], "properties": { "all": { "const": false } } },
                {
                    "required": ["all"], "properties": { "all": { "const": true } },
                    "not": { "anyOf": [{ "required": ["node"] }, { "required": ["network"] }] }
                },
            ]),
        ),
        ("PolicyScope", "not", json!({ "required": ["only", "except"] })),
        (
            "CreateCredential",
            "anyOf",
            json!([
                { "properties": { "role": role(json!(["viewer", "operator"])) } },
                { "properties": { "role": role(json!(["owner"])) }, "required": ["networks"] },
                {
                    "properties": { "role": role(json!(["admin"])) },
                    "not": { "required": ["networks"] },
                },
            ]),
        ),
        (
            "ChangeCredential",
            "not",
            json!({ "anyOf": [
                { "required": ["networks", "all_networks"] },
                { "required": ["lifetime_seconds", "no_expiry"] },
            ] }),
        ),
    ]
}

/// Returns the names of the schemas that requests consist of.
fn reachable_from_requests(document: &Value) -> std::collections::BTreeSet<String> {
    let mut open: Vec<&Value> = Vec::new();
    for item in document["paths"].as_object().into_iter().flat_map(|paths| paths.values()) {
        open.extend(
            item.as_object().into_iter().flatten().map(|(_, operation)| &operation["requestBody"]),
        );
    }
    let mut found = std::collections::BTreeSet::new();
    while let Some(value) = open.pop() {
        match value {
            Value::Object(fields) => {
                if let Some(name) = fields.get("$ref").and_then(Value::as_str) {
                    let name = name.rsplit('/').next().unwrap_or_default();
                    if found.insert(name.to_owned()) {
                        open.push(&document["components"]["schemas"][name]);
                    }
                }
                open.extend(fields.values());
            }
            Value::Array(items) => open.extend(items),
            _ => {}
        }
    }
    found
}

/// Makes one object of several that hold together: two that both allow no other fields would allow
/// nothing.
fn merge(schema: &mut Value, all: &Map<String, Value>) {
    match schema {
        Value::Object(fields) => fields.values_mut().for_each(|value| merge(value, all)),
        Value::Array(items) => items.iter_mut().for_each(|value| merge(value, all)),
        _ => {}
    }
    let Some(parts) = schema.get("allOf").and_then(Value::as_array).cloned() else { return };
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for part in parts {
        let name = part["$ref"].as_str().and_then(|path| path.rsplit('/').next());
        let part = name.and_then(|name| all.get(name)).cloned().unwrap_or(part);
        properties.extend(part["properties"].as_object().cloned().unwrap_or_default());
        required.extend(part["required"].as_array().cloned().unwrap_or_default());
    }
    let description = schema.get("description").cloned();
    *schema = json!({ "type": "object", "properties": properties });
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    if let Some(description) = description {
        schema["description"] = description;
    }
}

/// Removes `null` from the types of a field: in a request, an absent value is left out.
fn without_null(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if let Some(types) = fields.get_mut("type") {
                let one = types
                    .as_array()
                    .and_then(|types| types.iter().find(|one| *one != "null"))
                    .cloned();
                if let Some(one) = one {
                    *types = one;
                }
            }
            for word in ["oneOf", "anyOf"] {
                let Some(parts) = fields.get_mut(word).and_then(Value::as_array_mut) else {
                    continue;
                };
                parts.retain(|part| part["type"] != "null");
                if let ([only], true) = (&parts[..], word == "oneOf") {
                    let only = only.clone();
                    fields.remove(word);
                    let description = fields.get("description").cloned();
                    match description {
                        // Keywords beside a reference hold together with it (OpenAPI 3.1, JSON
                        // Schema 2020-12 §8.2.3.1).
                        Some(_) => fields.extend(
                            only.as_object()
                                .cloned()
                                .unwrap_or_default()
                                .into_iter()
                                .filter(|(name, _)| name != "description"),
                        ),
                        None => *fields = only.as_object().cloned().unwrap_or_default(),
                    }
                }
            }
            fields.values_mut().for_each(without_null);
        }
        Value::Array(items) => items.iter_mut().for_each(without_null),
        _ => {}
    }
}

/// Adds what holds for every operation.
fn finish(path: &str, method: &str, operation: &mut Value) {
    let access = match path.starts_with("/v1/") && path != DOCUMENT {
        true => Access::Authenticated,
        false => Access::Public,
    };
    let known = operations::ALL.iter().find(|own| (own.method, own.path) == (method, path));
    let writes = known.is_some_and(meshward_api_types::operations::Described::writes);
    if known.is_some_and(|own| own.kind == operations::Kind::List) {
        operation[WATCHABLE] = true.into();
    }
    let mut parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
    if writes {
        parameters.push(query(
            "dry_run",
            &json!({ "type": "boolean", "default": false }),
            "`true` to check the request and answer without changing anything.",
        ));
    }
    if writes && method == "post" {
        parameters.push(json!({
            "name": "Idempotency-Key", "in": "header", "required": false,
            "schema": {
                "type": "string", "minLength": 1, "maxLength": 128,
                "pattern": "^[A-Za-z0-9_.:-]{1,128}$",
            },
            "description": "A request with this key is carried out only once, however often it is \
                sent."
        }));
    }
    if operation.get(WATCHABLE).is_some() {
        parameters.push(query(
            "limit",
            &json!({
                "type": "integer", "format": "int32",
                "minimum": 1, "maximum": MAX_PAGE, "default": USUAL_PAGE,
            }),
            "The maximum number of entries on a page.",
        ));
        parameters.push(query(
            "cursor",
            &json!({ "type": "string", "minLength": 2, "maxLength": 1024, "examples": ["c2hvcA"] }),
            "The start of the page: the value of `next` of the page before.",
        ));
    }
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if access == Access::Public {
        operation["security"] = json!([]);
    }
    responses(operation, access);
}

fn query(name: &str, schema: &Value, description: &str) -> Value {
    json!({
        "name": name, "in": "query", "required": false,
        "schema": schema, "description": description,
    })
}

/// The callers of an operation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Everybody.
    Public,
    /// Callers with a credential.
    Authenticated,
}

/// Adds the responses that every operation has.
fn responses(operation: &mut Value, access: Access) {
    let Some(all) = operation["responses"].as_object_mut() else { return };
    for (status, response) in all.iter_mut() {
        if response["description"].as_str().unwrap_or_default().is_empty() {
            let text = match status.as_str() {
                "201" => "The new credential.",
                "204" => "It is done.",
                _ => "The port of the query.",
            };
            response["description"] = text.into();
        }
    }
    let problem = |description: &str| {
        json!({
            "description": description,
            "content": { PROBLEM_JSON: { "schema": { "$ref": "#/components/schemas/Problem" } } }
        })
    };
    if access == Access::Authenticated {
        let mut refused = problem("The credential is missing or unknown.");
        refused["headers"] = json!({ "WWW-Authenticate": {
            "description": "The way to authenticate (RFC 6750 §3).",
            "required": true, "schema": { "type": "string" }
        } });
        all.insert(StatusCode::UNAUTHORIZED.as_u16().to_string(), refused);
    }
    all.insert(
        "4XX".into(),
        problem(
            "The request is refused. The problem document contains the reason and how to fix \
            it.",
        ),
    );
    all.insert("5XX".into(), problem("The coordinator failed, or is not ready."));
}
