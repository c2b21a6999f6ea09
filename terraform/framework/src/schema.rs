//! What a block of configuration may hold, from which follow its checks, its plans and its
//! documentation.

use crate::{Value, wire};
use serde_json::json;
use std::{collections::BTreeMap, time::Duration};

/// A provider's, resource's or data source's configuration.
#[derive(Clone, Default)]
pub struct Schema {
    /// What it is, in Markdown; the first sentence stands in indices.
    pub description: String,
    /// Its attributes and blocks.
    pub block: Block,
}

/// Attributes, and blocks in it.
#[derive(Clone, Default)]
pub struct Block {
    /// The attributes, in the order of the documentation.
    pub attributes: Vec<Attribute>,
    /// The blocks in this one.
    pub blocks: Vec<Nested>,
}

/// A block in a block.
#[derive(Clone)]
pub struct Nested {
    /// The block's type, as configurations write it.
    pub name: String,
    /// The documentation, in Markdown.
    pub description: String,
    /// How often the block may stand there.
    pub nesting: Nesting,
    /// What it may hold.
    pub block: Block,
    /// The least and the most of it; no bound if the most is 0.
    pub count: (i64, i64),
}

/// How often a block may stand there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nesting {
    /// Once at most.
    Single,
    /// In an order.
    List,
    /// In no order.
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
    /// A list of texts.
    pub fn strings() -> Self {
        Self::List(Box::new(Self::String))
    }

    /// A set of texts.
    pub fn set() -> Self {
        Self::Set(Box::new(Self::String))
    }

    /// A map of texts.
    pub fn map() -> Self {
        Self::Map(Box::new(Self::String))
    }

    /// A list of objects.
    pub fn objects(attributes: &[(&str, Type)]) -> Self {
        let own = attributes.iter().map(|(name, own)| ((*name).to_owned(), own.clone()));
        Self::List(Box::new(Self::Object(own.collect())))
    }

    /// The type as go-cty writes it in JSON.
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

    /// The type that go-cty writes so.
    ///
    /// # Errors
    /// A sentence, if it writes none so.
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

    /// The type as people read it.
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

    /// Whether two values of this type are one: the elements of a set have no order.
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

    /// A value with all attributes of the objects in it, and no others.
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

/// What is wrong with a value, how it should be.
pub(crate) type Check = fn(&Value) -> Result<(), String>;

/// Who gives an attribute its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// The configuration, always.
    Required,
    /// The configuration, or nobody.
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

/// What a change of a resource has to do with an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnChange {
    /// Terraform changes the attribute in place.
    Update,
    /// A change of the attribute makes a new resource.
    Replace,
    /// The provider may give the attribute another value with any change.
    Follow,
}

/// One attribute.
#[derive(Clone)]
pub struct Attribute {
    /// The name, as configurations write it.
    pub name: String,
    /// The type of its values.
    pub kind: Type,
    /// The documentation, in Markdown.
    pub description: String,
    /// Who gives it its value.
    pub presence: Presence,
    /// Terraform does not print its value.
    pub sensitive: bool,
    /// What a change has to do with it.
    pub on_change: OnChange,
    /// It is given when the resource is made and cannot be read afterwards: of what was imported it
    /// is not known.
    pub unread: bool,
    /// Its value where a configuration gives none.
    pub default: Option<Value>,
    /// The check of its value, or of each element of a list, a set or a map.
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

    /// One that must be set.
    pub fn required(name: &str, kind: Type, description: &str) -> Self {
        Self::new(Presence::Required, name, kind, description)
    }

    /// One that may be set.
    pub fn optional(name: &str, kind: Type, description: &str) -> Self {
        Self::new(Presence::Optional, name, kind, description)
    }

    /// One that the provider sets.
    pub fn computed(name: &str, kind: Type, description: &str) -> Self {
        Self::new(Presence::Computed, name, kind, description)
    }

    /// The id that every resource has.
    pub fn id(description: &str) -> Self {
        Self::computed("id", Type::String, description)
    }

    /// The provider sets it if nobody else does.
    #[must_use]
    pub fn or_computed(self) -> Self {
        Self { presence: Presence::OptionalComputed, ..self }
    }

    /// It is this if it is not set.
    #[must_use]
    pub fn or(self, default: impl Into<Value>) -> Self {
        Self { default: Some(default.into()), ..self.or_computed() }
    }

    /// A change makes a new resource.
    #[must_use]
    pub fn replaces(self) -> Self {
        Self { on_change: OnChange::Replace, ..self }
    }

    /// It is said when the resource is made, and cannot be read afterwards.
    #[must_use]
    pub fn unread(self) -> Self {
        Self { unread: true, ..self }
    }

    /// The provider may give it another value with any change.
    #[must_use]
    pub fn follows(self) -> Self {
        Self { on_change: OnChange::Follow, ..self }
    }

    /// It is a secret.
    #[must_use]
    pub fn sensitive(self) -> Self {
        Self { sensitive: true, ..self }
    }

    /// It must be well, or each of its elements.
    #[must_use]
    pub fn checked(self, check: Check) -> Self {
        Self { check: Some(check), ..self }
    }
}

impl Block {
    /// A block of attributes.
    pub fn of(attributes: Vec<Attribute>) -> Self {
        Self { attributes, blocks: vec![] }
    }

    /// The same, with a block in it.
    #[must_use]
    pub fn with(mut self, nested: Nested) -> Self {
        self.blocks.push(nested);
        self
    }

    /// A value with all attributes and blocks, and no others.
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

    /// Whether two values of this block are one.
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
    /// A block that may stand there any number of times, in an order.
    pub fn list(name: &str, description: &str, block: Block) -> Self {
        let (name, description) = (name.to_owned(), description.to_owned());
        Self { name, description, nesting: Nesting::List, block, count: (0, 0) }
    }

    /// Whether two values of it are one.
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
    /// A schema.
    pub fn new(description: &str, block: Block) -> Self {
        Self { description: description.to_owned(), block }
    }

    pub(crate) fn to_wire(&self) -> wire::Schema {
        wire::Schema { version: 0, block: Some(self.block.to_wire(&self.description)) }
    }
}

/// The block `timeouts`, for these operations.
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

/// Refuses what is no duration.
///
/// # Errors
/// A sentence that shows the form.
pub fn check_duration(value: &Value) -> Result<(), String> {
    duration(value.text().unwrap_or_default()).map(drop)
}

/// A duration as Terraform's users write it.
///
/// # Errors
/// A sentence that shows the form.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| format!("`{text}` is not a duration; write one such as 90s, 10m or 24h"))
}
