//! The resource `meshward_device`.

use super::state::{bad_id, body, keep_unset, keyed, text};
use crate::{checks, mesh::Mesh};
use meshward_api_types as api;
use meshward_api_types::{CreateDevice, CreatedDevice, operations};
use meshward_terraform::{
    Answer, Attribute, Block, Diagnostics, Resource, Schema, Type, Value, timeouts, within,
};
use std::sync::Arc;

pub(crate) struct DeviceResource(pub Arc<Mesh>);

/// The operations that wait for the gateway, and their default timeouts.
const TIMES: [(&str, &str); 2] = [("create", "5m"), ("delete", "5m")];
const FORM: &str = "NETWORK/NAME";
/// The attributes that the coordinator returns only when a device is created.
const SAID_ONCE: [&str; 5] = ["gateway_public_key", "endpoint", "prefixes", "mtu", "configuration"];
/// The prefix of labels that a node has verified; users cannot set them.
const VERIFIED: &str = "meshward/";

impl DeviceResource {
    async fn make(&self, planned: Value) -> Result<Value, Diagnostics> {
        let limit = within(&planned, TIMES[0])?;
        let wanted: CreateDevice =
            body(&planned, &["name", "network", "labels", "gateway", "public_key"])?;
        let made: CreatedDevice =
            self.0.insist(limit, || self.0.write(&operations::CREATE_DEVICE, &[], &wanted)).await?;
        let mut now = planned;
        now.set("id", format!("{}/{}", wanted.network, wanted.name));
        now.set("gateway", made.gateway.as_str());
        now.set("workload", Value::of(&made.workload)?);
        now.set("addresses", Value::of(&made.addresses)?);
        now.set("gateway_public_key", made.public_key.as_str());
        now.set("endpoint", made.endpoint.to_string());
        now.set("prefixes", Value::of(&made.prefixes)?);
        now.set("mtu", u64::from(made.mtu));
        now.set("configuration", made.wg_quick(None, None));
        Ok(now)
    }

    async fn look(&self, state: Value) -> Result<Option<Value>, Diagnostics> {
        let (network, name) = (text(&state, "network")?, text(&state, "name")?);
        let all = self.0.list(&operations::DEVICES).await?;
        let is_it = |device: &&api::Device| {
            device.network.as_str() == network && device.name.as_str() == name
        };
        let Some(found) = all.iter().find(is_it) else { return Ok(None) };
        let mut now = Value::of(found)?;
        if let Value::Map(labels) = now.get("labels").clone() {
            let own = labels.into_iter().filter(|(key, _)| !key.starts_with(VERIFIED));
            now.set("labels", Value::Map(own.collect()));
        }
        now.set("id", format!("{network}/{name}"));
        for own in SAID_ONCE.iter().chain(&["timeouts"]) {
            now.set(own, state.get(own).clone());
        }
        keep_unset(&state, &mut now, &["labels"]);
        Ok(Some(now))
    }
}

impl Resource for DeviceResource {
    fn schema(&self) -> Schema {
        let said = |name: &str, kind: Type, text: &str| {
            Attribute::computed(name, kind, &format!("{text} Unknown after an import."))
        };
        Schema::new(
            "A machine with any WireGuard client, which joins through a node, its gateway, and is \
             policed there as a workload. The private key is generated on the device and never \
             leaves it. The gateway must be connected when a device is created or deleted.",
            Block::of(vec![
                Attribute::id(&format!("`{FORM}`.")),
                Attribute::required("name", Type::String, "The name.")
                    .replaces()
                    .checked(checks::workload),
                Attribute::required("network", Type::String, "The network.")
                    .replaces()
                    .checked(checks::network),
                Attribute::optional("labels", Type::map(), "The labels.").replaces(),
                Attribute::optional(
                    "gateway",
                    Type::String,
                    "The node through which the device joins, which the device must reach \
                     directly. Default: the only connected node.",
                )
                .or_computed()
                .replaces()
                .checked(checks::node),
                Attribute::required(
                    "public_key",
                    Type::String,
                    "The WireGuard public key of the device, in base64 (`wg pubkey`).",
                )
                .replaces()
                .checked(checks::public_key),
                Attribute::computed("addresses", Type::strings(), "The addresses of the device."),
                Attribute::computed("workload", Type::String, "The id of the workload."),
                said(
                    "gateway_public_key",
                    Type::String,
                    "The gateway's key for devices, in base64.",
                ),
                said("endpoint", Type::String, "The gateway's address and port."),
                said(
                    "prefixes",
                    Type::strings(),
                    "The prefixes that the device reaches through the gateway.",
                ),
                said("mtu", Type::Number, "The MTU of the device's interface, in bytes."),
                said(
                    "configuration",
                    Type::String,
                    "The configuration for wg-quick, without the private key, which you insert.",
                ),
            ])
            .with(timeouts(&TIMES)),
        )
    }

    fn validate(&self, config: &Value) -> Diagnostics {
        checks::labels(config, "labels")
    }

    fn read(&self, state: Value) -> Answer<'_, Option<Value>> {
        Box::pin(self.look(state))
    }

    fn create(&self, planned: Value) -> Answer<'_, Value> {
        Box::pin(self.make(planned))
    }

    /// Stores the new configuration: only `timeouts` changes in place.
    fn update(&self, _prior: Value, planned: Value) -> Answer<'_, Value> {
        Box::pin(async move { Ok(planned) })
    }

    fn delete(&self, state: Value) -> Answer<'_, ()> {
        Box::pin(async move {
            let limit = within(&state, TIMES[1])?;
            let (network, name) = (text(&state, "network")?, text(&state, "name")?);
            self.0
                .insist(limit, || async {
                    self.0.remove(&operations::REMOVE_DEVICE, &[&network, &name]).await
                })
                .await
        })
    }

    fn import(&self, id: &str) -> Result<Value, Diagnostics> {
        match id.split_once('/') {
            Some((network, name)) => Ok(keyed(&[("network", network), ("name", name)])),
            None => Err(bad_id(id, FORM)),
        }
    }

    fn import_form(&self) -> &'static str {
        FORM
    }
}
