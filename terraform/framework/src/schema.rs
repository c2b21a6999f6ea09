//! Schemas: the attributes and blocks of a configuration, from which its validation, its plans and
//! its documentation are derived.

use crate::{Value, wire};
use serde_json::json;
use std::{collections::BTreeMap, time::Duration};

/// The schema of a provider's, a resource's or a data source's configuration.
#[derive(Clone, Default)]
pub struct Schema {
    /// The documentation, in Markdown; indices show its first sentence.
    pub description: String,
    /// The attributes and nested blocks.
    pub block: Block,
}

/// A block: attributes and nested blocks.
#[derive(Clone, Default)]
pub struct Block {
    /// The attributes, in the order of the documentation.
    pub attributes: Vec<Attribute>,
    /// The nested blocks.
    pub blocks: Vec<Nested>,
}

/// A nested block.
#[derive(Clone)]
pub struct Nested {
    /// The block's type, as configurations write it.
    pub name: String,
    /// The documentation, in Markdown.
    pub description: String,
    /// The number and order of such blocks.
    pub nesting: Nesting,
    /// The attributes and nested blocks.
    pub block: Block,
    /// The minimum and the maximum number of such blocks; a maximum of 0 is no limit. Ignored for
    /// [`Nesting::Single`].
    pub count: (i64, i64),
}

/// The number and order of the blocks of one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nesting {
    /// At most one block.
    Single,
    /// Any number of blocks, in order.
    List,
    /// Any number of blocks, without an order.
    Set,
}

/// The type of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    /// `true` or `false`.
    Bool,
    /// An integer or a fraction.
    Number,
    /// A text.
    String,
    /// Elements of one type, in order.
    List(Box<Type>),
    /// Elements of one type, without an order.
    Set(Box<Type>),
    /// Elements of one type, by keys.
    Map(Box<Type>),
    /// Attributes by name, each with a type of its own.
    Object(Vec<(String, Type)>),
}

impl Type {
    /// Returns the type of a list of strings.
    pub fn strings() -> Self {
        Self::List(Box::new(Self::String))
    }

    /// Returns the type of a set of strings.
    pub fn set() -> Self {
        Self::Set(Box::new(Self::String))
    }

    /// Returns the type of a map of strings.
    pub fn map() -> Self {
        Self::Map(Box::new(Self::String))
    }

    /// Returns the type of a list of objects with these attributes.
    pub fn objects(attributes: &[(&str, Type)]) -> Self {
        let own = attributes.iter().map(|(name, own)| ((*name).to_owned(), own.clone()));
        Self::List(Box::new(Self::Object(own.collect())))
    }

