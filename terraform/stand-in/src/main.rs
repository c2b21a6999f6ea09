//! A stand-in for the clouds' own providers in the tests of the modules: their schemas, and
//! machines that exist only in Terraform's state.
//!
//! The name by which it is started selects the cloud: `terraform-provider-aws` and so on are links
//! to this program. The schemas below `schemas/` name their source and its version.
#![forbid(unsafe_code)]

mod schemas;

use anyhow::{Context, Result};
use meshward_terraform::{
    Answer, Attribute, Block, DataSource, Diagnostics, Offers, Provider, Resource, Schema, Type,
    Value,
};
use schemas::Cloud;
use std::{
    collections::BTreeMap,
    path::Path,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// The clouds, by the names of their providers.
const CLOUDS: [(&str, &str); 5] = [
    ("aws", include_str!("../schemas/aws.json")),
    ("azurerm", include_str!("../schemas/azurerm.json")),
    ("google", include_str!("../schemas/google.json")),
    ("libvirt", include_str!("../schemas/libvirt.json")),
    ("openstack", include_str!("../schemas/openstack.json")),
];

#[tokio::main]
async fn main() -> ExitCode {
    match stand_in() {
        Ok(cloud) => meshward_terraform::serve(cloud).await,
        Err(error) => {
            let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{error:#}\n"));
            ExitCode::from(2)
        }
    }
}

fn stand_in() -> Result<StandIn> {
    let program = std::env::args().next().unwrap_or_default();
    let name = Path::new(&program).file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_default();
    let wanted = name.strip_prefix("terraform-provider-").and_then(|rest| rest.split('_').next());
    let known: Vec<&str> = CLOUDS.iter().map(|(name, _)| *name).collect();
    let (_, text) = CLOUDS.iter().find(|(name, _)| Some(*name) == wanted).with_context(|| {
        format!(
            "{name} stands in for nothing; link to it as terraform-provider-NAME: {}",
            known.join(", ")
        )
    })?;
    Ok(StandIn::new(Cloud::read(text)?))
}

struct StandIn {
    schema: Schema,
    offers: Offers,
}

impl StandIn {
    fn new(cloud: Cloud) -> Self {
        let kept = |what_is_there: bool| {
            move |(name, schema): (String, Schema)| {
                (name.clone(), Kept { name, schema, what_is_there })
            }
        };
        let resources = cloud.resources.into_iter().map(kept(false));
        let sources = cloud.data_sources.into_iter().map(kept(true));
        let offers = Offers {
            resources: resources.map(|(name, own)| (name, Box::new(own) as _)).collect(),
            data_sources: sources.map(|(name, own)| (name, Box::new(own) as _)).collect(),
            ephemerals: BTreeMap::new(),
        };
        Self { schema: cloud.provider, offers }
    }
}

impl Provider for StandIn {
    fn schema(&self) -> Schema {
        self.schema.clone()
    }

    fn offers(&self) -> &Offers {
        &self.offers
    }

    fn configure(&self, _config: Value) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// A resource or data source that exists only in Terraform's state.
struct Kept {
    name: String,
    schema: Schema,
    /// Set for a data source: its invented values are always the same.
    what_is_there: bool,
}

static MADE: AtomicU64 = AtomicU64::new(1);

impl Kept {
    /// Returns the value of a block, with invented values for attributes that only the cloud would
    /// know.
    fn filled(&self, block: &Block, value: &Value) -> Value {
        let Value::Map(_) = value else { return value.clone() };
        let mut filled = value.clone();
        for own in &block.attributes {
            if *value.get(&own.name) == Value::Unknown {
                filled.set(&own.name, self.invented(own));
            }
        }
        for nested in &block.blocks {
            let within = match value.get(&nested.name) {
                Value::List(all) => {
                    Value::List(all.iter().map(|one| self.filled(&nested.block, one)).collect())
                }
                one => self.filled(&nested.block, one),
            };
            filled.set(&nested.name, within);
        }
        filled
    }

    fn invented(&self, attribute: &Attribute) -> Value {
        let (number, since) = if self.what_is_there {
            (0, 0)
        } else {
            let since =
                SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
            (MADE.fetch_add(1, Ordering::Relaxed), since)
        };
        let name = attribute.name.as_str();
        let is_address =
            name.ends_with("_ip") || name.contains("ip_address") || name.starts_with("access_ip");
        match &attribute.kind {
            Type::Bool => false.into(),
            Type::Number => 0.into(),
            Type::String if name == "id" => format!("{}-{since}-{number}", self.name).into(),
            Type::String if is_address => format!("198.51.100.{}", 1 + number % 250).into(),
            Type::String => format!("{}-{name}-{number}", self.name).into(),
            Type::List(_) | Type::Set(_) => Value::List(vec![]),
            Type::Map(_) | Type::Object(_) => Value::Map(BTreeMap::new()),
        }
    }
}

impl Resource for Kept {
    fn schema(&self) -> Schema {
        self.schema.clone()
    }

    fn read(&self, state: Value) -> Answer<'_, Option<Value>> {
        Box::pin(async { Ok(Some(state)) })
    }

    fn create(&self, planned: Value) -> Answer<'_, Value> {
        Box::pin(async move { Ok(self.filled(&self.schema.block, &planned)) })
    }

    fn update(&self, _prior: Value, planned: Value) -> Answer<'_, Value> {
        Box::pin(async move { Ok(self.filled(&self.schema.block, &planned)) })
    }

    fn delete(&self, _state: Value) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn import(&self, id: &str) -> Result<Value, Diagnostics> {
        let mut state = Value::default();
        state.set("id", id);
        Ok(state)
    }

    fn import_form(&self) -> &'static str {
        "ID"
    }
}

impl DataSource for Kept {
    fn schema(&self) -> Schema {
        self.schema.clone()
    }

    fn read(&self, config: Value) -> Answer<'_, Value> {
        Box::pin(async move {
            let mut found = config;
            for own in self.schema.block.attributes.iter().filter(|own| own.presence.is_computed())
            {
                if found.get(&own.name).is_null() {
                    found.set(&own.name, Value::Unknown);
                }
            }
            Ok(self.filled(&self.schema.block, &found))
        })
    }
}
