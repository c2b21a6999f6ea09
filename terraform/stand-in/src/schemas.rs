//! Schemas of the clouds' providers, from their documentation.

use anyhow::{Context, Result, bail};
use meshward_terraform::{Attribute, Block, Nested, Nesting, Schema, Type};
use serde_json::Value;

/// The types of a cloud's provider that the modules use.
pub(crate) struct Cloud {
    pub provider: Schema,
    pub resources: Vec<(String, Schema)>,
    pub data_sources: Vec<(String, Schema)>,
}

impl Cloud {
    pub(crate) fn read(text: &str) -> Result<Self> {
        let json: Value = serde_json::from_str(text)?;
        let schemas = |kind: &str| -> Result<Vec<(String, Schema)>> {
            let all = json[kind].as_object().with_context(|| format!("there are no {kind}"))?;
            let read = |(name, own): (&String, &Value)| {
                let block = block(own).with_context(|| name.clone())?;
                Ok((name.clone(), Schema::new(name, block)))
            };
            all.iter().map(read).collect()
        };
        Ok(Self {
            provider: Schema::new("The provider.", block(&json["provider"])?),
            resources: schemas("resources")?,
            data_sources: schemas("data_sources")?,
        })
    }
}

fn block(json: &Value) -> Result<Block> {
    type Make = fn(&str, Type) -> Attribute;
    let kinds: [(&str, Make); 4] = [
        ("required", |name, kind| Attribute::required(name, kind, "")),
        ("optional", |name, kind| Attribute::optional(name, kind, "")),
        ("optional_computed", |name, kind| Attribute::optional(name, kind, "").or_computed()),
        ("computed", |name, kind| Attribute::computed(name, kind, "")),
    ];
    let mut made = Block::default();
    for (group, make) in kinds {
        for (name, kind) in json[group].as_object().into_iter().flatten() {
            let kind = of(kind.as_str().unwrap_or_default()).with_context(|| name.clone())?;
            made.attributes.push(make(name, kind));
        }
    }
    for (name, own) in json["blocks"].as_object().into_iter().flatten() {
        let bound = |name: &str| own[name].as_i64().unwrap_or_default();
        made.blocks.push(Nested {
            name: name.clone(),
            description: String::new(),
            nesting: match own["nesting"].as_str() {
                Some("list") => Nesting::List,
                Some("set") => Nesting::Set,
                other => bail!("block {name}: {other:?} is no nesting"),
            },
            block: block(own).with_context(|| name.clone())?,
            count: (bound("min"), bound("max")),
        });
    }
    Ok(made)
}

/// Parses a type as documentation writes it: `string`, `list(string)`, `map(list(number))`.
fn of(text: &str) -> Result<Type> {
    let inner = |kind: &str| text.strip_prefix(kind)?.strip_prefix('(')?.strip_suffix(')');
    Ok(match text {
        "string" => Type::String,
        "number" => Type::Number,
        "bool" => Type::Bool,
        _ => match (inner("list"), inner("set"), inner("map")) {
            (Some(own), ..) => Type::List(Box::new(of(own)?)),
            (_, Some(own), _) => Type::Set(Box::new(of(own)?)),
            (.., Some(own)) => Type::Map(Box::new(of(own)?)),
            _ => bail!("`{text}` is no type"),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::Cloud;

    #[test]
    fn every_schema_can_be_read_and_says_where_it_is_from() {
        for (name, text) in crate::CLOUDS {
            let cloud = Cloud::read(text).unwrap();
            assert!(!cloud.resources.is_empty(), "{name}");
            let json: serde_json::Value = serde_json::from_str(text).unwrap();
            let version = json["version"].as_str().unwrap();
            let source = json["source"].as_str().unwrap();
            let wanted = format!("https://registry.terraform.io/providers/{source}/{version}/docs");
            assert_eq!(json["documentation"], wanted);
        }
    }
}