    /// Returns the type in go-cty's JSON form.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Bool => json!("bool"),
            Self::Number => json!("number"),
            Self::String => json!("string"),
            Self::List(of) => json!(["list", of.to_json()]),
            Self::Set(of) => json!(["set", of.to_json()]),
            Self::Map(of) => json!(["map", of.to_json()]),
            Self::Object(all) => {
                let own: serde_json::Map<_, _> =
                    all.iter().map(|(name, own)| (name.clone(), own.to_json())).collect();
                json!(["object", own])
            }
        }
    }

    /// Parses a type in go-cty's JSON form.
    ///
    /// # Errors
    /// Fails with a sentence if the JSON is none of its types.
    pub fn from_json(json: &serde_json::Value) -> Result<Self, String> {
        let no_type = || format!("{json} is no type");
        if let Some(name) = json.as_str() {
            return match name {
                "bool" => Ok(Self::Bool),
                "number" => Ok(Self::Number),
                "string" => Ok(Self::String),
                _ => Err(no_type()),
            };
        }
        let [kind, of] = json.as_array().map_or(&[][..], Vec::as_slice) else {
            return Err(no_type());
        };
        match (kind.as_str(), of.as_object()) {
            (Some("list"), _) => Ok(Self::List(Box::new(Self::from_json(of)?))),
            (Some("set"), _) => Ok(Self::Set(Box::new(Self::from_json(of)?))),
            (Some("map"), _) => Ok(Self::Map(Box::new(Self::from_json(of)?))),
            (Some("object"), Some(all)) => {
                let own = all.iter().map(|(name, own)| Ok((name.clone(), Self::from_json(own)?)));
                Ok(Self::Object(own.collect::<Result<_, String>>()?))
            }
            _ => Err(no_type()),
        }
    }

    /// Returns the type in words, for the documentation.
    pub fn in_words(&self) -> String {
        match self {
            Self::Bool => "Boolean".into(),
            Self::Number => "Number".into(),
            Self::String => "String".into(),
            Self::List(of) => format!("List of {}", of.in_words()),
            Self::Set(of) => format!("Set of {}", of.in_words()),
            Self::Map(of) => format!("Map of {}", of.in_words()),
            Self::Object(all) => {
                let own: Vec<String> =
                    all.iter().map(|(name, own)| format!("`{name}`: {}", own.in_words())).collect();
                format!("Object ({})", own.join(", "))
            }
        }
    }

    /// Returns whether two values of this type are equal; the elements of a set have no order.
    pub fn same(&self, a: &Value, b: &Value) -> bool {
        match (self, a, b) {
            (Self::Set(of), Value::List(a), Value::List(b)) => {
                a.len() == b.len() && a.iter().all(|one| b.iter().any(|other| of.same(one, other)))
            }
            (Self::List(of), Value::List(a), Value::List(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| of.same(a, b))
            }
            _ => a == b,
        }
    }

    /// Gives the objects in a value exactly the attributes of the type: missing ones are null,
    /// others are removed.
    pub(crate) fn conform(&self, value: Value) -> Value {
        match (self, value) {
            (Self::List(of) | Self::Set(of), Value::List(all)) => {
                Value::List(all.into_iter().map(|one| of.conform(one)).collect())
            }
            (Self::Map(of), Value::Map(all)) => {
                Value::Map(all.into_iter().map(|(key, one)| (key, of.conform(one))).collect())
            }
            (Self::Object(own), Value::Map(mut all)) => Value::Map(
                own.iter()
                    .map(|(name, of)| {
                        (name.clone(), of.conform(all.remove(name).unwrap_or_default()))
                    })
                    .collect(),
            ),
            (_, value) => value,
        }
    }
}

/// A check of a known value. The error is a sentence that says what is wrong with it and what is
/// expected.
pub(crate) type Check = fn(&Value) -> Result<(), String>;

/// The source of an attribute's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// The configuration, always.
    Required,
    /// The configuration; null if it has none.
    Optional,
    /// The configuration, or else the provider.
    OptionalComputed,
    /// The provider, always.
    Computed,
}

impl Presence {
    /// Returns whether a configuration may set the attribute, and need not.
    pub fn is_optional(self) -> bool {
        matches!(self, Self::Optional | Self::OptionalComputed)
    }

    /// Returns whether the provider may set the attribute.
    pub fn is_computed(self) -> bool {
        matches!(self, Self::OptionalComputed | Self::Computed)
    }
}

/// The relation between an attribute and a change of its resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnChange {
    /// Terraform changes the attribute in place.
    Update,
    /// Terraform replaces the resource if the attribute changes.
    Replace,
    /// The provider may set another value at any change of the resource.
    Follow,
}

/// An attribute of a block.
#[derive(Clone)]
pub struct Attribute {
    /// The name, as configurations write it.
    pub name: String,
    /// The type of the value.
    pub kind: Type,
    /// The documentation, in Markdown.
    pub description: String,
    /// The source of the value.
    pub presence: Presence,
    /// Keeps Terraform from printing the value.
    pub sensitive: bool,
    /// The relation to a change of the resource.
    pub on_change: OnChange,
    /// Marks a value that is known when the resource is created and cannot be read afterwards:
    /// after an import it is null, and configuring it then replaces nothing.
    pub unread: bool,
    /// The value if the configuration has none.
    pub default: Option<Value>,
    /// The check of the value, or of each element if it is a list, a set or a map.
    pub check: Option<Check>,
}

