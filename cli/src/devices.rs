//! Devices: machines with a stock WireGuard.

use crate::{
    arguments::{self, Common, Device},
    client::Client,
    coordinator::done,
    output::{list as cell, note_dry_run, show, whole},
};
use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_STANDARD};
use fast_qr::QRBuilder;
use meshward_model::{
    PublicKey,
    api::{self, CreateDevice, CreatedDevice},
};
use std::io::IsTerminal;
use x25519_dalek::StaticSecret;

pub async fn device(common: &Common, verb: Device) -> Result<()> {
    let client = Client::coordinator(common)?;
    match verb {
        Device::Create { name, network, labels, gateway, public_key, endpoint } => {
            let labels = arguments::labels(&labels)?;
            // Made here, and known to nobody else.
            let own = match public_key {
                Some(_) => None,
                None => Some(fresh()?),
            };
            let key = own.as_ref().map(public).or(public_key).context("there is no key")?;
            let wanted = CreateDevice { name, network, labels, gateway, public_key: key.to_string() };
            let created: CreatedDevice = client.post("/v1/devices", &wanted).await?;
            note_dry_run(common);
            if common.dry_run || own.is_none() && whole(common, &created)? {
                return Ok(());
            }
            let private = own.as_ref().map(|secret| BASE64_STANDARD.encode(secret.to_bytes()));
            let text = created.wg_quick(private.as_deref(), endpoint.as_deref());
            print!("{text}");
            if std::io::stdout().is_terminal() && own.is_some() {
                match QRBuilder::new(text.as_str()).build() {
                    Ok(code) => eprintln!("\n{}", code.to_str()),
                    Err(error) => eprintln!("\nno QR code: {error}"),
                }
            }
            eprintln!(
                "device {} joins by node {}; keep the text above as /etc/wireguard/mesh.conf there, for its owner's eyes only, and run: wg-quick up mesh",
                created.name, created.gateway
            );
            Ok(())
        }
        Device::List => {
            let all: Vec<api::Device> = client.get("/v1/devices").await?;
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
            let columns = ["NAME", "NETWORK", "GATEWAY", "ADDRESSES", "LABELS", "KEY"];
            show(
                common,
                &all,
                columns,
                row,
                "no devices; make one with: meshctl device create --name NAME --network NETWORK",
            )
        }
        Device::Remove { name, network } => {
            client.delete(&format!("/v1/devices/{network}/{name}")).await?;
            done(common, format!("device {name} is turned away"))
        }
    }
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
