//! Devices: machines with a stock WireGuard.

use crate::{
    arguments::{self, Common, Device, Labelled, verb_or_list},
    client::Client,
    listing, note,
    output::{Change, Effect, list as cell, print, show, tell, whole},
};
use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_STANDARD};
use fast_qr::QRBuilder;
use meshward_api_types as api;
use meshward_api_types::{CreateDevice, CreatedDevice, operations};
use meshward_types::PublicKey;
use serde::Serialize;
use std::io::IsTerminal;
use x25519_dalek::StaticSecret;

pub(crate) async fn device(common: &Common, verb: Option<Device>, which: Labelled) -> Result<()> {
    let client = Client::coordinator(common)?;
    match verb_or_list(verb, which, Device::List)? {
        Device::Create { name, network, labels, gateway, public_key, endpoint } => {
            let labels = arguments::labels(&labels)?;
            // The private key does not leave this machine.
            let own = match public_key {
                Some(_) => None,
                None => Some(fresh()?),
            };
            let key = own.as_ref().map(public).or(public_key).context("there is no key")?;
            let wanted =
                CreateDevice { name, network, labels, gateway, public_key: key.to_string() };
            let created: CreatedDevice =
                client.write(&operations::CREATE_DEVICE, &[], &wanted).await?;
            print_created(common, &wanted, &created, own.as_ref(), endpoint.as_deref())
        }
        Device::List(Labelled { selector, watching }) => {
            let query: Vec<_> = listing::by_selector(selector.as_ref()).into_iter().collect();
            let read = async || client.all(&operations::DEVICES, &query).await;
            listing::list(watching, read, |all| print_list(common, all, selector.is_some())).await
        }
        Device::Remove { name, network } => {
            client.remove(&operations::REMOVE_DEVICE, &[&network, &name]).await?;
            let would = format!("remove device {name} from network {network}");
            let done = format!("device {name} is removed");
            tell(common, &Change { would, done, effects: vec![], result: None })
        }
    }
}

/// A device with its configuration, for programs.
#[derive(Serialize)]
struct Configured<'a> {
    #[serde(flatten)]
    created: &'a CreatedDevice,
    /// The file for wg-quick(8), with the private key if it was made here.
    configuration: &'a str,
}

fn print_created(
    common: &Common,
    wanted: &CreateDevice,
    created: &CreatedDevice,
    own: Option<&StaticSecret>,
    endpoint: Option<&str>,
) -> Result<()> {
    if common.dry_run {
        let would = format!("create device {} behind node {}", created.name, created.gateway);
        let detail =
            format!("{}, {}, network {}", cell(&created.addresses), wanted.labels, wanted.network);
        let name = created.name.to_string();
        let effects = vec![Effect { action: "attach", kind: "workload", name, detail }];
        return tell(
            common,
            &Change { would, done: String::new(), effects, result: Some(created) },
        );
    }
    let private = own.map(|secret| BASE64_STANDARD.encode(secret.to_bytes()));
    let text = created.wg_quick(private.as_deref(), endpoint);
    if whole(common, &Configured { created, configuration: &text })? {
        return Ok(());
    }
    print(format_args!("{text}"));
    if std::io::stdout().is_terminal() && own.is_some() {
        match QRBuilder::new(text.as_str()).build() {
            Ok(code) => note!("\n{}", code.to_str()),
            Err(error) => note!("\nno QR code: {error}"),
        }
    }
    note!(
        "device {} connects through node {}; on the device, save the text above as \
         /etc/wireguard/mesh.conf, readable for root alone, and run: wg-quick up mesh",
        created.name,
        created.gateway
    );
    Ok(())
}

fn print_list(common: &Common, all: &[api::Device], narrowed: bool) -> Result<()> {
    let row = |device: &api::Device| {
        [
            device.name.to_string(),
            device.network.to_string(),
            device.gateway.to_string(),
            cell(&device.addresses),
            device.labels.to_string(),
            device.public_key.clone(),
        ]
    };
    let columns = ["NAME", "NETWORK", "GATEWAY", "ADDRESSES", "LABELS", "KEY+"];
    let none = "no devices; to create one: meshctl device create --name NAME --network NETWORK";
    show(common, all, columns, row, &listing::none(narrowed, "devices", none))
}

fn fresh() -> Result<StaticSecret> {
    let mut bytes = [0; 32];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .map_err(|_| anyhow::anyhow!("the kernel gives no random bytes"))?;
    Ok(StaticSecret::from(bytes))
}

fn public(secret: &StaticSecret) -> PublicKey {
    PublicKey(x25519_dalek::PublicKey::from(secret).to_bytes())
}