impl Attribute {
    fn new(presence: Presence, name: &str, kind: Type, description: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            description: description.to_owned(),
            presence,
            sensitive: false,
            on_change: OnChange::Update,
            unread: false,
            default: None,
            check: None,
        }
    }

    /// Returns an attribute that must be configured.
    pub fn required(name: &str, kind: Type, description: &str) -> Self {
        Self::new(Presence::Required, name, kind, description)
    }

    /// Returns an attribute that may be configured.
    pub fn optional(name: &str, kind: Type, description: &str) -> Self {
        Self::new(Presence::Optional, name, kind, description)
    }

    /// Returns an attribute that the provider sets.
    pub fn computed(name: &str, kind: Type, description: &str) -> Self {
        Self::new(Presence::Computed, name, kind, description)
    }

    /// Returns the attribute `id`, which every resource has.
    pub fn id(description: &str) -> Self {
        Self::computed("id", Type::String, description)
    }

    /// Lets the provider set the value if it is not configured.
    #[must_use]
    pub fn or_computed(self) -> Self {
        Self { presence: Presence::OptionalComputed, ..self }
    }

    /// Sets the value that the attribute has if it is not configured.
    #[must_use]
    pub fn or(self, default: impl Into<Value>) -> Self {
        Self { default: Some(default.into()), ..self.or_computed() }
    }

    /// Makes a change of the attribute replace the resource.
    #[must_use]
    pub fn replaces(self) -> Self {
        Self { on_change: OnChange::Replace, ..self }
    }

    /// Marks the value as one that cannot be read after the resource was created.
    #[must_use]
    pub fn unread(self) -> Self {
        Self { unread: true, ..self }
    }

    /// Lets the provider set another value at any change of the resource.
    #[must_use]
    pub fn follows(self) -> Self {
        Self { on_change: OnChange::Follow, ..self }
    }

    /// Keeps Terraform from printing the value.
    #[must_use]
    pub fn sensitive(self) -> Self {
        Self { sensitive: true, ..self }
    }

    /// Sets the check of the value, or of each element of a collection.
    #[must_use]
    pub fn checked(self, check: Check) -> Self {
        Self { check: Some(check), ..self }
    }
}

impl Block {
    /// Returns a block with these attributes and no nested blocks.
    pub fn of(attributes: Vec<Attribute>) -> Self {
        Self { attributes, blocks: vec![] }
    }

    /// Adds a nested block.
    #[must_use]
    pub fn with(mut self, nested: Nested) -> Self {
        self.blocks.push(nested);
        self
    }

    /// Gives a value exactly the attributes and blocks of this block: missing attributes are null,
    /// missing blocks are empty, others are removed.
    pub fn conform(&self, value: Value) -> Value {
        let mut all = match value {
            Value::Map(all) => all,
            Value::Null | Value::Unknown => return value,
            _ => BTreeMap::new(),
        };
        let own = self.attributes.iter().map(|own| {
            let value = own.kind.conform(all.remove(&own.name).unwrap_or_default());
            (own.name.clone(), value)
        });
        let mut whole: BTreeMap<_, _> = own.collect();
        for nested in &self.blocks {
            let value = all.remove(&nested.name).unwrap_or_default();
            let value = match (nested.nesting, value) {
                (Nesting::Single, value) => nested.block.conform(value),
                (_, Value::List(each)) => {
                    Value::List(each.into_iter().map(|one| nested.block.conform(one)).collect())
                }
                (_, Value::Unknown) => Value::Unknown,
                _ => Value::List(vec![]),
            };
            whole.insert(nested.name.clone(), value);
        }
        Value::Map(whole)
    }

