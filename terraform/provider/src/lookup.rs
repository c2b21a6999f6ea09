//! Data sources that read one object by its key, through the resource of the same type.

use meshward_terraform::{
    Answer, Attribute, Block, DataSource, Diagnostic, OnChange, Presence, Resource, Schema, Type,
    Value,
};

/// A data source with the attributes of a resource.
pub(crate) struct Lookup<R> {
    resource: R,
    what: &'static str,
    /// The attributes that form the key.
    keys: &'static [&'static str],
    /// The attributes that are left out: only the resource that has created the object knows them.
    without: &'static [&'static str],
}

impl<R: Resource> Lookup<R> {
    /// Returns the data source of a resource; `what` is the object's name in texts, with an
    /// article.
    pub(crate) fn of(
        resource: R,
        what: &'static str,
        keys: &'static [&'static str],
        without: &'static [&'static str],
    ) -> Self {
        Self { resource, what, keys, without }
    }
}

impl<R: Resource> DataSource for Lookup<R> {
    fn schema(&self) -> Schema {
        let Schema { block, .. } = self.resource.schema();
        let kept = block.attributes.into_iter().filter(|own| !self.without.contains(&&*own.name));
        let mut attributes: Vec<Attribute> = kept
            .map(|own| {
                let is_key = self.keys.contains(&&*own.name);
                Attribute {
                    presence: if is_key { Presence::Required } else { Presence::Computed },
                    on_change: OnChange::Update,
                    default: None,
                    check: own.check.filter(|_| is_key),
                    ..own
                }
            })
            .collect();
        for nested in block.blocks.iter().filter(|nested| nested.name != "timeouts") {
            let own =
                nested.block.attributes.iter().map(|own| (own.name.clone(), own.kind.clone()));
            let kind = Type::List(Box::new(Type::Object(own.collect())));
            attributes.push(Attribute::computed(&nested.name, kind, &nested.description));
        }
        let text = format!("Reads {}, by {}.", self.what, self.keys.join(" and "));
        Schema::new(&text, Block::of(attributes))
    }

    fn read(&self, config: Value) -> Answer<'_, Value> {
        Box::pin(async move {
            let mut key = Value::default();
            for name in self.keys {
                key.set(name, config.get(name).clone());
            }
            let named = self
                .keys
                .iter()
                .filter_map(|name| Some(format!("{name} `{}`", key.get(name).text()?)));
            let named = named.collect::<Vec<_>>().join(", ");
            let kind = self.what.trim_start_matches("a ").trim_start_matches("the ");
            let text = format!("There is no {kind} with {named}.");
            let found = self.resource.read(key).await?;
            found.ok_or_else(|| Diagnostic::error("Not found", text).into())
        })
    }
}