    /// Returns whether two values of this block are equal; the elements of a set have no order.
    pub fn same(&self, a: &Value, b: &Value) -> bool {
        if !matches!((a, b), (Value::Map(_), Value::Map(_))) {
            return a == b;
        }
        let attributes =
            self.attributes.iter().all(|own| own.kind.same(a.get(&own.name), b.get(&own.name)));
        attributes
            && self
                .blocks
                .iter()
                .all(|nested| nested.same(a.get(&nested.name), b.get(&nested.name)))
    }

    fn to_wire(&self, description: &str) -> wire::Block {
        let attribute = |own: &Attribute| wire::Attribute {
            name: own.name.clone(),
            r#type: own.kind.to_json().to_string().into_bytes(),
            description: own.description.clone(),
            required: own.presence == Presence::Required,
            optional: own.presence.is_optional(),
            computed: own.presence.is_computed(),
            sensitive: own.sensitive,
            description_kind: wire::MARKDOWN,
        };
        let nested = |nested: &Nested| wire::NestedBlock {
            type_name: nested.name.clone(),
            block: Some(nested.block.to_wire(&nested.description)),
            nesting: match nested.nesting {
                Nesting::Single => 1,
                Nesting::List => 2,
                Nesting::Set => 3,
            },
            min_items: if nested.nesting == Nesting::Single { 0 } else { nested.count.0 },
            max_items: if nested.nesting == Nesting::Single { 0 } else { nested.count.1 },
        };
        wire::Block {
            version: 0,
            attributes: self.attributes.iter().map(attribute).collect(),
            nested: self.blocks.iter().map(nested).collect(),
            description: description.to_owned(),
            description_kind: wire::MARKDOWN,
            deprecated: false,
        }
    }
}

impl Nested {
    /// Returns a block that may be written any number of times, in order.
    pub fn list(name: &str, description: &str, block: Block) -> Self {
        let (name, description) = (name.to_owned(), description.to_owned());
        Self { name, description, nesting: Nesting::List, block, count: (0, 0) }
    }

    /// Returns whether two values of the blocks are equal; those of a set have no order.
    pub fn same(&self, a: &Value, b: &Value) -> bool {
        match (self.nesting, a, b) {
            (Nesting::Set, Value::List(a), Value::List(b)) => {
                a.len() == b.len()
                    && a.iter().all(|one| b.iter().any(|other| self.block.same(one, other)))
            }
            (Nesting::List, Value::List(a), Value::List(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| self.block.same(a, b))
            }
            (Nesting::Single, a, b) => self.block.same(a, b),
            (_, a, b) => a == b,
        }
    }
}

impl Schema {
    /// Returns a schema with this documentation, in Markdown.
    pub fn new(description: &str, block: Block) -> Self {
        Self { description: description.to_owned(), block }
    }

    pub(crate) fn to_wire(&self) -> wire::Schema {
        wire::Schema { version: 0, block: Some(self.block.to_wire(&self.description)) }
    }
}

/// Returns the block `timeouts`, for these operations and their default timeouts.
pub fn timeouts(operations: &[(&str, &str)]) -> Nested {
    let attribute = |(name, usual): &(&str, &str)| {
        let text = format!(
            "How long to wait for the operation, such as `30s` or `10m`. Default: `{usual}`."
        );
        Attribute::optional(name, Type::String, &text).checked(check_duration)
    };
    Nested {
        name: "timeouts".into(),
        description: "How long operations wait for nodes or workloads.".into(),
        nesting: Nesting::Single,
        block: Block::of(operations.iter().map(attribute).collect()),
        count: (0, 1),
    }
}

/// Checks that a value is a duration.
///
/// # Errors
/// Fails with a sentence that shows the form, if it is not a duration.
pub fn check_duration(value: &Value) -> Result<(), String> {
    duration(value.text().unwrap_or_default()).map(drop)
}

/// Parses a duration such as `90s`, `10m` or `24h`.
///
/// # Errors
/// Fails with a sentence that shows the form, if it is not a duration.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| format!("`{text}` is not a duration; write one such as 90s, 10m or 24h"))
}
